//! What a run learns from and is judged by: labelled examples in epochs, or a corpus as a stream of sequences. The trainer
//! asks for the batch of a pass and for scores, and knows no more of either.

use finegates_checkpoint::{Config, Tokenizer};
use finegates_data::{Blocks, BlocksState, Corpus, CorpusOptions, Dataset, Labels, PIECE_BYTES, Piece, Windows};
use finegates_kernels::random;
use finegates_model::language::NO_TARGET;
use finegates_model::{Batch, Model};

use crate::encoded::{Encoded, Targets};
use crate::error::Error;
use crate::evaluation::{self, SplitScores, Yardstick, evaluate};
use crate::inputs;
use crate::metrics::Metric;
use crate::observer::Observer;
use crate::plan::Pass;
use crate::recipe::Recipe;

/// More tokens than any piece of a text becomes: a byte is hardly ever more than one.
const PIECE_TOKENS: usize = 64 * PIECE_BYTES;

/// What a run is made from.
#[derive(Debug)]
pub enum Data {
    /// Labelled examples.
    Examples(Dataset),
    /// A text to go through, and texts to be judged by.
    Corpus(Corpus, Vec<(String, Corpus)>),
}

impl Data {
    /// Finds the data of a recipe.
    ///
    /// # Errors
    /// Data that are missing or cannot be read.
    pub fn load(recipe: &Recipe) -> Result<Data, Error> {
        let Some(options) = recipe.corpus_options() else {
            return Ok(Data::Examples(Dataset::load(&recipe.dataset_options())?));
        };
        let corpus = Corpus::open(&options)?;
        let mut validation: Vec<(String, Corpus)> = Vec::new();
        for path in recipe.validation.iter().flatten() {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let taken = |name: &str| validation.iter().any(|(known, _)| known == name);
            let numbered = (2..).map(|number| format!("{stem}-{number}"));
            let name = std::iter::once(stem.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or_default();
            let options = CorpusOptions { paths: vec![path.clone()], ..options.clone() };
            validation.push((name, Corpus::open(&options)?));
        }
        Ok(Data::Corpus(corpus, validation))
    }

    /// The labels that examples have; those of a corpus are its tokens.
    pub(crate) fn labels(&self) -> Option<&Labels> {
        match self {
            Data::Examples(dataset) => Some(&dataset.labels),
            Data::Corpus(..) => None,
        }
    }

    /// A number that changes with the data.
    pub(crate) fn fingerprint(&self) -> String {
        match self {
            Data::Examples(dataset) => format!("{:016x}", dataset.fingerprint()),
            Data::Corpus(corpus, validation) => {
                let parts = std::iter::once(corpus).chain(validation.iter().map(|(_, corpus)| corpus));
                let digests: Vec<String> = parts.map(|corpus| corpus.fingerprint().digest).collect();
                digests.join("-")
            }
        }
    }
}

/// What a run learns from.
pub(crate) enum Material {
    /// Labelled examples.
    Examples(Box<Examples>),
    /// A corpus.
    Corpus(Box<Reading>),
}

/// Labelled examples as tokens.
pub(crate) struct Examples {
    train: Encoded,
    validation: Vec<Encoded>,
    metrics: Vec<Metric>,
    positive: u32,
    key: u64,
    order: Option<(u64, Vec<u32>)>,
}

/// A corpus being read.
pub(crate) struct Reading {
    blocks: Blocks,
    encoder: Encoder,
    sequences: usize,
    tokens_per_sequence: usize,
    validation: Vec<(String, Vec<u32>)>,
    window: usize,
    stride: usize,
}

impl Material {
    /// Encodes the data. A corpus is taken up where a saved run left it.
    ///
    /// # Errors
    /// Data that cannot be encoded, or that have nothing to learn from or to be judged by.
    pub(crate) fn new(
        data: Data,
        recipe: &Recipe,
        model: &Model,
        tokenizer: Tokenizer,
        place: Option<&BlocksState>,
        observer: &mut dyn Observer,
    ) -> Result<Material, Error> {
        let (corpus, validation) = match data {
            Data::Examples(dataset) => {
                return Examples::new(&dataset, recipe, model, &tokenizer, observer)
                    .map(Box::new)
                    .map(Material::Examples);
            }
            Data::Corpus(corpus, validation) => (corpus, validation),
        };
        let config = model.config();
        let tokens_per_sequence = recipe.tokens_per_sequence.unwrap_or(1);
        if tokens_per_sequence > model.max_length() {
            let longest = model.max_length();
            return Err(Error::SequenceTooLong { found: tokens_per_sequence, longest });
        }
        let encoder = Encoder::new(tokenizer, config)?;
        let mut texts = Vec::new();
        for (name, corpus) in validation {
            let tokens = encoder.whole(&corpus, usize::MAX)?;
            if tokens.len() < 2 {
                return Err(Error::ShortValidationText { name, tokens: tokens.len() });
            }
            texts.push((name, tokens));
        }
        if texts.is_empty() {
            return Err(Error::NoValidationText);
        }
        let packing = recipe.packing(encoder.end()?);
        let blocks = match place {
            Some(place) => Blocks::resume(corpus, packing, place, |piece| encoder.tokens(piece))?,
            None => Blocks::new(corpus, packing)?,
        };
        let (window, stride) = recipe.perplexity_protocol(model.max_length())?;
        let sequences = recipe.corpus_sequences();
        let validation = texts;
        let reading = Reading { blocks, encoder, sequences, tokens_per_sequence, validation, window, stride };
        Ok(Material::Corpus(Box::new(reading)))
    }

