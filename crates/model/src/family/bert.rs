//! BERT, as `BertForSequenceClassification`: segments, a pooler with tanh, dropout once before the classifier.

use finegates_kernels::matrix::Activation;

use super::{Description, HeadDescription};
use crate::embedding::Positions;

pub(super) fn describe() -> Description {
    Description {
        prefix: "bert",
        word: "embeddings.word_embeddings",
        position: Some("embeddings.position_embeddings"),
        segment: Some("embeddings.token_type_embeddings"),
        embedding_norm: Some("embeddings.LayerNorm"),
        relative_bias: None,
        attention_output_dropout: true,
        attention_norm: "attention.output.LayerNorm",
        feed_forward_norm: "output.LayerNorm",
        last_norm: None,
        layers: "encoder.layer",
        positions: Positions::FromZero,
        head: Some(HeadDescription {
            dense: "bert.pooler.dense",
            output: "classifier",
            activation: Activation::Tanh,
            dropout_before: false,
        }),
    }
}
