//! What a `tokenizer.json` may make of a text. The library does whatever the file says, and a few replacements make
//! gigabytes of one letter. Asked before the library reads the file, for it normalises added tokens while it does.

use std::path::Path;

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::failed;
use crate::Error;
use crate::config::Config;
use crate::error::shorten;

/// Most that normalizer and pre-tokenizer together may lengthen a text, as a factor. XLM-RoBERTa's come to 132.
const GROWTH_LIMIT: f64 = 512.0;
/// Most steps of a normalizer, a pre-tokenizer or a post-processor.
const STEPS_LIMIT: usize = 64;
/// Most tokens that are put around a text, and most bytes of one of them or of an added token.
const SPECIAL_TOKENS_LIMIT: usize = 1 << 10;
const TOKEN_LIMIT_BYTES: usize = 1 << 10;
/// Most bytes of all added tokens once they are normalised.
const ADDED_TOKENS_LIMIT_BYTES: f64 = (256 << 20) as f64;

/// The parts of a `tokenizer.json` that make more of a text than it is.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    added_tokens: Option<Vec<AddedToken>>,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
}

/// Checks the text of a `tokenizer.json` and returns the most by which it lengthens a text before it is split.
pub(super) fn check(path: &Path, text: &str, config: &Config) -> Result<f64, Error> {
    let parts: Parts = serde_json::from_str(text).map_err(|error| failed(path, error))?;
    let mut walk = Walk { path, growth: 1.0, steps: 0, letters: Letters::default() };
    if let Some(normalizer) = &parts.normalizer {
        walk.check_charsmaps("normalizer", normalizer)?;
        walk.steps("normalizer", "normalizers", &walk.read::<NormalizerWrapper>(normalizer)?, normalizer_growth)?;
    }
    let added = parts.added_tokens.unwrap_or_default();
    if let Some(long) = added.iter().find(|token| token.content.len() > TOKEN_LIMIT_BYTES) {
        let expected = format!("tokens of at most {TOKEN_LIMIT_BYTES} bytes");
        return Err(walk.wrong("added_tokens", &expected, &format!("{} of them", long.content.len())));
    }
    let normalised_bytes = walk.growth * added.iter().map(|token| token.content.len() as f64).sum::<f64>();
    if normalised_bytes > ADDED_TOKENS_LIMIT_BYTES {
        let expected = "tokens that are short when they are normalised";
        return Err(walk.wrong("added_tokens", expected, &format!("{} tokens", added.len())));
    }
    if let Some(splitter) = &parts.pre_tokenizer {
        walk.steps = 0;
        walk.steps("pre_tokenizer", "pretokenizers", &walk.read::<PreTokenizerWrapper>(splitter)?, splitter_growth)?;
    }
    if let Some(surround) = &parts.post_processor {
        walk.check_lengths("post_processor", surround)?;
        let surround = walk.read::<PostProcessorWrapper>(surround)?;
        walk.steps = 0;
        walk.steps("post_processor", "processors", &surround, |_| 1.0)?;
        let most = config.max_tokens().min(SPECIAL_TOKENS_LIMIT);
        for side in ["single", "pair"] {
            let mut specials = 0;
            walk.template("post_processor", &surround, side, most, &mut specials)?;
        }
    }
    Ok(walk.growth)
}

/// The steps of a file, added up.
struct Walk<'p> {
    path: &'p Path,
    growth: f64,
    steps: usize,
    letters: Letters,
}

/// Steps in a row that replace one letter each, none of them made by another: a letter is then lengthened by one of them at most.
#[derive(Default)]
struct Letters {
    contents: Vec<String>,
    growth: f64,
}

impl Letters {
    /// What a step adds to the growth of those in its row.
    fn share(&mut self, step: &Value, growth: f64) -> f64 {
        let text = |part: Option<&Value>| part.and_then(Value::as_str).unwrap_or_default().to_owned();
        let pattern = text(step.get("pattern").and_then(|pattern| pattern.get("String")));
        if kind(step) != Some("Replace") || pattern.chars().count() != 1 {
            *self = Letters::default();
            return growth;
        }
        if self.contents.iter().any(|content| content.contains(&pattern)) {
            *self = Letters::default();
        }
        let before = self.growth.max(1.0);
        self.growth = before.max(growth);
        self.contents.push(text(step.get("content")));
        self.growth / before
    }
}

