//! GGUF files that lie: each is refused with its reason, without a panic and without a large allocation.

use proptest::prelude::*;

use finegates_checkpoint::gguf::{ImportOptions, import};

use super::writer::{File, Value, text};
use super::{HIDDEN, numbers, opens, refused, tiny};
use crate::support::{folder, write};

fn said_of(bytes: &[u8]) -> String {
    let place = folder();
    let source = place.path().join("m.gguf");
    write(&source, bytes);
    import(&source, &place.path().join("model"), false, &ImportOptions::default()).expect_err("refused").to_string()
}

/// The header of a file that claims this much.
fn header(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes
}

fn key(name: &str, kind: u32, rest: &[u8]) -> Vec<u8> {
    let mut bytes = header(3, 0, 1);
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(rest);
    bytes
}

#[test]
fn a_structure_that_cannot_be_is_refused() {
    let list = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    for (bytes, words) in [
        (Vec::new(), "it ends within the magic number"),
        (b"GGML\x03\0\0\0".to_vec(), "does not begin with GGUF"),
        (b"GGUF\x03".to_vec(), "it ends within the version"),
        (header(1, 0, 0), "version 1 is not read"),
        (header(3u32.swap_bytes(), 0, 0), "big-endian"),
        (header(4, 0, 0), "expected version 2 or 3, found 4"),
        (header(3, u64::MAX, 0), "it claims 18446744073709551615 tensors"),
        (header(3, 0, 1 << 40), "it claims 1099511627776 keys"),
        (header(3, 0, 1), "it claims 1 keys"),
        (key("k", 8, &u64::MAX.to_le_bytes()), "k: a text of 18446744073709551615 bytes"),
        (key("k", 13, &[0; 8]), "k: no value has the type 13"),
        (key("k", 7, &[2; 8]), "k: expected a flag of 0 or 1, found 2"),
        (key("k", 9, &list(4, 1 << 60)), "k: 1152921504606846976 values do not fit"),
        (key("k", 9, &list(9, 1)), "k: lists of lists"),
        (key("k", 9, &list(77, 1)), "k: no value has the type 77"),
        (key("k", 8, &[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()), "k: expected UTF-8 text"),
    ] {
        let error = said_of(&bytes);
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn what_occurs_twice_is_refused() {
    let mut file = tiny("llama");
    file.keys.push(("general.architecture".to_owned(), text("llama")));
    assert!(refused(&file).contains("the key general.architecture occurs twice"));
    let mut file = tiny("llama");
    file.tensors.push(file.tensors[0].clone());
    assert!(refused(&file).contains("the tensor token_embd.weight occurs twice"));
}

#[test]
fn tensors_that_cannot_be_are_refused_by_name() {
    let said = |axes: Vec<u64>, kind: u32, bytes: usize| {
        let mut file = tiny("llama");
        file.tensors.retain(|(name, ..)| name != "output_norm.weight");
        file.tensors.push(("output_norm.weight".to_owned(), axes, kind, vec![0; bytes]));
        refused(&file)
    };
    for (error, words) in [
        (said(vec![], 0, 0), "expected from 1 to 4 axes, found 0"),
        (said(vec![1; 5], 0, 4), "expected from 1 to 4 axes, found 5"),
        (said(vec![0], 0, 0), "expected axes [0] to hold whole blocks"),
        (said(vec![1 << 40, 1 << 40], 0, 0), "to hold whole blocks"),
        (said(vec![1 << 62], 0, 0), "to hold whole blocks"),
        (said(vec![1 << 40], 0, 64), "lie outside the"),
        (said(vec![8], 8, 64), "expected axes [8] to hold whole blocks of 32 values in Q8_0"),
        (said(vec![8], 10, 64), "found Q2_K; take the model in another quantisation"),
        (said(vec![8], 999, 64), "found format number 999"),
        (said(vec![9], 0, 64), "expected shape [8], found [9]"),
        (said(vec![8, 1], 0, 64), "expected shape [8], found [1, 8]"),
    ] {
        assert!(error.contains("output_norm.weight: ") && error.contains(words), "{words}: {error}");
    }
}

#[test]
fn offsets_that_overlap_or_are_not_aligned_are_refused() {
    let whole = tiny("llama").bytes();
    let name = b"output_norm.weight";
    let at = whole.windows(name.len()).position(|window| window == name).expect("the entry") + name.len() + 4 + 8 + 4;
    let with = |offset: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        said_of(&bytes)
    };
    assert!(with(0).contains("its data overlaps that of"), "{}", with(0));
    assert!(with(33).contains("expected an offset that is a multiple of 32, found 33"));
    assert!(with(u64::MAX - 31).contains("lie outside the"));
    let mut file = tiny("llama");
    file.set("general.alignment", Value::U32(24));
    assert!(refused(&file).contains("general.alignment: expected a power of two, found 24"));
}

#[test]
fn a_model_that_is_not_read_is_refused_by_field() {
    let said = |change: &dyn Fn(&mut File)| {
        let mut file = tiny("llama");
        change(&mut file);
        refused(&file)
    };
    let set = |key: &'static str, value: Value| {
        move |file: &mut File| {
            file.set(key, value.clone());
        }
    };
    for (change, words) in [
        (
            &set("general.architecture", text("gemma")) as &dyn Fn(&mut File),
            "expected llama (Mistral too) or qwen2, found gemma",
        ),
        (&set("general.architecture", Value::U32(1)), "general.architecture: expected a text, found 1"),
        (
            &|file| {
                file.remove("general.architecture");
            },
            "found no such key",
        ),
        (&set("llama.expert_count", Value::U32(8)), "llama.expert_count: expected a model without experts"),
        (&set("split.count", Value::U32(2)), "llama-gguf-split --merge"),
        (
            &set("llama.embedding_length", Value::U32(0)),
            "llama.embedding_length: expected an integer from 1 to 65536, found 0",
        ),
        (&set("llama.block_count", Value::U32(u32::MAX)), "llama.block_count: expected an integer from 1 to 4096"),
        (&set("llama.block_count", Value::U32(2)), "blk.1.attn_norm.weight: no such tensor"),
        (&set("llama.attention.head_count", Value::U32(3)), "llama.attention.head_count: expected a divisor"),
        (&set("llama.attention.head_count", Value::I32s(vec![2, 4])), "the same for every layer"),
        (&set("llama.attention.head_count_kv", Value::U32(9)), "expected an integer from 1 to 2"),
        (&set("llama.attention.key_length", Value::U32(3)), "llama.attention.key_length: expected an even number"),
        (
            &set("llama.attention.key_length", Value::U32(16386)),
            "llama.attention.key_length: expected an integer from 1 to 16384, found 16386",
        ),
        (
            &|file| {
                file.set("llama.embedding_length", Value::U32(65536)).set("llama.attention.head_count", Value::U32(1));
            },
            "expected heads such that the queries of one together have at most 16384 values, found 65536",
        ),
        (
            &|file| {
                file.set("llama.attention.head_count", Value::U32(128))
                    .set("llama.attention.key_length", Value::U32(16384));
            },
            "expected heads such that the queries of all together have at most 1048576 values, found 2097152",
        ),
        (
            &|file| {
                file.set("llama.embedding_length", Value::U32(65536))
                    .set("llama.attention.key_length", Value::U32(16384));
            },
            "expected heads such that the weights of one together have at most 16777216 values",
        ),
        (&set("llama.vocab_size", Value::U32(5)), "llama.vocab_size: expected the 4 rows"),
        (&set("llama.attention.layer_norm_rms_epsilon", Value::F32(0.0)), "expected a number above 0"),
        (&set("llama.rope.freq_base", Value::F32(f32::NAN)), "expected a finite number"),
        (&set("llama.rope.scaling.factor", Value::F32(-1.0)), "expected a factor"),
        (
            &|file| {
                file.tensor("blk.0.attn_q_norm.weight", &[4], &[0.0; 4]);
            },
            "blk.0.attn_q_norm.weight: no such model",
        ),
        (&|file| file.tensors.retain(|(name, ..)| name != "token_embd.weight"), "token_embd.weight: no such tensor"),
        (
            &|file| {
                file.tensor("token_embd.weight", &[4 * HIDDEN], &numbers(4 * HIDDEN, 0.0));
            },
            "token_embd.weight",
        ),
    ] {
        let error = said(change);
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// A list of four million texts of no letters takes a hundred megabytes in memory, more of them are not read.
#[test]
fn metadata_that_would_fill_the_memory_is_refused() {
    let count = 9u64 << 20;
    let mut bytes = key("k", 9, &[&8u32.to_le_bytes()[..], &count.to_le_bytes()].concat());
    bytes.resize(bytes.len() + count as usize * 8, 0);
    let error = said_of(&bytes);
    assert!(error.contains("k: its metadata takes more than 268435456 bytes"), "{error}");
}

#[test]
fn every_cut_of_a_good_file_is_refused() {
    let whole = tiny("llama").bytes();
    for length in (0..whole.len() - 32).step_by(37) {
        said_of(&whole[..length]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_byte_is_no_panic(at in 0usize..3000, to in any::<u8>(), also in 0usize..1200, and in any::<u8>()) {
        let mut bytes = tiny("llama").bytes();
        let length = bytes.len();
        bytes[at % length] = to;
        bytes[also % length] = and;
        let place = folder();
        let source = place.path().join("m.gguf");
        write(&source, &bytes);
        if import(&source, &place.path().join("model"), false, &ImportOptions::default()).is_ok() {
            opens(&place.path().join("model"));
        }
    }
}
