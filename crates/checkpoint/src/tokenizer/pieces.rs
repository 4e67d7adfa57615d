//! A text's tokens as truncation leaves them, read no further than that takes: sixteen megabytes of text cut to forty
//! tokens would cost gigabytes otherwise, for the library keeps the place in the text of every byte it makes.
//!
//! A long text is read up to a cut, and further until there are more tokens than are kept. The words next to the cut do
//! not count, for the rest of the text might change them. So the tokens are those of the whole text, if no part of the
//! tokenizer looks further than [`MARGIN_BYTES`] beyond a word (only regular expressions can). Two cases are not exact:
//! of a text beyond [`Reach::most_bytes`] whose beginning has too few tokens (a word of a megabyte) the rest is left
//! out; and of two such texts as a pair, the one with more bytes counts as the longer.

use tokenizers::tokenizer::{Model, PostProcessor, PreTokenizer, Tokenizer as Library};
use tokenizers::{Encoding, OffsetReferential, OffsetType, PostProcessorWrapper, Result, Token, TruncationDirection};

/// Words this close to a cut may be other ones in the whole text.
pub(super) const MARGIN_BYTES: usize = 1 << 10;

/// How much of a text is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// A text up to this size is read whole.
    pub first_bytes: usize,
    /// No more than this is read of any text.
    pub most_bytes: usize,
    /// Words this close to the cut do not count.
    pub margin_bytes: usize,
}

impl Reach {
    /// For texts cut to `max_length` tokens by a tokenizer that lengthens a text by up to `growth` before it is split.
    pub fn new(max_length: usize, growth: f64) -> Reach {
        let share = (16.0 / growth).min(1.0);
        let most_bytes = ((1 << 20) as f64 * share) as usize;
        Reach {
            first_bytes: (((64 << 10) as f64 * share) as usize).max(8 * MARGIN_BYTES),
            most_bytes: most_bytes.max(max_length.saturating_mul(64)).max(16 * MARGIN_BYTES),
            margin_bytes: MARGIN_BYTES,
        }
    }
}

/// A tokenizer taken apart, and how it cuts.
pub(super) struct Pieces<'a> {
    /// Without truncation, padding and special tokens.
    pub library: &'a Library,
    /// Adds the special tokens.
    pub surround: Option<&'a PostProcessorWrapper>,
    pub direction: TruncationDirection,
    pub reach: Reach,
}

/// The tokens of a text, as far as they were read: from its beginning, or those up to its end when it is cut on the left.
struct Read {
    ids: Vec<u32>,
    /// Whether these are all.
    complete: bool,
}