    /// Sequences of the run's plan: of an epoch of examples, or of all that is read of a corpus.
    pub(crate) fn len(&self) -> usize {
        match self {
            Material::Examples(examples) => examples.train.len(),
            Material::Corpus(reading) => reading.sequences,
        }
    }

    /// How many tokens a token attends to on average: `Σ length² / Σ length`, of a causal model half of it.
    pub(crate) fn attended(&self) -> f64 {
        match self {
            Material::Examples(examples) => examples.train.attended(),
            Material::Corpus(reading) => reading.tokens_per_sequence as f64 / 2.0,
        }
    }

    /// Name and size of each validation set: examples, or tokens.
    pub(crate) fn validation_sizes(&self) -> Vec<(String, usize)> {
        match self {
            Material::Examples(examples) => {
                examples.validation.iter().map(|split| (split.name.clone(), split.len())).collect()
            }
            Material::Corpus(reading) => {
                reading.validation.iter().map(|(name, tokens)| (name.clone(), tokens.len())).collect()
            }
        }
    }

    /// Where a corpus is read on; none for examples.
    pub(crate) fn place(&self) -> Option<BlocksState> {
        match self {
            Material::Examples(_) => None,
            Material::Corpus(reading) => Some(reading.blocks.state()),
        }
    }

    /// Fills the batch of a pass and gives its targets. Passes are asked for in their order.
    ///
    /// # Errors
    /// A corpus that cannot be read on.
    pub(crate) fn fill(
        &mut self,
        recipe: &Recipe,
        epoch: u64,
        pass: &Pass,
        batch: &mut Batch,
    ) -> Result<Targets, Error> {
        match self {
            Material::Examples(examples) => Ok(examples.fill(recipe, epoch, pass, batch)),
            Material::Corpus(reading) => reading.fill(pass, batch),
        }
    }

    /// Scores on every validation set, of a model whose gates stand at their evaluation values. `progress` is told the
    /// set's name, what is done and all there is, and ends it, with nothing to show, by returning false.
    ///
    /// # Errors
    /// A sequence the model cannot take.
    pub(crate) fn evaluate(
        &self,
        model: &Model,
        batch_size: usize,
        progress: &mut dyn FnMut(&str, usize, usize) -> bool,
    ) -> Result<Option<Vec<SplitScores>>, Error> {
        let mut scores = Vec::new();
        match self {
            Material::Examples(examples) => {
                let yardstick = Yardstick { metrics: &examples.metrics, positive: examples.positive };
                for split in &examples.validation {
                    let mut told = |done, total| progress(&split.name, done, total);
                    let Some(found) = evaluate(model, split, yardstick, batch_size, &mut told)? else {
                        return Ok(None);
                    };
                    scores.push(found);
                }
            }
            Material::Corpus(reading) => {
                for (name, tokens) in &reading.validation {
                    let windows = Windows::new(tokens.len(), reading.window, reading.stride)?;
                    let windows = windows.map(|window| (window.tokens, window.first_scored));
                    let mut told = |done, total| progress(name, done, total);
                    let Some(found) = model.text_loss(tokens, windows, &mut told)? else { return Ok(None) };
                    let loss = found.mean();
                    let metrics = vec![(Metric::Perplexity, loss.exp())];
                    scores.push(SplitScores { name: name.clone(), loss, metrics });
                }
            }
        }
        Ok(Some(scores))
    }
}

impl Examples {
    fn new(
        dataset: &Dataset,
        recipe: &Recipe,
        model: &Model,
        tokenizer: &Tokenizer,
        observer: &mut dyn Observer,
    ) -> Result<Examples, Error> {
        let max_length = recipe.max_length.min(model.max_length());
        let train = inputs::encode(&dataset.train, tokenizer, max_length, observer)?;
        if train.is_empty() {
            return Err(Error::NoExamples);
        }
        let validation = dataset.validation.iter();
        let validation = validation.map(|split| inputs::encode(split, tokenizer, max_length, observer));
        let names = dataset.labels.names();
        Ok(Examples {
            train,
            validation: validation.collect::<Result<_, _>>()?,
            metrics: evaluation::metrics(recipe, &dataset.labels)?,
            positive: names.zip(recipe.task).map_or(1, |(names, task)| task.positive_class(names)),
            key: random::derive(recipe.seed, "order"),
            order: None,
        })
    }

