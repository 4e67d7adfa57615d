//! What `predict` makes of its input, through the real binary.
#![allow(clippy::unwrap_used)]

mod program;

use std::collections::HashMap;
use std::path::Path;

use program::{Place, run, run_with_input, tiny};
use serde_json::Value;

/// A thousand texts of many lengths, each of a few hundred there several times.
fn texts() -> Vec<String> {
    const WORDS: [&str; 7] = ["film", "good", "the", "was", "awful", "really", "plot"];
    let text = |row: usize| {
        let (length, first) = (row * 31 % 23, row * 17 % 7);
        (0..length).map(|at| WORDS[(first + at * 3) % 7]).collect::<Vec<_>>().join(" ")
    };
    (0..1000).map(text).collect()
}

#[test]
fn a_thousand_answers_keep_their_order_in_every_family() {
    let texts = texts();
    for family in ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"] {
        let answers = run_with_input(&["predict", &tiny(family), "--with-text"], &texts.join("\n")).exits(0);
        let rows: Vec<Value> = answers.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), texts.len(), "{family}");
        let mut scores: HashMap<&str, &Value> = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            assert_eq!((row["line"].as_u64(), row["text"].as_str()), (Some(index as u64 + 1), Some(&*texts[index])));
            // The same text has the same answer in whatever company, so an answer in a wrong place would show.
            let answer = if row["value"].is_number() { &row["value"] } else { &row["scores"] };
            let first = scores.entry(&texts[index]).or_insert(answer);
            assert_eq!(*first, answer, "{family}: line {}", index + 1);
        }
        let different: std::collections::HashSet<String> = scores.values().map(|score| score.to_string()).collect();
        assert!(different.len() > 50, "{family}: only {} different answers", different.len());
    }
}

#[test]
fn an_input_whose_format_is_not_known_asks_for_it() {
    let place = Place::new();
    let input = place.write("texts.dat", "good\nbad\n");
    let refused = run(&["predict", &tiny("bert"), &input]).exits(2);
    refused.complains("texts.dat: unknown format");
    refused.complains("--format");
    run(&["predict", &tiny("bert"), &input, "--format", "lines"]).exits(0);
    let missing = run(&["predict", &tiny("bert"), &place.name("nothing")]).exits(2);
    assert!(!missing.stderr.contains("format"), "{}", missing.stderr);
    missing.complains("nothing: ");
}

#[test]
fn plain_lines_have_no_columns() {
    let place = Place::new();
    let input = place.write("texts.txt", "good\n");
    for flag in ["--text", "--text-pair"] {
        let refused = run_with_input(&["predict", &tiny("bert"), flag, "b"], "good\n").exits(2);
        refused.complains(&format!("{flag} names a column, but standard input is read as a text a line; add --format"));
        let refused = run(&["predict", &tiny("bert"), &input, flag, "b"]).exits(2);
        refused.complains(&format!("{flag} names a column, but {input} is read as a text a line; add --format"));
    }
}

/// The tiny BERT checkpoint, whose output is not a number for any text with this word.
fn spoilt(place: &Place, word: &str) -> String {
    let (from, to) = (tiny("bert"), place.path("spoilt"));
    std::fs::create_dir(&to).unwrap();
    for name in ["config.json", "vocab.txt", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&from).join(name), to.join(name)).unwrap();
    }
    let vocabulary = std::fs::read_to_string(to.join("vocab.txt")).unwrap();
    let id = vocabulary.lines().position(|line| line == word).unwrap();
    let bytes = std::fs::read(Path::new(&from).join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            if name.ends_with("word_embeddings.weight") {
                let width = 4 * view.shape()[1];
                data[id * width..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            (name.to_owned(), view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    to.to_str().unwrap().to_owned()
}

#[test]
fn a_text_without_an_answer_is_named_by_its_line() {
    let place = Place::new();
    let model = spoilt(&place, "awful");
    let row = |row: usize| if row == 600 { "it was awful,positive\n" } else { "it was good,positive\n" };
    let rows: String = (0..700).map(row).collect();
    // A header, a row on two lines and a broken one come before.
    let input = place.write("a.csv", &format!("sentence,label\n\"two\nlines\",positive\nbroken\n{rows}"));
    let stopped = run(&["predict", &model, &input, "--skip-bad-rows"]).exits(2);
    stopped.complains("a.csv:605: the output of ");
    stopped.complains("not finite");
    let data = place.write("b.csv", &rows.replace("positive", "equivalent").replacen("it", "sentence,label\nit", 1));
    run(&["eval", &model, "--data", &data]).exits(2).complains("b: example 601: the output of ");
}

#[test]
fn long_lines_are_answered_in_their_order() {
    let place = Place::new();
    let rows: String = (0..24).map(|row| format!("{}{row}\n", "good film ".repeat(100_000))).collect();
    let input = place.write("long.txt", &rows);
    let answers = run(&["predict", &tiny("bert"), &input]).exits(0);
    assert_eq!(answers.stdout.lines().count(), 24);
    for (row, answer) in answers.stdout.lines().enumerate() {
        assert!(answer.starts_with(&format!("{{\"line\":{},", row + 1)), "{answer}");
    }
    answers.complains("24 of 24 texts were longer");
}
