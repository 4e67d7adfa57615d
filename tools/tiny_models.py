"""Tiny random models of every family, with the sequences their goldens run on. Everything is nonzero, so nothing hides."""

import math

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"]

# What differs from the family's defaults; dropouts stay at the defaults. Sizes are odd on purpose.
CONFIGS = {
    "bert": dict(
        hidden_size=16, num_attention_heads=4, intermediate_size=28, max_position_embeddings=40, type_vocab_size=2,
        pad_token_id=0, labels=["not_equivalent", "equivalent"],
    ),
    "roberta": dict(
        hidden_size=16, num_attention_heads=2, intermediate_size=24, max_position_embeddings=40, type_vocab_size=1,
        layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        labels=["contradiction", "entailment", "neutral"],
    ),
    "xlm-roberta": dict(
        hidden_size=16, num_attention_heads=4, intermediate_size=20, max_position_embeddings=40, type_vocab_size=1,
        layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2, hidden_act="gelu_new",
        num_labels=1, problem_type="regression",
    ),
    "distilbert": dict(
        dim=12, n_heads=3, hidden_dim=28, n_layers=2, max_position_embeddings=40, pad_token_id=0,
        labels=["negative", "neutral", "positive"],
    ),
    # Long enough for the relative position bias to reach its last bucket (distances of 128 and more).
    "mpnet": dict(
        hidden_size=16, num_attention_heads=4, intermediate_size=28, max_position_embeddings=150, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, num_labels=2,
    ),
}  # fmt: skip


def tiny_model(family, vocabulary, seed):
    """A random model for sequence classification in f32, without dropout (evaluation mode), eager attention."""
    settings = dict(CONFIGS[family])
    labels = settings.pop("labels", None)
    if labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    if family != "distilbert":
        settings["num_hidden_layers"] = 2
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **settings)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    assert model.config._attn_implementation == "eager"
    randomise(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def randomise(model, generator):
    """Fills every parameter; weights of norms lie around 1."""
    for name, parameter in model.named_parameters():
        parameter.copy_(_spread(name, parameter) * torch.randn(parameter.shape, generator=generator))
        if "norm.weight" in name.lower():
            parameter.add_(1.0)


def _spread(name, parameter):
    if parameter.dim() == 1:
        return 0.2
    if "embeddings" in name or "relative_attention_bias" in name:
        return 0.5
    return 1.2 / math.sqrt(parameter.shape[1])


def position_limit(family):
    """The longest sequence the position table allows; RoBERTa's and MPNet's positions start behind the padding id."""
    limit = CONFIGS[family]["max_position_embeddings"]
    return limit - 2 if family in ("roberta", "xlm-roberta", "mpnet") else limit


def tiny_sequences(family, vocabulary, classes, seed):
    """Ragged random sequences with labels; the last one holds the padding id in its middle and joins no loss."""
    generator = torch.Generator().manual_seed(seed)
    padding = CONFIGS[family]["pad_token_id"]
    has_segments = CONFIGS[family].get("type_vocab_size", 0) > 1
    limit = position_limit(family)
    sequences = []
    for length in (1, 2, 3, 7, 12, 5, limit // 2, limit, 9):
        ids = torch.randint(2, vocabulary, (length,), generator=generator).tolist()
        segments = [0] * length
        if has_segments and length > 2:
            segments = [0] * (length // 2) + [1] * (length - length // 2)
        if classes == 1:
            label = round(torch.rand((), generator=generator).item() * 5.0, 2)
        else:
            label = int(torch.randint(0, classes, (), generator=generator))
        sequences.append({"ids": ids, "segments": segments, "label": label})
    sequences[-1]["ids"][4] = padding
    return sequences


def padded_batch(sequences, padding, has_segments):
    """Keyword arguments for the model, padded to the longest sequence."""
    longest = max(len(sequence["ids"]) for sequence in sequences)
    ids = torch.full((len(sequences), longest), padding)
    mask = torch.zeros_like(ids)
    segments = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        length = len(sequence["ids"])
        ids[row, :length] = torch.tensor(sequence["ids"])
        segments[row, :length] = torch.tensor(sequence["segments"])
        mask[row, :length] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if has_segments:
        batch["token_type_ids"] = segments
    return batch
