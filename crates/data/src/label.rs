//! Labels as they stand in files, and the classes or numbers they become.

use std::collections::HashMap;

use crate::records::Value;

/// What a model is to predict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// One of these classes.
    Classes {
        /// Their names, in the order of their numbers.
        names: Vec<String>,
        /// Whether a label may also be given by its number, as GLUE's files do.
        by_number: bool,
    },
    /// A number.
    Regression,
}

impl Labels {
    /// Classes with names of their own, which files may also give by number: those of a task, or of a model.
    pub fn named<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Labels {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let by_number = names.iter().all(|name| name.parse::<i64>().is_err());
        Labels::Classes { names, by_number }
    }

    /// The names of the classes; none for regression.
    pub fn names(&self) -> Option<&[String]> {
        match self {
            Labels::Classes { names, .. } => Some(names),
            Labels::Regression => None,
        }
    }

    /// How many numbers a model gives for an example: one a class, or one.
    pub fn outputs(&self) -> usize {
        self.names().map_or(1, <[String]>::len)
    }

    /// Whether this label means a class only as its number.
    pub(crate) fn by_number(&self, label: &RawLabel) -> bool {
        let Labels::Classes { names, by_number } = self else { return false };
        let Number::Integer(integer) = label.number else { return false };
        *by_number && usize::try_from(integer).is_ok_and(|index| index < names.len())
    }

    pub(crate) fn class_of(&self, label: &RawLabel) -> Option<u32> {
        let Labels::Classes { names, by_number } = self else { return None };
        let position = |wanted: &str| names.iter().position(|name| name == wanted);
        let class = position(&label.text).or_else(|| match label.number {
            Number::Integer(integer) => position(&integer.to_string()).or_else(|| {
                let index = usize::try_from(integer).ok()?;
                (*by_number && index < names.len()).then_some(index)
            }),
            _ => without_case(names, &label.text),
        });
        class.and_then(|class| u32::try_from(class).ok())
    }
}

/// The one name that is this text apart from case.
fn without_case(names: &[String], text: &str) -> Option<usize> {
    let text = text.to_lowercase();
    let mut found = (0..names.len()).filter(|&index| names[index].to_lowercase() == text);
    found.next().filter(|_| found.next().is_none())
}

/// Where each of `names` stands in `order`, if those are the same names apart from case.
pub(crate) fn places(names: &[String], order: &[String]) -> Option<Vec<usize>> {
    if names.len() != order.len() {
        return None;
    }
    let place = |name: &String| order.iter().position(|other| other == name).or_else(|| without_case(order, name));
    let places: Vec<usize> = names.iter().map(place).collect::<Option<_>>()?;
    let mut filled = vec![false; order.len()];
    places.iter().for_each(|&place| filled[place] = true);
    (!filled.contains(&false)).then_some(places)
}

/// Where each of the data's classes stands in a model's order: by name, or by number if the model knows no names.
pub(crate) fn places_in_model(names: &[String], model: &[String]) -> Option<Vec<usize>> {
    let numbered = || numbered_places(model).filter(|places| places.len() == names.len());
    places(names, model).or_else(numbered)
}

/// Where each class stands in the order of a model that knows its classes only by numbers: `1`, or `LABEL_1` as
/// transformers writes.
pub(crate) fn numbered_places(order: &[String]) -> Option<Vec<usize>> {
    let called = |name: fn(usize) -> String| places(&(0..order.len()).map(name).collect::<Vec<_>>(), order);
    called(|class| class.to_string()).or_else(|| called(|class| format!("LABEL_{class}")))
}

/// A label as a file has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawLabel {
    /// Its text, without spaces around it.
    pub text: String,
    /// The number it is, if it is one.
    pub number: Number,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    None,
    /// Also a number written with a fraction of zero.
    Integer(i64),
    Fractional(f64),
}

impl RawLabel {
    /// The label in a value; none if there is nothing in it.
    pub fn from_text(text: &str) -> Option<RawLabel> {
        let text = text.trim();
        (!text.is_empty()).then(|| RawLabel { text: text.to_owned(), number: number(text) })
    }

    /// The number, as a regression target.
    pub fn target(&self) -> Option<f32> {
        let target = match self.number {
            Number::None => return None,
            #[allow(clippy::cast_precision_loss)]
            Number::Integer(integer) => integer as f32,
            #[allow(clippy::cast_possible_truncation)]
            Number::Fractional(value) => value as f32,
        };
        target.is_finite().then_some(target)
    }
}

/// A label's text, or none; numbers become their shortest decimals.
pub(crate) fn label_text(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        Value::Integer(integer) => Some(integer.to_string()),
        Value::Float(float) => Some(float.to_string()),
        Value::Missing | Value::NotUtf8 | Value::Other(_) => None,
    }
}

fn number(text: &str) -> Number {
    if let Ok(integer) = text.parse::<i64>() {
        return Number::Integer(integer);
    }
    // Words such as `nan` and `infinity` are texts here, though Rust reads them as numbers.
    let decimal = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    match text.parse::<f64>() {
        Ok(value) if decimal && value.is_finite() => {
            const EXACT: f64 = 9_007_199_254_740_992.0;
            #[allow(clippy::cast_possible_truncation)]
            match value.fract() == 0.0 && value.abs() < EXACT {
                true => Number::Integer(value as i64),
                false => Number::Fractional(value),
            }
        }
        _ => Number::None,
    }
}

