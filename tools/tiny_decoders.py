"""Tiny random decoders, their checkpoints in today's and yesterday's spelling, and the sequences their goldens run on."""

import copy
import json

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tiny_models import randomise
from tiny_tokenizers import write_json

# What differs from the family's defaults. `plain` is what would make a reader that overlooks the model's peculiarity.
CONFIGS = {
    # Grouped heads, tied output embedding, no biases.
    "llama": dict(
        model_type="llama", hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=40, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, labels=["not_equivalent", "equivalent"],
        plain=dict(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    ),
    # Heads wider than hidden / heads, one key/value head, a bias everywhere, every band of the scaling, no padding token.
    "llama3": dict(
        model_type="llama", hidden_size=16, intermediate_size=20, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, max_position_embeddings=40, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        labels=["contradiction", "entailment", "neutral"],
        plain=dict(rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
    ),
    # A query sees itself and the three tokens before it. The padding token is the end of text.
    "mistral": dict(
        model_type="mistral", hidden_size=16, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=40, rms_norm_eps=1e-4, sliding_window=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, num_labels=1, problem_type="regression",
        plain=dict(sliding_window=None),
    ),
    # Biases of query, key and value; ungrouped heads; a window that is written down and not used.
    "qwen2": dict(
        model_type="qwen2", hidden_size=16, intermediate_size=20, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=40, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, labels=["negative", "neutral", "positive"],
        plain=dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ),
    "linear": dict(
        model_type="llama", hidden_size=12, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=40, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}, num_labels=2,
        plain=dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    ),
    # Sequences are longer than the 8 positions, beyond which the frequencies depend on the length.
    "dynamic": dict(
        model_type="llama", hidden_size=12, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=8, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}, num_labels=2,
        plain=dict(rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
    ),
}  # fmt: skip
DECODERS = list(CONFIGS)
LONGEST = {name: settings["max_position_embeddings"] for name, settings in CONFIGS.items()} | {"dynamic": 24}

# Checkpoints whose config.json is spelt as published ones are: what replaces `rope_parameters`, and keys that were not yet.
OLD_SPELLING = {
    "llama3": dict(scaling_type_key="rope_type", absent=()),
    "qwen2": dict(
        scaling_type_key=None, absent=("layer_types",),
        extra={"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 2},
    ),
    "linear": dict(
        scaling_type_key="type", absent=("head_dim", "num_key_value_heads", "attention_bias", "mlp_bias"),
    ),
}  # fmt: skip


def tiny_config(name, tokenizer, **changes):
    settings = {key: copy.deepcopy(value) for key, value in CONFIGS[name].items() if key != "plain"} | changes
    labels = settings.pop("labels", None)
    if labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    settings |= {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    return AutoConfig.for_model(
        settings.pop("model_type"), vocab_size=len(tokenizer), num_hidden_layers=2, dtype="float32", **settings
    )


def tiny_decoder(name, tokenizer, seed):
    """A random classifier and a language model over the same layers, f32, evaluation mode, eager attention."""
    config = tiny_config(name, tokenizer)
    classifier = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    language = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    randomise(classifier, generator)
    language.model.load_state_dict(classifier.model.state_dict())
    if config.tie_word_embeddings:
        assert language.lm_head.weight is language.model.embed_tokens.weight
    else:
        randomise(language.lm_head, generator)
    assert classifier.config._attn_implementation == language.config._attn_implementation == "eager"
    return classifier, language


def save(folder, name, classifier, language):
    """One folder for both: a head each class, and transformers must read both from it without missing a tensor."""
    classifier.save_pretrained(folder)
    tensors = {key: value.contiguous() for key, value in classifier.state_dict().items()}
    if not classifier.config.tie_word_embeddings:
        tensors["lm_head.weight"] = language.lm_head.weight.detach()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if name in OLD_SPELLING:
        spell_as_before(folder / "config.json", **OLD_SPELLING[name])
    ids = torch.arange(3, 15).unsqueeze(0)
    for model, auto in ((classifier, AutoModelForSequenceClassification), (language, AutoModelForCausalLM)):
        read, report = auto.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"], report
        read.config.rope_parameters.pop("type", None)  # transformers keeps it beside the `rope_type` it makes of it
        for key in ("rope_parameters", "layer_types", "sliding_window", "head_dim", "num_key_value_heads"):
            assert getattr(read.config, key, None) == getattr(model.config, key, None), key
        with torch.no_grad():
            assert torch.equal(read.eval()(ids).logits, model(ids).logits)


def spell_as_before(path, scaling_type_key, absent, extra=None):
    """config.json as transformers 4 wrote it: `rope_theta` and `rope_scaling` in place of `rope_parameters`."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if scaling_type_key is None else rope | {scaling_type_key: kind}
    config["torch_dtype"] = config.pop("dtype")
    for key in absent:
        del config[key]
    config |= extra or {}
    write_json(path, dict(sorted(config.items())))


def decoder_sequences(name, tokenizer, classes, seed):
    """As tiny_models.tiny_sequences: ragged, with labels; the last one has the padding id, if there is one, in its middle."""
    generator = torch.Generator().manual_seed(seed)
    first = len(tokenizer.added_tokens_decoder)
    limit = LONGEST[name]
    sequences = []
    for length in (1, 2, 3, 7, 12, 5, limit // 2, limit, 9):
        ids = torch.randint(first, len(tokenizer), (length,), generator=generator).tolist()
        if classes == 1:
            label = round(torch.rand((), generator=generator).item() * 5.0, 2)
        else:
            label = int(torch.randint(0, classes, (), generator=generator))
        sequences.append({"ids": ids, "segments": [0] * length, "label": label})
    if tokenizer.pad_token_id is not None:
        sequences[-1]["ids"][4] = tokenizer.pad_token_id
    return sequences
