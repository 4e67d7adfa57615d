//! A tokenizer of the `tokenizers` library, from whichever files a model folder has.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::tokenizer::Tokenizer as Library;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::settings::Settings;
use super::{failed, guarded, limits};
use crate::Error;
use crate::config::{Config, Family, parse_json};
use crate::error::shorten;
use crate::read::{TOKENIZER_LIMIT_BYTES, read_text};

/// A tokenizer of the library, and where it is from.
pub(super) struct Built {
    /// The file it was read from.
    pub path: PathBuf,
    pub library: Library,
    /// The most by which it lengthens a text before the text is split.
    pub growth: f64,
}

/// What the normalizers and splitters of a tokenizer built here make of a text: BERT's spaces around Chinese letters and
/// accents on their own, or the byte level's two bytes for one.
const OWN_GROWTH: f64 = 4.0;

/// The tokenizer of a model folder.
pub(super) fn open(folder: &Path, config: &Config, settings: &Settings) -> Result<Built, Error> {
    let json = folder.join("tokenizer.json");
    if json.is_file() {
        let text = read_text(&json, TOKENIZER_LIMIT_BYTES)?;
        let (mut library, growth) = from_json(&json, &text, config)?;
        guarded(&json, || adjust(&mut library, settings).map_err(|error| failed(&json, error)))?;
        return Ok(Built { path: json, library, growth });
    }
    let words = folder.join("vocab.txt");
    if words.is_file() {
        let library = guarded(&words, || word_piece(&words, config.family, settings))?;
        return Ok(Built { path: words, library, growth: OWN_GROWTH });
    }
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if vocabulary.is_file() && merges.is_file() {
        let library = guarded(&vocabulary, || byte_level(&vocabulary, &merges, settings))?;
        return Ok(Built { path: vocabulary, library, growth: OWN_GROWTH });
    }
    Err(Error::NoTokenizer { folder: folder.to_path_buf(), reason: explain_absence(folder) })
}

/// The library's tokenizer from the text of a `tokenizer.json`, held to its limits, and by how much it lengthens a text.
pub(super) fn from_json(path: &Path, text: &str, config: &Config) -> Result<(Library, f64), Error> {
    let size_bytes = text.len() as u64;
    if size_bytes > TOKENIZER_LIMIT_BYTES {
        return Err(Error::TooLarge { path: path.to_path_buf(), size_bytes, limit_bytes: TOKENIZER_LIMIT_BYTES });
    }
    let growth = guarded(path, || limits::check(path, text, config))?;
    let library = guarded(path, || Library::from_bytes(text.as_bytes()).map_err(|error| failed(path, error)))?;
    Ok((library, growth))
}

fn explain_absence(folder: &Path) -> String {
    for model in ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model"] {
        if folder.join(model).is_file() {
            let script = "import sys; from transformers import AutoTokenizer as T; T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])";
            let path = folder.display().to_string().replace('\'', r"'\''");
            return format!(
                "only {model} is there; make a tokenizer.json from it once with\n  python3 -c \"{script}\" '{path}'"
            );
        }
    }
    "expected tokenizer.json, or vocab.txt, or vocab.json and merges.txt; copy them from the model this one was made from".to_owned()
}

/// `tokenizer_config.json` wins over `tokenizer.json` in what both say, as in transformers' classes for these families.
fn adjust(library: &mut Library, settings: &Settings) -> tokenizers::Result<()> {
    let own_class = matches!(
        settings.class.as_deref(),
        None | Some("BertTokenizer" | "DistilBertTokenizer" | "MPNetTokenizer" | "RobertaTokenizer")
    );
    if own_class {
        if let Some(NormalizerWrapper::BertNormalizer(normalizer)) = library.get_normalizer() {
            let mut normalizer = *normalizer;
            normalizer.lowercase = settings.lower_case.unwrap_or(normalizer.lowercase);
            normalizer.strip_accents = settings.strip_accents.or(normalizer.strip_accents);
            normalizer.handle_chinese_chars = settings.chinese_characters.unwrap_or(normalizer.handle_chinese_chars);
            library.with_normalizer(Some(normalizer))?;
        }
        if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = library.get_pre_tokenizer() {
            let bytes = bytes.add_prefix_space(settings.add_prefix_space.unwrap_or(bytes.add_prefix_space));
            library.with_pre_tokenizer(Some(bytes));
        }
    }
    if let ModelWrapper::BPE(model) = library.get_model()
        && model.dropout.is_some()
    {
        // The same text must give the same ids.
        let mut model = model.clone();
        model.dropout = None;
        library.with_model(model);
    }
    Ok(())
}

