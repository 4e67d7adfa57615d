//! Logits and chats against transformers (`tools/make_generation_goldens.py`).
#![allow(clippy::result_large_err, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use finegates_checkpoint::ChatTemplates;
use finegates_infer::generation::{ChatOptions, ChatTemplate, Message, Sampler, SamplingSettings};
use serde_json::Value;

#[path = "../../../fixtures/counter_normal.rs"]
mod counter_normal;

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/generation.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn settings(given: &Value) -> SamplingSettings {
    let number = |name: &str, default: f32| given.get(name).map_or(default, |value| value.as_f64().unwrap() as f32);
    SamplingSettings {
        sample: given["do_sample"].as_bool().unwrap(),
        temperature: number("temperature", 1.0),
        top_k: given.get("top_k").map_or(50, |value| value.as_u64().unwrap() as usize),
        top_p: number("top_p", 1.0),
        min_p: number("min_p", 0.0),
        repetition_penalty: number("repetition_penalty", 1.0),
    }
}

#[test]
fn candidates_and_scores_are_those_of_transformers() {
    let golden = golden();
    let prompt: Vec<u32> = golden["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let (long, mut narrowed) = (&golden["long"], 0);
    for case in golden["sampling"].as_array().unwrap() {
        let mut logits: Vec<f32> = match case["row"].as_u64() {
            Some(row) => {
                let row = golden["rows"][row as usize].as_array().unwrap();
                row.iter().map(|value| value.as_f64().map_or(f32::NEG_INFINITY, |value| value as f32)).collect()
            }
            None => (0..long["count"].as_u64().unwrap())
                .map(|index| {
                    let normal = counter_normal::counter_normal(long["stream"].as_u64().unwrap(), index);
                    (normal * long["scale"].as_f64().unwrap()) as f32
                })
                .collect(),
        };
        let count = logits.len();
        let settings = settings(&case["settings"]);
        let found = Sampler::new(&settings, 0, &prompt).unwrap().candidates(&mut logits).unwrap();
        let ids: Vec<u64> = found.iter().map(|&(id, _)| u64::from(id)).collect();
        let list =
            |value: &Value| -> Vec<u64> { value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect() };
        match case.get("ids") {
            Some(expected) => {
                assert_eq!(ids, list(expected), "{case}");
                for ((_, score), expected) in found.iter().zip(case["scores"].as_array().unwrap()) {
                    // The same operations in f32: the same bits.
                    assert_eq!(*score, expected.as_f64().unwrap() as f32, "{case}");
                }
            }
            None => {
                assert_eq!(ids.len() as u64, case["count"].as_u64().unwrap(), "{case}");
                let edge = ids.len().min(40);
                assert_eq!(ids[..edge], list(&case["first"]), "{case}");
                assert_eq!(ids[ids.len() - edge..], list(&case["last"]), "{case}");
                assert_eq!(ids.iter().sum::<u64>(), case["id_sum"].as_u64().unwrap(), "{case}");
                let sum: f64 = found.iter().map(|&(_, score)| f64::from(score)).sum();
                let expected = case["score_sum"].as_f64().unwrap();
                assert!((sum - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{sum} {expected} {case}");
            }
        }
        narrowed += usize::from(found.len() < count);
    }
    assert!(narrowed > 30, "{narrowed}");
}

fn template(golden: &Value, name: &str) -> ChatTemplate {
    let tokens = golden["special_tokens"].as_object().unwrap();
    let templates = ChatTemplates {
        path: PathBuf::from(format!("{name}.jinja")),
        templates: vec![("default".into(), golden["templates"][name].as_str().unwrap().into())],
        special_tokens: tokens.iter().map(|(name, text)| (name.clone(), text.as_str().unwrap().into())).collect(),
    };
    ChatTemplate::from_templates(templates, None).unwrap()
}

#[test]
fn chats_are_written_as_transformers_writes_them() {
    let golden = golden();
    let now = UNIX_EPOCH + Duration::from_secs(golden["now"].as_u64().unwrap());
    let (mut rendered, mut refused) = (0, 0);
    for case in golden["rendered"].as_array().unwrap() {
        let (name, chat) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
        let messages: Vec<Message> = serde_json::from_value(golden["chats"][chat].clone()).unwrap();
        let options = ChatOptions { add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(), now };
        let found = template(&golden, name).render(&messages, &options);
        match case["refusal"].as_str() {
            Some(reason) => {
                refused += 1;
                let message = found.unwrap_err().to_string();
                assert!(message.starts_with(&format!("{name}.jinja: chat template: line ")), "{message}");
                assert!(message.ends_with(reason), "{message}");
            }
            None => {
                rendered += 1;
                assert_eq!(found.unwrap(), case["text"].as_str().unwrap(), "{name}: {chat}");
            }
        }
    }
    assert!(rendered > 40 && refused >= 4, "{rendered} {refused}");
}
