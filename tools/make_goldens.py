"""Writes fixtures/tiny/<family>/ of the encoders: a tiny random model, its tokenizer, and what PyTorch computes with them.

    python tools/make_goldens.py [--output fixtures/tiny] [--families bert ...]

The layout is described in fixtures/README.md. Gradients come from f64 autograd; what f32 gives instead is in
golden.json under `rounding`, so that tolerances can be stated with a reason. The decoders' script is
make_decoder_goldens.py, which takes scenarios and trajectories from here.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from torch.nn import functional

import gates
from counter_normal import counter_normal
from double_decoders import DECODER_TYPES, compute_in_double, forget_lengths
from tiny_models import FAMILIES, padded_batch, position_limit, tiny_model, tiny_sequences
from tiny_tokenizers import TEXT_MAX_LENGTH, TEXTS, encode, write_tokenizer

TARGET_SPARSITY, PENALTY_WEIGHT, TEMPERATURE, NOISE_STD = 0.4, 50.0, 100.0, 0.1
STEPS = 20
LEARNING_RATES = {"gate": 1e-2, "bias": 1e-3, "head": 1e-3, "rest": 1e-3}
WEIGHT_DECAY = {"gate": 0.0, "bias": 0.01, "head": 0.01, "rest": 0.01}
BOUNDARY_MARGIN = 1e-3


class Subject:
    """One tiny model for classification in one precision, with the groups its parameters fall into."""

    def __init__(self, model, dtype, theta=None):
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype
        if model.config.model_type in DECODER_TYPES:
            forget_lengths(self.model)
            if dtype == torch.float64:
                compute_in_double(self.model)
        if model.config.pad_token_id is None:  # transformers takes no batch then: a filler that no sequence holds
            self.model.config.pad_token_id = 0
        self.regression = model.config.num_labels == 1
        self.has_segments = getattr(model.config, "type_vocab_size", 0) > 1
        paths = gates.gated_paths(self.model)
        self.layers = {}
        if theta is not None:
            self.layers = gates.add_gates(self.model)
            with torch.no_grad():
                for name, value in theta.items():
                    self.model.get_parameter(name).copy_(value)
        self.model.requires_grad_(True)
        base = self.model.base_model_prefix
        self.groups = {"gate": {}, "bias": {}, "head": {}, "rest": {}}
        for name, parameter in self.model.named_parameters():
            path, _, kind = name.rpartition(".")
            if kind.startswith("finegates_"):
                group = "gate"
            elif path in paths and kind == "bias":
                group = "bias"
            elif not name.startswith(base + ".") or ".pooler." in name:
                group = "head"
            else:
                group = "rest"
            self.groups[group][name] = parameter

    def named(self, *groups):
        return {name: parameter for group in groups for name, parameter in self.groups[group].items()}

    def set_noise(self, noise):
        for path, layer in self.layers.items():
            layer.noise = tuple(torch.from_numpy(noise[f"{path}.{gate}"]).to(self.dtype) for gate in GATES)

    def logits(self, sequences):
        batch = padded_batch(sequences, self.model.config.pad_token_id, self.has_segments)
        gates.set_token_mask(self.layers, batch["attention_mask"])
        return self.model(**batch).logits

    def task_loss(self, sequences):
        labels = [sequence["label"] for sequence in sequences]
        logits = self.logits(sequences)
        if self.regression:
            return functional.mse_loss(logits.squeeze(-1), torch.tensor(labels, dtype=self.dtype))
        return functional.cross_entropy(logits, torch.tensor(labels))

    def penalty(self, kurtosis):
        return gates.penalty(self.layers, TARGET_SPARSITY, PENALTY_WEIGHT, kurtosis, TEMPERATURE)


GATES = ("finegates_rows", "finegates_columns")


def gate_counts(model):
    """Vectors of gates in their fixed order: rows then columns of each projection."""
    counts = {}
    for path in gates.gated_paths(model):
        weight = model.get_submodule(path).weight
        counts[f"{path}.{GATES[0]}"], counts[f"{path}.{GATES[1]}"] = weight.shape
    return counts


def step_noise(counts, step):
    """The noise of one training step: vector v of step t is stream t * vectors + v, scaled by NOISE_STD."""
    return {
        name: counter_normal(step * len(counts) + vector, count, NOISE_STD)
        for vector, (name, count) in enumerate(counts.items())
    }


def mixed_theta(counts, noise, seed):
    """Gates of every kind, saturated open, fractional and closed, in every vector; none near a corner of the clamp."""
    generator = torch.Generator().manual_seed(seed)
    theta = {}
    for name, count in counts.items():
        ranges = torch.tensor([[0.8, 1.6], [-0.5, 0.5], [-2.0, -0.8]])
        while name not in theta:
            kinds = torch.multinomial(torch.tensor([0.44, 0.4, 0.16]), count, replacement=True, generator=generator)
            low, high = ranges[kinds].unbind(dim=1)
            values = low + (high - low) * torch.rand(count, generator=generator)
            margin = min(corner_distance(values, noise[name]), corner_distance(values, 0.0))
            if margin > BOUNDARY_MARGIN and len(kinds.unique()) == 3:
                theta[name] = values
    return theta


def telling_theta(model, counts, noise, sequences, seed):
    """The first mixed draw in which the task reaches every gate vector: a gradient that is all zeros tests nothing."""
    while True:
        theta = mixed_theta(counts, noise, seed)
        subject = Subject(model, torch.float64, theta)
        subject.set_noise(noise)
        found = gradients(subject.task_loss(sequences), subject.groups["gate"])
        if all(value.abs().max() > 1e-6 for value in found.values()):
            return theta
        seed += 1000


def corner_distance(theta, noise):
    """How near any gate comes to a corner of the clamp, where its derivative jumps."""
    before = torch.tanh(theta.double()) + torch.as_tensor(noise).double() + 0.5
    return float(torch.minimum(before.abs(), (before - 1.0).abs()).min())


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if value is None else value
        for (name, parameter), value in zip(parameters.items(), found)
    }


def gate_scenario(model, theta, noise, sequences, dtype):
    """Losses, logits, gradients and the kurtosis statistics for given gates and noise."""
    subject = Subject(model, dtype, theta)
    subject.set_noise(noise)
    trained = subject.named("gate", "bias", "head")
    task = subject.task_loss(sequences)
    plain, informed = subject.penalty(kurtosis=False), subject.penalty(kurtosis=True)
    tensors = {}
    parts = {"task": task, "penalty": plain, "penalty_kurtosis": informed}
    parts |= {"total": task + plain, "total_kurtosis": task + informed}
    for part, loss in parts.items():
        kept = trained if part == "task" else subject.groups["gate"]
        tensors |= {f"gradient.{part}.{name}": value for name, value in gradients(loss, kept).items()}
    for path, layer in subject.layers.items():
        tensors[f"input_mean.{path}"] = layer.input_mean
        for gate, kurtosis, value in zip(GATES, gates.kurtosis_of(layer), layer.gates()):
            weights = gates.kurtosis_weights(kurtosis, value > 0, TEMPERATURE)
            tensors |= {f"kurtosis.{path}.{gate}": kurtosis, f"kurtosis_weight.{path}.{gate}": weights}
    result = {"losses": {part: number(loss, dtype) for part, loss in parts.items()}}
    with torch.no_grad():
        result["logits_training"] = numbers(subject.logits(sequences), dtype)
        gates.clear_noise(subject.layers)
        result["logits_evaluation"] = numbers(subject.logits(sequences), dtype)
    return result, {name: value.detach() for name, value in tensors.items()}


def full_gradients(model, sequences, dtype):
    """Loss and gradients of every parameter, without gates."""
    subject = Subject(model, dtype)
    loss = subject.task_loss(sequences)
    found = gradients(loss, subject.named("bias", "head", "rest"))
    return {"losses": {"task": number(loss, dtype)}}, {f"gradient.task.{name}": value for name, value in found.items()}


def trajectory(model, method, kurtosis, theta, counts, sequences, batches, dtype):
    """STEPS training steps; losses are those before each step's update."""
    subject = Subject(model, dtype, theta if method == "gates" else None)
    trained = {"gates": ("gate", "bias", "head"), "bitfit": ("bias", "head"), "full": ("bias", "head", "rest")}[method]
    optimizer = torch.optim.AdamW(
        [
            dict(params=list(subject.groups[group].values()), lr=LEARNING_RATES[group], weight_decay=WEIGHT_DECAY[group])
            for group in trained
            if subject.groups[group]
        ],
        foreach=False,
    )
    result = {"task": [], "penalty": []}
    for step, batch in enumerate(batches):
        if method == "gates":
            subject.set_noise(step_noise(counts, step))
        task = subject.task_loss([sequences[index] for index in batch])
        result["task"].append(number(task, dtype))
        total = task
        if method == "gates":
            penalty = subject.penalty(kurtosis)
            result["penalty"].append(number(penalty, dtype))
            total = task + penalty
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    if method == "gates":
        gates.clear_noise(subject.layers)
        final = subject.groups["gate"].items()
        result["theta_sums"] = {name: float(value.detach().double().sum()) for name, value in final}
    else:
        del result["penalty"]
    with torch.no_grad():
        result["logits_after"] = numbers(subject.logits(sequences), dtype)
    return result


