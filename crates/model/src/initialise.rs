//! Fresh weights for a decoder: what transformers gives a model made from a config. Written tensor by tensor, each a function of
//! the seed and its name alone, so that neither threads nor the order show.

use std::collections::BTreeMap;
use std::path::Path;

use finegates_checkpoint::config::Config;
use finegates_checkpoint::tensors::{FloatType, StreamedTensor, write_streamed};
use finegates_kernels::random;

use crate::error::Error;
use crate::family::{Description, LANGUAGE_HEAD};
use crate::wiring::{StackShape, Wiring};

/// The most parameters of a fresh model: beyond that no machine that this is for trains it.
pub const MOST_PARAMETERS: u64 = 1 << 32;

/// How a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// `N(0, initializer_range²)`.
    Normal,
    /// The same, but for the padding row, which is 0.
    Table,
    /// 0.
    Zeros,
    /// 1.
    Ones,
}

/// Writes `model.safetensors` of a decoder with fresh weights into `folder`: matrices and tables `N(0, initializer_range²)`,
/// the padding token's row 0, biases 0, norms 1. Answers the number of parameters.
///
/// # Errors
/// A config that is no decoder's, is compact, or is too large; a file that cannot be written.
pub fn initialise(config: &Config, seed: u64, folder: &Path) -> Result<u64, Error> {
    let tensors = tensors(config)?;
    let count = |tensor: &StreamedTensor| tensor.shape.iter().fold(1u64, |all, &n| all.saturating_mul(n as u64));
    let parameters = tensors.iter().fold(0u64, |all, (tensor, _)| all.saturating_add(count(tensor)));
    if parameters > MOST_PARAMETERS {
        let reason = "are more than a fresh model may have; ask for fewer layers or a smaller hidden_size";
        return Err(Error::Unsupported(format!("config.json: {parameters} parameters {reason}")));
    }
    let padding = config.decoder.as_ref().and_then(|decoder| decoder.padding_id);
    let (streamed, starts): (Vec<StreamedTensor>, Vec<Start>) = tensors.into_iter().unzip();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    write_streamed(&path, &streamed, FloatType::F32, &metadata, &mut |place, sink| {
        let StreamedTensor { name, shape, .. } = &streamed[place];
        let mut values = vec![if starts[place] == Start::Ones { 1.0 } else { 0.0 }; shape.iter().product()];
        if matches!(starts[place], Start::Normal | Start::Table) {
            random::fill_normal(random::derive(seed, name), 0.0, config.initializer_range, &mut values);
        }
        if let (Start::Table, Some(padding)) = (starts[place], padding)
            && let Some(row) = values.chunks_exact_mut(config.hidden.max(1)).nth(padding as usize)
        {
            row.fill(0.0);
        }
        sink.write(&values)
    })?;
    Ok(parameters)
}

/// Every tensor of the model and how it starts.
fn tensors(config: &Config) -> Result<Vec<(StreamedTensor, Start)>, Error> {
    let unsupported = |what: &str| Err(Error::Unsupported(format!("config.json: {what}")));
    let Some(decoder) = &config.decoder else {
        return unsupported("an encoder cannot be pretrained here; expected a decoder such as llama, mistral or qwen2");
    };
    if config.compact.is_some() {
        return unsupported("a compact model has no whole weights; expected the config of a whole model");
    }
    // Sizes that no stack can have are refused here.
    Wiring::from_config(config)?;
    let description = Description::of(config);
    let prefix = description.prefix;
    let mut all = Vec::new();
    let mut push = |name: String, shape: &[usize], start| {
        all.push((StreamedTensor::weights(name, shape), start));
    };
    push(format!("{prefix}.{}.weight", description.word), &[config.vocabulary, config.hidden], Start::Table);
    let shape = StackShape::of(config);
    for layer in 0..config.layers {
        for wired in shape.projections(config.family, layer) {
            push(format!("{}.weight", wired.path), &[wired.rows, wired.columns], Start::Normal);
            if wired.bias {
                push(format!("{}.bias", wired.path), &[wired.rows], Start::Zeros);
            }
        }
        for norm in [description.attention_norm, description.feed_forward_norm] {
            push(format!("{prefix}.{}.{layer}.{norm}.weight", description.layers), &[config.hidden], Start::Ones);
        }
    }
    if let Some(norm) = description.last_norm {
        push(format!("{prefix}.{norm}.weight"), &[config.hidden], Start::Ones);
    }
    if !decoder.tied {
        push(format!("{LANGUAGE_HEAD}.weight"), &[config.vocabulary, config.hidden], Start::Normal);
    }
    Ok(all)
}
