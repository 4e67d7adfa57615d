//! The head of a checkpoint, or a new one where it has none for the task.

use finegates_kernels::matrix::Precision;
use finegates_kernels::random;

use super::{Loader, Task, shapes};
use crate::embedding::Embeddings;
use crate::error::Error;
use crate::family::{LANGUAGE_HEAD, LAST_TOKEN_HEAD};
use crate::head::{FirstTokenHead, Head, LastTokenHead};
use crate::language::LanguageHead;
use crate::parameter::{Group, Parameter};
use crate::projection::{Needs, Projection};

impl Loader<'_> {
    pub(super) fn head(&self, embeddings: &Embeddings) -> Result<Head, Error> {
        match (self.options.task, &self.checkpoint.config.decoder) {
            (Task::Classify, _) => self.classifier(),
            (Task::Language, Some(decoder)) => self.language_head(embeddings, decoder.tied).map(Head::Language),
            (Task::Language, None) => Err(Error::Unsupported(format!(
                "{}: {} is an encoder and predicts no next token; expected a decoder such as llama",
                self.checkpoint.folder.display(),
                self.checkpoint.config.family
            ))),
        }
    }

    fn classifier(&self) -> Result<Head, Error> {
        let (config, description) = (&self.checkpoint.config, self.description.head.clone());
        let output = description.as_ref().map_or(LAST_TOKEN_HEAD, |description| description.output);
        let found = self.shape(&format!("{output}.weight")).and_then(|shape| shape.first().copied());
        let named = Some(config.labels.len()).filter(|&labels| labels > 0);
        // transformers' default for a config without labels is two.
        let classes = self.options.labels.or(found).or(named).unwrap_or(2);
        if self.options.labels.is_none() && found.is_some() && self.method().is_none() {
            self.checkpoint.check_labels(classes)?;
        }
        let Some(description) = description else {
            let padding_id = config.decoder.as_ref().and_then(|decoder| decoder.padding_id);
            return Ok(Head::LastToken(LastTokenHead {
                output: self.head_projection(output, classes, config.hidden, false)?,
                padding_id,
            }));
        };
        let dense = self.head_projection(description.dense, config.hidden, config.hidden, true)?;
        let output = self.head_projection(description.output, classes, config.hidden, true)?;
        Ok(Head::FirstToken(FirstTokenHead {
            dense,
            activation: description.activation,
            output,
            dropout_before: description.dropout_before,
            dropout: config.classifier_dropout,
        }))
    }

    /// The output embedding: the input embedding, or a table of its own. It trains only where everything does.
    fn language_head(&self, embeddings: &Embeddings, tied: bool) -> Result<LanguageHead, Error> {
        let name = format!("{LANGUAGE_HEAD}.weight");
        let shape = [embeddings.word.shape[0], embeddings.width()];
        let trains = self.trains_everything();
        let needs = Needs {
            backward: self.method().is_some(),
            plain_weight: self.options.keep_weights && !tied,
            weight_gradient: trains,
            bias_gradient: false,
            precision: self.options.precision,
        };
        if tied {
            // Files of tied models may hold the table twice.
            self.used.borrow_mut().extend(self.checkpoint.find(&name));
        }
        let output = match (tied, trains) {
            (true, false) => Projection::copy_of(LANGUAGE_HEAD, &embeddings.word, needs),
            (true, true) => {
                let weight = Parameter::frozen(name, Group::Head, &shape, embeddings.word.value.clone());
                Projection::dense(LANGUAGE_HEAD, weight, None, needs)
            }
            (false, _) => Projection::dense(LANGUAGE_HEAD, self.read(&name, Group::Head, &shape)?, None, needs),
        };
        Ok(LanguageHead { output, tied })
    }

    /// A module of the head: the checkpoint's, or initialised as transformers does (normal weights, zero biases).
    fn head_projection(&self, path: &str, rows: usize, columns: usize, bias: bool) -> Result<Projection, Error> {
        let (weight_name, bias_name) = (format!("{path}.weight"), format!("{path}.bias"));
        let fits =
            self.shape(&weight_name).is_some_and(|shape| shape.len() == 2 && shape[1] == columns && shape[0] == rows);
        let other_labels =
            self.options.labels.is_some() && self.shape(&weight_name).is_some_and(|shape| shape[0] != rows);
        let names: Vec<&String> = [&weight_name].into_iter().chain(bias.then_some(&bias_name)).collect();
        let (weight, bias) = if fits || (self.checkpoint.find(&weight_name).is_some() && !other_labels) {
            let found = bias.then(|| self.read(&bias_name, Group::Head, &[rows])).transpose()?;
            (self.read(&weight_name, Group::Head, &[rows, columns])?, found)
        } else {
            self.used.borrow_mut().extend(names.iter().filter_map(|name| self.checkpoint.find(name)));
            self.initialised.borrow_mut().extend(names.into_iter().cloned());
            shapes::check_new_head(self.checkpoint, rows, columns)?;
            let mut value = vec![0.0; rows * columns];
            random::fill_normal(
                random::derive(self.options.seed, &weight_name),
                0.0,
                self.checkpoint.config.initializer_range,
                &mut value,
            );
            (
                Parameter::frozen(weight_name, Group::Head, &[rows, columns], value),
                bias.then(|| Parameter::frozen(bias_name, Group::Head, &[rows], vec![0.0; rows])),
            )
        };
        let trains = self.method().is_some();
        // The head is small and always kept whole: adapters replace it and write it.
        let precision = Precision::F32;
        let needs =
            Needs { backward: trains, plain_weight: true, weight_gradient: trains, bias_gradient: trains, precision };
        Ok(Projection::dense(path, weight, bias, needs))
    }
}
