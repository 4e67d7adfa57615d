//! Which files of a folder are a data set's splits, by the names GLUE, the Hugging Face hub and people give them.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::format::Format;
use crate::glue::GlueTask;

/// The files of each split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitFiles {
    /// The training files: one, or the numbered parts of one.
    pub train: Vec<PathBuf>,
    /// The validation sets with their names.
    pub validation: Vec<ValidationSet>,
}

/// What a file name says: the split it belongs to, the set's name, and whether it says so plainly.
#[derive(Debug, PartialEq, Eq)]
struct Role {
    set: Set,
    plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Train,
    Validation,
    Matched,
    Mismatched,
}

/// A validation set: its name and its files.
pub type ValidationSet = (String, Vec<PathBuf>);

/// A folder with the names of the files in it, or the task's own folder in that.
pub struct Folder {
    path: PathBuf,
    names: Vec<String>,
}

/// Finds the validation sets of a folder, or of the task's own folder in it; it needs no training file.
///
/// # Errors
/// [`Error::NoFile`] without validation files, [`Error::SeveralFiles`] where the names do not decide, [`Error::Io`].
pub fn validation_files(folder: &Path, task: Option<GlueTask>) -> Result<Vec<ValidationSet>, Error> {
    let folder = Folder::look(folder, task)?;
    let sets = folder.validation("--data")?;
    if sets.is_empty() {
        let expected = "dev or validation .tsv, .csv, .jsonl or .parquet";
        return Err(Error::NoFile { path: folder.path, split: "validation", expected, found: folder.names });
    }
    Ok(sets)
}

impl Folder {
    /// Reads the names in `folder`, or in the task's own folder in it.
    pub fn look(folder: &Path, task: Option<GlueTask>) -> Result<Folder, Error> {
        let names = files_in(folder)?;
        if !names.iter().any(|name| role(name).is_some())
            && let Some(inner) = task.map(|task| folder.join(task.folder())).filter(|inner| inner.is_dir())
        {
            return Ok(Folder { names: files_in(&inner)?, path: inner });
        }
        Ok(Folder { path: folder.to_owned(), names })
    }

    /// The training files.
    pub fn training(&self) -> Result<Vec<PathBuf>, Error> {
        let train = choose(&self.path, &self.names, Set::Train, "--train")?;
        if train.is_empty() {
            let expected = "train.tsv, train.csv, train.jsonl or train.parquet";
            let (path, found) = (self.path.clone(), self.names.clone());
            return Err(Error::NoFile { path, split: "training", expected, found });
        }
        Ok(train)
    }

    /// The validation sets, maybe none; `flag` is what names one where the folder does not decide.
    pub fn validation(&self, flag: &'static str) -> Result<Vec<ValidationSet>, Error> {
        let mut validation = Vec::new();
        for (set, name) in [(Set::Matched, "matched"), (Set::Mismatched, "mismatched"), (Set::Validation, "validation")]
        {
            let files = choose(&self.path, &self.names, set, flag)?;
            // A plain `dev.tsv` beside `dev_matched.tsv` is one more copy of it.
            if !files.is_empty() && (set != Set::Validation || validation.is_empty()) {
                validation.push((name.to_owned(), files));
            }
        }
        if let [(name, _)] = &mut validation[..] {
            "validation".clone_into(name);
        }
        Ok(validation)
    }
}

