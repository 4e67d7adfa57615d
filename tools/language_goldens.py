"""Causal language modelling of a tiny decoder in PyTorch: token losses, gradients, perplexity, greedy generation.

Sequences run one by one, without padding, with a fresh model each: nothing depends on what ran before.
"""

import copy
import math

import torch
from torch.nn import functional

import gates
from double_decoders import compute_in_double, forget_lengths, inverse_frequencies
from make_goldens import GATES, gradient_rounding, gradients, largest_difference, number

LENGTHS = (5, 1, 20, 9)
WINDOW, STRIDE, TEXT_TOKENS = 16, 8, 60
TEXT = (
    "the film was good and the plot was not bad. it was very dull, but they loved it! the cast is great and awful, "
    "I hated the story and liked the music; never a fine actor, never a slow film."
)
PROMPT = "the film was not"
NEW_TOKENS = 12
# The least difference between the two largest logits of a step: far more than rounding.
MARGIN = 1e-3


def measure(model, tokenizer, theta, noise, seed):
    """golden_language.json, the tensors, and the rounding."""
    *sequences, prompt = draw_sequences(tokenizer, seed)
    both = (("f64", torch.float64), ("f32", torch.float32))
    runs = {label: _losses(model, sequences, theta, noise, dtype) for label, dtype in both}
    golden = {
        "tied": bool(model.config.tie_word_embeddings),
        "rotary": _rotary(model.config),
        "sequences": sequences,
        "predictions": sum(len(ids) - 1 for ids in sequences),
    }
    for scenario in ("full", "mixed"):
        golden[scenario] = {label: run[0][scenario] for label, run in runs.items()}
    tensors = runs["f64"][1]
    assert least_gradient(tensors) > 1e-4
    rounding = {"logits": _largest(runs["f32"][1], tensors), **gradient_rounding(runs["f32"][1], tensors)}

    text = tokenizer.encode(TEXT, add_special_tokens=False)[:TEXT_TOKENS]
    assert len(text) == TEXT_TOKENS
    windows = {label: _perplexity(model, text, dtype) for label, dtype in both}
    golden["perplexity"] = {"text": TEXT, "ids": text, "window": WINDOW, "stride": STRIDE} | windows
    _check_library(model, sequences, text, golden)
    rounding["perplexity"] = abs(windows["f32"]["perplexity"] - windows["f64"]["perplexity"])

    golden["generation"] = []
    for index, prompt in enumerate([tokenizer.encode(PROMPT), prompt]):
        generated, last = _generation(model, prompt)
        golden["generation"].append(generated)
        tensors[f"generation.{index}.last_logits"] = last
    return golden, tensors, rounding


def draw_sequences(tokenizer, seed):
    """Random tokens, none of them special: the sequences that losses are of, and a prompt."""
    generator = torch.Generator().manual_seed(seed)
    first = len(tokenizer.added_tokens_decoder)
    return [torch.randint(first, len(tokenizer), (length,), generator=generator).tolist() for length in LENGTHS]


def telling_theta(model, tokenizer, draw_theta, noise, theta_seed, seed):
    """The first draw in which the token loss reaches every gate vector."""
    sequences = draw_sequences(tokenizer, seed)[:-1]
    while True:
        theta = draw_theta(theta_seed)
        if least_gradient(_losses(model, sequences, theta, noise, torch.float64)[1]) > 1e-3:
            return theta
        theta_seed += 1000


def least_gradient(tensors):
    """Of the gate vectors' largest gradients the smallest."""
    return min(float(value.abs().max()) for name, value in tensors.items() if name.endswith(GATES))


def _fresh(model, dtype, theta=None, noise=None):
    """A copy that has seen nothing; with gates where θ is given."""
    model = copy.deepcopy(model).to(dtype)
    forget_lengths(model)
    if dtype == torch.float64:
        compute_in_double(model)
    layers = {}
    if theta is not None:
        layers = gates.add_gates(model)
        for path, layer in layers.items():
            with torch.no_grad():
                for gate in GATES:
                    layer.get_parameter(gate).copy_(theta[f"{path}.{gate}"])
            layer.noise = tuple(noise[f"{path}.{gate}"].to(dtype) for gate in GATES)
    return model.requires_grad_(True), layers


def _logits(model, ids):
    """[T, V], whatever ran before."""
    forget_lengths(model)
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def _loss(model, sequences):
    """The mean over every token that has one before it."""
    logits = torch.cat([_logits(model, ids)[:-1] for ids in sequences])
    return functional.cross_entropy(logits, torch.tensor([token for ids in sequences for token in ids[1:]]))


