//! RoBERTa and XLM-RoBERTa: BERT's layers, positions after the padding id, a two-layer head on the first token.

use finegates_checkpoint::config::Config;
use finegates_kernels::matrix::Activation;

use super::{Description, HeadDescription, bert};
use crate::embedding::Positions;

pub(super) fn describe(config: &Config) -> Description {
    Description {
        prefix: "roberta",
        positions: Positions::AfterPadding(config.padding_id),
        head: Some(HeadDescription {
            dense: "classifier.dense",
            output: "classifier.out_proj",
            activation: Activation::Tanh,
            dropout_before: true,
        }),
        ..bert::describe()
    }
}