def number(value, dtype):
    value = float(value.detach()) if isinstance(value, torch.Tensor) else value
    return float(str(numpy.float32(value))) if dtype == torch.float32 else value


def numbers(tensor, dtype):
    return [[number(value, dtype) for value in row] for row in tensor.tolist()]


def check_padding_is_harmless(model, sequences):
    """The goldens are ragged in meaning: in f64 a padded batch gives what each sequence gives alone."""
    subject = Subject(model, torch.float64)
    with torch.no_grad():
        together = subject.logits(sequences)
        alone = torch.cat([subject.logits([sequence]) for sequence in sequences])
    assert (together - alone).abs().max() < 1e-12


def largest_difference(left, right):
    return float(numpy.abs(numpy.subtract(left, right)).max())


def gradient_rounding(single, double):
    """The worst max|f32 - f64| / max|f64| of a tensor, and the worst absolute value where f64 says zero."""
    relative, zero = 0.0, 0.0
    for name, value in double.items():
        if ".gradient." not in "." + name:
            continue
        size = float(value.abs().max())
        if size < 1e-12:
            zero = max(zero, float(single[name].abs().max()))
        else:
            relative = max(relative, float((single[name].double() - value).abs().max()) / size)
    return {"gradient_relative": relative, "gradient_where_zero": zero}


