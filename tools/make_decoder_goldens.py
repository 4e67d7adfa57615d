"""Writes fixtures/tiny/<name>/ of the decoders: a tiny random model with both heads, its tokenizer, what PyTorch computes.

    python tools/make_decoder_goldens.py [--output fixtures/tiny] [--names llama ...]

Classification goes into golden.json and golden.safetensors as make_goldens.py writes them for encoders, causal language
modelling into golden_language.json and golden_language.safetensors. The layout is described in fixtures/README.md.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

import language_goldens
from decoder_tokenizers import write_decoder_tokenizer
from double_decoders import inverse_frequencies
from make_goldens import (
    Subject,
    check_padding_is_harmless,
    describe,
    gate_counts,
    largest_difference,
    measure,
    mixed_theta,
    numbers,
    step_noise,
    write_goldens,
)
from tiny_decoders import CONFIGS, DECODERS, decoder_sequences, save, tiny_config, tiny_decoder
from tiny_tokenizers import TEXT_MAX_LENGTH, TEXTS, encode

# Models of a scaling that the others' layers do not see otherwise: logits and language modelling, no training.
SHORT = ("linear", "dynamic")
# Wholly closed projections are the gates' business, not the family's: models with no bias and with every bias will do.
WITH_CLOSED = ("llama", "llama3")
# The first of each hundred with which generation is neither near a tie nor stuck at one token.
SEEDS = {"llama": 200, "llama3": 301, "mistral": 400, "qwen2": 500, "linear": 600, "dynamic": 702}
# What golden.safetensors of an encoder has beyond this, no test reads; it is left out for its size.
STATISTICS = ("input_mean.", "kurtosis.", "kurtosis_weight.")


def make_decoder(name, folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_decoder_tokenizer(folder, name, CONFIGS[name]["max_position_embeddings"])
    classifier, language = tiny_decoder(name, tokenizer, seed)
    save(folder, name, classifier, language)
    sequences = decoder_sequences(name, tokenizer, classifier.config.num_labels, seed + 1)
    check_frequencies(classifier)
    check_peculiarity(name, tokenizer, classifier, sequences)

    golden = describe(classifier.config.model_type, classifier, CONFIGS[name]["max_position_embeddings"], sequences)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    golden["texts"] = [text_golden(tokenizer, library, text, pair) for text, pair in TEXTS]
    golden["last_token"] = last_tokens(classifier)
    if name in SHORT:
        computed, rounding = measure_logits(classifier, sequences)
        counts = gate_counts(classifier)
        noise = {key: torch.from_numpy(value) for key, value in step_noise(counts, 0).items()}
        theta = language_goldens.telling_theta(
            language, tokenizer, lambda draw: mixed_theta(counts, noise, draw), noise, seed + 2, seed + 3
        )
        tensors = {f"mixed.theta.{key}": value for key, value in theta.items()}
        tensors |= {f"mixed.noise.{key}": value for key, value in noise.items()}
    else:
        check_padding_is_harmless(classifier, sequences)
        computed, tensors, rounding = measure(classifier, sequences, sequences[:-1], seed + 2, name in WITH_CLOSED)
        tensors = {key: value for key, value in tensors.items() if not key.partition(".")[2].startswith(STATISTICS)}
        for run in ("gates", "gates_kurtosis"):
            for precision in ("f64", "f32"):
                del computed["trajectories"][run][precision]["theta_sums"]
    write_goldens(folder, "golden", golden | computed, tensors, rounding)

    theta, noise = (
        {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in ("mixed.theta.", "mixed.noise.")
    )
    computed, tensors, language_rounding = language_goldens.measure(language, tokenizer, theta, noise, seed + 3)
    computed = {"format": 1, "family": classifier.config.model_type} | computed
    write_goldens(folder, "golden_language", computed, tensors, language_rounding)
    return {"classification": rounding, "language": language_rounding}


def measure_logits(model, sequences):
    """The logits of each sequence alone: dynamic frequencies depend on the longest sequence of a batch."""
    golden, runs = {}, {}
    for label, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        with torch.no_grad():
            runs[label] = torch.cat([Subject(model, dtype).logits([sequence]) for sequence in sequences])
        golden[label] = numbers(runs[label], dtype)
    return {"logits": golden}, {"logits": largest_difference(golden["f32"], golden["f64"])}


def last_tokens(model):
    """Sequences whose end is the padding token: transformers reads the last token that is another one, or the first."""
    padding = model.config.pad_token_id
    if padding is None:
        return []
    found = []
    for ids in ([7, 8, 9, padding], [7, padding, 9, 10, padding, padding], [padding, padding]):
        with torch.no_grad():
            logits = Subject(model, torch.float64).logits([{"ids": ids, "segments": [0] * len(ids)}])
        read = max((place for place, token in enumerate(ids) if token != padding), default=0)
        found.append({"ids": ids, "read": read, "logits": logits[0].tolist()})
    return found


def check_frequencies(model):
    """The frequencies written out in double_decoders.py are those of transformers."""
    rotary = Subject(model, torch.float32).model.model.rotary_emb
    for length in (1, 1000):
        rotary(torch.zeros(1), torch.tensor([[length - 1]]))
        expected = inverse_frequencies(model.config, length)
        assert torch.allclose(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0.0)


def check_peculiarity(name, tokenizer, model, sequences):
    """A reader that overlooks what the model is there for gives other logits."""
    plain = AutoModelForSequenceClassification.from_config(
        tiny_config(name, tokenizer, **CONFIGS[name]["plain"]), attn_implementation="eager"
    )
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        pairs = [[Subject(each, torch.float64).logits([sequence]) for each in (model, plain)] for sequence in sequences]
    assert max(float((left - right).abs().max()) for left, right in pairs) > 0.01


def text_golden(tokenizer, library, text, pair):
    """As transformers encodes it, which must be what tokenizer.json alone says. Segments are what the model gets: none."""
    ids, _ = encode(tokenizer, text, pair, TEXT_MAX_LENGTH)
    whole = library.encode(text, pair).ids if pair is not None else library.encode(text).ids
    assert len(whole) > TEXT_MAX_LENGTH or whole == ids, (text, pair)
    return {"text": text, "pair": pair, "max_length": TEXT_MAX_LENGTH, "ids": ids, "segments": [0] * len(ids)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", type=Path, default=root / "fixtures" / "tiny")
    parser.add_argument("--names", nargs="+", choices=DECODERS, default=DECODERS)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in arguments.names:
        rounding = make_decoder(name, arguments.output / name, SEEDS[name])
        print(name, json.dumps(rounding, indent=2))


if __name__ == "__main__":
    main()
