//! The examples of one split: its files read, its broken rows gathered, its labels resolved.

use std::path::{Path, PathBuf};

use crate::columns::ColumnChoice;
use crate::dataset::{Example, Label, Split};
use crate::error::{BrokenRow, Error, RowProblem, SHOWN_BROKEN_ROWS, list};
use crate::format::Format;
use crate::glue::GlueTask;
use crate::label::{LabelTable, Labels, RawLabel, label_text, numbered_places, places_in_model};
use crate::records::{Record, Records, Value};

/// How labelled files are read.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The columns, where they are named.
    pub columns: ColumnChoice,
    /// The task whose columns and labels are expected.
    pub task: Option<GlueTask>,
    /// Leave broken rows out and count them, instead of refusing the file.
    pub skip_bad_rows: bool,
}

/// Reads labelled files against labels already known.
///
/// # Errors
/// Any of [`Error`]; a label that is none of `labels` is a broken row.
pub fn read_split(name: &str, files: &[PathBuf], options: &ReadOptions, labels: &Labels) -> Result<Split, Error> {
    RawSplit::read(files, options)?.resolve(name, labels, options.skip_bad_rows)
}

/// A split whose classes are numbered as a model has them.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSplit {
    /// The split.
    pub split: Split,
    /// Whether labels were numbers to which neither the task nor the files give a name, so that they were taken for
    /// numbers of the model's classes, which have names.
    pub by_number: bool,
}

/// Reads labelled files to judge a model on them.
///
/// What a label means is settled as in training: by the task; without one, by the class names that the files give;
/// without those, by the model's own names. The first two are then looked up among the model's, apart from case, so that
/// a model may number its classes in another order. A model that knows its classes only by numbers (`LABEL_1`) has them
/// in the data's order.
///
/// # Errors
/// Any of [`Error`]; [`Error::OtherLabels`] if the names are not the model's, [`Error::OtherKind`] if the task predicts
/// numbers and the model does not, or the other way round.
pub fn read_for_model(
    name: &str,
    files: &[PathBuf],
    options: &ReadOptions,
    model: &Labels,
) -> Result<ModelSplit, Error> {
    if let Some(task) = options.task {
        task.check_kind(model)?;
    }
    let raw = RawSplit::read(files, options)?;
    let task = options.task.and_then(|task| Some((task, task.labels()?)));
    let (own, whose) = match (task, &raw.class_names) {
        (Some((task, names)), _) => (names.iter().map(|&name| name.to_owned()).collect(), format!("the task {task}")),
        (None, Some(names)) => (names.clone(), "its metadata".to_owned()),
        (None, None) => (Vec::new(), String::new()),
    };
    let order = match model.names() {
        Some(order) if !own.is_empty() => order,
        Some(order) => {
            let by_number = numbered_places(order).is_none() && raw.table.labels().any(|label| model.by_number(label));
            return Ok(ModelSplit { split: raw.resolve(name, model, options.skip_bad_rows)?, by_number });
        }
        None => {
            let split = raw.resolve(name, model, options.skip_bad_rows)?;
            return Ok(ModelSplit { split, by_number: false });
        }
    };
    let Some(places) = places_in_model(&own, order) else {
        let path = files.first().cloned().unwrap_or_default();
        return Err(Error::OtherLabels { path, whose, task: task.is_some(), found: own, model: order.to_vec() });
    };
    let mut split = raw.resolve(name, &Labels::named(own), options.skip_bad_rows)?;
    split.renumber(&places);
    Ok(ModelSplit { split, by_number: false })
}

impl GlueTask {
    /// The task's number for each class of a model that knows the task's classes in an order of its own; none if it knows
    /// others, and for numbers.
    pub fn places_of(self, model: &[String]) -> Option<Vec<usize>> {
        let names: Vec<String> = self.labels()?.iter().map(|&name| name.to_owned()).collect();
        let in_model = places_in_model(&names, model)?;
        let mut places = vec![0; in_model.len()];
        in_model.into_iter().enumerate().for_each(|(class, place)| places[place] = class);
        Some(places)
    }

    /// The class of a model that is the task's class 1, which F1 is of; 1 if the model knows other classes.
    pub fn positive_class(self, model: &[String]) -> u32 {
        let place = self.places_of(model).and_then(|places| places.iter().position(|&class| class == 1));
        place.and_then(|place| u32::try_from(place).ok()).unwrap_or(1)
    }

    /// Whether a model predicts what the task asks for: a number, or classes.
    ///
    /// # Errors
    /// [`Error::OtherKind`].
    pub fn check_kind(self, model: &Labels) -> Result<(), Error> {
        match (self.labels(), model.names()) {
            (None, Some(names)) => {
                let found = format!("tells the classes {}", list(names));
                Err(Error::OtherKind { task: self, expected: "a number", found })
            }
            (Some(_), None) => {
                Err(Error::OtherKind { task: self, expected: "classes", found: "gives a number".to_owned() })
            }
            _ => Ok(()),
        }
    }
}

/// Rows whose labels are not yet resolved.
pub(crate) struct RawSplit {
    pub files: Vec<PathBuf>,
    pub table: LabelTable,
    /// Class names that the files themselves give.
    pub class_names: Option<Vec<String>>,
    rows: Vec<RawRow>,
    label_column: String,
    broken: BrokenRows,
}

struct RawRow {
    text: String,
    pair: Option<String>,
    label: u32,
    file: u32,
    line: u64,
}

#[derive(Default)]
struct BrokenRows {
    shown: Vec<BrokenRow>,
    count: usize,
}

impl BrokenRows {
    fn push(&mut self, row: BrokenRow) {
        self.count += 1;
        if self.shown.len() < SHOWN_BROKEN_ROWS {
            self.shown.push(row);
        }
    }
}