    fn fill(&mut self, recipe: &Recipe, epoch: u64, pass: &Pass, batch: &mut Batch) -> Targets {
        // Examples are put into the order of an epoch once.
        if self.order.as_ref().is_none_or(|(ordered, _)| *ordered != epoch) {
            let key = random::mix(self.key, epoch);
            self.order = Some((epoch, self.train.epoch_order(key, recipe.batch_size, recipe.length_bucketing)));
        }
        let order = self.order.as_ref().map_or(&[][..], |(_, order)| order);
        let indices = &order[pass.places.clone()];
        self.train.batch(indices, batch);
        self.train.targets.gather(indices)
    }
}

impl Reading {
    fn fill(&mut self, pass: &Pass, batch: &mut Batch) -> Result<Targets, Error> {
        batch.clear();
        let mut targets = Vec::new();
        for _ in pass.places.clone() {
            let encoder = &self.encoder;
            let block = self.blocks.read(|piece| encoder.tokens(piece))?.ok_or(Error::NoExamples)?;
            batch.push(&block, &vec![0; block.len()]);
            targets.extend(block[1..].iter().copied().chain([NO_TARGET]));
        }
        Ok(Targets::Tokens(targets))
    }
}

/// Turns documents into tokens.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    /// What the tokenizer puts before every text.
    begin: Option<u32>,
    /// What lies between texts, where that is known.
    end: Option<u32>,
}

impl Encoder {
    /// For a model with this config.
    ///
    /// # Errors
    /// A tokenizer that does not fit the model.
    pub fn new(tokenizer: Tokenizer, config: &Config) -> Result<Encoder, Error> {
        let end = end_of_text(config, &tokenizer);
        let empty = match tokenizer.special_tokens(false) {
            0 => Vec::new(),
            _ => tokenizer.encode("", None, PIECE_TOKENS)?.ids,
        };
        let named = config.decoder.as_ref().and_then(|decoder| decoder.begin_id);
        Ok(Encoder { tokenizer, end, begin: named.filter(|begin| empty.first() == Some(begin)) })
    }

    fn tokens(&self, piece: &Piece) -> Result<Vec<u32>, Error> {
        let begin = self.begin.filter(|_| piece.starts_document);
        let ids = self.tokenizer.encode_bare(&piece.text, PIECE_TOKENS)?.ids;
        Ok(begin.into_iter().chain(ids).collect())
    }

    fn end(&self) -> Result<u32, Error> {
        self.end.ok_or(Error::NoEndOfText)
    }

    /// A corpus up to so many tokens, with the end of text between its documents.
    ///
    /// # Errors
    /// A corpus that cannot be read or encoded; several documents without anything to put between them.
    pub fn whole(&self, corpus: &Corpus, limit: usize) -> Result<Vec<u32>, Error> {
        let (mut reader, mut tokens) = (corpus.read(), Vec::new());
        while tokens.len() < limit
            && let Some(piece) = reader.read()?
        {
            if piece.starts_document && !tokens.is_empty() {
                tokens.push(self.end()?);
            }
            tokens.extend(self.tokens(&piece)?);
        }
        tokens.truncate(limit);
        Ok(tokens)
    }
}

/// The token between documents: what pretraining put there, as far as that can be told. Chat models end their turns with
/// another token than their texts, and name that one in their config.
fn end_of_text(config: &Config, tokenizer: &Tokenizer) -> Option<u32> {
    let known = ["<|endoftext|>", "<|end_of_text|>"].iter().filter_map(|name| tokenizer.token_to_id(name));
    let of_config = config.decoder.iter().flat_map(|decoder| decoder.end_ids.iter().copied());
    known.chain(of_config).find(|&id| (id as usize) < config.vocabulary)
}
