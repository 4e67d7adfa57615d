//! A decoder as the loop sees it: a model with a cache of keys and values for each slot.

use finegates_model::{Batch, Cache, Model, Task};

use super::generator::{Last, NextLogits, Start};
use crate::error::Error;

/// A language model with its caches.
#[derive(Debug)]
pub struct Decoder<'a> {
    model: &'a Model,
    slots: Vec<Cache>,
}

impl<'a> Decoder<'a> {
    /// Wraps a model.
    ///
    /// # Panics
    /// If the model was not loaded as a language model.
    pub fn new(model: &'a Model) -> Decoder<'a> {
        assert_eq!(model.task(), Task::Language, "only a language model has a next token");
        Decoder { model, slots: Vec::new() }
    }

    /// Runs with the caches of some slots, in the order given; an empty one where `fresh`.
    fn with_caches(
        &mut self,
        slots: impl Iterator<Item = usize> + Clone,
        fresh: bool,
        run: impl FnOnce(&Model, &mut [&mut Cache]) -> Result<Vec<f32>, finegates_model::Error>,
        logits: &mut [f32],
    ) -> Result<(), Error> {
        let most = slots.clone().max().map_or(0, |slot| slot + 1);
        if self.slots.len() < most {
            self.slots.resize_with(most, Cache::default);
        }
        let taken = |slot: usize| std::mem::take(&mut self.slots[slot]);
        let mut caches: Vec<Cache> = slots.clone().map(taken).collect();
        if fresh {
            caches.iter_mut().for_each(Cache::clear);
        }
        let mut borrowed: Vec<&mut Cache> = caches.iter_mut().collect();
        let found = run(self.model, &mut borrowed);
        for (slot, cache) in slots.zip(caches) {
            self.slots[slot] = cache;
        }
        logits.copy_from_slice(&found?);
        Ok(())
    }
}

impl NextLogits for Decoder<'_> {
    fn vocabulary(&self) -> usize {
        self.model.classes()
    }

    fn max_length(&self) -> usize {
        self.model.max_length()
    }

    fn start(&mut self, prompts: &[Start<'_>], logits: &mut [f32]) -> Result<(), Error> {
        let mut batch = Batch::default();
        for prompt in prompts {
            batch.push(prompt.ids, &vec![0; prompt.ids.len()]);
        }
        let slots = prompts.iter().map(|prompt| prompt.slot);
        self.with_caches(slots, true, |model, caches| model.read_prompts(&batch, caches), logits)
    }

    fn step(&mut self, tokens: &[Last], logits: &mut [f32]) -> Result<(), Error> {
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let slots = tokens.iter().map(|token| token.slot);
        self.with_caches(slots, false, |model, caches| model.read_tokens(&ids, caches), logits)
    }

    fn end(&mut self, slot: usize) {
        // The memory stays for the next sequence.
        if let Some(cache) = self.slots.get_mut(slot) {
            cache.clear();
        }
    }
}
