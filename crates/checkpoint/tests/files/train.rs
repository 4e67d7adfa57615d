use std::collections::HashMap;
use std::fs;

use finegates_checkpoint::{Config, Error, Splitting, Tokenizer, TokenizerTraining, TrainedTokenizer};
use serde_json::Value;

use crate::support::{folder, shared};

const WORDS: [&str; 14] =
    ["the", "gates", " open", "ing", "Don't", " 1234567", "\n\n", ".\n", "  ", "über", "中文", "\u{1f600}", "'S", "\t"];

/// A text that the words make, the same every time, with pairs that occur equally often.
fn text(length: usize) -> String {
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 33) as usize % WORDS.len()]
    };
    (0..length).map(|_| format!("{} ", draw())).collect()
}

fn train(training: &TokenizerTraining, texts: &[&str]) -> Result<TrainedTokenizer, Error> {
    training.train(texts.iter().map(|text| Ok::<_, Error>((*text).to_owned())))
}

fn open(trained: &TrainedTokenizer, folder: &tempfile::TempDir) -> Tokenizer {
    trained.write(folder.path()).expect("written");
    let config = format!(r#"{{"model_type": "roberta", "vocab_size": {}}}"#, trained.vocabulary);
    Tokenizer::open(folder.path(), &Config::from_json(&config).expect("a config")).expect("a tokenizer")
}

fn tokens(trained: &TrainedTokenizer) -> HashMap<u32, String> {
    let json: Value = serde_json::from_str(&trained.json).expect("JSON");
    let entries = json["model"]["vocab"].as_object().expect("a vocabulary");
    entries.iter().map(|(token, id)| (id.as_u64().expect("an id") as u32, token.clone())).collect()
}

fn merges(trained: &TrainedTokenizer) -> Vec<(String, String)> {
    let json: Value = serde_json::from_str(&trained.json).expect("JSON");
    serde_json::from_value(json["model"]["merges"].clone()).expect("merges")
}

/// Byte-pair encoding as it is defined: the most frequent neighbours are merged, of equally frequent ones those with the
/// smaller ids, as long as they occur twice.
fn naive(words: &[(&str, u64)], alphabet: &[char], entries: usize) -> Vec<(String, String)> {
    let mut tokens: Vec<String> = vec!["<|endoftext|>".to_owned()];
    tokens.extend(alphabet.iter().map(char::to_string));
    let id = |tokens: &[String], token: &str| tokens.iter().position(|known| known == token).expect("a token");
    let mut split: Vec<(Vec<usize>, u64)> = words
        .iter()
        .map(|(word, count)| (word.chars().map(|letter| id(&tokens, &letter.to_string())).collect(), *count))
        .collect();
    let mut merges = Vec::new();
    while tokens.len() < entries {
        let mut counts: HashMap<(usize, usize), u64> = HashMap::new();
        for (word, count) in &split {
            for pair in word.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += count;
            }
        }
        let best = counts.into_iter().max_by_key(|&(pair, count)| (count, std::cmp::Reverse(pair)));
        let Some((pair, _)) = best.filter(|&(_, count)| count >= 2) else { break };
        merges.push((tokens[pair.0].clone(), tokens[pair.1].clone()));
        let merged = format!("{}{}", tokens[pair.0], tokens[pair.1]);
        tokens.push(merged);
        for (word, _) in &mut split {
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) == pair {
                    word.splice(at..at + 2, [tokens.len() - 1]);
                }
                at += 1;
            }
        }
    }
    merges
}

#[test]
fn merges_are_those_of_the_definition() {
    let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3), ("slowest", 4), ("wow", 2), ("once", 1)];
    // A line end is a part of its own, so that each word is one too.
    let text: String = words.iter().map(|&(word, count)| format!("{word}\n").repeat(count)).collect();
    let trained = train(&TokenizerTraining::new(290), &[&text]).expect("trained");
    let tokens = tokens(&trained);
    let alphabet: Vec<char> = (1..257).map(|id| tokens[&id].chars().next().expect("a letter")).collect();
    let words = words.map(|(word, count)| (word, count as u64));
    let expected = naive(&words, &alphabet, 290);
    assert!(expected.len() > 10, "{expected:?}");
    assert_eq!(merges(&trained), expected);
    assert_eq!(trained.vocabulary, 257 + expected.len(), "fewer than asked for: nothing else occurs twice");
}

#[test]
fn the_same_texts_give_the_same_bytes_for_any_number_of_threads() {
    let text = text(40_000);
    let pieces: Vec<&str> = text.split_inclusive('\n').collect();
    for splitting in [Splitting::Gpt2, Splitting::Llama3] {
        let training = TokenizerTraining { splitting, minimum_count: 0, ..TokenizerTraining::new(600) };
        let mut all = Vec::new();
        for threads in [1, 2, 3, 8, 2, 1] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            all.push(pool.install(|| train(&training, &pieces)).expect("trained"));
        }
        let backwards: Vec<&str> = pieces.iter().rev().copied().collect();
        all.push(train(&training, &backwards).expect("trained"));
        assert!(all[0].vocabulary > 300);
        assert!(all.iter().all(|trained| *trained == all[0]), "{splitting:?}");
        assert_eq!((all[0].read_bytes, all[0].complete), (text.len() as u64, true));
    }
}

