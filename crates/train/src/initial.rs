//! What pretraining starts from: a model folder with fresh weights, made from a config or the name of a size, and a tokenizer that
//! fits it. From there on a pretraining run is a run as any other.

use std::path::{Path, PathBuf};

use finegates_checkpoint::config::sizes;
use finegates_checkpoint::read::{CONFIG_LIMIT_BYTES, TOKENIZER_LIMIT_BYTES, read_text};
use finegates_checkpoint::write::{copy_into, replace_folder, write_atomic};
use finegates_checkpoint::{Config, Tokenizer, TokenizerTraining};
use finegates_data::{Corpus, CorpusOptions};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::folder::{INITIAL_SIGN, Mode, RunFolder};
use crate::observer::{Event, Observer};

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// A model folder that has one.
    Folder(PathBuf),
    /// It is trained on the corpus, to so many entries.
    Trained(usize),
}

/// What to make.
#[derive(Clone, Debug)]
pub struct Initial {
    /// A size by its name (`llama-9m`), a `config.json`, or a folder with one.
    pub config: String,
    /// The tokenizer; none to take that of the config's folder.
    pub tokenizer: Option<TokenizerSource>,
    /// The corpus that a tokenizer is trained on.
    pub corpus: CorpusOptions,
    /// What the weights are drawn from.
    pub seed: u64,
}

/// A config that is not settled yet.
struct Draft {
    raw: Map<String, Value>,
    /// The file it is from; none for a size, whose tokens follow from the tokenizer.
    path: Option<PathBuf>,
}

impl Initial {
    /// Makes the model in the run folder and answers where it is. Nothing is there unless all of it is.
    ///
    /// # Errors
    /// A config that is no decoder's or unknown, a tokenizer that does not fit, a run folder that is not free.
    pub fn prepare(&self, folder: &Path, mode: Mode, observer: &mut dyn Observer) -> Result<PathBuf, Error> {
        let mut draft = Draft::read(&self.config)?;
        let source = match (&self.tokenizer, &draft.path) {
            (Some(source), _) => source.clone(),
            (None, Some(path)) => TokenizerSource::Folder(path.parent().unwrap_or(Path::new(".")).to_owned()),
            (None, None) => {
                let problem = "a size by its name comes without a tokenizer; name one with --tokenizer, or have one trained on the \
                               corpus with --train-tokenizer ENTRIES";
                return Err(wrong(Path::new(&self.config), problem));
            }
        };
        let run = RunFolder::open(folder, mode)?;
        let destination = run.free_initial();
        let beside = run.path().join(".initial.new");
        if beside.exists() {
            std::fs::remove_dir_all(&beside).map_err(Error::io(&beside, "remove"))?;
        }
        std::fs::create_dir(&beside).map_err(Error::io(&beside, "make"))?;
        let made = self.make(&mut draft, &source, &beside, observer);
        if made.is_err() {
            // What went wrong is said; what is left over does not matter, and the next start removes it.
            let _ = std::fs::remove_dir_all(&beside);
        }
        made?;
        replace_folder(&beside, &destination)?;
        Ok(destination)
    }

    fn make(
        &self,
        draft: &mut Draft,
        source: &TokenizerSource,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        if let TokenizerSource::Trained(entries) = source {
            observer.event(&Event::Note("training a tokenizer on the corpus"));
            let reader = Corpus::open(&self.corpus)?.read();
            let texts = Texts { reader };
            let trained = TokenizerTraining::new(*entries).train(texts)?;
            trained.write(folder)?;
            let (made, read) = (trained.vocabulary, trained.read_bytes);
            observer.event(&Event::Note(&format!("the tokenizer has {made} entries, from {read} bytes of text")));
        }
        let place = match source {
            TokenizerSource::Folder(place) => place.as_path(),
            TokenizerSource::Trained(_) => folder,
        };
        let own = self.tokenizer.is_none();
        let config = draft.settle(place, own)?;
        if let TokenizerSource::Folder(place) = source {
            for file in Tokenizer::open(place, &config)?.files() {
                copy_into(&file, folder)?;
            }
        }
        write_atomic(&folder.join("config.json"), format!("{:#}\n", Value::Object(draft.raw.clone())).as_bytes())?;
        let parameters = finegates_model::initialise::initialise(&config, self.seed, folder)?;
        let sign = json!({
            "config": self.config,
            "tokenizer": match source {
                TokenizerSource::Folder(place) => place.display().to_string(),
                TokenizerSource::Trained(entries) => format!("trained on the corpus, {entries} entries asked for"),
            },
            "seed": self.seed,
            "parameters": parameters,
        });
        Ok(write_atomic(&folder.join(INITIAL_SIGN), format!("{sign:#}\n").as_bytes())?)
    }
}

