//! SentencePiece's BPE: the merges follow from the scores, as in transformers' `generate_merges`, and letters that are no
//! token are spelt as bytes.

use serde_json::{Value, json};

use super::{MERGES_LIMIT, Merging, Parts, Vocabulary, token_type};
use crate::Error;
use crate::gguf::config::Specials;
use crate::gguf::metadata::Metadata;

/// SentencePiece's space.
const SPACE: &str = "\u{2581}";
/// Longest token that is looked for parts of: their number grows with the square.
const TOKEN_LIMIT_BYTES: usize = 1 << 9;
/// Most of the squares of all lengths together: looking for a token's parts takes as long. A vocabulary of a quarter of a
/// million has a sixtieth of it.
const SQUARES_LIMIT: usize = 1 << 30;

/// The parts of `tokenizer.json` that are peculiar to SentencePiece.
pub(super) fn parts(metadata: &Metadata, vocabulary: &Vocabulary, specials: &Specials) -> Result<Parts, Error> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata.floats(key)?.unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() {
        let expected = format!("a score for each of {} tokens", vocabulary.tokens.len());
        return Err(metadata.wrong(key, expected, scores.len().to_string()));
    }
    if let Some(score) = scores.iter().find(|score| score.is_nan()) {
        return Err(metadata.wrong(key, "numbers", score.to_string()));
    }
    let Some(unknown) = specials.unknown.and_then(|id| vocabulary.text(id)) else {
        return Err(metadata.wrong("tokenizer.ggml.unknown_token_id", "the id of a token", "none such"));
    };
    let merges = merges(metadata, vocabulary, scores)?;
    let bytes = (0..vocabulary.tokens.len()).any(|id| vocabulary.type_of(id) == token_type::BYTE);
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let mut normalizers = vec![spaces];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        splitter: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        adds_begin: true,
        description: format!("SentencePiece BPE, {} tokens, {} merges", vocabulary.tokens.len(), merges.len()),
        model: Merging {
            unknown: Some(unknown),
            fuses_unknown: true,
            falls_back_to_bytes: bytes,
            ignores_merges: false,
        }
        .model(vocabulary, merges),
    })
}

/// A way to make a token of two others.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    score: f64,
}

/// Every pair of tokens that makes a token, the best score first. Control, byte and unused tokens take no part: nothing in a
/// text becomes one of them.
fn merges(metadata: &Metadata, vocabulary: &Vocabulary, scores: &[f64]) -> Result<Vec<Value>, Error> {
    let mergeable = |id: u32| matches!(vocabulary.type_of(id as usize), token_type::NORMAL | token_type::USER_DEFINED);
    let mut merges = Vec::new();
    let mut squares = 0;
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if !mergeable(id as u32) || vocabulary.ids.get(token.as_str()) != Some(&(id as u32)) {
            continue;
        }
        if token.len() > TOKEN_LIMIT_BYTES {
            let (key, expected) =
                (format!("tokenizer.ggml.tokens[{id}]"), format!("at most {TOKEN_LIMIT_BYTES} bytes"));
            return Err(metadata.wrong(&key, expected, format!("{} bytes", token.len())));
        }
        squares += token.len() * token.len();
        if squares > SQUARES_LIMIT {
            let expected = format!("tokens the squares of whose lengths are at most {SQUARES_LIMIT} together");
            return Err(metadata.wrong("tokenizer.ggml.tokens", expected, format!("{squares} up to the token {id}")));
        }
        let parts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut ways: Vec<(u32, u32, Merge)> = parts
            .filter_map(|(left, right)| {
                let (first, second) = (*vocabulary.ids.get(left)?, *vocabulary.ids.get(right)?);
                let way = Merge { left, right, score: scores[id] };
                (mergeable(first) && mergeable(second)).then_some((first, second, way))
            })
            .collect();
        ways.sort_by_key(|&(first, second, _)| (first, second));
        merges.extend(ways.into_iter().map(|(_, _, way)| way));
        if merges.len() > MERGES_LIMIT {
            let expected = format!("tokens that are made of others in at most {MERGES_LIMIT} ways");
            return Err(metadata.wrong("tokenizer.ggml.tokens", expected, "more"));
        }
    }
    // As Python's sort with reverse=True, which leaves equal ones in their order too.
    let letters = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let by_score = b.score.total_cmp(&a.score);
        by_score
            .then_with(|| letters(b.left).cmp(&letters(a.left)))
            .then_with(|| letters(b.right).cmp(&letters(a.right)))
    });
    Ok(merges.iter().map(|merge| Value::from(vec![merge.left, merge.right])).collect())
}
