//! Where a long document is cut into pieces, so that the pieces' tokens are the document's wherever that is possible.
//!
//! Byte-level tokenizers (GPT-2, Llama 3, Qwen 2, SmolLM2) split a text by a pattern from left to right and merge bytes only
//! within the parts. None of their patterns lets a part run from a letter, digit or sign into a space, and none looks back:
//! a cut before the spaces that follow it changes no token. Neither does one behind a single line feed between two words.
//! Tokenizers that put a space before a text (SentencePiece's dummy prefix) must leave it out in pieces that go on.

/// The most bytes of a piece.
pub const PIECE_BYTES: usize = 64 << 10;

/// How many bytes of a text are its first piece: all of them, if they are at most `limit`.
///
/// The last cut that changes no token wins; without one, the last line's beginning; without one, the last letter's.
pub(super) fn cut(text: &str, limit: usize) -> usize {
    if text.len() <= limit {
        return text.len();
    }
    // A letter is never cut, even if it is longer than the limit.
    let limit = text.floor_char_boundary(limit).max(text.chars().next().map_or(0, char::len_utf8));
    let cuts = || (1..=limit).rev().filter(|&at| text.is_char_boundary(at));
    let exact = |&at: &usize| {
        let (before, after) = around(text, at);
        let Some(next) = after else { return false };
        match before {
            Some('\n') => {
                let last = text[..at - 1].chars().next_back();
                // Some patterns take line ends and slashes along behind a sign.
                last.is_some_and(|last| !last.is_whitespace()) && !next.is_whitespace() && next != '/'
            }
            Some(before) if next == '\n' || next == '\r' => before.is_ascii_alphanumeric(),
            Some(before) => !before.is_whitespace() && next.is_whitespace(),
            None => false,
        }
    };
    let begins_line = |&at: &usize| matches!(around(text, at), (Some('\n'), Some(next)) if !next.is_whitespace());
    cuts().find(exact).or_else(|| cuts().find(begins_line)).unwrap_or(limit)
}

/// The letters before and behind a place.
fn around(text: &str, at: usize) -> (Option<char>, Option<char>) {
    (text[..at].chars().next_back(), text[at..].chars().next())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::LazyLock;

    use fancy_regex::Regex;
    use proptest::prelude::*;

    use super::*;

    /// The patterns of GPT-2, of Llama 3 and, but for one to three digits at a time, Qwen 2, and of o200k.
    const PATTERNS: [&str; 3] = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ];

    static COMPILED: LazyLock<Vec<Regex>> =
        LazyLock::new(|| PATTERNS.iter().map(|pattern| Regex::new(pattern).unwrap()).collect());

    const SPACES: [&str; 12] = [" ", " ", " ", "  ", "   ", "\n", " \n", "x\n\n", "x\r\n", "\t", "\u{a0}", "\u{3000} "];

    fn parts<'t>(pattern: &Regex, text: &'t str) -> Vec<&'t str> {
        pattern.find_iter(text).map(|found| found.unwrap().as_str()).collect()
    }

    fn pieces(mut text: &str, limit: usize) -> Vec<&str> {
        let mut pieces = Vec::new();
        while !text.is_empty() {
            let (piece, rest) = text.split_at(cut(text, limit));
            assert!(!piece.is_empty() && (piece.len() <= limit || piece.chars().count() == 1), "{piece:?}");
            pieces.push(piece);
            text = rest;
        }
        pieces
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Words of letters, digits and signs, shorter than the limit, with white space of all kinds between them. What is
        /// left out, for it cannot be cut, are signs before a line end and a blank, many times over.
        #[test]
        fn no_cut_in_running_text_changes_a_token(
            words in prop::collection::vec(
                ("[a-zA-Zé中\u{301}0-9.,'/!-]{1,9}", prop::sample::select(SPACES.to_vec())),
                1..60,
            ),
        ) {
            let text: String = words.iter().flat_map(|(word, space)| [word.as_str(), space]).collect();
            let pieces = pieces(&text, 64);
            prop_assert_eq!(pieces.concat(), text.clone());
            for pattern in COMPILED.iter() {
                let expected = parts(pattern, &text);
                let found: Vec<&str> = pieces.iter().flat_map(|piece| parts(pattern, piece)).collect();
                prop_assert_eq!(found, expected, "{:?}", pieces);
            }
        }

        #[test]
        fn pieces_are_the_text_whatever_it_is(text in any::<String>(), limit in 1_usize..40) {
            prop_assert_eq!(pieces(&text, limit).concat(), text);
        }
    }

    #[test]
    fn a_text_without_a_good_place_is_cut_at_a_line_or_a_letter() {
        assert_eq!(pieces("中中中中中。\n\n中中中中中", 24), ["中中中中中。\n\n", "中中中中中"]);
        assert_eq!(pieces("ééééé", 3), ["é", "é", "é", "é", "é"]);
        assert_eq!(pieces("éé", 1), ["é", "é"]);
        assert_eq!(pieces("a b", 1), ["a", " ", "b"]);
    }
}