def measure(model, sequences, learning, seed, with_closed=True):
    """Everything PyTorch computes: the keys of golden.json from `logits` on, the tensors, and the rounding of both.

    `learning` are the first of `sequences`, those that gradients and training see.
    """
    counts = gate_counts(model)
    noise = step_noise(counts, 0)
    theta = telling_theta(model, counts, noise, learning, seed)
    batches = [[(5 * step + 3 * place) % len(learning) for place in range(4)] for step in range(STEPS)]

    closed = {name: value.clone() for name, value in theta.items()}
    paths = gates.gated_paths(model)
    in_layer = len(paths) // 2
    closed[f"{paths[in_layer + 2]}.{GATES[0]}"] -= 4.0  # every row of the second layer's value
    closed[f"{paths[in_layer - 2]}.{GATES[1]}"] -= 4.0  # every column of the first layer's inner (up) projection
    silence = {name: numpy.zeros_like(value) for name, value in noise.items()}

    golden = {}
    rounding, tensors = {}, {}
    both = (("f64", torch.float64), ("f32", torch.float32))
    with torch.no_grad():
        golden["logits"] = {name: numbers(Subject(model, dtype).logits(sequences), dtype) for name, dtype in both}
    rounding["logits"] = largest_difference(golden["logits"]["f32"], golden["logits"]["f64"])

    scenarios = (("mixed", theta, noise), ("closed", closed, silence))
    for scenario, given, draw in scenarios if with_closed else scenarios[:1]:
        runs = {name: gate_scenario(model, given, draw, learning, dtype) for name, dtype in both}
        golden[scenario] = {"batch": list(range(len(learning)))} | {name: run[0] for name, run in runs.items()}
        rounding[scenario] = gradient_rounding(runs["f32"][1], runs["f64"][1])
        tensors |= {f"{scenario}.theta.{name}": value for name, value in given.items()}
        tensors |= {f"{scenario}.noise.{name}": torch.from_numpy(value) for name, value in draw.items()}
        tensors |= {f"{scenario}.{name}": value for name, value in runs["f64"][1].items()}
    assert any((value == 0).any() for name, value in tensors.items() if name.startswith("mixed.input_mean."))

    runs = {name: full_gradients(model, learning, dtype) for name, dtype in both}
    golden["full"] = {"batch": list(range(len(learning)))} | {name: run[0] for name, run in runs.items()}
    rounding["full"] = gradient_rounding(runs["f32"][1], runs["f64"][1])
    tensors |= {f"full.{name}": value for name, value in runs["f64"][1].items()}

    golden["trajectories"] = {
        "settings": {
            "batches": batches,
            "learning_rates": LEARNING_RATES,
            "weight_decay": WEIGHT_DECAY,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
        }
    }
    for name, method, kurtosis in (
        ("gates", "gates", False),
        ("gates_kurtosis", "gates", True),
        ("bitfit", "bitfit", False),
        ("full", "full", False),
    ):
        runs = {
            label: trajectory(model, method, kurtosis, theta, counts, learning, batches, dtype) for label, dtype in both
        }
        golden["trajectories"][name] = {"method": method, "kurtosis": kurtosis} | runs
        series = [key for key in ("task", "penalty") if key in runs["f64"]]
        rounding[f"trajectory.{name}"] = {
            key: largest_difference(runs["f32"][key], runs["f64"][key]) for key in [*series, "logits_after"]
        }
    return golden, tensors, rounding


