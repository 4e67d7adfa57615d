"""Stochastic gates on frozen linear layers in PyTorch: the reference the Rust crates are compared with.

A linear layer's weight W is [out, in]; rows are outputs, columns are inputs.

    y = rows * (W @ (columns * x) + bias)           rows: [out], columns: [in]
    gate = clamp(tanh(theta) + noise + 1/2, 0, 1)   noise ~ N(0, noise_std^2) in a training step, none at evaluation

Clarity comes before speed here: products are materialised, nothing that is closed is skipped.
"""

import math
import re

import torch
from torch import nn
from torch.nn import functional

GATED_SUFFIXES = re.compile(
    r"\.layer\.\d+\."
    r"(attention\.self\.(query|key|value)"  # bert, roberta, xlm-roberta
    r"|attention\.attn\.[qkvo]"  # mpnet
    r"|attention\.([qkv]|out)_lin|ffn\.lin[12]"  # distilbert
    r"|attention\.output\.dense|intermediate\.dense|output\.dense)$"
    r"|\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$"  # llama, mistral, qwen2
)


def gate_values(theta, noise=None):
    """The gate: clamp(tanh(theta) + noise + 1/2, 0, 1)."""
    value = torch.tanh(theta) + 0.5
    if noise is not None:
        value = value + noise
    return value.clamp(0.0, 1.0)


def open_probability(theta):
    """The probability the penalty sees: Phi((tanh(theta) + 1/2) / (1/2)); its sigma is 1/2, not the noise's."""
    return torch.special.ndtr((torch.tanh(theta) + 0.5) / 0.5)


class GatedLinear(nn.Module):
    """A frozen linear layer with a gate on every row and every column.

    The caller sets `noise` (a pair for rows and columns, already scaled) before a training step and `None` before an
    evaluation; `token_mask` ([batch, length], 1 for tokens, 0 for padding) only where the kurtosis penalty needs the
    mean input.
    """

    def __init__(self, linear, init_mean=1.0, init_std=0.1, generator=None):
        super().__init__()
        out_features, in_features = linear.weight.shape
        self.weight = linear.weight.requires_grad_(False)
        self.bias = linear.bias
        self.finegates_rows = nn.Parameter(self._initial(out_features, init_mean, init_std, generator))
        self.finegates_columns = nn.Parameter(self._initial(in_features, init_mean, init_std, generator))
        self.noise = None
        self.token_mask = None
        self.input_mean = None

    def _initial(self, count, mean, std, generator):
        return (mean + std * torch.randn(count, generator=generator)).to(self.weight)

    def gates(self):
        """This step's values of the row and the column gates."""
        noise_rows, noise_columns = self.noise or (None, None)
        return gate_values(self.finegates_rows, noise_rows), gate_values(self.finegates_columns, noise_columns)

    def forward(self, x):
        if self.token_mask is not None:
            tokens = x.detach()[self.token_mask.bool()]
            self.input_mean = tokens.mean(dim=0)
        rows, columns = self.gates()
        return rows * functional.linear(columns * x, self.weight, self.bias)


def gated_paths(model):
    """Module paths of the projections that get gates, in the model's own order."""
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and GATED_SUFFIXES.search(name)
    ]


def add_gates(model, init_mean=1.0, init_std=0.1, generator=None):
    """Replaces every gated projection in place; returns {module path: GatedLinear} in the model's order."""
    layers = {}
    for path in gated_paths(model):
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        layers[path] = GatedLinear(getattr(parent, name), init_mean, init_std, generator)
        setattr(parent, name, layers[path])
    return layers


def draw_noise(layers, noise_std=0.1, generator=None):
    """Draws this step's noise, one draw for all vectors together (faster than one call a vector)."""
    counts = [count for layer in layers.values() for count in (layer.weight.shape[0], layer.weight.shape[1])]
    weight = next(iter(layers.values())).weight
    parts = torch.randn(sum(counts), generator=generator).mul_(noise_std).to(weight).split(counts)
    for index, layer in enumerate(layers.values()):
        layer.noise = (parts[2 * index], parts[2 * index + 1])


def clear_noise(layers):
    """Puts every layer at its evaluation values."""
    for layer in layers.values():
        layer.noise = None


def set_token_mask(layers, token_mask):
    """Says which positions of the next batch are tokens, so that layers record their mean input; `None` stops it."""
    for layer in layers.values():
        layer.token_mask = token_mask


def pearson_kurtosis(values, dim):
    """m4 / m2^2 about the mean (3 for a normal distribution), population moments in f64; 3 where m2 is 0."""
    values = values.double()
    centred = values - values.mean(dim=dim, keepdim=True)
    second = centred.square().mean(dim=dim)
    fourth = centred.square().square().mean(dim=dim)
    return torch.where(second == 0, torch.full_like(second, 3.0), fourth / second.square())


def kurtosis_of(layer):
    """Kurtosis of the rows [out] and of the columns [in] of mean_input * W; constants for autograd."""
    with torch.no_grad():
        product = layer.input_mean.double() * layer.weight.double()
        return pearson_kurtosis(product, dim=1), pearson_kurtosis(product, dim=0)


def kurtosis_weights(kurtosis, is_open, temperature):
    """softmax(-sqrt(kurtosis) / temperature) over the open gates, 0 for the others; uniform when none is open."""
    if not bool(is_open.any()):
        return torch.full_like(kurtosis, 1.0 / kurtosis.numel())
    scores = -kurtosis.sqrt() / temperature
    return torch.softmax(scores.masked_fill(~is_open, -math.inf), dim=0)


def mean_open_probability(layer, kurtosis=False, temperature=100.0):
    """The (weighted) mean of the open probabilities over the layer's rows and over its columns."""
    probabilities = open_probability(layer.finegates_rows), open_probability(layer.finegates_columns)
    if not kurtosis:
        return [probability.mean() for probability in probabilities]
    means = []
    with torch.no_grad():
        gates = layer.gates()
    for probability, values, gate in zip(probabilities, kurtosis_of(layer), gates):
        weights = kurtosis_weights(values, gate > 0, temperature).to(probability)
        means.append((weights * probability).sum())
    return means


def penalty(layers, target_sparsity, weight, kurtosis=False, temperature=100.0):
    """weight * mean over layers of (|m_rows - (1 - s)| + |m_columns - (1 - s)|) / 2.

    With `kurtosis`, call it after the forward pass: it needs the layers' mean input and this step's gates.
    """
    target_open = 1.0 - target_sparsity
    total = 0.0
    for layer in layers.values():
        rows, columns = mean_open_probability(layer, kurtosis, temperature)
        total = total + 0.5 * ((rows - target_open).abs() + (columns - target_open).abs())
    return weight * total / len(layers)