impl Draft {
    fn read(config: &str) -> Result<Draft, Error> {
        let path = Path::new(config);
        let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        if !path.is_file() {
            let known = || sizes::names().collect::<Vec<_>>().join(", ");
            return match sizes::named(config) {
                Some(raw) => Ok(Draft { raw, path: None }),
                None => Err(wrong(&path, &format!("is no file, and no size by its name; expected one of {}", known()))),
            };
        }
        let text = read_text(&path, CONFIG_LIMIT_BYTES)?;
        let raw = match serde_json::from_str(&text) {
            Ok(Value::Object(raw)) => raw,
            Ok(_) => return Err(wrong(&path, "expected an object, as of a config.json")),
            Err(error) => return Err(wrong(&path, &format!("is no JSON: {error}"))),
        };
        // What cannot be read at all is found before a tokenizer is trained for it.
        Config::from_json(&text)?;
        Ok(Draft { raw, path: Some(path) })
    }

    /// Lets the config follow from the tokenizer where it may, and checks that they fit where it may not.
    fn settle(&mut self, tokenizer: &Path, own: bool) -> Result<Config, Error> {
        if self.path.is_none() {
            // Room for any tokenizer, until its size is known.
            self.raw.insert("vocab_size".to_owned(), (1u64 << 20).into());
        }
        let config = self.parse()?;
        let opened = Tokenizer::open(tokenizer, &config)?;
        let entries = opened.entries();
        if self.path.is_none() {
            self.raw.insert("vocab_size".to_owned(), entries.into());
        } else if entries > config.vocabulary {
            let path = self.path.clone().unwrap_or_default();
            let problem = format!(
                "vocab_size: expected at least {entries}, the entries of the tokenizer in {}, found {}; raise it, or take a \
                 smaller tokenizer",
                tokenizer.display(),
                config.vocabulary
            );
            return Err(wrong(&path, &problem));
        }
        if !own {
            // Ids in a config belong to the tokenizer that it came with.
            let end = named_token(tokenizer, "eos_token").and_then(|name| opened.token_to_id(&name));
            let common =
                || ["<|endoftext|>", "<|end_of_text|>", "</s>"].iter().find_map(|name| opened.token_to_id(name));
            let begin = named_token(tokenizer, "bos_token").and_then(|name| opened.token_to_id(&name));
            self.raw.remove("pad_token_id");
            let end = end.or_else(common);
            for (key, id) in [("eos_token_id", end), ("bos_token_id", begin.or(end))] {
                match id {
                    Some(id) => drop(self.raw.insert(key.to_owned(), id.into())),
                    None => drop(self.raw.remove(key)),
                }
            }
        }
        let class = config.family.language_class();
        self.raw.insert("architectures".to_owned(), json!(class.into_iter().collect::<Vec<_>>()));
        self.raw.insert("torch_dtype".to_owned(), "float32".into());
        self.raw.remove("dtype");
        self.raw.remove("_name_or_path");
        // The weights that these belong to are not here.
        self.raw.remove("quantization_config");
        self.parse()
    }

    fn parse(&self) -> Result<Config, Error> {
        Ok(Config::from_json(&Value::Object(self.raw.clone()).to_string())?)
    }
}

/// The pieces of a corpus as texts.
struct Texts {
    reader: finegates_data::CorpusReader,
}

impl Iterator for Texts {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.reader.read() {
            Ok(piece) => piece.map(|piece| Ok(piece.text)),
            Err(error) => Some(Err(error.into())),
        }
    }
}

/// What `tokenizer_config.json` calls a special token.
fn named_token(folder: &Path, key: &str) -> Option<String> {
    let text = read_text(&folder.join("tokenizer_config.json"), TOKENIZER_LIMIT_BYTES).ok()?;
    let settings: Value = serde_json::from_str(&text).ok()?;
    let token = settings.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

fn wrong(path: &Path, problem: &str) -> Error {
    Error::Initial { path: path.to_owned(), problem: problem.to_owned() }
}
