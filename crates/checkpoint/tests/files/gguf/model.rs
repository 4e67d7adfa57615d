//! Config and weights of imported models.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use finegates_checkpoint::gguf::{ImportOptions, Quantisation, import};
use finegates_checkpoint::source::{FetchOptions, resolve};
use finegates_checkpoint::{Config, FloatType, TensorFile};
use serde_json::{Value as Json, json};

use super::writer::{File, Value, text};
use super::{HEADS, HIDDEN, INNER, imported, imported_as, numbers, refused, tiny};
use crate::support::{folder, write};

fn config(folder: &Path) -> Json {
    serde_json::from_str(&fs::read_to_string(folder.join("model/config.json")).expect("read")).expect("JSON")
}

/// The config's value for a key after a change to the tiny model.
#[track_caller]
fn told(architecture: &str, field: &str, change: impl FnOnce(&mut File)) -> Json {
    let mut file = tiny(architecture);
    change(&mut file);
    let (place, _) = imported(&file).expect("imported");
    config(place.path())[field].clone()
}

#[test]
fn a_llama_gets_transformers_names_and_its_pairs_back() {
    let (place, imported) = imported(&tiny("llama")).expect("imported");
    assert_eq!((imported.model_type.as_str(), imported.tensors, imported.tied), ("llama", 11, true));
    assert_eq!(imported.quantisations.get("F32"), Some(&11));
    let tensors = TensorFile::open(&place.path().join("model")).expect("open");
    assert_eq!(imported.size_bytes, tensors.size_bytes());
    let names: BTreeSet<&str> = tensors.names().collect();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut expected: BTreeSet<String> = ["model.embed_tokens.weight", "model.norm.weight"].map(String::from).into();
    for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        expected.insert(layer(&format!("self_attn.{name}")));
    }
    for name in ["gate_proj", "up_proj", "down_proj"] {
        expected.insert(layer(&format!("mlp.{name}")));
    }
    expected.extend([layer("input_layernorm"), layer("post_attention_layernorm")]);
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    // transformers reads row j of a head from row 2 j of llama.cpp's, and the second half from the odd rows.
    let row = |row: usize| numbers(HIDDEN, 100.0 + (row * HIDDEN) as f32);
    let queries: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7].into_iter().flat_map(row).collect();
    assert_eq!(tensors.read(&layer("self_attn.q_proj"), &[HIDDEN, HIDDEN]).expect("read"), queries);
    let keys: Vec<f32> = [0, 2, 1, 3].into_iter().flat_map(row).collect();
    assert_eq!(tensors.read(&layer("self_attn.k_proj"), &[HIDDEN / HEADS, HIDDEN]).expect("read"), keys);
    let values: Vec<f32> = (0..HIDDEN / HEADS).flat_map(row).collect();
    assert_eq!(tensors.read(&layer("self_attn.v_proj"), &[HIDDEN / HEADS, HIDDEN]).expect("read"), values);
    let down = tensors.read(&layer("mlp.down_proj"), &[HIDDEN, INNER]).expect("read");
    assert_eq!(down, numbers(HIDDEN * INNER, 100.0));
    let config = config(place.path());
    for (field, value) in [
        ("model_type", json!("llama")),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("hidden_size", json!(8)),
        ("head_dim", json!(4)),
        ("num_key_value_heads", json!(1)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(500_000.0)),
        ("rope_scaling", Json::Null),
        ("tie_word_embeddings", json!(true)),
        ("attention_bias", json!(false)),
        ("bos_token_id", Json::Null),
        ("eos_token_id", json!(3)),
        ("vocab_size", json!(4)),
        ("torch_dtype", json!("float32")),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
    let generation = fs::read_to_string(place.path().join("model/generation_config.json")).expect("read");
    assert_eq!(serde_json::from_str::<Json>(&generation).expect("JSON"), json!({"eos_token_id": 3}));
}

