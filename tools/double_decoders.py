"""Decoders of transformers computed in f64 throughout, and their rotary frequencies written out.

A model of transformers that was converted to f64 still computes its norms, its softmax and its rotary angles in f32.
`compute_in_double` replaces those three; everything else is transformers'. The formulas are written anew here, so that the
f32 model, which is left as it is, checks them.
"""

import math

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

DECODER_TYPES = ("llama", "mistral", "qwen2")
ATTENTION = "finegates_double"


def inverse_frequencies(config, length):
    """f64 frequencies [head dimension / 2] for a forward call whose longest position is `length` - 1."""
    rope = config.rope_parameters
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    base, kind = float(rope["rope_theta"]), rope["rope_type"]
    if kind == "dynamic":
        stretch = max(length, config.max_position_embeddings) / config.max_position_embeddings
        base *= (rope["factor"] * stretch - (rope["factor"] - 1.0)) ** (size / (size - 2))
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if kind == "linear":
        frequencies = frequencies / rope["factor"]
    elif kind == "llama3":
        frequencies = torch.stack([_llama3(frequency, rope) for frequency in frequencies])
    elif kind not in ("default", "dynamic"):
        raise ValueError(kind)
    return frequencies


def _llama3(frequency, rope):
    """Short wavelengths stay, long ones are stretched by the factor, those between are interpolated."""
    turns = rope["original_max_position_embeddings"] * frequency / (2.0 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequency + (1.0 - kept) * frequency / rope["factor"]


def compute_in_double(model):
    """Makes an f64 model of DECODER_TYPES f64 in every operation; it keeps no state between calls."""
    model.config._attn_implementation = ATTENTION
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = _norm(module)
        elif kind.endswith("RotaryEmbedding"):
            module.forward = _rotary(module.config)


def forget_lengths(model):
    """Puts the frequencies of a `dynamic` f32 model back. transformers keeps those of the longest sequence seen so far."""
    rotary = model.model.rotary_emb
    rotary.inv_freq, rotary.max_seq_len_cached = rotary.original_inv_freq, rotary.original_max_seq_len


def _norm(module):
    return lambda x: module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)


def _rotary(config):
    def forward(x, position_ids):
        frequencies = inverse_frequencies(config, int(position_ids.max()) + 1)
        angles = position_ids[..., None].to(x.dtype) * torch.cat((frequencies, frequencies))
        return angles.cos(), angles.sin()

    return forward


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    groups = module.num_key_value_groups
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1)
    mixed = weights @ value.repeat_interleave(groups, dim=1)
    return mixed.transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
