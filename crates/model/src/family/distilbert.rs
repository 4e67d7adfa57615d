//! DistilBERT: no segments, no pooler, a head with ReLU.

use finegates_kernels::matrix::Activation;

use super::{Description, HeadDescription};
use crate::embedding::Positions;

pub(super) fn describe() -> Description {
    Description {
        prefix: "distilbert",
        word: "embeddings.word_embeddings",
        position: Some("embeddings.position_embeddings"),
        segment: None,
        embedding_norm: Some("embeddings.LayerNorm"),
        relative_bias: None,
        // transformers' TransformerBlock adds the attention's output to the residual stream as it is.
        attention_output_dropout: false,
        attention_norm: "sa_layer_norm",
        feed_forward_norm: "output_layer_norm",
        last_norm: None,
        layers: "transformer.layer",
        positions: Positions::FromZero,
        head: Some(HeadDescription {
            dense: "pre_classifier",
            output: "classifier",
            activation: Activation::Relu,
            dropout_before: false,
        }),
    }
}