impl Walk<'_> {
    fn wrong(&self, field: &str, expected: &str, found: &str) -> Error {
        Error::field(self.path, field, expected, found)
    }

    /// A part as the library understands it: in one of the old forms, it has no names for its steps.
    fn read<P: DeserializeOwned + Serialize>(&self, part: &Value) -> Result<Value, Error> {
        let part: P = serde_json::from_value(part.clone()).map_err(|error| failed(self.path, error))?;
        serde_json::to_value(part).map_err(|error| failed(self.path, error))
    }

    /// Counts the steps below `part` and multiplies what each makes of a text.
    fn steps(&mut self, field: &str, inner: &str, part: &Value, growth: fn(&Value) -> f64) -> Result<(), Error> {
        if let (Some("Sequence"), Some(steps)) = (kind(part), part.get(inner).and_then(Value::as_array)) {
            return steps
                .iter()
                .enumerate()
                .try_for_each(|(index, step)| self.steps(&format!("{field}.{inner}[{index}]"), inner, step, growth));
        }
        self.steps += 1;
        self.growth *= self.letters.share(part, growth(part));
        if self.steps > STEPS_LIMIT {
            return Err(self.wrong(field, &format!("at most {STEPS_LIMIT} steps"), "one more"));
        }
        if self.growth > GROWTH_LIMIT {
            let expected = format!("steps that lengthen a text at most {GROWTH_LIMIT} times");
            return Err(self.wrong(field, &expected, &format!("up to {:.0} times with this step", self.growth)));
        }
        Ok(())
    }

    /// Adds up the special tokens that templates put around a text or pair, which must be there once.
    fn template(&self, field: &str, part: &Value, side: &str, most: usize, specials: &mut usize) -> Result<(), Error> {
        match kind(part) {
            Some("Sequence") => {
                let steps = part.get("processors").and_then(Value::as_array).into_iter().flatten();
                for (index, step) in steps.enumerate() {
                    self.template(&format!("{field}.processors[{index}]"), step, side, most, specials)?;
                }
            }
            Some("TemplateProcessing") => {
                let tokens = part.get("special_tokens");
                let field = format!("{field}.{side}");
                let mut sequences = Vec::new();
                for piece in part.get(side).and_then(Value::as_array).into_iter().flatten() {
                    if let Some(sequence) = piece.get("Sequence") {
                        let id = sequence.get("id").and_then(Value::as_str).unwrap_or_default();
                        if sequences.contains(&id) {
                            return Err(self.wrong(&field, "each text once", &format!("{} twice", shorten(id))));
                        }
                        sequences.push(id);
                    } else if let Some(id) = piece.get("SpecialToken").and_then(|token| token.get("id")?.as_str()) {
                        let token = tokens.and_then(|tokens| tokens.get(id));
                        let list = |name: &str| token.and_then(|token| token.get(name)?.as_array());
                        *specials += list("ids").map_or(1, Vec::len).max(1);
                        let texts = list("tokens").into_iter().flatten().filter_map(Value::as_str);
                        if texts.map(str::len).sum::<usize>() > TOKEN_LIMIT_BYTES {
                            let expected = format!("special tokens of at most {TOKEN_LIMIT_BYTES} bytes");
                            return Err(self.wrong(&field, &expected, &shorten(id)));
                        }
                    }
                    if *specials > most {
                        let expected = format!("at most {most} special tokens around a text");
                        return Err(self.wrong(&field, &expected, "more"));
                    }
                }
            }
            Some("BertProcessing" | "RobertaProcessing") => *specials += 4,
            _ => {}
        }
        Ok(())
    }

    /// No list in a post-processor is as long as this; the library takes its time over long ones.
    fn check_lengths(&self, field: &str, part: &Value) -> Result<(), Error> {
        match part {
            Value::Object(object) => object
                .iter()
                .try_for_each(|(key, value)| self.check_lengths(&format!("{field}.{}", shorten(key)), value)),
            Value::Array(items) if items.len() > 2 * SPECIAL_TOKENS_LIMIT => {
                let expected = format!("at most {} items", 2 * SPECIAL_TOKENS_LIMIT);
                Err(self.wrong(field, &expected, &items.len().to_string()))
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| self.check_lengths(&format!("{field}[{index}]"), item)),
            _ => Ok(()),
        }
    }

    /// The library believes a table's own word for its size.
    fn check_charsmaps(&self, field: &str, part: &Value) -> Result<(), Error> {
        match part {
            Value::Object(object) => object.iter().try_for_each(|(key, value)| match value.as_str() {
                Some(text) if key == "precompiled_charsmap" => match charsmap(text) {
                    Some(_) => Ok(()),
                    None => {
                        Err(self.wrong(&format!("{field}.{key}"), "a table of its own length in base64", "another"))
                    }
                },
                _ => self.check_charsmaps(&format!("{field}.{}", shorten(key)), value),
            }),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| self.check_charsmaps(&format!("{field}[{index}]"), item)),
            _ => Ok(()),
        }
    }
}

