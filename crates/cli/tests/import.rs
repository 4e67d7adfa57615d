//! `finegates import`: what it writes and says. The files themselves are tested in `finegates-checkpoint`.
#![allow(clippy::unwrap_used)]

mod program;

use program::{Place, run};

/// A GGUF file of a Llama of one layer and a width of 4, with three tokens.
fn tiny() -> Vec<u8> {
    let text = |value: &str| [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat();
    let number = |value: u32| (4u32, value.to_le_bytes().to_vec());
    let texts = |values: &[&str]| {
        let head = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        (9u32, [head, values.iter().flat_map(|value| text(value)).collect()].concat())
    };
    let keys = [
        ("general.architecture", (8, text("llama"))),
        ("llama.embedding_length", number(4)),
        ("llama.block_count", number(1)),
        ("llama.context_length", number(16)),
        ("llama.feed_forward_length", number(4)),
        ("llama.attention.head_count", number(1)),
        ("llama.attention.layer_norm_rms_epsilon", (6, 1e-5f32.to_le_bytes().to_vec())),
        ("tokenizer.ggml.model", (8, text("gpt2"))),
        ("tokenizer.ggml.pre", (8, text("smollm"))),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab"])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
    ];
    let square = [4u64, 4];
    let tensors = [
        ("token_embd.weight", &[4u64, 3][..]),
        ("output_norm.weight", &square[..1]),
        ("blk.0.attn_norm.weight", &square[..1]),
        ("blk.0.ffn_norm.weight", &square[..1]),
        ("blk.0.attn_q.weight", &square),
        ("blk.0.attn_k.weight", &square),
        ("blk.0.attn_v.weight", &square),
        ("blk.0.attn_output.weight", &square),
        ("blk.0.ffn_gate.weight", &square),
        ("blk.0.ffn_up.weight", &square),
        ("blk.0.ffn_down.weight", &square),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, (kind, value)) in keys {
        out.extend(text(key));
        out.extend(u32::to_le_bytes(kind));
        out.extend(value);
    }
    for (number, (name, axes)) in tensors.iter().enumerate() {
        out.extend(text(name));
        out.extend((axes.len() as u32).to_le_bytes());
        axes.iter().for_each(|axis| out.extend(axis.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend((number as u64 * 64).to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + tensors.len() * 64, 0);
    out
}

#[test]
fn a_gguf_file_becomes_a_folder() {
    let place = Place::new();
    let (file, output) = (place.name("m.gguf"), place.name("model"));
    std::fs::write(place.path("m.gguf"), tiny()).unwrap();
    let said = run(&["import", &file, "--output", &output, "--dtype", "bf16"]).exits(0);
    for words in ["llama", "136 in 11 tensors", "11 F32", "bf16, 272 B", "tied", "byte-level BPE (smollm), 3 tokens"] {
        said.says(words);
    }
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(place.path("model").join(name).is_file(), "{name}");
    }
    let refused = run(&["import", &file, "--output", &output]).exits(2);
    refused.complains("is not empty");
    refused.complains("--overwrite");
    let outcome = run(&["import", &file, "--output", &output, "--overwrite", "--json"]).exits(0).json();
    assert_eq!(outcome["parameters"], 136);
    assert_eq!(outcome["size_bytes"], 544);
    assert_eq!(outcome["dtype"], "f32");
    assert_eq!(outcome["quantisations"]["F32"], 11);
    std::fs::write(place.path("model").join("config.json"), "{}").unwrap();
    run(&["import", &file, "--output", &output, "--overwrite"]).exits(2).complains("holds no import");
}

#[test]
fn what_cannot_be_imported_is_told() {
    let place = Place::new();
    let (file, output) = (place.write("m.gguf", "GGUF"), place.name("model"));
    run(&["import", &file, "--output", &output])
        .exits(2)
        .complains("m.gguf: broken GGUF file: it ends within the version");
    run(&["import", &place.name("none.gguf"), "--output", &output]).exits(2).complains("none.gguf: cannot open");
    run(&["import", &file, "--output", &output, "--dtype", "q4"]).exits(2).complains("expected f32, f16 or bf16");
    run(&["import", &file]).exits(2).complains("--output");
    assert!(!place.path("model").exists());
    let inspected = run(&["inspect", &file]).exits(2);
    inspected.complains("found a GGUF file");
    inspected.complains("finegates import");
}
