//! A labelled data set as training takes it: the training examples, one or more validation sets, and the labels' meaning.

use std::path::PathBuf;

use crate::columns::ColumnChoice;
use crate::error::Error;
use crate::files::{Folder, SplitFiles, ValidationSet};
use crate::glue::GlueTask;
use crate::label::{Labels, places};
use crate::split::{RawSplit, ReadOptions};

/// A text or a pair of texts with its label.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The text.
    pub text: String,
    /// The second text.
    pub pair: Option<String>,
    /// What a model is to predict for it.
    pub label: Label,
}

/// What a model is to predict for one example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// The number of a class.
    Class(u32),
    /// A number.
    Value(f32),
}

/// The examples of one split.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// `train`, `validation`, `matched`, `mismatched`, or a file's name.
    pub name: String,
    /// The files they come from.
    pub files: Vec<PathBuf>,
    /// The examples, in the files' order.
    pub examples: Vec<Example>,
    /// How many broken rows were left out.
    pub skipped_rows: usize,
    /// The first of them.
    pub skipped: Vec<crate::error::BrokenRow>,
}

impl Split {
    /// Gives every class the number that `places` has for it.
    pub(crate) fn renumber(&mut self, places: &[usize]) {
        for example in &mut self.examples {
            if let Label::Class(class) = &mut example.label {
                *class = u32::try_from(places[*class as usize]).unwrap_or(*class);
            }
        }
    }
}

/// Where the data are and how to read them.
#[derive(Clone, Debug, Default)]
pub struct DatasetOptions {
    /// A task of GLUE, which settles columns, labels and metrics.
    pub task: Option<GlueTask>,
    /// A folder with a file for each split.
    pub folder: Option<PathBuf>,
    /// The training file; wins over the folder's.
    pub train: Option<PathBuf>,
    /// The validation files, each a set of its own; win over the folder's.
    pub validation: Vec<PathBuf>,
    /// Which share of the training rows to validate on, where there is no validation file; refused where there is one.
    pub validation_fraction: Option<f64>,
    /// What the random choices follow from.
    pub seed: u64,
    /// The columns, where they are named.
    pub columns: ColumnChoice,
    /// The labels are numbers to be predicted.
    pub regression: bool,
    /// Leave broken rows out and count them.
    pub skip_bad_rows: bool,
    /// Train on at most so many rows, chosen at random.
    pub max_train_rows: Option<usize>,
    /// Validate on at most so many rows of each set, chosen at random.
    pub max_validation_rows: Option<usize>,
}

/// A labelled data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The task of GLUE it is.
    pub task: Option<GlueTask>,
    /// What its labels mean.
    pub labels: Labels,
    /// The training examples.
    pub train: Split,
    /// The validation sets; at least one.
    pub validation: Vec<Split>,
}

impl Dataset {
    /// Reads a whole data set.
    ///
    /// Labels are those of the task; or, without one, those the files name; or the distinct ones in the training rows,
    /// integers ascending and otherwise texts sorted.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub fn load(options: &DatasetOptions) -> Result<Dataset, Error> {
        let files = find_files(options)?;
        let read =
            ReadOptions { columns: options.columns.clone(), task: options.task, skip_bad_rows: options.skip_bad_rows };
        let train = RawSplit::read(&files.train, &read)?;
        let labels = labels_of(&train, options)?;
        let mut train = train.resolve("train", &labels, options.skip_bad_rows)?;
        let mut validation = Vec::new();
        for (name, paths) in &files.validation {
            validation.push(RawSplit::read(paths, &read)?.resolve(name, &labels, options.skip_bad_rows)?);
        }
        if validation.is_empty() {
            validation.push(cut_off(&mut train, options)?);
        }
        sample(&mut train.examples, options.max_train_rows, options.seed ^ TRAIN_SAMPLE);
        for split in &mut validation {
            sample(&mut split.examples, options.max_validation_rows, options.seed ^ VALIDATION_SAMPLE);
        }
        Ok(Dataset { task: options.task, labels, train, validation })
    }

    /// Numbers the classes as `names` does, if those are the same names apart from case; a head that was trained on them then fits.
    /// Returns whether anything changed.
    pub fn match_order(&mut self, names: &[String]) -> bool {
        let Labels::Classes { names: own, .. } = &mut self.labels else { return false };
        let Some(places) = places(own, names) else { return false };
        if places.iter().enumerate().all(|(class, &place)| class == place) {
            return false;
        }
        let mut reordered = own.clone();
        for (name, &place) in own.iter().zip(&places) {
            reordered[place].clone_from(name);
        }
        *own = reordered;
        for split in self.validation.iter_mut().chain([&mut self.train]) {
            split.renumber(&places);
        }
        true
    }

    /// A number that changes when any text, label or split does: 64-bit FNV-1a over all of them.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Fingerprint(0xcbf2_9ce4_8422_2325);
        for name in self.labels.names().unwrap_or_default() {
            hash.text(name);
        }
        for split in std::iter::once(&self.train).chain(&self.validation) {
            hash.text(&split.name);
            hash.bytes(&split.examples.len().to_le_bytes());
            for example in &split.examples {
                hash.text(&example.text);
                match &example.pair {
                    Some(pair) => hash.text(pair),
                    None => hash.bytes(&[0xff]),
                }
                match example.label {
                    Label::Class(class) => hash.bytes(&class.to_le_bytes()),
                    Label::Value(value) => hash.bytes(&value.to_bits().to_le_bytes()),
                }
            }
        }
        hash.0
    }
}