fn kind(part: &Value) -> Option<&str> {
    part.get("type")?.as_str()
}

/// The most by which a step lengthens a text, in bytes.
fn normalizer_growth(step: &Value) -> f64 {
    let length = |name: &str| step.get(name).and_then(Value::as_str).map_or(0, str::len) as f64;
    match kind(step) {
        Some("Replace") => {
            let content = length("content");
            let pattern = step.get("pattern");
            let text = |name: &str| pattern.and_then(|pattern| pattern.get(name)?.as_str());
            match (text("String"), text("Regex")) {
                (Some(text), _) if !text.is_empty() => (content / text.len() as f64).max(1.0),
                (None, Some(regex)) if always_takes_something(regex) => content.max(1.0),
                // It may match nothing, before every letter.
                _ => 1.0 + content,
            }
        }
        Some("Prepend") => 1.0 + length("prepend"),
        Some("Precompiled") => {
            let longest = step.get("precompiled_charsmap").and_then(Value::as_str).and_then(charsmap).unwrap_or(0);
            // The longest replacement of SentencePiece's own tables is that of a letter of three bytes.
            (longest as f64 / 3.0).max(1.0)
        }
        // U+FDFA is eighteen letters in 33 bytes instead of 3; U+0390 three in 6 instead of 2.
        Some("NFKC" | "NFKD") => 11.0,
        Some("NFC" | "NFD" | "BertNormalizer") => 3.0,
        Some("ByteLevel") => 2.0,
        _ => 1.0,
    }
}

/// The same of a step that splits a text: a space or a mark before every letter, and two bytes for one.
fn splitter_growth(step: &Value) -> f64 {
    match kind(step) {
        Some("ByteLevel" | "Metaspace") => 4.0,
        _ => 1.0,
    }
}

/// Whether a regular expression surely matches no empty text: it has nothing that may be left out, no alternatives, no
/// groups and no places.
fn always_takes_something(regex: &str) -> bool {
    let may_be_empty = ["*", "?", "|", "(", "^", "$", "{0", "{,", "\\b", "\\B", "\\A", "\\z", "\\Z", "\\G", "\\K"];
    !regex.is_empty() && !may_be_empty.iter().any(|part| regex.contains(part))
}

/// The length of the longest replacement in a table of SentencePiece's: the size of its index, the index, and texts that
/// each end with a zero. `None` if it is cut short or no base64.
fn charsmap(text: &str) -> Option<usize> {
    let bytes = base64(text)?;
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let texts = rest.get((u32::from_le_bytes(*size) / 4 * 4) as usize..)?;
    texts.split(|&byte| byte == 0).map(<[u8]>::len).max()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{always_takes_something, base64, charsmap};

    #[test]
    fn base64_is_read() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64("a b"), None);
        // An index of one unit, then "ab" and "c".
        assert_eq!(charsmap("BAAAAAEAAABhYgBjAA=="), Some(2));
        // An index that claims to be longer than the whole.
        assert_eq!(charsmap("/////wEAAABhYgBjAA=="), None);
    }

    #[test]
    fn expressions_that_may_match_nothing_are_told() {
        for regex in [" {2,}", "\\s+", "[a-z]", "\\p{L}", ".", "\\n"] {
            assert!(always_takes_something(regex), "{regex}");
        }
        for regex in ["", "a*", "a?", "a|", "(?=a)", "^", "\\b", "a{0,2}", "a{,2}", "()", "\\K"] {
            assert!(!always_takes_something(regex), "{regex}");
        }
    }
}
