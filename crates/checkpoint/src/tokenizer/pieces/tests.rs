use std::path::Path;

use proptest::prelude::*;
use tokenizers::{TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings};

use super::{Pieces, Reach, longest_first};
use crate::config::Config;
use crate::tokenizer::Tokenizer;

const WHOLE: Reach = Reach { first_bytes: usize::MAX, most_bytes: usize::MAX, margin_bytes: 0 };
/// A reach that short texts go beyond; the longest of the words below has 22 bytes.
const SHORT: Reach = Reach { first_bytes: 96, most_bytes: usize::MAX, margin_bytes: 32 };

const KINDS: [&str; 9] = [
    "bert-plain",
    "bert-cased",
    "bert-accents",
    "bert-left",
    "distilbert",
    "mpnet",
    "roberta",
    "roberta-prefix",
    "unigram",
];

const WORDS: [&str; 24] = [
    "the",
    "gates",
    "open",
    "a",
    "unbelievable",
    ",",
    ".",
    "...",
    "Ünïçödé",
    "中文字",
    "[MASK]",
    "<mask>",
    "[SEP]",
    "</s>",
    "e\u{301}a",
    "don't",
    "3.14",
    "\u{1f600}",
    "x",
    "'s",
    "_",
    "q\u{307}\u{323}",
    "Zürich",
    "\u{fdfa}",
];

fn tokenizer(kind: &str) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer").join(kind);
    Tokenizer::open(&folder, &Config::read(&folder).expect("a config")).expect("a tokenizer")
}

fn pieces(tokenizer: &Tokenizer, direction: TruncationDirection, reach: Reach) -> Pieces<'_> {
    Pieces { library: &tokenizer.library, surround: tokenizer.surround.as_ref(), direction, reach }
}

/// Words with white space of every kind between them, or none.
fn text() -> impl Strategy<Value = String> {
    let space = prop::sample::select(vec![" ", " ", " ", "", "  ", "\n", "\t ", "\u{a0}", "\u{3000}", "     "]);
    let word = prop::sample::select(WORDS.to_vec());
    prop::collection::vec((space, word), 0..120)
        .prop_map(|parts| parts.into_iter().flat_map(|(space, word)| [space, word]).collect())
}

/// The library's own way: all tokens of both texts, then its truncation.
fn by_the_library(pieces: &Pieces, text: &str, pair: Option<&str>, room: usize) -> (Vec<u32>, Vec<u32>, bool) {
    let encode = |text: &str| pieces.library.encode_fast(text, false).expect("tokens");
    let (first, second) = (encode(text), pair.map(encode));
    let truncated = first.len() + second.as_ref().map_or(0, |second| second.len()) > room;
    let params = TruncationParams {
        max_length: room,
        direction: pieces.direction,
        strategy: TruncationStrategy::LongestFirst,
        stride: 0,
    };
    let (first, second) = truncate_encodings(first, second, &params).expect("truncated");
    let ids = second.map(|second| second.get_ids().to_vec()).unwrap_or_default();
    (first.get_ids().to_vec(), ids, truncated)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_cut_text_has_the_tokens_of_the_whole(
        kind in prop::sample::select(KINDS.to_vec()),
        text in text(),
        pair in prop::option::of(text()),
        room in 0usize..40,
        left in any::<bool>(),
    ) {
        let tokenizer = tokenizer(kind);
        let direction = if left { TruncationDirection::Left } else { TruncationDirection::Right };
        let whole = pieces(&tokenizer, direction, WHOLE).encode(&text, pair.as_deref(), room).expect("tokens");
        let cut = pieces(&tokenizer, direction, SHORT).encode(&text, pair.as_deref(), room).expect("tokens");
        prop_assert_eq!(whole.0.get_ids(), cut.0.get_ids());
        prop_assert_eq!(whole.0.get_type_ids(), cut.0.get_type_ids());
        prop_assert_eq!(whole.1, cut.1);
        // Without the special tokens it is what the library's own steps give.
        let bare = Pieces { surround: None, ..pieces(&tokenizer, direction, SHORT) };
        let (first, second, truncated) = by_the_library(&bare, &text, pair.as_deref(), room);
        let found = bare.encode(&text, pair.as_deref(), room).expect("tokens");
        prop_assert_eq!(found.0.get_ids(), [first, second].concat());
        prop_assert_eq!(found.1, truncated);
    }

    #[test]
    fn the_longest_is_cut_first(first in 0usize..12, second in 0usize..12, room in 0usize..24) {
        // As transformers words it: one token from the longer text, until both fit; the second's when they are alike.
        let [mut kept_first, mut kept_second] = [first, second];
        while kept_first + kept_second > room {
            if kept_first > kept_second { kept_first -= 1 } else { kept_second -= 1 }
        }
        let found = longest_first(first, second, room);
        prop_assert_eq!(found.iter().sum::<usize>(), kept_first + kept_second);
        prop_assert!(found[0].abs_diff(kept_first) <= 1);
    }
}

#[test]
fn of_two_texts_out_of_reach_the_one_with_more_bytes_is_the_longer() {
    let tokenizer = tokenizer("bert-plain");
    let reach = Reach { most_bytes: 200, ..SHORT };
    let (long, longer) = ("the gates ".repeat(40), "the gates ".repeat(60));
    let pieces = Pieces { surround: None, ..pieces(&tokenizer, TruncationDirection::Right, reach) };
    let one = pieces.library.encode_fast("the gates ", false).expect("tokens").len();
    let (whole, truncated) = pieces.encode(&long, Some(&longer), 2 * one + 1).expect("tokens");
    assert!(truncated);
    assert_eq!(whole.get_type_ids().iter().filter(|&&id| id == 0).count(), one);
    let (whole, _) = pieces.encode(&longer, Some(&long), 2 * one + 1).expect("tokens");
    assert_eq!(whole.get_type_ids().iter().filter(|&&id| id == 0).count(), one + 1);
}

#[test]
fn a_word_out_of_reach_is_cut() {
    let tokenizer = tokenizer("bert-plain");
    let reach = Reach { most_bytes: 400, ..SHORT };
    for direction in [TruncationDirection::Right, TruncationDirection::Left] {
        let (whole, truncated) =
            pieces(&tokenizer, direction, reach).encode(&"x".repeat(5000), None, 20).expect("tokens");
        assert!(truncated && whole.len() == 3, "{whole:?}");
    }
}
