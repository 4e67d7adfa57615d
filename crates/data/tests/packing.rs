//! Blocks hold every token of a corpus once, in order or shuffled, and a saved state leads to the same blocks.

#![allow(clippy::unwrap_used)]

use finegates_data::{Blocks, BlocksState, Corpus, CorpusOptions, Error, Packer, Packing, Piece, Shuffle};
use proptest::prelude::*;
use tempfile::TempDir;

const END: u32 = 999;

fn corpus(texts: &[String]) -> (TempDir, Corpus) {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
    std::fs::write(folder.path().join("a.jsonl"), lines).unwrap();
    let corpus = Corpus::open(&CorpusOptions::new(vec![folder.path().to_owned()])).unwrap();
    (folder, corpus)
}

#[allow(clippy::unnecessary_wraps)]
fn bytes(piece: &Piece) -> Result<Vec<u32>, Error> {
    Ok(piece.text.bytes().map(u32::from).collect())
}

fn packing(tokens_per_sequence: usize, shuffle: Option<Shuffle>, epochs: u64) -> Packing {
    Packing { tokens_per_sequence, end_of_text: END, shuffle, epochs: Some(epochs) }
}

fn rest(blocks: &mut Blocks) -> Vec<Vec<u32>> {
    std::iter::from_fn(|| blocks.read(bytes).unwrap()).collect()
}

/// The blocks that one long row of all tokens is cut into, and what is left over.
fn naive(texts: &[String], tokens_per_sequence: usize, epochs: u64) -> (Vec<Vec<u32>>, Vec<u32>) {
    let document = |text: &String| text.bytes().map(u32::from).chain([END]).collect::<Vec<u32>>();
    let once: Vec<u32> = texts.iter().flat_map(document).collect();
    let all = once.repeat(epochs as usize);
    let blocks = all.chunks_exact(tokens_per_sequence);
    let carry = blocks.remainder().to_vec();
    (blocks.map(<[u32]>::to_vec).collect(), carry)
}