const TRAIN_SAMPLE: u64 = 0x7261_696e;
const VALIDATION_SAMPLE: u64 = 0x7661_6c69;
const VALIDATION_FRACTION: u64 = 0x6672_6163;

struct Fingerprint(u64);

impl Fingerprint {
    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(&text.len().to_le_bytes());
        self.bytes(text.as_bytes());
    }
}

fn find_files(options: &DatasetOptions) -> Result<SplitFiles, Error> {
    // A folder that is not needed may be gone.
    let needed = options.train.is_none() || options.validation.is_empty();
    let folder = options.folder.as_deref().filter(|_| needed);
    let folder = folder.map(|folder| Folder::look(folder, options.task)).transpose()?;
    let train = match (&options.train, &folder) {
        (Some(file), _) => vec![file.clone()],
        (None, Some(folder)) => folder.training()?,
        (None, None) => return Err(Error::Missing("no data; name a folder with --data or a file with --train")),
    };
    let validation = match (&options.validation[..], &folder) {
        ([], Some(folder)) => folder.validation("--validation")?,
        ([], None) => Vec::new(),
        (files, _) => named_sets(files),
    };
    if let (Some(_), Some(path)) = (options.validation_fraction, validation.iter().flat_map(|(_, files)| files).next())
    {
        return Err(Error::FractionBesideFile { path: path.clone() });
    }
    Ok(SplitFiles { train, validation })
}

/// Validation files that were named, each a set under the part of its name that tells it from the others.
fn named_sets(files: &[PathBuf]) -> Vec<ValidationSet> {
    if let [file] = files {
        return vec![("validation".to_owned(), vec![file.clone()])];
    }
    let mut sets: Vec<ValidationSet> = Vec::new();
    for file in files {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let short = stem.strip_prefix("dev_").or_else(|| stem.strip_prefix("validation_")).unwrap_or(&stem);
        let mut name = short.to_owned();
        while sets.iter().any(|(taken, _)| *taken == name) {
            name.push('\'');
        }
        sets.push((name, vec![file.clone()]));
    }
    sets
}

fn labels_of(train: &RawSplit, options: &DatasetOptions) -> Result<Labels, Error> {
    if options.regression || options.task == Some(GlueTask::Stsb) {
        return Ok(Labels::Regression);
    }
    if let Some(names) = options.task.and_then(GlueTask::labels) {
        return Ok(Labels::named(names.iter().copied()));
    }
    train.refuse_broken(options.skip_bad_rows)?;
    let path = || train.files.first().cloned().unwrap_or_default();
    if train.len() == 0 {
        return Err(Error::Empty { path: path(), expected: "at least one usable row" });
    }
    let labels = match &train.class_names {
        Some(names) => Labels::named(names.iter().cloned()),
        None => train.table.classes().map_err(|(label, file, line)| {
            let path = train.files[file].clone();
            Error::FractionalLabel { path, line, label }
        })?,
    };
    match labels.names() {
        Some([only]) => Err(Error::OneLabel { path: path(), label: only.clone() }),
        _ => Ok(labels),
    }
}

/// Cuts a random share off the training examples; both parts keep their order.
fn cut_off(train: &mut Split, options: &DatasetOptions) -> Result<Split, Error> {
    let Some(fraction) = options.validation_fraction else {
        return Err(Error::Missing(
            "no validation data; name a file with --validation, or keep rows aside with --validation-fraction 0.1",
        ));
    };
    let rows = train.examples.len();
    if !(fraction > 0.0 && fraction < 1.0) || rows < 2 {
        let (expected, found) =
            ("a number between 0 and 1, and two rows at least", format!("{fraction} of {rows} rows"));
        return Err(Error::OutOfRange { name: "validation_fraction", expected, found });
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let wanted = ((rows as f64 * fraction).round() as usize).clamp(1, rows - 1);
    let chosen = choose(rows, wanted, options.seed ^ VALIDATION_FRACTION);
    let mut kept = Vec::with_capacity(rows - wanted);
    let mut examples = Vec::with_capacity(wanted);
    for (example, chosen) in std::mem::take(&mut train.examples).into_iter().zip(chosen) {
        if chosen { &mut examples } else { &mut kept }.push(example);
    }
    train.examples = kept;
    Ok(Split {
        name: "validation".to_owned(),
        files: train.files.clone(),
        examples,
        skipped_rows: 0,
        skipped: Vec::new(),
    })
}

fn sample(examples: &mut Vec<Example>, limit: Option<usize>, seed: u64) {
    if let Some(limit) = limit.filter(|&limit| limit < examples.len()) {
        let mut chosen = choose(examples.len(), limit, seed).into_iter();
        examples.retain(|_| chosen.next().unwrap_or(false));
    }
}

/// Marks `wanted` of `rows`, every choice equally likely (selection sampling, Knuth's algorithm S).
fn choose(rows: usize, wanted: usize, seed: u64) -> Vec<bool> {
    let mut state = seed;
    let mut left = wanted;
    (0..rows)
        .map(|row| {
            let below = (rows - row) as u64;
            let draw = ((u128::from(split_mix(&mut state)) * u128::from(below)) >> 64) as u64;
            let chosen = draw < left as u64;
            left -= usize::from(chosen);
            chosen
        })
        .collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
