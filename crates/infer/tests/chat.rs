//! Chat templates of a folder, and what a hostile one may not do.
#![allow(clippy::result_large_err, clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::{Instant, UNIX_EPOCH};

use finegates_checkpoint::ChatTemplates;
use finegates_infer::Error;
use finegates_infer::generation::{ChatOptions, ChatTemplate, Message};

fn templates(sources: &[(&str, &str)]) -> ChatTemplates {
    ChatTemplates {
        path: PathBuf::from("tokenizer_config.json"),
        templates: sources.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect(),
        special_tokens: Vec::new(),
    }
}

fn render(source: &str) -> Result<String, Error> {
    let options = ChatOptions { add_generation_prompt: true, now: UNIX_EPOCH };
    let template = ChatTemplate::from_templates(templates(&[("default", source)]), None)?;
    template.render(&[Message::new("user", "hello")], &options)
}

#[test]
fn a_hostile_template_ends_in_an_error_soon_and_without_much_memory() {
    let doubling =
        |set: &str| format!("{{% set ns = namespace(x='a') %}}{{% for i in range(99) %}}{set}{{% endfor %}}");
    let deep = |set: &str, then: &str| {
        format!("{{% set ns = namespace(x=1, y=1) %}}{{% for i in range(9000) %}}{set}{{% endfor %}}{then}")
    };
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{{ range(10 ** 12) | list | length }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ ('x' * 10 ** 6) | replace('x', 'y' * 10 ** 5) | length }}",
        "{{ ('x' * 10 ** 6).replace('x', 'y' * 10 ** 5) | length }}",
        "{% set list = [messages] * 10 ** 9 %}{{ list | tojson }}",
        &doubling("{% set ns.x = ns.x ~ ns.x %}"),
        &doubling("{% set ns.x = ns.x + ns.x %}"),
        &doubling("{% set ns.x = [ns.x, ns.x] %}").replace("{% endfor %}", "{% endfor %}{{ ns.x | tojson }}"),
        &doubling("{% set ns.x = ns.x | replace('a', 'aa') %}"),
        &doubling("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
        &doubling("{% set ns.x = '%s%s' | format(ns.x, ns.x) %}"),
        &doubling("{% set ns.x = ns.x | tojson(indent=16) | tojson %}"),
        &deep("{% set ns.x = [ns.x] %}", "{{ ns.x | string | length }}{{ missing() }}"),
        &deep("{% set ns.x = {'a': ns.x} %}", "{{ ns.x | tojson }}{{ missing() }}"),
        &deep("{% set ns.x = {'a': ns.x} %}{% set ns.y = {'a': ns.y} %}", "{{ ns.x == ns.y }}{{ missing() }}"),
        "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | string | length }}{{ missing() }}",
        "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ missing() }}",
        "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = ns.x | map('upper') %}{% endfor %}{{ ns.x | list }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [1] %}{% endfor %}{{ ns.x | list }}",
        "{{ '%099999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x' | indent(999999999999) }}",
        "{{ 'x' | center(999999999999) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ strftime_now('%Q') }}",
        "{{ raise_exception('no') }}",
        "{% include '/etc/passwd' %}",
        "{{ messages[0].content.nothing.more }}",
        "{{ missing() }}",
        "{% if %}",
        &format!("{{{{ {}1{} }}}}", "(".repeat(16_000), ")".repeat(16_000)),
        &"{% if true %}".repeat(2_000),
        &format!("{{{{ {}missing() }}}}", "-".repeat(6_000)),
        &format!("{{{{ {}missing() }}}}", "not ".repeat(6_000)),
        &format!("{{{{ missing(){} }}}}", "+1".repeat(8_000)),
        &format!("{{{{ missing(){} }}}}", ".a".repeat(16_000)),
        &format!("{{{{ missing(){} }}}}", "|e".repeat(16_000)),
        &format!("{{{{ missing(){} }}}}", " if 1 else 1".repeat(2_500)),
        &"x".repeat(32_769),
        &format!("{{{{ {}1{} }}}}", "[".repeat(16_000), "]".repeat(16_000)),
    ] {
        let started = Instant::now();
        let shown: String = source.chars().take(100).collect();
        let error = render(source).expect_err(&shown).to_string();
        assert!(error.starts_with("tokenizer_config.json: chat template: "), "{error}");
        assert!(error.len() < 400, "{error}");
        assert!(started.elapsed().as_secs() < 20, "{shown}: {:?}", started.elapsed());
    }
    let spent = render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}").unwrap_err();
    assert!(spent.to_string().ends_with("it takes too much time or memory"), "{spent}");
    assert_eq!(
        render("{{ raise_exception('roles\nmust alternate') }}").unwrap_err().to_string(),
        "tokenizer_config.json: chat template: line 1: roles must alternate"
    );
}

/// The deepest that a template may be; compiling it takes some 20 s.
#[test]
#[ignore = "slow; run it when the limits or the library change"]
fn the_deepest_expression_fits_the_stack() {
    for source in
        [format!("{{{{ {}missing() }}}}", "-".repeat(32_700)), format!("{{{{ missing(){} }}}}", "+1".repeat(16_300))]
    {
        assert!(render(&source).unwrap_err().to_string().contains("missing"));
    }
}

#[test]
fn a_long_chat_is_rendered() {
    let source = "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}\n{% endfor %}";
    let template = ChatTemplate::from_templates(templates(&[("default", source)]), None).unwrap();
    let turn =
        |index: usize| Message::new(if index.is_multiple_of(2) { "user" } else { "assistant" }, "word ".repeat(200));
    let messages: Vec<Message> = (0..4000).map(turn).collect();
    let text = template.render(&messages, &ChatOptions::default()).unwrap();
    assert_eq!(text.matches("<user>").count(), 2000);
    assert!(text.len() > 3_900_000);
}

#[test]
fn several_templates_are_told_apart_by_name_and_none_is_an_error() {
    let two = || templates(&[("default", "first"), ("tool_use", "second")]);
    let render = |template: ChatTemplate| template.render(&[], &ChatOptions::default()).unwrap();
    assert_eq!(render(ChatTemplate::from_templates(two(), None).unwrap()), "first");
    assert_eq!(render(ChatTemplate::from_templates(two(), Some("tool_use")).unwrap()), "second");
    let error = ChatTemplate::from_templates(two(), Some("rag")).unwrap_err().to_string();
    assert_eq!(error, "tokenizer_config.json: chat template: expected one of default, tool_use, found rag");
    let error = ChatTemplate::from_templates(templates(&[]), None).unwrap_err().to_string();
    assert!(error.contains("the model has none"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"bos_token": "<s>"}"#).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}{{ messages[0].content }}\n").unwrap();
    let template = ChatTemplate::open(folder.path(), None).unwrap();
    assert_eq!(template.render(&[Message::new("user", "hi")], &ChatOptions::default()).unwrap(), "<s>hi");
}