/// Reads all blocks; on the way, every state is resumed from its JSON.
fn resumes_everywhere(corpus: &Corpus, packing: &Packing) -> (Vec<Vec<u32>>, Vec<u32>) {
    let mut blocks = Blocks::new(corpus.clone(), packing.clone()).unwrap();
    let all = rest(&mut blocks);
    let carry = blocks.carry().to_vec();
    let mut blocks = Blocks::new(corpus.clone(), packing.clone()).unwrap();
    for given in 0..=all.len() {
        let saved = serde_json::to_string(&blocks.state()).unwrap();
        let state: BlocksState = serde_json::from_str(&saved).unwrap();
        let mut resumed = Blocks::resume(corpus.clone(), packing.clone(), &state, bytes).unwrap();
        assert_eq!(resumed.state(), state);
        assert_eq!(rest(&mut resumed), all[given..], "after {given} blocks: {state:?}");
        assert_eq!(resumed.carry(), carry);
        assert_eq!(blocks.read(bytes).unwrap().as_ref(), all.get(given));
    }
    (all, carry)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn nothing_is_lost_and_nothing_repeated(
        texts in prop::collection::vec("[a-z]{1,12}", 1..12), length in 1_usize..20, epochs in 1_u64..4,
    ) {
        let (_folder, corpus) = corpus(&texts);
        prop_assert_eq!(resumes_everywhere(&corpus, &packing(length, None, epochs)), naive(&texts, length, epochs));
    }

    #[test]
    fn shuffled_runs_hold_the_same_blocks(
        texts in prop::collection::vec("[a-z]{1,12}", 1..12), length in 1_usize..9, epochs in 1_u64..4,
        window in 1_usize..9, seed: u64,
    ) {
        let (_folder, corpus) = corpus(&texts);
        let (found, carry) = resumes_everywhere(&corpus, &packing(length, Some(Shuffle { seed, window }), epochs));
        let (expected, left) = naive(&texts, length, epochs);
        prop_assert_eq!((found.len(), carry), (expected.len(), left));
        for (found, expected) in found.chunks(window).zip(expected.chunks(window)) {
            let (mut found, mut expected) = (found.to_vec(), expected.to_vec());
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn documents_in_pieces_are_packed_as_whole_ones(tokens in prop::collection::vec(0_u32..9, 0..60), cut in 0_usize..60) {
        let (first, second) = tokens.split_at(cut.min(tokens.len()));
        let mut whole = Packer::new(7, END, Vec::new()).unwrap();
        whole.push(&tokens, true);
        let mut parts = Packer::new(7, END, Vec::new()).unwrap();
        parts.push(first, false);
        let mut blocks: Vec<Vec<u32>> = std::iter::from_fn(|| parts.take_block()).collect();
        let mut parts = Packer::new(7, END, parts.carry().to_vec()).unwrap();
        parts.push(second, true);
        blocks.extend(std::iter::from_fn(|| parts.take_block()));
        prop_assert_eq!(blocks, std::iter::from_fn(|| whole.take_block()).collect::<Vec<_>>());
        prop_assert_eq!(parts.carry(), whole.carry());
    }
}

#[test]
fn long_documents_are_encoded_in_pieces_and_resumed_within_them() {
    let texts = [(0..40_000).map(|word| format!("w{word} ")).collect(), "short".to_owned()];
    let (_folder, corpus) = corpus(&texts);
    for shuffle in [None, Some(Shuffle { seed: 5, window: 3 })] {
        let (blocks, carry) = resumes_everywhere(&corpus, &packing(10_000, shuffle, 2));
        let (expected, left) = naive(&texts, 10_000, 2);
        assert_eq!((blocks.len(), carry), (expected.len(), left));
        assert_eq!(shuffle.is_none(), blocks == expected);
    }
}

#[test]
fn the_order_follows_from_the_seed_and_changes_with_the_run() {
    let texts: Vec<String> = (0..200).map(|number| format!("{number:03}")).collect();
    let (_folder, corpus) = corpus(&texts);
    let order = |seed| {
        let packing = packing(4, Some(Shuffle { seed, window: 100 }), 1);
        rest(&mut Blocks::new(corpus.clone(), packing).unwrap())
    };
    let number = |block: &Vec<u32>| block[..3].iter().fold(0, |number, digit| 10 * number + digit - 48);
    let numbers: Vec<u32> = order(7).iter().map(number).collect();
    // From the definition, written again in Python.
    assert_eq!(numbers[..8], [16, 47, 20, 48, 53, 83, 62, 4], "pinned for every platform");
    assert_eq!(order(7), order(7));
    assert_ne!(order(7), order(8));
    let second: Vec<u32> = numbers[100..].iter().map(|number| number - 100).collect();
    assert_ne!(numbers[..100], second);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let (_folder, corpus) = corpus(&["one".to_owned(), "two".to_owned(), "three".to_owned()]);
    let plain = packing(2, None, 1);
    let mut blocks = Blocks::new(corpus.clone(), plain.clone()).unwrap();
    blocks.read(bytes).unwrap();
    blocks.read(bytes).unwrap();
    let state = blocks.state();
    let refused = |packing: &Packing, change: &dyn Fn(&mut BlocksState)| {
        let mut state = state.clone();
        change(&mut state);
        Blocks::resume(corpus.clone(), packing.clone(), &state, bytes)
            .err()
            .map(|error: Error| error.to_string())
            .unwrap()
    };
    assert!(refused(&packing(3, None, 1), &|_| {}).starts_with("packing: expected the run's own"));
    assert!(refused(&plain, &|state| state.carry = vec![1; 2]).contains("carry: expected less than 2 tokens, found 2"));
    assert!(refused(&plain, &|state| state.passed = 1 << 53).contains("passed: expected at most 2 blocks"));
    assert!(refused(&plain, &|state| state.taken = 2).contains("taken: expected at most 1 blocks, found 2"));
    assert!(refused(&plain, &|state| state.cursor.corpus.bytes += 1).contains("the corpus is not the one"));
    for wrong in [packing(0, None, 1), packing(2, None, 0), packing(2, Some(Shuffle { seed: 0, window: 0 }), 1)] {
        assert!(Blocks::new(corpus.clone(), wrong).is_err());
    }
    assert!(Packer::new(usize::MAX, END, Vec::new()).is_err());
    assert!(refused(&packing(2, None, 3), &|_| {}).contains("shuffling and epochs, found"));
}

#[test]
fn numbers_that_nothing_is_counted_up_to_are_refused() {
    let (_folder, corpus) = corpus(&["one".to_owned(), "two".to_owned()]);
    let packing = Packing { epochs: None, ..packing(2, None, 1) };
    let state = Blocks::new(corpus.clone(), packing.clone()).unwrap().state();
    type Field = fn(&mut BlocksState) -> &mut u64;
    let fields: [(&str, Field); 7] = [
        ("epoch", |state| &mut state.cursor.epoch),
        ("position", |state| &mut state.cursor.position),
        ("lines", |state| &mut state.cursor.lines),
        ("within", |state| &mut state.cursor.within),
        ("passed", |state| &mut state.passed),
        ("run", |state| &mut state.run),
        ("taken", |state| &mut state.taken),
    ];
    for (name, field) in fields {
        let mut state = state.clone();
        *field(&mut state) = u64::MAX;
        let error: Error = Blocks::resume(corpus.clone(), packing.clone(), &state, bytes).err().unwrap();
        let expected = format!("{name}: expected at most 9007199254740992, found 18446744073709551615");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    let mut state = state.clone();
    (state.cursor.epoch, state.run) = (1 << 53, 1 << 53);
    let mut blocks = Blocks::resume(corpus, packing, &state, bytes).map_err(|error: Error| error).unwrap();
    for _ in 0..9 {
        blocks.read(bytes).unwrap().unwrap();
    }
}

/// With four more blocks behind them, the last two of an epoch are shuffled in a run of four.
#[test]
fn more_epochs_change_the_order_of_a_run_that_the_end_cut_short() {
    let texts: Vec<String> = (0..6).map(|number| format!("{number:03}")).collect();
    let (_folder, corpus) = corpus(&texts);
    let all = |epochs| {
        let shuffle = Some(Shuffle { seed: 2, window: 4 });
        rest(&mut Blocks::new(corpus.clone(), packing(4, shuffle, epochs)).unwrap())
    };
    let (one, two) = (all(1), all(2));
    assert_eq!(one[..4], two[..4]);
    assert_ne!(one[4..6], two[4..6]);
}

#[test]
fn an_error_of_the_tokenizer_leaves_a_state_to_go_on_from() {
    let (_folder, corpus) = corpus(&["one".to_owned(), "two".to_owned()]);
    let packing = packing(3, Some(Shuffle { seed: 1, window: 2 }), 1);
    let all = rest(&mut Blocks::new(corpus.clone(), packing.clone()).unwrap());
    let mut blocks = Blocks::new(corpus.clone(), packing.clone()).unwrap();
    let failing = |piece: &Piece| if piece.text == "two" { Err(Error::Missing("a tokenizer")) } else { bytes(piece) };
    assert!(blocks.read(failing).is_err());
    let mut resumed = Blocks::resume(corpus, packing, &blocks.state(), bytes).unwrap();
    assert_eq!(rest(&mut resumed), all);
}

#[test]
fn blocks_may_be_read_on_another_thread() {
    let (_folder, corpus) = corpus(&["one".to_owned()]);
    let mut blocks = Blocks::new(corpus, packing(4, None, 1)).unwrap();
    let read = std::thread::spawn(move || rest(&mut blocks)).join().unwrap();
    assert_eq!(read.len(), 1);
}