#[test]
fn a_qwen2_has_biases_and_keeps_the_order_of_its_rows() {
    let (place, imported) = imported(&tiny("qwen2")).expect("imported");
    assert_eq!((imported.model_type.as_str(), imported.tensors), ("qwen2", 14));
    let tensors = TensorFile::open(&place.path().join("model")).expect("open");
    let queries = tensors.read("model.layers.0.self_attn.q_proj.weight", &[HIDDEN, HIDDEN]).expect("read");
    assert_eq!(queries, numbers(HIDDEN * HIDDEN, 100.0));
    let bias = tensors.read("model.layers.0.self_attn.q_proj.bias", &[HIDDEN]).expect("read");
    assert_eq!(bias, numbers(HIDDEN, 0.5));
}

#[test]
fn biases_of_a_llama_follow_their_rows() {
    let mut file = tiny("llama");
    for (name, rows) in [("attn_q", HIDDEN), ("attn_k", HIDDEN / 2), ("attn_v", HIDDEN / 2), ("attn_output", HIDDEN)] {
        file.tensor(&format!("blk.0.{name}.bias"), &[rows], &numbers(rows, 0.0));
    }
    let (place, _) = imported(&file).expect("imported");
    assert_eq!(config(place.path())["attention_bias"], json!(true));
    let tensors = TensorFile::open(&place.path().join("model")).expect("open");
    let bias = |name: &str, rows: usize| {
        tensors.read(&format!("model.layers.0.self_attn.{name}.bias"), &[rows]).expect("read")
    };
    assert_eq!(bias("q_proj", HIDDEN), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(bias("v_proj", HIDDEN / 2), [0.0, 1.0, 2.0, 3.0]);
    file.tensors.retain(|(name, ..)| name != "blk.0.attn_output.bias");
    assert!(refused(&file).contains("blk.0.attn_output.bias: no such tensor"), "{}", refused(&file));
}

#[test]
fn an_output_embedding_of_its_own_is_kept() {
    let mut file = tiny("llama");
    file.tensor("output.weight", &[4, HIDDEN], &numbers(4 * HIDDEN, 7.0));
    let (place, imported) = imported(&file).expect("imported");
    assert!(!imported.tied);
    assert_eq!(config(place.path())["tie_word_embeddings"], json!(false));
    let tensors = TensorFile::open(&place.path().join("model")).expect("open");
    assert_eq!(tensors.read("lm_head.weight", &[4, HIDDEN]).expect("read"), numbers(4 * HIDDEN, 7.0));
}

#[test]
fn a_window_makes_a_llama_a_mistral() {
    let window = |file: &mut File| {
        file.set("llama.attention.sliding_window", Value::U32(32));
    };
    assert_eq!(told("llama", "model_type", window), json!("mistral"));
    assert_eq!(told("llama", "sliding_window", window), json!(32));
}

#[test]
fn the_length_of_a_head_may_be_its_own() {
    let mut file = tiny("llama");
    file.set("llama.attention.key_length", Value::U32(2)).set("llama.attention.value_length", Value::U32(2));
    for (name, rows, columns) in [("q", 4, HIDDEN), ("k", 2, HIDDEN), ("v", 2, HIDDEN), ("output", HIDDEN, 4)] {
        let values = numbers(rows * columns, 0.0);
        file.tensor(&format!("blk.0.attn_{name}.weight"), &[rows, columns], &values);
    }
    let (place, _) = imported(&file).expect("imported");
    assert_eq!(config(place.path())["head_dim"], json!(2));
    file.set("llama.rope.dimension_count", Value::U32(1));
    assert!(refused(&file).contains("llama.rope.dimension_count: expected 2, the length of a head, found 1"));
}

#[test]
fn rotary_scaling_is_told_in_transformers_words() {
    let scaling = |change: &dyn Fn(&mut File)| told("llama", "rope_scaling", change);
    let linear = |file: &mut File| {
        file.set("llama.rope.scaling.type", text("linear")).set("llama.rope.scaling.factor", Value::F32(2.5));
    };
    assert_eq!(scaling(&linear), json!({"rope_type": "linear", "factor": 2.5}));
    let legacy = |file: &mut File| {
        file.set("llama.rope.scale_linear", Value::F32(4.0));
    };
    assert_eq!(scaling(&legacy), json!({"rope_type": "linear", "factor": 4.0}));
    let none = |file: &mut File| {
        file.set("llama.rope.scaling.type", text("none")).set("llama.rope.scaling.factor", Value::F32(2.0));
    };
    assert_eq!(scaling(&none), Json::Null);
}

#[test]
fn a_scaling_that_is_not_read_is_not_written() {
    let mut file = tiny("llama");
    file.set("llama.rope.scaling.factor", Value::F32(2.0));
    for kind in ["yarn", "longrope"] {
        let error = refused(file.set("llama.rope.scaling.type", text(kind)));
        let expected = format!("m.gguf: llama.rope.scaling.type: expected none or linear, found {kind}");
        assert!(error.contains(&expected), "{error}");
    }
    file.set("llama.rope.scaling.type", text("linear"));
    for factor in [0.5, 20_000.0] {
        let error = refused(file.set("llama.rope.scaling.factor", Value::F32(factor)));
        assert!(error.contains("llama.rope.scaling.factor: expected a factor from 1 to 10000"), "{error}");
        let error = refused(&with_divisors(&[factor; 32]));
        assert!(error.contains("rope_freqs.weight: expected a last divisor from 1 to 10000"), "{error}");
    }
}

/// A model with heads of 64, so that some pairs are in the middle of Llama 3's ramp.
fn with_divisors(divisors: &[f32]) -> File {
    let mut file = tiny("llama");
    file.set("llama.attention.key_length", Value::U32(64)).set("llama.attention.value_length", Value::U32(64));
    for (name, rows, columns) in [("q", 128, HIDDEN), ("k", 64, HIDDEN), ("v", 64, HIDDEN), ("output", HIDDEN, 128)] {
        file.tensor(&format!("blk.0.attn_{name}.weight"), &[rows, columns], &numbers(rows * columns, 0.0));
    }
    file.tensor("rope_freqs.weight", &[divisors.len()], divisors);
    file
}

/// What llama.cpp's converter writes for Llama 3.1 to 3.3 (`generate_extra_tensors` of its `LlamaModel`), in f32.
fn llama3_divisors(factor: f32, context: f32) -> Vec<f32> {
    let divisor = |pair: i32| {
        let frequency = 1.0 / 500_000f32.powf(pair as f32 * 2.0 / 64.0);
        let wavelength = TAU as f32 / frequency;
        if wavelength < context / 4.0 {
            1.0
        } else if wavelength > context {
            factor
        } else {
            let smooth = (context / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..32).map(divisor).collect()
}

#[test]
fn llama_3s_scaling_is_found_in_its_divisors() {
    for factor in [8.0, 32.0] {
        let (place, imported) = imported(&with_divisors(&llama3_divisors(factor, 8192.0))).expect("imported");
        let expected = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        assert_eq!(config(place.path())["rope_scaling"], expected);
        assert_eq!(imported.tensors, 11, "the divisors are no tensor of the model");
    }
    let (place, _) = imported(&with_divisors(&[1.0; 32])).expect("imported");
    assert_eq!(config(place.path())["rope_scaling"], Json::Null);
    let other = refused(&with_divisors(&llama3_divisors(8.0, 4096.0)));
    assert!(other.contains("rope_freqs.weight: expected the divisors of Llama 3's scaling"), "{other}");
    let short = refused(&with_divisors(&[1.0; 31]));
    assert!(short.contains("rope_freqs.weight: expected 32 values"), "{short}");
    let broken = refused(&with_divisors(&[f32::NAN; 32]));
    assert!(broken.contains("rope_freqs.weight"), "{broken}");
}

#[test]
fn quantised_rows_are_dequantised_and_put_back() {
    let mut file = tiny("llama");
    let (wide, scale) = (32, half::f16::from_f32(0.5).to_le_bytes());
    file.set("llama.embedding_length", Value::U32(wide as u32)).set("llama.attention.key_length", Value::U32(4));
    for (name, rows, columns) in [
        ("token_embd", 4, wide),
        ("blk.0.attn_k", 4, wide),
        ("blk.0.attn_v", 4, wide),
        ("blk.0.attn_output", wide, 8),
        ("blk.0.ffn_gate", INNER, wide),
        ("blk.0.ffn_up", INNER, wide),
        ("blk.0.ffn_down", wide, INNER),
    ] {
        file.tensor(&format!("{name}.weight"), &[rows, columns], &numbers(rows * columns, 0.0));
    }
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file.tensor(&format!("{name}.weight"), &[wide], &numbers(wide, 1.0));
    }
    // Eight rows of Q8_0: the row's number in every value.
    let rows = (0..8u8).flat_map(|row| scale.into_iter().chain([row; 32])).collect();
    file.raw("blk.0.attn_q.weight", &[8, wide], 8, rows);
    let (place, imported) = imported(&file).expect("imported");
    assert_eq!(imported.quantisations.get(Quantisation::Q8_0.name()), Some(&1));
    let tensors = TensorFile::open(&place.path().join("model")).expect("open");
    let queries = tensors.read("model.layers.0.self_attn.q_proj.weight", &[8, wide]).expect("read");
    let firsts: Vec<f32> = queries.chunks(wide).map(|row| row[0]).collect();
    assert_eq!(firsts, [0.0, 1.0, 0.5, 1.5, 2.0, 3.0, 2.5, 3.5]);
    assert!(queries.chunks(wide).all(|row| row.iter().all(|value| *value == row[0])));
}

#[test]
fn half_precision_is_written_where_asked_and_only_if_it_fits() {
    let mut file = tiny("llama");
    let values = [1.0, 0.1, -3.25, 65504.0, 1e-8, 0.0, 2.5, 1.0 / 3.0];
    file.tensor("output_norm.weight", &[HIDDEN], &values);
    for (float, short) in [
        (FloatType::F16, (|value| half::f16::from_f32(value).to_f32()) as fn(f32) -> f32),
        (FloatType::Bf16, |value| half::bf16::from_f32(value).to_f32()),
    ] {
        let (place, imported) = imported_as(&file, float).expect("imported");
        assert_eq!(imported.size_bytes, imported.parameters * 2);
        assert_eq!(config(place.path())["torch_dtype"], json!(float.torch_name()));
        let tensors = TensorFile::open(&place.path().join("model")).expect("open");
        assert_eq!(tensors.size_bytes(), imported.size_bytes);
        assert_eq!(tensors.read("model.norm.weight", &[HIDDEN]).expect("read"), values.map(short));
    }
    file.tensor("output_norm.weight", &[HIDDEN], &[70_000.0; HIDDEN]);
    let error = imported_as(&file, FloatType::F16).expect_err("too large").to_string();
    assert!(error.contains("model.norm.weight: 70000 does not fit into f16"), "{error}");
    assert!(imported_as(&file, FloatType::Bf16).is_ok());
    file.tensor("output_norm.weight", &[HIDDEN], &[f32::MAX; HIDDEN]);
    let error = imported_as(&file, FloatType::Bf16).expect_err("too large").to_string();
    assert!(error.contains("does not fit into bf16; use f32"), "{error}");
    file.tensor("output_norm.weight", &[HIDDEN], &[f32::NEG_INFINITY; HIDDEN]);
    assert!(imported_as(&file, FloatType::Bf16).is_ok(), "what was infinite stays so");
}

#[test]
fn what_lies_in_the_folder_is_kept() {
    let place = folder();
    let (source, model) = (place.path().join("m.gguf"), place.path().join("deep/er/model"));
    tiny("llama").write(&source);
    let import = |overwrite| import(&source, &model, overwrite, &ImportOptions::default());
    import(false).expect("into a new folder");
    let error = import(false).expect_err("not empty").to_string();
    assert!(error.contains("is not empty"), "{error}");
    let first = fs::read_to_string(model.join("tokenizer.json")).expect("read");
    write(&model.join("tokenizer.json"), "old");
    import(true).expect("over an earlier import");
    assert_eq!(fs::read_to_string(model.join("tokenizer.json")).expect("read"), first);
    write(&model.join("precious"), "x");
    let error = import(true).expect_err("something else").to_string();
    assert!(error.contains("holds something other than an imported model (precious)"), "{error}");
    assert!(model.join("precious").exists());
    fs::remove_file(model.join("precious")).expect("removed");
    fs::remove_file(model.join("generation_config.json")).expect("removed");
    fs::create_dir(model.join("generation_config.json")).expect("made");
    assert!(import(true).is_err(), "a folder of that name is no file of an import");
    fs::remove_dir(model.join("generation_config.json")).expect("removed");
    // A model of the same files that is no import, such as one trained from it: its config has no mark.
    assert_eq!(config(model.parent().expect("a parent"))["finegates_import"], json!({"file": "m.gguf"}));
    let kept = Config::read(&model).expect("a config").raw;
    assert!(!kept.contains_key("finegates_import"), "what is made of an import is none");
    for other in [Json::Object(kept).to_string(), "old".to_owned()] {
        write(&model.join("config.json"), &other);
        let error = import(true).expect_err("no import").to_string();
        assert!(error.contains("holds no import (no finegates_import in its config.json)"), "{error}");
        assert_eq!(fs::read_to_string(model.join("config.json")).expect("read"), other);
    }
    let left = fs::read_dir(model.parent().expect("a parent")).expect("list").count();
    assert_eq!(left, 1, "nothing is left beside it");
}

#[test]
fn a_folder_that_is_filled_while_a_model_is_read_is_kept() {
    let place = folder();
    let (source, model) = (place.path().join("m.gguf"), place.path().join("model"));
    tiny("llama").write(&source);
    let fill = |_: usize, _: usize| {
        fs::create_dir_all(&model).expect("made");
        write(&model.join("precious"), "x");
    };
    let options = ImportOptions { progress: Some(&fill), ..ImportOptions::default() };
    for overwrite in [false, true] {
        import(&source, &model, overwrite, &options).expect_err("taken");
        assert!(model.join("precious").exists());
        fs::remove_dir_all(&model).expect("removed");
    }
}

#[test]
fn progress_goes_from_none_to_all() {
    let place = folder();
    let source = place.path().join("m.gguf");
    tiny("llama").write(&source);
    let told = RefCell::new(Vec::new());
    let tell = |written: usize, all: usize| told.borrow_mut().push((written, all));
    let options = ImportOptions { progress: Some(&tell), ..ImportOptions::default() };
    import(&source, &place.path().join("model"), false, &options).expect("imported");
    assert_eq!(told.into_inner(), (0..=11).map(|written| (written, 11)).collect::<Vec<_>>());
}

#[test]
fn the_same_file_gives_the_same_bytes() {
    let (one, _) = imported(&tiny("llama")).expect("imported");
    let (other, _) = imported(&tiny("llama")).expect("imported");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let read = |place: &tempfile::TempDir| fs::read(place.path().join("model").join(name)).expect("read");
        assert_eq!(read(&one), read(&other), "{name}");
    }
}

#[test]
fn a_gguf_file_as_a_model_is_told_how_to_be_one() {
    let place = folder();
    let source = place.path().join("m.gguf");
    tiny("llama").write(&source);
    for spec in [source.as_path(), place.path()] {
        let error =
            resolve(spec.to_str().expect("UTF-8"), &FetchOptions::default()).expect_err("no folder").to_string();
        let command = format!("finegates import '{}' --output FOLDER", source.display());
        assert!(error.contains(&command), "{error}");
    }
    write(&place.path().join("config.json"), "{}");
    assert!(resolve(place.path().to_str().expect("UTF-8"), &FetchOptions::default()).is_ok());
}