def _losses(model, sequences, theta, noise, dtype):
    plain, _ = _fresh(model, dtype)
    with torch.no_grad():
        tensors = {f"logits.{index}": _logits(plain, ids) for index, ids in enumerate(sequences)}
    loss = _loss(plain, sequences)
    outside = {name: value for name, value in plain.named_parameters() if "_proj" not in name}
    tensors |= {f"full.gradient.{name}": value for name, value in gradients(loss, outside).items()}

    gated, layers = _fresh(model, dtype, theta, noise)
    training = _loss(gated, sequences)
    paths = list(layers)
    trained = {
        name: value
        for name, value in gated.named_parameters()
        if name.endswith(GATES) or (name.endswith(".bias") and name.removesuffix(".bias") in paths)
    }
    tensors |= {f"mixed.gradient.{name}": value for name, value in gradients(training, trained).items()}
    gates.clear_noise(layers)
    with torch.no_grad():
        evaluation = _loss(gated, sequences)
    losses = {
        "full": {"loss": number(loss, dtype)},
        "mixed": {"loss_training": number(training, dtype), "loss_evaluation": number(evaluation, dtype)},
    }
    return losses, {name: value.detach() for name, value in tensors.items()}


def _largest(single, double):
    names = [name for name in double if name.startswith("logits.")]
    return max(largest_difference(single[name].numpy(), double[name].numpy()) for name in names)


def _rotary(config):
    """Frequencies of a call; with `dynamic` scaling for several lengths."""
    kind = config.rope_parameters["rope_type"]
    limit = config.max_position_embeddings
    lengths = (1, limit, limit + 1, 2 * limit, 3 * limit) if kind == "dynamic" else (None,)
    frequencies = [{"length": each, "values": inverse_frequencies(config, each or 1).tolist()} for each in lengths]
    return {"type": kind, "inverse_frequencies": frequencies}


def _perplexity(model, ids, dtype):
    """transformers' "Perplexity of fixed-length models": windows of WINDOW tokens every STRIDE, only new targets count.

    `perplexity` counts every token but the first once. `documented` is what the page's code gives, which weights a
    window by one target too few from the second window on.
    """
    model, _ = _fresh(model, dtype)
    windows, previous_end = [], 0
    for begin in range(0, len(ids), STRIDE):
        end = min(begin + WINDOW, len(ids))
        with torch.no_grad():
            losses = functional.cross_entropy(
                _logits(model, ids[begin:end])[:-1], torch.tensor(ids[begin + 1 : end]), reduction="none"
            )
        first = max(previous_end, begin + 1)
        kept = losses[first - begin - 1 :]
        windows.append({"begin": begin, "end": end, "first_target": first, "loss": number(kept.mean(), dtype)})
        documented = end - previous_end - 1
        windows[-1] |= {"targets": len(kept), "documented_weight": documented}
        previous_end = end
        if end == len(ids):
            break
    assert sum(window["targets"] for window in windows) == len(ids) - 1

    def mean(weight):
        total = sum(window[weight] for window in windows)
        return number(math.exp(sum(window["loss"] * window[weight] for window in windows) / total), dtype)

    return {"perplexity": mean("targets"), "documented": mean("documented_weight"), "windows": windows}


def _check_library(model, sequences, ids, golden):
    """The losses transformers itself computes from labels, the page's own loop among them."""
    model, _ = _fresh(model, torch.float32)

    def loss(ids, labels):
        forget_lengths(model)
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)

    total = sum(loss(each, each) * (len(each) - 1) for each in sequences if len(each) > 1)
    assert abs(total / golden["predictions"] - golden["full"]["f64"]["loss"]) < 1e-5

    total, tokens, previous_end = 0.0, 0, 0
    for begin in range(0, len(ids), STRIDE):
        end = min(begin + WINDOW, len(ids))
        targets = torch.tensor(ids[begin:end])
        targets[: -(end - previous_end)] = -100
        counted = int((targets != -100).sum()) - 1
        total += loss(ids[begin:end], targets.tolist()) * counted
        tokens += counted
        previous_end = end
        if end == len(ids):
            break
    documented = golden["perplexity"]["f64"]["documented"]
    assert abs(math.exp(total / tokens) / documented - 1.0) < 1e-5


def _generation(model, prompt):
    """Greedy tokens of transformers' `generate` with its cache, nothing ending it early, and those of full passes."""
    runs = {}
    for dtype in (torch.float64, torch.float32):
        fresh, _ = _fresh(model, dtype)
        fresh.generation_config.update(eos_token_id=None, pad_token_id=0, bos_token_id=None)
        runs[dtype] = fresh.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=NEW_TOKENS, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    tokens = runs[torch.float64].sequences[0, len(prompt) :].tolist()
    assert runs[torch.float32].sequences[0, len(prompt) :].tolist() == tokens and len(tokens) == NEW_TOKENS
    assert model.config.eos_token_id not in tokens  # so that a program that stops there gives the same
    steps = torch.cat(runs[torch.float64].logits)
    assert torch.allclose(steps.float(), torch.cat(runs[torch.float32].logits), atol=1e-4)

    fresh, _ = _fresh(model, torch.float64)
    without_cache, margins = [], [_margin(step) for step in steps]
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logits = _logits(fresh, prompt + without_cache)[-1]
            margins.append(_margin(logits))
            without_cache.append(int(logits.argmax()))
    if model.config.rope_parameters["rope_type"] != "dynamic":
        assert without_cache == tokens
    assert min(margins) > MARGIN and len(set(tokens)) > 2
    return {"prompt": prompt, "tokens": tokens, "without_cache": without_cache, "margin": min(margins)}, steps[-1]


def _margin(logits):
    first, second = logits.double().topk(2).values
    return float(first - second)
