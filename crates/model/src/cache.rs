//! Keys and values of the tokens a decoder has read, and the passes that add to them: a prompt at once, then token by
//! token. Each layer's are as wide as removal left them.

use finegates_kernels::attention::{self as kernels, Cached, Mask, Strides};

use crate::attention::{Attention, AttentionSaved, Pass, resized};
use crate::batch::Batch;
use crate::error::Error;
use crate::layer::LayerSaved;
use crate::model::Model;

/// What a decoder remembers of one sequence.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    layers: Vec<LayerCache>,
    length: usize,
}

#[derive(Debug, Clone, Default)]
struct LayerCache {
    /// `[length, key width]`, turned.
    keys: Vec<f32>,
    /// `[length, value width]`.
    values: Vec<f32>,
}

impl Cache {
    /// Tokens read so far.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.length = 0;
        for layer in &mut self.layers {
            layer.keys.clear();
            layer.values.clear();
        }
    }

    /// Bytes that it takes.
    pub fn size_bytes(&self) -> usize {
        self.layers.iter().map(|layer| 4 * (layer.keys.capacity() + layer.values.capacity())).sum()
    }
}

impl Model {
    /// Reads whole prompts into empty caches, one a sequence. Logits of the token after each prompt, `[S, V]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    ///
    /// # Panics
    /// If the model has no language head, the caches are not one a sequence, or one is not empty.
    pub fn read_prompts(&self, batch: &Batch, caches: &mut [&mut Cache]) -> Result<Vec<f32>, Error> {
        assert_eq!(caches.len(), batch.sequences(), "one cache a sequence");
        assert!(caches.iter().all(|cache| cache.length == 0), "prompts are read into empty caches");
        self.embeddings.check(batch)?;
        let turns = self.turns(batch.offsets.windows(2).map(|pair| (0, pair[1] - pair[0])));
        let pass = Pass { turns: turns.as_ref(), ..Pass::evaluation(&batch.offsets) };
        self.read(batch, &pass, caches, |attention, layer, x, saved, caches| {
            attention.context(x, layer, &pass, saved);
            remember(attention, layer, &pass, saved, caches);
        })
    }

    /// Reads one token a sequence. Logits of the token after it, `[S, V]`.
    ///
    /// # Errors
    /// As [`Model::forward`]; a cache that is full.
    ///
    /// # Panics
    /// If the model has no language head, or the caches are not one a token.
    pub fn read_tokens(&self, tokens: &[u32], caches: &mut [&mut Cache]) -> Result<Vec<f32>, Error> {
        assert_eq!(caches.len(), tokens.len(), "one cache a token");
        let mut batch = Batch::default();
        tokens.iter().for_each(|&token| batch.push(&[token], &[0]));
        self.embeddings.check(&batch)?;
        let limit = self.max_length();
        if let Some(sequence) = caches.iter().position(|cache| cache.length >= limit) {
            return Err(Error::Length { sequence, length: caches[sequence].length + 1, limit });
        }
        let firsts: Vec<usize> = caches.iter().map(|cache| cache.length).collect();
        let turns = self.turns(firsts.iter().map(|&first| (first, 1)));
        let pass = Pass { turns: turns.as_ref(), ..Pass::evaluation(&batch.offsets) };
        self.read(&batch, &pass, caches, |attention, layer, x, saved, caches| {
            attention.project(x, &pass, saved);
            remember(attention, layer, &pass, saved, caches);
            attention.step(layer, saved, caches);
        })
    }

    /// One pass through all layers, `context` filling the input of each layer's output projection.
    fn read(
        &self,
        batch: &Batch,
        pass: &Pass<'_>,
        caches: &mut [&mut Cache],
        context: impl Fn(&Attention, usize, &[f32], &mut AttentionSaved, &mut [&mut Cache]),
    ) -> Result<Vec<f32>, Error> {
        for cache in caches.iter_mut() {
            cache.layers.resize_with(self.stack.layers.len(), LayerCache::default);
        }
        self.with_workspace(|workspace| {
            let length = batch.tokens_count() * self.embeddings.width();
            let (embedding, stack, head) = workspace.parts();
            self.embeddings.forward(batch, embedding, None, false, stack.input(length));
            let mut out = vec![0.0; length];
            for (index, layer) in self.stack.layers.iter().enumerate() {
                let saved: &mut LayerSaved = stack.first_layer();
                layer.forward_with(index, pass, saved, &mut out, |attention, x, saved| {
                    context(attention, index, x, saved, caches);
                });
                std::mem::swap(&mut saved.input, &mut out);
            }
            stack.take_output();
            self.stack.finish(false, stack);
            for (cache, pair) in caches.iter_mut().zip(batch.offsets.windows(2)) {
                cache.length += pair[1] - pair[0];
            }
            Ok(self.head.forward(stack.output(), batch, None, head))
        })
    }
}

/// Adds the keys and values of a pass to the caches.
fn remember(attention: &Attention, layer: usize, pass: &Pass<'_>, saved: &AttentionSaved, caches: &mut [&mut Cache]) {
    let (key_width, value_width) = (attention.key.output_width(), attention.value.output_width());
    for (cache, pair) in caches.iter_mut().zip(pass.offsets.windows(2)) {
        let cache = &mut cache.layers[layer];
        cache.keys.extend_from_slice(&saved.key[pair[0] * key_width..pair[1] * key_width]);
        cache.values.extend_from_slice(&saved.value[pair[0] * value_width..pair[1] * value_width]);
    }
}

impl Attention {
    /// The context of one new token a sequence, whose keys and values are in the caches already.
    fn step(&self, layer: usize, saved: &mut AttentionSaved, caches: &[&mut Cache]) {
        let strides = Strides {
            query: self.query.output_width(),
            key: self.key.output_width(),
            value: self.value.output_width(),
            output: self.output.input_width(),
        };
        let cached: Vec<Cached<'_>> = caches
            .iter()
            .map(|cache| {
                let LayerCache { keys, values } = &cache.layers[layer];
                Cached { keys, values, length: cache.length + 1 }
            })
            .collect();
        let window = match self.mask {
            Mask::Causal { window } => window,
            Mask::Full => None,
        };
        resized(&mut saved.context, caches.len() * strides.output);
        kernels::attention_step(
            &saved.query,
            &cached,
            &self.heads.heads,
            strides,
            self.scale,
            window,
            &mut saved.context,
        );
    }
}