impl Pieces<'_> {
    /// The tokens of a text or pair in `room` tokens with the special tokens around them, and whether something was cut
    /// off: the steps of the library's own `encode`.
    pub fn encode(&self, text: &str, pair: Option<&str>, room: usize) -> Result<(Encoding, bool)> {
        let (first, second, truncated) = match pair {
            None => {
                let mut read = self.read(text, room)?;
                let truncated = !read.complete || read.ids.len() > room;
                (self.kept(&mut read, room), None, truncated)
            }
            Some(pair) => {
                let [mut first, mut second] = self.read_pair(text, pair, room)?;
                let truncated = !first.complete || !second.complete || first.ids.len() + second.ids.len() > room;
                let [keep_first, keep_second] = longest_first(first.ids.len(), second.ids.len(), room);
                (self.kept(&mut first, keep_first), Some(self.kept(&mut second, keep_second)), truncated)
            }
        };
        let whole = match self.surround {
            Some(surround) => surround.process(first, second, true)?,
            None => {
                let mut whole = first;
                if let Some(mut second) = second {
                    second.set_type_ids(vec![1; second.len()]);
                    whole.merge_with(second, false);
                }
                whole
            }
        };
        Ok((whole, truncated))
    }

    /// The tokens of both texts, as many as it takes to know how many of each are kept.
    fn read_pair(&self, text: &str, pair: &str, room: usize) -> Result<[Read; 2]> {
        let wanted = |text: &str| if text.len() <= self.reach.first_bytes { usize::MAX } else { room };
        let mut both = [self.read(text, wanted(text))?, self.read(pair, wanted(pair))?];
        // Where both have more than there is room for, the longer one gets the odd token.
        let both_long = both.iter().all(|read| read.ids.len() > room) && both.iter().any(|read| !read.complete);
        if both_long && !room.is_multiple_of(2) {
            for (read, text) in both.iter_mut().zip([text, pair]).filter(|(read, _)| !read.complete) {
                *read = self.read(text, usize::MAX)?;
            }
            let [first, second] = &mut both;
            if !first.complete && !second.complete {
                self.shorten(if text.len() <= pair.len() { first } else { second }, room + 1);
            }
        }
        Ok(both)
    }

    /// The text's tokens: all of them, or more than `enough`, or what lies within reach.
    fn read(&self, text: &str, enough: usize) -> Result<Read> {
        let mut length = self.reach.first_bytes;
        loop {
            let part = self.part(text, length);
            let (whole, last) = (part.len() == text.len(), length >= self.reach.most_bytes);
            let margin_bytes = if whole || last { 0 } else { self.reach.margin_bytes };
            let mut read = self.tokens(part, enough, margin_bytes)?;
            read.complete &= whole;
            if whole || last || read.ids.len() > enough {
                return Ok(read);
            }
            length = length.saturating_mul(4).min(self.reach.most_bytes);
        }
    }

    /// The tokens of a part of a text, until there are more than `enough` or the margin begins.
    fn tokens(&self, part: &str, enough: usize, margin_bytes: usize) -> Result<Read> {
        let normalizer = self.library.get_normalizer();
        let mut words = self.library.get_added_vocabulary().extract_and_normalize(normalizer, part);
        if let Some(splitter) = self.library.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut words)?;
        }
        let model = self.library.get_model();
        let tokens = |word: &str, found: &Option<Vec<Token>>| -> Result<Vec<u32>> {
            match found {
                Some(found) => Ok(found.iter().map(|token| token.id).collect()),
                None => Ok(model.tokenize(word)?.into_iter().map(|token| token.id).collect()),
            }
        };
        let words = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let mut read = Read { ids: Vec::new(), complete: true };
        match self.direction {
            TruncationDirection::Right => {
                for (word, (_, end), found) in words {
                    if read.ids.len() > enough || end + margin_bytes > part.len() {
                        read.complete = false;
                        break;
                    }
                    read.ids.extend(tokens(word, found)?);
                }
            }
            TruncationDirection::Left => {
                for (word, (start, _), found) in words.into_iter().rev() {
                    if read.ids.len() > enough || start < margin_bytes {
                        read.complete = false;
                        break;
                    }
                    read.ids.extend(tokens(word, found)?.into_iter().rev());
                }
                read.ids.reverse();
            }
        }
        Ok(read)
    }

    /// About `length` bytes of the text: its beginning, or its end when the beginning is what is cut off. The cut lies
    /// before white space, if there is any nearby.
    fn part<'t>(&self, text: &'t str, length: usize) -> &'t str {
        if text.len() <= length {
            return text;
        }
        let between_words = |&at: &usize| {
            text.is_char_boundary(at)
                && text[at..].starts_with(char::is_whitespace)
                && !text[..at].ends_with(char::is_whitespace)
        };
        match self.direction {
            TruncationDirection::Right => {
                let end = text.floor_char_boundary(length);
                &text[..(end - end / 4..=end).rev().find(between_words).unwrap_or(end)]
            }
            TruncationDirection::Left => {
                let start = text.ceil_char_boundary(text.len() - length);
                &text[(start..=start + length / 4).find(between_words).unwrap_or(start)..]
            }
        }
    }

    /// Leaves at most so many tokens.
    fn shorten(&self, read: &mut Read, count: usize) {
        match self.direction {
            TruncationDirection::Right => read.ids.truncate(count),
            TruncationDirection::Left => drop(read.ids.drain(..read.ids.len().saturating_sub(count))),
        }
    }

    /// At most `count` of the tokens, as the library holds them.
    fn kept(&self, read: &mut Read, count: usize) -> Encoding {
        self.shorten(read, count);
        let token = |&id: &u32| Token::new(id, String::new(), (0, 0));
        Encoding::from_tokens(read.ids.iter().map(token).collect(), 0)
    }
}

/// How many tokens of each text transformers' `longest_first` keeps: tokens are taken from the longer one until both fit.
fn longest_first(first: usize, second: usize, room: usize) -> [usize; 2] {
    if first.saturating_add(second) <= room {
        return [first, second];
    }
    let (shorter, longer) = (first.min(second), first.max(second));
    let half = room / 2;
    let kept = if shorter <= half { [shorter, longer.min(room - shorter)] } else { [half, room - half] };
    if first <= second { kept } else { [kept[1], kept[0]] }
}

#[cfg(test)]
mod tests;
