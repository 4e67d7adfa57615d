//! The engine on tiny checkpoints: order, batching, labels, lengths, and what it refuses.
#![allow(clippy::result_large_err, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use finegates_infer::{Artifact, Engine, Error, Kind, Options, Outcome, Text, Which};

fn tiny(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn texts() -> Vec<String> {
    const WORDS: [&str; 6] = ["film", "good", "the", "was", "awful", "really"];
    (0..40).map(|length| (0..length).map(|at| WORDS[(at * 7 + length) % 6]).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn answers_keep_their_order_and_do_not_depend_on_their_neighbours() {
    for family in ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"] {
        let texts = texts();
        let texts: Vec<Text<'_>> = texts.iter().map(|text| Text::single(text)).collect();
        let together = Engine::load(tiny(family), &Options::default()).unwrap().predict(&texts).unwrap();
        let options = Options { batch_tokens: Some(1), ..Options::default() };
        let engine = Engine::load(tiny(family), &options).unwrap();
        for (text, expected) in texts.iter().zip(&together) {
            let alone = &engine.predict(std::slice::from_ref(text)).unwrap()[0];
            assert_eq!(alone, expected, "{family}: {text:?}");
        }
    }
}

#[test]
fn a_class_has_its_name_and_scores_that_sum_to_one() {
    let engine = Engine::load(tiny("bert"), &Options::default()).unwrap();
    assert_eq!(engine.labels().collect::<Vec<_>>(), ["not_equivalent", "equivalent"]);
    let answers = engine.predict(&[Text::pair("the film was good", "a good film")]).unwrap();
    let Outcome::Class { index, label, scores } = &answers[0].outcome else { panic!("a classifier") };
    assert_eq!((scores.len(), &**label), (2, ["not_equivalent", "equivalent"][*index]));
    assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    assert!(scores.iter().all(|&score| score <= scores[*index]));
    assert_eq!(answers[0].score(), scores[*index]);
    assert_eq!(answers[0].label(), Some(&**label));
    assert!(engine.predict(&[]).unwrap().is_empty());
}

#[test]
fn long_texts_are_cut_and_say_so() {
    let long = "film ".repeat(500);
    let engine = Engine::load(tiny("bert"), &Options::default()).unwrap();
    let answers = engine.predict(&[Text::single(&long), Text::single("film")]).unwrap();
    assert_eq!((answers[0].tokens, answers[0].truncated), (engine.maximum_length(), true));
    assert_eq!((answers[1].tokens, answers[1].truncated), (3, false));
    let shorter = Options { maximum_length: Some(8), ..Options::default() };
    assert_eq!(Engine::load(tiny("bert"), &shorter).unwrap().predict(&[Text::single(&long)]).unwrap()[0].tokens, 8);
    let longer = Options { maximum_length: Some(41), ..Options::default() };
    let refused = Engine::load(tiny("bert"), &longer);
    assert!(matches!(refused, Err(Error::MaximumLength { most: 40, found: 41 })));
}

#[test]
fn a_text_that_cannot_be_read_is_told_by_its_index() {
    // RoBERTa surrounds a text with two special tokens and a pair with four.
    let options = Options { maximum_length: Some(3), ..Options::default() };
    let engine = Engine::load(tiny("roberta"), &options).unwrap();
    let texts = [Text::single("film"), Text::single("good"), Text::pair("film", "good")];
    assert!(matches!(engine.predict(&texts), Err(Error::Text { text: 2, .. })));
    assert_eq!(engine.predict(&texts[..2]).unwrap().len(), 2);
}

#[test]
fn folders_are_told_apart_by_what_is_in_them() {
    let place = tempfile::tempdir().unwrap();
    let find = |name: &Path| Artifact::find(name.to_str().unwrap(), &Which::Best, None, &Default::default());
    assert_eq!(find(&tiny("bert")).unwrap().kind, Kind::Checkpoint);
    assert!(matches!(find(place.path()), Err(Error::NotAModel { found, .. }) if found == "an empty folder"));

    let run = place.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("recipe.toml"), "model = \"base\"\nmax_length = 9\nepochs = 3.0\n").unwrap();
    assert!(matches!(find(&run), Err(Error::NothingSaved { .. })));
    copy(&tiny("bert"), &run.join("best"));
    let found = find(&run).unwrap();
    assert_eq!((found.kind, found.part.as_deref(), found.trained_length), (Kind::Run, Some("best"), Some(9)));
    let last = Artifact::find(run.to_str().unwrap(), &Which::Last, None, &Default::default());
    assert!(matches!(last, Err(Error::NothingSaved { .. })));
    assert_eq!(Engine::load(&run, &Options::default()).unwrap().maximum_length(), 9);
    std::fs::write(run.join("recipe.toml"), "model = [").unwrap();
    assert!(matches!(find(&run), Err(Error::Recipe { .. })));
}

#[test]
fn a_model_without_a_tokenizer_still_takes_token_ids() {
    let place = tempfile::tempdir().unwrap();
    copy(&tiny("bert"), place.path());
    std::fs::remove_file(place.path().join("vocab.txt")).unwrap();
    let refused = Engine::load(place.path(), &Options::default());
    assert!(matches!(refused, Err(Error::Checkpoint(finegates_checkpoint::Error::NoTokenizer { .. }))));
    let artifact = Artifact::find(place.path().to_str().unwrap(), &Which::Best, None, &Default::default()).unwrap();
    let engine = Engine::without_tokenizer(artifact, &Options::default()).unwrap();
    let sequence = finegates_checkpoint::Encoding { ids: vec![2, 7, 3], segments: vec![0; 3], truncated: false };
    assert_eq!(engine.logits_of(&[sequence]).unwrap().len(), 2);
    assert!(matches!(engine.encode(&[Text::single("film")]), Err(Error::NoTokenizer { .. })));
}
