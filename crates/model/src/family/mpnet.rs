//! MPNet: no segments, positions after padding id 1, one relative position bias shared by all layers.

use finegates_kernels::matrix::Activation;

use super::{Description, HeadDescription};
use crate::embedding::Positions;

pub(super) fn describe() -> Description {
    Description {
        prefix: "mpnet",
        word: "embeddings.word_embeddings",
        position: Some("embeddings.position_embeddings"),
        segment: None,
        embedding_norm: Some("embeddings.LayerNorm"),
        relative_bias: Some("encoder.relative_attention_bias"),
        attention_output_dropout: true,
        attention_norm: "attention.LayerNorm",
        feed_forward_norm: "output.LayerNorm",
        last_norm: None,
        layers: "encoder.layer",
        // transformers fixes the padding position at 1, whatever the config's pad_token_id.
        positions: Positions::AfterPadding(1),
        head: Some(HeadDescription {
            dense: "classifier.dense",
            output: "classifier.out_proj",
            activation: Activation::Tanh,
            dropout_before: true,
        }),
    }
}