def make_family(family, folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    # The configuration first: transformers picks the tokenizer by it.
    tiny_model(family, 8, seed).config.save_pretrained(folder)
    tokenizer = write_tokenizer(folder, family)
    model = tiny_model(family, len(tokenizer), seed)
    model.save_pretrained(folder)
    sequences = tiny_sequences(family, len(tokenizer), model.config.num_labels, seed + 1)
    check_padding_is_harmless(model, sequences)
    golden = describe(family, model, position_limit(family), sequences)
    golden["texts"] = [text_golden(tokenizer, text, pair) for text, pair in TEXTS]
    computed, tensors, rounding = measure(model, sequences, sequences[:-1], seed + 2)
    write_goldens(folder, "golden", golden | computed, tensors, rounding)
    return rounding


def describe(family, model, limit, sequences):
    """The keys of golden.json that nothing is computed for."""
    classes = model.config.num_labels
    return {
        "format": 1,
        "family": family,
        "problem": "regression" if classes == 1 else "classification",
        "classes": classes,
        "position_limit": limit,
        "projections": gates.gated_paths(model),
        "head": list(Subject(model, torch.float32).groups["head"]),
        "settings": {
            "target_sparsity": TARGET_SPARSITY,
            "penalty_weight": PENALTY_WEIGHT,
            "temperature": TEMPERATURE,
            "noise_std": NOISE_STD,
        },
        "sequences": sequences,
    }


def write_goldens(folder, stem, golden, tensors, rounding):
    """`<stem>.json`, the rounding at its end, and `<stem>.safetensors` in f32."""
    (folder / f"{stem}.json").write_text(readable(golden | {"rounding": rounding}) + "\n", encoding="utf-8")
    save_file({name: value.float().contiguous() for name, value in tensors.items()}, folder / f"{stem}.safetensors")


def text_golden(tokenizer, text, pair):
    ids, segments = encode(tokenizer, text, pair, TEXT_MAX_LENGTH)
    return {"text": text, "pair": pair, "max_length": TEXT_MAX_LENGTH, "ids": ids, "segments": segments}


def readable(value, indent=0):
    """JSON with objects spread over lines and innermost lists on one line."""
    pad, inner = "  " * indent, "  " * (indent + 1)
    if isinstance(value, dict):
        if all(not isinstance(item, (dict, list)) for item in value.values()) and len(value) < 8:
            return json.dumps(value, ensure_ascii=False)
        lines = [f"{inner}{json.dumps(key)}: {readable(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{pad}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + json.dumps(item, ensure_ascii=False) for item in value) + f"\n{pad}]"
    return json.dumps(value, ensure_ascii=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", type=Path, default=root / "fixtures" / "tiny")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for family in arguments.families:
        rounding = make_family(family, arguments.output / family, seed=100 + FAMILIES.index(family))
        print(family, json.dumps(rounding, indent=2))


if __name__ == "__main__":
    main()