/// The distinct labels of a file set, each kept once, with the place where it was first seen.
#[derive(Default)]
pub(crate) struct LabelTable {
    numbers: HashMap<String, u32>,
    labels: Vec<(RawLabel, usize, u64)>,
}

impl LabelTable {
    /// The label's number in this table.
    pub fn number(&mut self, text: &str, file: usize, line: u64) -> Option<u32> {
        let text = text.trim();
        if let Some(&number) = self.numbers.get(text) {
            return Some(number);
        }
        let label = RawLabel::from_text(text)?;
        let number = u32::try_from(self.labels.len()).ok()?;
        self.numbers.insert(text.to_owned(), number);
        self.labels.push((label, file, line));
        Some(number)
    }

    /// The labels in the order of their numbers.
    pub fn labels(&self) -> impl Iterator<Item = &RawLabel> {
        self.labels.iter().map(|(label, ..)| label)
    }

    /// The classes these labels are: integers ascending if all are integers, otherwise texts sorted.
    ///
    /// # Errors
    /// The first label with a fraction, its file and line, if all are numbers and some have one.
    pub fn classes(&self) -> Result<Labels, (String, usize, u64)> {
        let mut integers = Vec::new();
        let mut fractional = None;
        let mut words = false;
        for (label, file, line) in &self.labels {
            match label.number {
                Number::Integer(integer) => integers.push(integer),
                Number::Fractional(_) if fractional.is_none() => fractional = Some((label.text.clone(), *file, *line)),
                Number::Fractional(_) => {}
                Number::None => words = true,
            }
        }
        match fractional {
            Some(place) if !words => return Err(place),
            _ => {}
        }
        let names = if integers.len() == self.labels.len() {
            integers.sort_unstable();
            integers.dedup();
            integers.iter().map(i64::to_string).collect()
        } else {
            let mut names: Vec<String> = self.labels.iter().map(|(label, ..)| label.text.clone()).collect();
            names.sort_unstable();
            names
        };
        Ok(Labels::Classes { names, by_number: false })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn classes(labels: &[&str]) -> Result<Vec<String>, String> {
        let mut table = LabelTable::default();
        for (line, label) in labels.iter().enumerate() {
            table.number(label, 0, line as u64);
        }
        table.classes().map(|labels| labels.names().unwrap().to_vec()).map_err(|(label, ..)| label)
    }

    #[test]
    fn integers_ascend_and_texts_are_sorted() {
        assert_eq!(classes(&["10", "9", "-1", "9", " 9 "]).unwrap(), ["-1", "9", "10"]);
        assert_eq!(classes(&["1.0", "0.0", "1"]).unwrap(), ["0", "1"]);
        assert_eq!(classes(&["spam", "ham", "10", "9"]).unwrap(), ["10", "9", "ham", "spam"]);
        assert_eq!(classes(&["nan", "inf", "e"]).unwrap(), ["e", "inf", "nan"]);
    }

    #[test]
    fn fractions_are_no_classes_unless_among_words() {
        assert_eq!(classes(&["1", "2.5", "3.5"]).unwrap_err(), "2.5");
        assert_eq!(classes(&["v2.5", "2.5"]).unwrap(), ["2.5", "v2.5"]);
    }

    #[test]
    fn a_named_class_is_also_found_by_its_number() {
        let labels = Labels::named(["negative", "positive"]);
        let class = |text| labels.class_of(&RawLabel::from_text(text).unwrap());
        assert_eq!(class("positive"), Some(1));
        assert_eq!(class("0"), Some(0));
        assert_eq!(class("2"), None);
        assert_eq!(class("-1"), None);
        let labels = Labels::named(["3", "7"]);
        let class = |text| labels.class_of(&RawLabel::from_text(text).unwrap());
        assert_eq!(class("7.0"), Some(1));
        assert_eq!(class("0"), None);
    }

    #[test]
    fn case_tells_classes_apart_only_where_it_must() {
        let class = |names: [&str; 2], text| Labels::named(names).class_of(&RawLabel::from_text(text).unwrap());
        assert_eq!(class(["no", "Yes"], "YES"), Some(1));
        assert_eq!(class(["us", "US"], "US"), Some(1));
        assert_eq!(class(["us", "US"], "Us"), None);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(places(&names(&["us", "US"]), &names(&["US", "us"])), Some(vec![1, 0]));
        assert_eq!(places(&names(&["a", "A"]), &names(&["b", "a"])), None);
        assert_eq!(places(&names(&["a"]), &names(&["a", "b"])), None);
    }

    #[test]
    fn a_model_may_know_its_classes_by_number() {
        let places = |names: &[&str]| numbered_places(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(places(&["1", "0"]), Some(vec![1, 0]));
        assert_eq!(places(&["LABEL_0", "LABEL_1", "LABEL_2"]), Some(vec![0, 1, 2]));
        assert_eq!(places(&["0", "2"]), None);
        assert_eq!(places(&["no", "yes"]), None);
    }

    #[test]
    fn a_target_is_a_finite_number() {
        let target = |text| RawLabel::from_text(text).and_then(|label| label.target());
        assert_eq!(target("3.80"), Some(3.8));
        assert_eq!(target("5"), Some(5.0));
        assert_eq!(target("1e39"), None);
        assert_eq!(target("nan"), None);
        assert_eq!(target(" "), None);
    }
}