/// BERT's tokenizer, or MPNet's, from `vocab.txt`.
fn word_piece(path: &Path, family: Family, settings: &Settings) -> Result<Library, Error> {
    let like_mpnet = match settings.class.as_deref() {
        Some("MPNetTokenizer") => true,
        Some("BertTokenizer" | "DistilBertTokenizer") => false,
        _ => family == Family::MpNet,
    };
    let text = read_text(path, TOKENIZER_LIMIT_BYTES)?;
    let vocabulary: Vocab = lines(&text).enumerate().map(|(id, token)| (token.to_owned(), id as u32)).collect();
    let names: &[(&str, &str)] = match like_mpnet {
        true => &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "[UNK]"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ],
        false => &[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
    };
    let unknown = settings.special("unk_token", "[UNK]", false)?.content;
    let broken = |error: tokenizers::Error| failed(path, error);
    let model = WordPiece::builder().vocab(vocabulary).unk_token(unknown).build().map_err(broken)?;
    let mut library = Library::new(model);
    let normalizer = BertNormalizer::new(
        true,
        settings.chinese_characters.unwrap_or(true),
        settings.strip_accents,
        settings.lower_case.unwrap_or(true),
    );
    library.with_normalizer(Some(normalizer)).map_err(broken)?.with_pre_tokenizer(Some(BertPreTokenizer));
    library.with_decoder(Some(WordPieceDecoder::default()));
    let surround = add_tokens(path, &mut library, settings, names, like_mpnet)?;
    match like_mpnet {
        true => library.with_post_processor(Some(
            RobertaProcessing::new(surround.sep, surround.cls).trim_offsets(true).add_prefix_space(false),
        )),
        false => library.with_post_processor(Some(BertProcessing::new(surround.sep, surround.cls))),
    };
    Ok(library)
}

/// RoBERTa's tokenizer from `vocab.json` and `merges.txt`.
fn byte_level(vocabulary: &Path, merges: &Path, settings: &Settings) -> Result<Library, Error> {
    let broken = |error: tokenizers::Error| failed(vocabulary, error);
    let ids = vocabulary_of(vocabulary)?;
    let merges = merges_of(merges)?;
    let model = BPE::builder().vocab_and_merges(ids, merges).build().map_err(broken)?;
    let prefix_space = settings.add_prefix_space.unwrap_or(false);
    let trim = settings.trim_offsets.unwrap_or(true);
    let mut library = Library::new(model);
    library.with_pre_tokenizer(Some(ByteLevel::new(prefix_space, trim, true)));
    library.with_decoder(Some(ByteLevel::default()));
    let names = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
        ("sep_token", "</s>"),
        ("pad_token", "<pad>"),
        ("cls_token", "<s>"),
        ("mask_token", "<mask>"),
    ];
    let surround = add_tokens(vocabulary, &mut library, settings, &names, false)?;
    let processor =
        RobertaProcessing::new(surround.sep, surround.cls).trim_offsets(trim).add_prefix_space(prefix_space);
    library.with_post_processor(Some(processor));
    Ok(library)
}

/// The tokens before and between texts, with their ids.
struct Surround {
    cls: (String, u32),
    sep: (String, u32),
}

/// Adds the special tokens of `names` and the added tokens of the settings to the vocabulary.
fn add_tokens(
    path: &Path,
    library: &mut Library,
    settings: &Settings,
    names: &[(&str, &str)],
    mask_takes_space: bool,
) -> Result<Surround, Error> {
    let broken = |error: tokenizers::Error| failed(path, error);
    for (id, token) in &settings.added {
        let content = token.content.clone();
        library.add_tokens([token.clone()]).map_err(broken)?;
        if library.token_to_id(&content) != Some(*id) {
            let found = library.token_to_id(&content).map_or("none".to_owned(), |id| id.to_string());
            let reason = format!(
                "the added token {} should have id {id}, found {found}; is the vocabulary complete?",
                shorten(&content)
            );
            return Err(failed(path, reason));
        }
    }
    let mut surround = [None, None];
    for (name, default) in names {
        let token = settings.special(name, default, mask_takes_space && *name == "mask_token")?;
        let content = token.content.clone();
        library.add_special_tokens([token]).map_err(broken)?;
        let id = library.token_to_id(&content);
        match *name {
            "cls_token" => surround[0] = id.map(|id| (content, id)),
            "sep_token" => surround[1] = id.map(|id| (content, id)),
            _ => {}
        }
    }
    match surround {
        [Some(cls), Some(sep)] => Ok(Surround { cls, sep }),
        _ => Err(failed(path, "no token to begin a text with, or none to end it with")),
    }
}

/// Lines as Python's text files have them: ended by a line feed, a carriage return or both.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = match rest.find(['\n', '\r']) {
            None => (rest, ""),
            Some(end) => (&rest[..end], rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + 1..])),
        };
        rest = after;
        Some(line)
    })
}

fn vocabulary_of(path: &Path) -> Result<Vocab, Error> {
    let object = parse_json(path, &read_text(path, TOKENIZER_LIMIT_BYTES)?)?;
    let id = |(token, id): (String, Value)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok((token, id)),
        None => Err(failed(path, format!("{}: expected an id, found {}", shorten(&token), shorten(&id.to_string())))),
    };
    object.into_iter().map(id).collect()
}

fn merges_of(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let text = read_text(path, TOKENIZER_LIMIT_BYTES)?;
    let mut merges = Vec::new();
    for (number, line) in lines(&text).enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => merges.push((left.to_owned(), right.to_owned())),
            _ => {
                return Err(failed(
                    path,
                    format!("line {}: expected two parts and a space between, found {}", number + 1, shorten(line)),
                ));
            }
        }
    }
    Ok(merges)
}
