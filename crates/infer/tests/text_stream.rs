//! Pieces of text against the whole: every kind of decoder, on whatever ids.
#![allow(clippy::result_large_err, clippy::unwrap_used)]

use std::path::Path;

use finegates_checkpoint::{Config, Tokenizer};
use finegates_infer::generation::TextStream;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

mod support;

fn pieces(mut stream: TextStream<'_>, ids: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn pieces_joined_are_the_whole_decode() {
    for (name, tokenizer) in support::all() {
        let vocabulary = (0..).take_while(|&id| tokenizer.token(id).is_some()).count() as u32;
        let single = 0..vocabulary + 2;
        // A few neighbours in a row make broken characters and runs of bytes likely.
        let ids = proptest::collection::vec(prop_oneof![3 => single, 2 => 0..14u32, 1 => 150..210u32], 0..24);
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() });
        let check = |(ids, skip): (Vec<u32>, bool)| {
            let whole = tokenizer.decode(&ids, skip).unwrap();
            let found = pieces(TextStream::new(&tokenizer, skip), &ids);
            prop_assert_eq!(found.concat(), whole, "{}", name);
            Ok(())
        };
        runner.run(&(ids, proptest::bool::ANY), check).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn what_continues_a_prompt_is_what_the_whole_has_beyond_it() {
    let llama = support::llama();
    let id = |token: &str| llama.token_to_id(token).unwrap();
    let (prompt, new) = ([id("▁Hello")], [id("▁world"), id("s"), id("▁"), id("▁Hello")]);
    let whole = llama.decode(&[&prompt[..], &new[..]].concat(), true).unwrap();
    assert_eq!(pieces(TextStream::continuing(&llama, true), &new), [" world", "s", " ", " Hello", ""]);
    assert_eq!(whole, format!("Hello{}", pieces(TextStream::continuing(&llama, true), &new).concat()));
    assert_eq!(pieces(TextStream::new(&llama, true), &new), ["world", "s", " ", " Hello", ""]);
}

#[test]
fn text_comes_as_soon_as_it_is_settled() {
    let bytes = support::byte_level();
    let spell = |text: &str| -> Vec<u32> { text.bytes().map(|byte| u32::from(byte) + 2).collect() };
    let show = |tokenizer: &Tokenizer, ids: &[u32]| pieces(TextStream::new(tokenizer, true), ids);
    assert_eq!(show(&bytes, &spell("a世b")), ["a", "", "", "世", "b", ""]);
    // Broken: the byte that cannot follow says so.
    assert_eq!(show(&bytes, &[0xe4 + 2, 0xb8 + 2, u32::from(b'a') + 2]), ["", "", "\u{fffd}a", ""]);
    assert_eq!(show(&bytes, &[0xe4 + 2, 0xb8 + 2]), ["", "", "\u{fffd}"]);
    let llama = support::llama();
    let id = |token: &str| llama.token_to_id(token).unwrap();
    // A run of bytes is broken as a whole, which its end tells.
    let run = [id("<0xE4>"), id("<0xB8>"), id("<0x96>"), id("s")];
    assert_eq!(show(&llama, &run), ["", "", "", "世s", ""]);
    let broken = [id("<0xE4>"), id("<0xB8>"), id("<0x96>"), id("<0xFF>"), id("s")];
    assert_eq!(show(&llama, &broken), ["", "", "", "", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}s", ""]);
}

#[test]
fn special_tokens_are_known_and_left_out_on_demand() {
    let llama = support::llama();
    assert_eq!(llama.special_ids(), [0, 1]);
    assert!(llama.is_special("<s>") && !llama.is_special("s"));
    let ids = [0, llama.token_to_id("▁Hello").unwrap(), 1, 9_999];
    assert_eq!(llama.decode(&ids, true).unwrap(), "Hello");
    assert_eq!(llama.decode(&ids, false).unwrap(), "<s> Hello</s>");
    assert_eq!(llama.decode(&[0, 1], true).unwrap(), "");
    assert_eq!(llama.decode(&[], false).unwrap(), "");
}

#[test]
fn a_text_that_brings_its_own_special_tokens_gets_no_more() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny/roberta");
    let tokenizer = Tokenizer::open(&folder, &Config::read(&folder).unwrap()).unwrap();
    let around = tokenizer.encode("good film", None, 99).unwrap().ids;
    let bare = tokenizer.encode_bare("good film", 99).unwrap();
    assert_eq!((&bare.ids[..], bare.truncated), (&around[1..around.len() - 1], false));
    assert_eq!(tokenizer.encode_bare("<s>good film</s>", 99).unwrap().ids, around);
    assert_eq!(tokenizer.decode(&around, true).unwrap(), "good film");
    let cut = tokenizer.encode_bare("good film", 1).unwrap();
    assert_eq!((cut.ids, cut.truncated), (bare.ids[..1].to_vec(), true));
    assert!(tokenizer.encode_bare("", 0).unwrap().ids.is_empty());
}
