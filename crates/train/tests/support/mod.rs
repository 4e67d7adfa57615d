//! A tiny model, a tiny data set that can be learned, and runs of them.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use finegates_checkpoint::{TensorFile, TensorToWrite, write_tensors};
use finegates_kernels::random;
use finegates_train::{Error, Event, Mode, PartialRecipe, RunOptions, Summary, run};

/// A folder with a data set, a copy of a tiny model and room for runs.
pub struct Workshop {
    pub folder: tempfile::TempDir,
}

const GOOD: [&str; 5] = ["good", "great", "fine", "liked", "loved"];
const BAD: [&str; 5] = ["bad", "dull", "awful", "hated", "slow"];
const FILLERS: [&str; 9] = ["the", "film", "was", "very", "and", "plot", "it", "story", "really"];

impl Workshop {
    /// `rows` training rows and half as many for validation, with a model of `family` whose dropout is as it is, or 0.
    pub fn new(family: &str, rows: usize, dropout: bool) -> Workshop {
        let folder = tempfile::tempdir().unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family);
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_owned();
            if !name.to_string_lossy().starts_with("golden") {
                std::fs::copy(&path, model.join(name)).unwrap();
            }
        }
        if !dropout {
            let path = model.join("config.json");
            let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            for (key, value) in config.as_object_mut().unwrap() {
                if key.contains("dropout") && value.is_number() {
                    *value = 0.0.into();
                }
            }
            std::fs::write(path, config.to_string()).unwrap();
        }
        let workshop = Workshop { folder };
        workshop.write_rows("train.tsv", rows, 1);
        workshop.write_rows("dev.tsv", rows / 2, 2);
        workshop
    }

    /// Replaces the model by a random one of the same architecture with four heads in 64 dimensions and 320 inner ones.
    pub fn enlarge_model(&self) {
        const WIDTHS: [(&str, usize); 2] = [("hidden_size", 64), ("intermediate_size", 320)];
        let path = self.path("model/config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let before = WIDTHS.map(|(name, _)| config[name].as_u64().unwrap() as usize);
        for (name, width) in WIDTHS {
            config[name] = width.into();
        }
        std::fs::write(path, config.to_string()).unwrap();
        let path = self.path("model/model.safetensors");
        let file = TensorFile::open_file(&path).unwrap();
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let tensors = names.iter().map(|name| {
            let widened = |size| before.iter().position(|&width| width == size).map_or(size, |place| WIDTHS[place].1);
            let shape: Vec<usize> = file.shape(name).unwrap().iter().map(|&size| widened(size)).collect();
            let mut data = vec![0.0; shape.iter().product()];
            let mean = if name.contains("LayerNorm.weight") { 1.0 } else { 0.0 };
            random::fill_normal(random::derive(1, name), mean, 0.1, &mut data);
            (shape, data)
        });
        let tensors: Vec<(Vec<usize>, Vec<f32>)> = tensors.collect();
        let tensors: Vec<_> = names
            .iter()
            .zip(&tensors)
            .map(|(name, (shape, data))| TensorToWrite::f32(name.as_str(), shape.as_slice(), data))
            .collect();
        write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sentences of 2 to 9 words; a good word makes the label 1, a bad one 0.
    pub fn write_rows(&self, name: &str, rows: usize, seed: u64) {
        let mut state = seed;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut text = "sentence\tlabel\n".to_owned();
        for _ in 0..rows {
            let label = draw(2);
            let mut words: Vec<&str> = (0..1 + draw(8)).map(|_| FILLERS[draw(9)]).collect();
            words.insert(draw(words.len() + 1), if label == 1 { GOOD[draw(5)] } else { BAD[draw(5)] });
            text.push_str(&format!("{}\t{label}\n", words.join(" ")));
        }
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn recipe(&self) -> PartialRecipe {
        PartialRecipe {
            model: Some(self.path("model").to_str().unwrap().to_owned()),
            train: Some(self.path("train.tsv")),
            validation: Some(vec![self.path("dev.tsv")]),
            max_length: Some(32),
            batch_size: Some(4),
            ..PartialRecipe::default()
        }
    }

    /// The same with nothing that learns.
    pub fn without_learning(recipe: PartialRecipe) -> PartialRecipe {
        PartialRecipe {
            gate_learning_rate: Some(0.0),
            bias_learning_rate: Some(0.0),
            head_learning_rate: Some(0.0),
            ..recipe
        }
    }

    pub fn options(&self, name: &str, mode: Mode) -> RunOptions<'static> {
        RunOptions {
            folder: self.path(name),
            mode,
            fetch: finegates_checkpoint::source::FetchOptions::default(),
            latency_tables: Some(self.path("latency-tables")),
        }
    }

    pub fn run(&self, recipe: PartialRecipe, name: &str, mode: Mode) -> Result<Summary, Error> {
        let stop = AtomicBool::new(false);
        run(recipe, &self.options(name, mode), &mut |_: &Event<'_>| {}, &stop)
    }

    /// Runs until `stop_at` says so of an event, then stops as Ctrl-C would.
    pub fn run_until(
        &self,
        recipe: PartialRecipe,
        name: &str,
        mode: Mode,
        stop_at: impl Fn(&Event<'_>) -> bool + Send + Sync,
    ) -> Result<Summary, Error> {
        let stop = AtomicBool::new(false);
        let mut observer = |event: &Event<'_>| {
            if stop_at(event) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        run(recipe, &self.options(name, mode), &mut observer, &stop)
    }

    /// Everything a run leaves that must not depend on how it came about: the models bit for bit, the journal without times.
    pub fn result(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let mut result = BTreeMap::new();
        for part in ["adapter", "model", "best", "stops/params-0.8", "stops/params-0.4"] {
            let folder = self.path(name).join(part);
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                result.insert(format!("{part}/{file}"), std::fs::read(&path).unwrap());
            }
        }
        let journal: Vec<String> = self.journal(name).iter().map(|record| timeless(record).to_string()).collect();
        result.insert("metrics.jsonl".to_owned(), journal.join("\n").into_bytes());
        result
    }

    /// The records of a run's journal.
    pub fn journal(&self, name: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path(name).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn copy(&self, from: &str, to: &str) {
        copy_folder(&self.path(from), &self.path(to));
    }
}

pub fn timeless(record: &serde_json::Value) -> serde_json::Value {
    let mut record = record.clone();
    let fields = record.as_object_mut().unwrap();
    fields.remove("seconds").unwrap();
    fields.remove("sequences_per_second");
    record
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_folder(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

/// The same files with the same bytes, named where they differ.
pub fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    let names = |result: &BTreeMap<String, Vec<u8>>| result.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, bytes) in found {
        assert!(*bytes == expected[name], "{what}: {name} differs");
    }
}