fn files_in(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Io { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.path().is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The files of one set: those that say so plainly if there are any, and all parts of one file, but not two files.
fn choose(folder: &Path, names: &[String], set: Set, flag: &'static str) -> Result<Vec<PathBuf>, Error> {
    let mut candidates: Vec<(&String, bool)> = names
        .iter()
        .filter_map(|name| role(name).filter(|role| role.set == set).map(|role| (name, role.plain)))
        .collect();
    if candidates.iter().any(|(_, plain)| *plain) {
        candidates.retain(|(_, plain)| *plain);
    }
    let whole: std::collections::BTreeSet<&str> = candidates.iter().map(|(name, _)| without_part(name)).collect();
    if whole.len() > 1 {
        let found = candidates.iter().map(|(name, _)| (*name).clone()).collect();
        let split = if set == Set::Train { "train" } else { "validation" };
        return Err(Error::SeveralFiles { path: folder.to_owned(), split, flag, found });
    }
    Ok(candidates.iter().map(|(name, _)| folder.join(name)).collect())
}

/// The name up to `-00000-of-00002` and the extension.
fn without_part(name: &str) -> &str {
    let parts = name.find("-of-").and_then(|of| {
        let start = name[..of].rfind('-')?;
        name[start + 1..of].bytes().all(|byte| byte.is_ascii_digit()).then_some(start)
    });
    parts.map_or(name, |start| &name[..start])
}

fn role(name: &str) -> Option<Role> {
    let known = Format::from_path(Path::new(name)).is_ok();
    let lower = name.to_ascii_lowercase();
    let stem = match lower.rsplit_once('.') {
        Some((stem, _)) if known => without_part(stem),
        _ => return None,
    };
    let plain = |set| Some(Role { set, plain: true });
    match stem {
        "train" | "training" => return plain(Set::Train),
        "dev" | "validation" | "valid" | "val" => return plain(Set::Validation),
        "dev_matched" | "validation_matched" => return plain(Set::Matched),
        "dev_mismatched" | "validation_mismatched" => return plain(Set::Mismatched),
        // Microsoft's own names for MRPC; GLUE cut its development set out of the first.
        "msr_paraphrase_train" => return Some(Role { set: Set::Train, plain: false }),
        "msr_paraphrase_test" => return Some(Role { set: Set::Validation, plain: false }),
        _ => {}
    }
    let set = match stem.split(['.', '-']).next() {
        Some("train") => Set::Train,
        Some("dev" | "validation" | "valid" | "val") => Set::Validation,
        Some("dev_matched" | "validation_matched") => Set::Matched,
        Some("dev_mismatched" | "validation_mismatched") => Set::Mismatched,
        _ => return None,
    };
    Some(Role { set, plain: false })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::type_complexity)]
mod tests {
    use super::*;

    fn find(names: &[&str], task: Option<GlueTask>) -> Result<(Vec<String>, Vec<(String, usize)>), Error> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = Folder::look(folder.path(), task)?;
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let validation = found.validation("--validation")?;
        let validation = validation.iter().map(|(name, files)| (name.clone(), files.len())).collect();
        Ok((found.training()?.iter().map(name).collect(), validation))
    }

    fn validation(sets: &[(&str, usize)]) -> Vec<(String, usize)> {
        sets.iter().map(|(name, files)| ((*name).to_owned(), *files)).collect()
    }

    #[test]
    fn glue_folders_are_understood() {
        let (train, dev) = find(&["train.tsv", "dev.tsv", "test.tsv", "readme.txt"], None).unwrap();
        assert_eq!((train, dev), (vec!["train.tsv".to_owned()], validation(&[("validation", 1)])));
        let (_, dev) = find(&["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv"], None).unwrap();
        assert_eq!(dev, validation(&[("matched", 1), ("mismatched", 1)]));
        let (train, _) = find(&["MRPC/msr_paraphrase_train.txt", "MRPC/dev.tsv"], Some(GlueTask::Mrpc)).unwrap();
        assert_eq!(train, ["msr_paraphrase_train.txt"]);
        let (train, dev) = find(&["train.subset8999.tsv", "dev.subset1000.tsv"], Some(GlueTask::Mnli)).unwrap();
        assert_eq!((train, dev), (vec!["train.subset8999.tsv".to_owned()], validation(&[("validation", 1)])));
    }

    #[test]
    fn the_parts_of_one_file_are_one_set() {
        let names =
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet"];
        let (train, dev) = find(&names, None).unwrap();
        assert_eq!(train, names[..2]);
        assert_eq!(dev, validation(&[("validation", 1)]));
    }

    #[test]
    fn two_files_for_one_split_are_an_error() {
        let error = find(&["train.csv", "train.tsv"], None).unwrap_err();
        assert!(
            error.to_string().ends_with("several files for train: \"train.csv\", \"train.tsv\"; name one with --train")
        );
        let error = find(&["data.csv"], None).unwrap_err();
        assert!(error.to_string().contains("no file for training"), "{error}");
    }

    #[test]
    fn validation_files_are_found_without_training_files() {
        let folder = tempfile::tempdir().unwrap();
        let none = validation_files(folder.path(), None).unwrap_err();
        assert!(none.to_string().contains("no file for validation"), "{none}");
        std::fs::create_dir(folder.path().join("RTE")).unwrap();
        std::fs::write(folder.path().join("RTE/dev.tsv"), "").unwrap();
        let found = validation_files(folder.path(), Some(GlueTask::Rte)).unwrap();
        assert_eq!(found, [("validation".to_owned(), vec![folder.path().join("RTE/dev.tsv")])]);
        std::fs::write(folder.path().join("RTE/dev.csv"), "").unwrap();
        let several = validation_files(folder.path(), Some(GlueTask::Rte)).unwrap_err();
        assert!(several.to_string().ends_with("name one with --data"), "{several}");
    }
}
