//! Llama, Mistral and Qwen2: no position table, norms before the blocks and one at the end. What differs between them
//! (biases, windows, angles) their config says.

use super::Description;
use crate::embedding::Positions;

pub(super) fn describe() -> Description {
    Description {
        prefix: "model",
        word: "embed_tokens",
        position: None,
        segment: None,
        embedding_norm: None,
        relative_bias: None,
        attention_output_dropout: false,
        attention_norm: "input_layernorm",
        feed_forward_norm: "post_attention_layernorm",
        last_norm: Some("norm"),
        layers: "layers",
        positions: Positions::None,
        head: None,
    }
}
