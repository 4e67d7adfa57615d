//! DistilBERT: no segments, no pooler, a head with ReLU.

use finegates_kernels::matrix::Activation;

use super::{Description, HeadDescription};
use crate::embedding::Positions;

pub(super) fn describe() -> Description {
    Description {
        prefix: "distilbert",
        word: "embeddings.word_embeddings",
        position: "embeddings.position_embeddings",
        segment: None,
        embedding_norm: "embeddings.LayerNorm",
        relative_bias: None,
        // transformers' TransformerBlock adds the attention's output to the residual stream as it is.
        attention_output_dropout: false,
        attention_norm: "sa_layer_norm",
        output_norm: "output_layer_norm",
        layers: "transformer.layer",
        positions: Positions::FromZero,
        head: HeadDescription {
            dense: "pre_classifier",
            output: "classifier",
            activation: Activation::Relu,
            dropout_before: false,
        },
    }
}
