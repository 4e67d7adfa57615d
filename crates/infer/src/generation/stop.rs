//! Strings that end a text when they appear in it. They may come in parts: text that may be the beginning of one is held
//! back until it is known. The string itself is not part of the text.

use crate::error::Error;

/// Most stop strings, and most bytes of one.
const COUNT_LIMIT: usize = 64;
const LIMIT_BYTES: usize = 1 << 10;

/// Strings each of which ends a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    strings: Vec<String>,
}

impl StopStrings {
    /// Takes the strings as they are; white space counts.
    ///
    /// # Errors
    /// When one is empty, which would end every text before it began, or there are too many or too long ones.
    pub fn new(strings: Vec<String>) -> Result<StopStrings, Error> {
        let wrong = |expected: String, found: String| Err(Error::Setting { setting: "stop strings", expected, found });
        if strings.len() > COUNT_LIMIT {
            return wrong(format!("at most {COUNT_LIMIT}"), strings.len().to_string());
        }
        if strings.iter().any(String::is_empty) {
            return wrong("strings with at least a character".to_owned(), "an empty one".to_owned());
        }
        if let Some(long) = strings.iter().find(|string| string.len() > LIMIT_BYTES) {
            return wrong(format!("at most {LIMIT_BYTES} bytes each"), format!("{} bytes", long.len()));
        }
        Ok(StopStrings { strings })
    }

    /// The strings.
    pub fn strings(&self) -> &[String] {
        &self.strings
    }
}

/// Watches one text for stop strings.
#[derive(Clone, Debug)]
pub struct StopMatcher<'s> {
    strings: &'s [String],
    /// Text that may be the beginning of a stop string.
    held: String,
    found: Option<usize>,
}

impl<'s> StopMatcher<'s> {
    /// A matcher at the beginning of a text.
    pub fn new(strings: &'s StopStrings) -> StopMatcher<'s> {
        StopMatcher { strings: &strings.strings, held: String::new(), found: None }
    }

    /// Takes the next piece of the text and returns what is certain not to belong to a stop string. The text ends before the
    /// stop string that is complete first, the longest of those; nothing is returned after that.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(piece);
        if let Some((start, index)) = self.first_match(before) {
            self.found = Some(index);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let kept = self.strings.iter().map(|string| overlap(&self.held, string)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// The index of the stop string that ended the text.
    pub fn found(&self) -> Option<usize> {
        self.found
    }

    /// What was held back; the text ends here.
    pub fn finish(self) -> String {
        self.held
    }

    /// Where the stop string begins that ends first, of those that end after byte `before`, and which it is.
    fn first_match(&self, before: usize) -> Option<(usize, usize)> {
        let matches = self.strings.iter().enumerate().filter_map(|(index, string)| {
            // Its last byte is new.
            let from = self.held.floor_char_boundary((before + 1).saturating_sub(string.len()));
            let start = from + self.held[from..].find(string.as_str())?;
            Some((start + string.len(), start, index))
        });
        matches.min().map(|(_, start, index)| (start, index))
    }
}

/// The bytes at the end of `text` that `string` begins with, as many as possible and fewer than all of it.
fn overlap(text: &str, string: &str) -> usize {
    let (text, string) = (text.as_bytes(), string.as_bytes());
    let most = text.len().min(string.len() - 1);
    (1..=most).rev().find(|&length| text.ends_with(&string[..length])).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The whole text before the stop string that ends first, and which it is; found by looking at every end.
    fn reference<'t>(text: &'t str, strings: &[String]) -> (&'t str, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ends = strings.iter().enumerate().filter(|(_, string)| text[..end].ends_with(string.as_str()));
            if let Some((index, string)) = ends.min_by_key(|(index, string)| (usize::MAX - string.len(), *index)) {
                return (&text[..end - string.len()], Some(index));
            }
        }
        (text, None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn pieces_give_what_a_search_of_the_whole_text_gives(
            pieces in proptest::collection::vec("[abé🦀]{0,4}", 0..12),
            strings in proptest::collection::vec("[abé🦀]{1,5}", 0..4),
        ) {
            let text = pieces.concat();
            let stops = StopStrings::new(strings.clone()).unwrap();
            let mut matcher = StopMatcher::new(&stops);
            let (expected, index) = reference(&text, &strings);
            let mut shown = String::new();
            let mut read = String::new();
            for piece in &pieces {
                shown.push_str(&matcher.push(piece));
                read.push_str(piece);
                prop_assert!(expected.starts_with(&shown), "shown {:?} of {:?}", shown, expected);
                // No more is held back than may become a stop string.
                if matcher.found().is_none() {
                    let held = &read[shown.len()..];
                    let justified = held.is_empty() || strings.iter().any(|string| string.starts_with(held));
                    prop_assert!(justified, "held {:?}", held);
                }
            }
            prop_assert_eq!(matcher.found(), index);
            shown.push_str(&matcher.finish());
            prop_assert_eq!(shown, expected);
        }
    }

    #[test]
    fn a_stop_string_in_parts_is_neither_shown_nor_is_what_only_began_like_one_lost() {
        let stops = StopStrings::new(vec!["\nUser:".into(), "END".into()]).unwrap();
        let mut matcher = StopMatcher::new(&stops);
        assert_eq!(matcher.push("Hello\nUs"), "Hello");
        assert_eq!(matcher.push("able\nUser"), "\nUsable");
        assert_eq!(matcher.push(": more END"), "");
        assert_eq!((matcher.found(), matcher.push("x")), (Some(0), String::new()));
        let mut matcher = StopMatcher::new(&stops);
        assert_eq!(matcher.push("the E"), "the ");
        assert_eq!(matcher.finish(), "E");
    }

    #[test]
    fn strings_that_cannot_stop_anything_are_refused() {
        assert!(StopStrings::new(vec![" ".into()]).is_ok());
        for strings in [vec![String::new()], vec!["x".into(); 65], vec!["x".repeat(1025)]] {
            assert!(matches!(StopStrings::new(strings), Err(Error::Setting { setting: "stop strings", .. })));
        }
    }
}
