//! Which columns of a file hold the text, the second text and the label: as named by the caller, by the task, or by what
//! such columns are usually called.

use crate::error::Error;
use crate::glue::GlueTask;
use crate::records::Records;

/// Column names given by the caller; what is left out is found by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnChoice {
    /// The text.
    pub text: Option<String>,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The label.
    pub label: Option<String>,
}

/// The columns of one file, as they are spelled there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The label; none where none was wanted.
    pub label: Option<String>,
}

const USUAL_PAIRS: [(&str, &str); 10] = [
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("#1 string", "#2 string"),
    ("question", "sentence"),
    ("query", "passage"),
];
const USUAL_TEXTS: [&str; 7] = ["text", "sentence", "content", "review", "comment", "document", "question"];
const USUAL_LABELS: [&str; 9] =
    ["label", "labels", "gold_label", "class", "category", "target", "is_duplicate", "quality", "score"];

impl ColumnChoice {
    /// Finds the columns in a file. One that is named must be there, unless the file may have more columns than are known
    /// yet: then each row must have it.
    ///
    /// # Errors
    /// [`Error::NoSuchColumn`] for a name that is not there, [`Error::UnclearColumn`] where no name tells the role.
    pub fn resolve(&self, records: &Records, task: Option<GlueTask>, with_label: bool) -> Result<Columns, Error> {
        let (text, pair) = self.texts(records, task)?;
        let label = match (with_label, &self.label) {
            (false, _) => None,
            (true, Some(wanted)) => Some(named(records, wanted)?),
            (true, None) => {
                let usual = task.map_or(&USUAL_LABELS[..], GlueTask::label_columns);
                let found = usual.iter().find_map(|name| spelled(records, name));
                Some(found.ok_or_else(|| unclear(records, "label", "--label"))?)
            }
        };
        Ok(Columns { text, pair, label })
    }

    fn texts(&self, records: &Records, task: Option<GlueTask>) -> Result<(String, Option<String>), Error> {
        if let Some(text) = &self.text {
            let pair = self.pair.as_ref().map(|pair| named(records, pair)).transpose()?;
            return Ok((named(records, text)?, pair));
        }
        let single = USUAL_TEXTS.iter().map(|&text| (text, None));
        let usual: Vec<_> = match task {
            Some(task) => task.text_columns().to_vec(),
            None => USUAL_PAIRS.iter().map(|&(text, pair)| (text, Some(pair))).chain(single).collect(),
        };
        if let Some(pair) = &self.pair {
            let pair = named(records, pair)?;
            let text = usual.iter().find_map(|(text, _)| spelled(records, text).filter(|text| *text != pair));
            return Ok((text.ok_or_else(|| unclear(records, "text", "--text"))?, Some(pair)));
        }
        let found = usual.iter().find_map(|(text, pair)| {
            let text = spelled(records, text)?;
            match pair {
                Some(pair) => spelled(records, pair).map(|pair| (text, Some(pair))),
                None => Some((text, None)),
            }
        });
        found.ok_or_else(|| unclear(records, "text", "--text"))
    }
}

impl Columns {
    /// What a second text would usually be called beside this text, where none was found: rows that have one are not to be
    /// read as single texts. Nothing where the text was named without a second.
    pub(crate) fn absent_pairs(&self, choice: &ColumnChoice, task: Option<GlueTask>) -> Vec<&'static str> {
        if self.pair.is_some() || choice.text.is_some() {
            return Vec::new();
        }
        let usual: Vec<(&str, &str)> = match task {
            Some(task) => task.text_columns().iter().filter_map(|&(text, pair)| Some((text, pair?))).collect(),
            None => USUAL_PAIRS.to_vec(),
        };
        let beside = usual.into_iter().filter(|(text, _)| text.eq_ignore_ascii_case(&self.text)).map(|(_, pair)| pair);
        beside.filter(|pair| self.label.as_ref().is_none_or(|label| !label.eq_ignore_ascii_case(pair))).collect()
    }
}

/// How the file spells a usual name.
fn spelled(records: &Records, name: &str) -> Option<String> {
    records.columns().iter().find(|column| column.eq_ignore_ascii_case(name)).cloned()
}

fn named(records: &Records, wanted: &str) -> Result<String, Error> {
    if records.may_have_more_columns() || records.columns().iter().any(|column| column == wanted) {
        return Ok(wanted.to_owned());
    }
    let (path, found) = (records.path().to_owned(), records.columns().to_vec());
    Err(Error::NoSuchColumn { path, wanted: wanted.to_owned(), found })
}

fn unclear(records: &Records, role: &'static str, flag: &'static str) -> Error {
    Error::UnclearColumn { path: records.path().to_owned(), role, flag, found: records.columns().to_vec() }
}
