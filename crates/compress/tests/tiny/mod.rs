//! The tiny models under `fixtures/tiny`, with gates of any pattern, for the tests of this crate.

#![allow(dead_code, clippy::unwrap_used, clippy::result_large_err)]

use std::path::{Path, PathBuf};

use finegates_checkpoint::adapter::{Adapter, AdapterConfig, GateForm};
use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::tensors::Tensor;
use finegates_compress::{Error, Report, Request, Source, compress, synthetic_probe};
use finegates_model::wiring::Wiring;
use finegates_model::{Batch, LoadOptions, Method, Model, Task};

/// Families of encoders with a tiny model.
pub const FAMILIES: [&str; 5] = ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"];
/// Tiny decoders: grouped heads, biases, sliding windows, tied embeddings and none of them.
pub const DECODERS: [&str; 4] = ["llama", "llama3", "mistral", "qwen2"];

/// Every tiny model.
pub fn all() -> impl Iterator<Item = &'static str> {
    FAMILIES.into_iter().chain(DECODERS)
}

/// A folder of `fixtures/tiny`.
pub fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family)
}

pub fn checkpoint(family: &str) -> Checkpoint {
    Checkpoint::open(&folder(family)).unwrap()
}

/// The value of `θ` for a gate that is closed, half open, or fully open.
pub const CLOSED: f32 = -2.0;
pub const OPEN: f32 = 2.0;

/// θ of every gate, as `theta(module path, "rows" or "columns", index)` says; `None` leaves a module without gates.
pub fn adapter(wiring: &Wiring, theta: &mut dyn FnMut(usize, &str, usize) -> Option<f32>) -> Adapter {
    let mut tensors = std::collections::BTreeMap::new();
    for (projection, place) in wiring.projections.iter().enumerate() {
        for (side, count) in [("rows", place.rows), ("columns", place.columns)] {
            let data: Option<Vec<f32>> = (0..count).map(|at| theta(projection, side, at)).collect();
            if let Some(data) = data {
                tensors.insert(format!("{}.finegates_{side}", place.path), Tensor { shape: vec![count], data });
            }
        }
    }
    Adapter { config: AdapterConfig::default(), tensors }
}

/// A tiny model with its base checkpoint and what was trained, ready to be compressed.
pub struct Tiny {
    pub base: Checkpoint,
    pub model: Model,
    pub adapter: Option<Adapter>,
    pub probe: Vec<Batch>,
}

impl Tiny {
    pub fn new(base: Checkpoint, model: Model) -> Tiny {
        let probe = synthetic_probe(&base).expect("a probe");
        Tiny { base, model, adapter: None, probe }
    }

    /// Applies an adapter, for both the model and what is compressed.
    pub fn adapt(&mut self, adapter: Adapter) {
        self.model.apply_adapter(&adapter).unwrap();
        self.adapter = Some(adapter);
    }

    pub fn load(family: &str) -> Tiny {
        Tiny::load_for(Task::Classify, family)
    }

    pub fn load_for(task: Task, family: &str) -> Tiny {
        let base = checkpoint(family);
        let options = LoadOptions { task, ..LoadOptions::default() };
        let (model, _) = Model::load(&base, &options).unwrap();
        Tiny::new(base, model)
    }

    /// With gates; see [`adapter`].
    pub fn gated(family: &str, theta: impl FnMut(usize, &str, usize) -> Option<f32>) -> Tiny {
        Tiny::gated_for(Task::Classify, family, theta)
    }

    /// With gates and a head for the task; see [`adapter`].
    pub fn gated_for(task: Task, family: &str, mut theta: impl FnMut(usize, &str, usize) -> Option<f32>) -> Tiny {
        let mut tiny = Tiny::load_for(task, family);
        let adapter = adapter(tiny.model.wiring(), &mut theta);
        tiny.adapt(adapter);
        tiny
    }

    /// With direct gates, whose values `value` gives.
    pub fn direct(family: &str, mut value: impl FnMut(usize, &str, usize) -> Option<f32>) -> Tiny {
        let mut tiny = Tiny::load(family);
        let theta = adapter(tiny.model.wiring(), &mut value);
        let renamed = |name: &str| {
            name.replace("finegates_rows", "finegates_row_values")
                .replace("finegates_columns", "finegates_column_values")
        };
        let tensors = theta.tensors.iter().map(|(name, tensor)| (renamed(name), tensor.clone())).collect();
        let config = AdapterConfig { form: GateForm::Values, ..theta.config };
        tiny.adapt(Adapter { config, tensors });
        tiny
    }

    pub fn compress(&self, destination: &Path) -> Result<Report, Error> {
        self.compress_with(destination, |_| ())
    }

    /// Compresses by a request that `change` has altered.
    pub fn compress_with<'a>(
        &'a self,
        destination: &'a Path,
        change: impl FnOnce(&mut Request<'a>),
    ) -> Result<Report, Error> {
        let mut request = Request {
            base: &self.base,
            adapter: self.adapter.as_ref(),
            task: self.model.task(),
            classes: None,
            method: Method::Gates,
            labels: &[],
            tokenizer_files: &[],
            probe: &self.probe,
            source: Source { base: "tiny".to_owned(), adapter: None, method: "gates".to_owned() },
            destination,
            overwrite: false,
        };
        change(&mut request);
        compress(&request)
    }
}

/// The model in a compact folder.
pub fn reload(folder: &Path) -> Model {
    reload_for(Task::Classify, folder)
}

/// The model in a compact folder with a head for the task.
pub fn reload_for(task: Task, folder: &Path) -> Model {
    Model::load(&Checkpoint::open(folder).unwrap(), &LoadOptions { task, ..LoadOptions::default() }).unwrap().0
}

/// Sequences of every length the model takes up to 24, other than those of the synthetic probe.
pub fn sequences(model: &Model) -> Batch {
    let config = model.config();
    let mut batch = Batch::default();
    for length in 1..=model.max_length().min(24) {
        let id = |at: usize| ((at * 13 + length * 5 + 3) % config.vocabulary) as u32;
        let tokens: Vec<u32> = (0..length).map(|at| if id(at) == config.padding_id { 5 } else { id(at) }).collect();
        let segments = vec![if config.segments > 1 { length as u32 % 2 } else { 0 }; length];
        batch.push(&tokens, &segments);
    }
    batch
}

/// Greatest difference of two models' logits on [`sequences`], over the greatest magnitude of the first one's.
pub fn difference(gated: &Model, compact: &Model) -> f64 {
    let batch = sequences(gated);
    let (gated, compact) = (gated.forward(&batch).unwrap(), compact.forward(&batch).unwrap());
    assert_eq!(gated.len(), compact.len());
    let scale = gated.iter().map(|value| f64::from(value.abs())).fold(0.0, f64::max);
    let gaps = gated.iter().zip(&compact).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    gaps.fold(0.0, |most, gap| if gap > most || gap.is_nan() { gap } else { most }) / scale
}

/// Numbers from 0 to 1 from a seed (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}