impl RawSplit {
    /// Reads all rows of all files.
    pub fn read(files: &[PathBuf], options: &ReadOptions) -> Result<RawSplit, Error> {
        let mut split = RawSplit {
            files: files.to_vec(),
            table: LabelTable::default(),
            class_names: None,
            rows: Vec::new(),
            label_column: String::new(),
            broken: BrokenRows::default(),
        };
        for (index, path) in files.iter().enumerate() {
            split.read_file(index, path, options)?;
        }
        Ok(split)
    }

    fn read_file(&mut self, index: usize, path: &Path, options: &ReadOptions) -> Result<(), Error> {
        let mut records = open(path, options.task)?;
        let columns = options.columns.resolve(&records, options.task, true)?;
        let label = columns.label.clone().unwrap_or_default();
        let names = records.class_names(&label);
        match (&self.class_names, &names) {
            (Some(expected), Some(found)) if expected != found => {
                let (expected, found) = (expected.clone(), found.clone());
                return Err(Error::LabelNamesDiffer { path: path.to_owned(), expected, found });
            }
            (None, Some(_)) => self.class_names = names,
            _ => {}
        }
        self.label_column.clone_from(&label);
        let mut selected = vec![columns.text.as_str(), label.as_str()];
        selected.extend(columns.pair.as_deref());
        records.select(&selected)?;
        if records.may_have_more_columns() {
            records.expect_none_of(columns.absent_pairs(&options.columns, options.task));
        }
        let file = u32::try_from(index).unwrap_or(u32::MAX);
        while let Some(record) = records.read()? {
            let row = record.and_then(|Record { line, mut values }| {
                let broken = |problem| BrokenRow { path: path.to_owned(), line, problem };
                let pair = match &columns.pair {
                    Some(column) => Some(text(values.swap_remove(2), column).map_err(broken)?),
                    None => None,
                };
                check(&values[1], &label).map_err(broken)?;
                let label_value = label_text(values.swap_remove(1)).unwrap_or_default();
                let number = self.table.number(&label_value, index, line);
                let text = text(values.swap_remove(0), &columns.text).map_err(broken)?;
                match number {
                    Some(number) => Ok(RawRow { text, pair, label: number, file, line }),
                    None => Err(broken(RowProblem::NoValue { column: label.clone() })),
                }
            });
            match row {
                Ok(row) => self.rows.push(row),
                Err(row) => self.broken.push(row),
            }
        }
        Ok(())
    }

    /// Gives every row its class or number.
    pub fn resolve(mut self, name: &str, labels: &Labels, skip_bad_rows: bool) -> Result<Split, Error> {
        let mut examples = Vec::with_capacity(self.rows.len());
        let meaning = |raw: &RawLabel| match labels {
            Labels::Regression => raw.target().map(Label::Value),
            Labels::Classes { .. } => labels.class_of(raw).map(Label::Class),
        };
        let meanings: Vec<_> = self.table.labels().map(|raw| meaning(raw).ok_or(&raw.text)).collect();
        for row in std::mem::take(&mut self.rows) {
            match meanings[row.label as usize] {
                Ok(label) => examples.push(Example { text: row.text, pair: row.pair, label }),
                Err(found) => {
                    let (column, found) = (self.label_column.clone(), found.clone());
                    let problem = match labels {
                        Labels::Regression => RowProblem::NotANumber { column, found },
                        Labels::Classes { names, .. } => {
                            RowProblem::UnknownLabel { column, found, known: names.clone() }
                        }
                    };
                    let path = self.files[row.file as usize].clone();
                    self.broken.push(BrokenRow { path, line: row.line, problem });
                }
            }
        }
        let BrokenRows { shown, count } = self.broken;
        if count > 0 && !skip_bad_rows {
            return Err(Error::BrokenRows { rows: shown, count });
        }
        if examples.is_empty() {
            let path = self.files.first().cloned().unwrap_or_default();
            return Err(Error::Empty { path, expected: "at least one usable row" });
        }
        Ok(Split { name: name.to_owned(), files: self.files, examples, skipped_rows: count, skipped: shown })
    }

    /// How many rows are usable so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The refusal of this split's broken rows, if they are to be refused.
    pub fn refuse_broken(&self, skip_bad_rows: bool) -> Result<(), Error> {
        match self.broken.count {
            count if count > 0 && !skip_bad_rows => Err(Error::BrokenRows { rows: self.broken.shown.clone(), count }),
            _ => Ok(()),
        }
    }
}

/// Opens a file as the task's own, where there is a task: GLUE's raw files have names of many kinds, all of them TSV.
pub(crate) fn open(path: &Path, task: Option<GlueTask>) -> Result<Records, Error> {
    let format = match (Format::from_path(path), task) {
        (Ok(Format::Lines) | Err(_), Some(_)) => Format::Tsv,
        (format, _) => format?,
    };
    let mut records = Records::open(path, format)?;
    if let Some(columns) = task.and_then(|task| task.columns_without_header(records.columns())) {
        records.without_header(columns);
    }
    Ok(records)
}

/// The text in a value.
pub(crate) fn text(value: Value, column: &str) -> Result<String, RowProblem> {
    check(&value, column)?;
    Ok(label_text(value).unwrap_or_default())
}

fn check(value: &Value, column: &str) -> Result<(), RowProblem> {
    let column = || column.to_owned();
    match value {
        Value::Missing => Err(RowProblem::NoValue { column: column() }),
        Value::NotUtf8 => Err(RowProblem::NotUtf8 { column: column() }),
        Value::Other(found) => Err(RowProblem::NotText { column: column(), found }),
        Value::Text(_) | Value::Integer(_) | Value::Float(_) => Ok(()),
    }
}
