//! Which tensor of a GGUF file becomes which of the model's, and of what shape it must be.

use std::collections::BTreeSet;

use super::config::{Architecture, Form};
use super::reader::Gguf;
use crate::Error;
use crate::error::shorten;
use crate::tensors::StreamedTensor;

/// The divisors of rotary frequencies; they end up in the config.
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// A tensor to write.
#[derive(Debug)]
pub(super) struct Planned {
    /// Its name in the GGUF file.
    pub source: String,
    /// Its name and shape in the model.
    pub tensor: StreamedTensor,
    /// The rows of a head, if its rows are to be put back from the order of interleaved pairs.
    pub interleaved: Option<usize>,
}

/// All tensors of the model. Every one is in the file with the right shape, and the file holds none besides.
pub(super) fn plan(gguf: &Gguf, form: &Form) -> Result<Vec<Planned>, Error> {
    let mut all = Vec::new();
    let mut add = |source: String, name: String, shape: Vec<usize>, interleaved: Option<usize>| {
        all.push(Planned { source, tensor: StreamedTensor::weights(name, shape), interleaved });
    };
    add("token_embd.weight".into(), "model.embed_tokens.weight".into(), vec![form.vocabulary, form.hidden], None);
    add("output_norm.weight".into(), "model.norm.weight".into(), vec![form.hidden], None);
    if !form.tied {
        add("output.weight".into(), "lm_head.weight".into(), vec![form.vocabulary, form.hidden], None);
    }
    let (queries, keys) = (form.heads * form.head, form.key_value_heads * form.head);
    let permuted = form.architecture.permutes().then_some(form.head);
    let qwen = form.architecture == Architecture::Qwen2;
    let (attention, inner) = (form.attention_bias, form.feed_forward_bias);
    for layer in 0..form.layers {
        for (source, name) in [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")] {
            let (source, name) =
                (format!("blk.{layer}.{source}.weight"), format!("model.layers.{layer}.{name}.weight"));
            add(source, name, vec![form.hidden], None);
        }
        for (source, name, rows, columns, interleaved, bias) in [
            ("attn_q", "self_attn.q_proj", queries, form.hidden, permuted, attention || qwen),
            ("attn_k", "self_attn.k_proj", keys, form.hidden, permuted, attention || qwen),
            ("attn_v", "self_attn.v_proj", keys, form.hidden, None, attention || qwen),
            ("attn_output", "self_attn.o_proj", form.hidden, queries, None, attention),
            ("ffn_gate", "mlp.gate_proj", form.feed_forward, form.hidden, None, inner),
            ("ffn_up", "mlp.up_proj", form.feed_forward, form.hidden, None, inner),
            ("ffn_down", "mlp.down_proj", form.hidden, form.feed_forward, None, inner),
        ] {
            let (source, name) = (format!("blk.{layer}.{source}"), format!("model.layers.{layer}.{name}"));
            if bias {
                add(format!("{source}.bias"), format!("{name}.bias"), vec![rows], interleaved);
            }
            add(format!("{source}.weight"), format!("{name}.weight"), vec![rows, columns], interleaved);
        }
    }
    check(gguf, &all)?;
    Ok(all)
}

fn check(gguf: &Gguf, all: &[Planned]) -> Result<(), Error> {
    let path = gguf.metadata.path();
    for planned in all {
        let Some(entry) = gguf.tensors.get(&planned.source) else {
            return Err(Error::MissingTensor {
                path: path.to_path_buf(),
                name: planned.source.clone(),
                hint: format!("the file has {} tensors; is it of another kind of model?", gguf.tensors.len()),
            });
        };
        if entry.shape != planned.tensor.shape {
            return Err(Error::Shape {
                path: path.to_path_buf(),
                name: planned.source.clone(),
                expected: planned.tensor.shape.clone(),
                found: entry.shape.clone(),
                hint: ", by the file's own metadata".to_owned(),
            });
        }
    }
    let known: BTreeSet<&str> = all.iter().map(|planned| planned.source.as_str()).collect();
    // Old files hold the rotary frequencies of every layer, which the base gives anyway.
    let other = gguf.tensors.keys().find(|name| {
        !known.contains(name.as_str()) && *name != ROPE_DIVISORS && !name.ends_with(".attn_rot_embd.weight")
    });
    match other {
        None => Ok(()),
        Some(other) => {
            let reason = "no such model has this tensor, and it would be lost; is it of another kind?";
            Err(Error::tensor(path, &shorten(other), reason))
        }
    }
}