#[test]
fn a_trained_tokenizer_is_read_and_loses_nothing() {
    let text = text(3000);
    for splitting in [Splitting::Gpt2, Splitting::Llama3] {
        let special_tokens = vec!["<|user|>".to_owned()];
        let training = TokenizerTraining { splitting, special_tokens, ..TokenizerTraining::new(400) };
        let trained = train(&training, &[&text]).expect("trained");
        let folder = folder();
        let tokenizer = open(&trained, &folder);
        assert_eq!(tokenizer.special_tokens(false), 0);
        assert_eq!((tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|user|>")), (Some(0), Some(1)));
        let never_seen = "ZÿЖ\u{0}\u{200d}~ <|endoftext|>x<|user|>";
        let tokens = tokens(&trained);
        let letters = |ids: &[u32]| ids.iter().map(|id| tokens[id].as_str()).collect::<String>().chars().count();
        for (text, special) in [(text.as_str(), 0), (never_seen, "<|endoftext|><|user|>".len())] {
            let encoding = tokenizer.encode(text, None, 500_000).expect("encoded");
            assert!(!encoding.truncated);
            // Each byte is a letter of the tokens.
            assert_eq!(letters(&encoding.ids), text.len());
            assert_eq!(encoding.ids.iter().filter(|&&id| id < 2).count(), usize::from(special > 0) * 2);
        }
        // Llama 3's pattern keeps digits in threes, GPT-2's a whole number.
        let digits = tokens.values().any(|token| token.chars().filter(char::is_ascii_digit).count() > 3);
        assert_eq!(digits, splitting == Splitting::Gpt2);
        let config: Value = serde_json::from_str(&trained.config_json).expect("JSON");
        assert_eq!(config["eos_token"], "<|endoftext|>");
    }
}

#[test]
fn special_tokens_in_the_texts_teach_nothing() {
    let plain = train(&TokenizerTraining::new(300), &["one two", " one", "two one two"]).expect("trained");
    let marked = "one two<|endoftext|> one<|endoftext|><|endoftext|>two one two<|endoftext|>";
    let marked = train(&TokenizerTraining::new(300), &[marked]).expect("trained");
    assert_eq!(plain.json, marked.json);
}

#[test]
fn settings_and_texts_that_cannot_be_used_are_told() {
    let refused =
        |training: &TokenizerTraining, texts: &[&str]| train(training, texts).expect_err("an error").to_string();
    let named = |names: &[&str]| {
        let special_tokens = names.iter().map(|&name| name.to_owned()).collect();
        TokenizerTraining { special_tokens, ..TokenizerTraining::new(400) }
    };
    let small = refused(&TokenizerTraining::new(256), &["text"]);
    assert!(small.contains("vocabulary: expected from 257") && small.contains("found 256"), "{small}");
    assert!(refused(&TokenizerTraining::new(usize::MAX), &["text"]).contains("vocabulary"));
    for names in [&["a"][..], &["<|a|>", "<|a|>"], &["<|endoftext|>"], &[""]] {
        assert!(refused(&named(names), &["text"]).contains("special_tokens"), "{names:?}");
    }
    for nothing in [&[][..], &["", "<|endoftext|>"]] {
        assert!(refused(&TokenizerTraining::new(300), nothing).contains("corpus: expected some text, found none"));
    }
    let failing = [Ok("text".to_owned()), Err(Error::Spec { spec: "corpus".to_owned(), reason: "gone".to_owned() })];
    let error = TokenizerTraining::new(300).train(failing).expect_err("an error");
    assert_eq!(error.to_string(), "corpus: gone");
}

#[test]
fn a_tokenizer_of_wikitext_needs_few_tokens() {
    let Some(shared) = shared() else { return };
    let text = fs::read_to_string(shared.join("data/corpus/wikitext-2-raw.valid.txt")).expect("read");
    let pieces: Vec<&str> = text.split_inclusive('\n').collect();
    let trained = train(&TokenizerTraining::new(4000), &pieces).expect("trained");
    assert_eq!((trained.vocabulary, trained.read_bytes), (4000, text.len() as u64));
    let folder = folder();
    let tokenizer = open(&trained, &folder);
    let other = fs::read_to_string(shared.join("data/corpus/wikitext-2-raw.test.txt")).expect("read");
    let start = &other[..other.floor_char_boundary(200_000)];
    let ids = tokenizer.encode(start, None, start.len()).expect("encoded").ids;
    let bytes_per_token = start.len() as f64 / ids.len() as f64;
    assert!(bytes_per_token > 3.3, "{bytes_per_token} bytes a token");
}
