"""Writes fixtures/real/smollm2_gradients.json: gradients of every gate of a published decoder, in f64, as a few numbers each.

    python tools/make_real_gradients.py SMOLLM2_FOLDER

Gates are their own values, 1 + 0.03 times a counter normal. A gradient vector is told by its length and by its products
with two vectors of counter normals: a difference in any direction shows in them.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from torch.nn import functional
from transformers import AutoModelForCausalLM

from counter_normal import counter_normal
from double_decoders import compute_in_double
from gates import add_gates

FIRST_STREAM = 2_000_000
MEAN, STD = 1.0, 0.03
TEXTS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fixtures = Path(__file__).resolve().parent.parent / "fixtures" / "real"
    parser.add_argument("folder", type=Path, help="the imported checkpoint")
    arguments = parser.parse_args()

    golden = json.loads((fixtures / "smollm2.json").read_text(encoding="utf-8"))
    chosen = [entry["example"] for entry in golden["language"] if entry.get("loss_f64")][:TEXTS]
    transformers.logging.set_verbosity_error()
    lines, results = [], {}
    for dtype in (torch.float32, torch.float64):
        model = AutoModelForCausalLM.from_pretrained(
            arguments.folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        model.requires_grad_(False)
        if dtype == torch.float64:
            compute_in_double(model.double())
        vectors = {}
        for path, layer in add_gates(model).items():
            layer.gates = lambda layer=layer: (layer.finegates_rows, layer.finegates_columns)
            vectors[f"{path}.finegates_row_values"] = layer.finegates_rows
            vectors[f"{path}.finegates_column_values"] = layer.finegates_columns
        for place, gate in enumerate(vectors.values()):
            values = MEAN + counter_normal(FIRST_STREAM + 3 * place, gate.numel(), STD)
            gate.data = torch.from_numpy(values).to(dtype)
        total, predictions = 0.0, 0
        for example in chosen:
            ids = torch.tensor([golden["examples"][example]["ids"]])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            loss = functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            total, predictions = total + loss.item(), predictions + ids.shape[1] - 1
            loss.backward()
        results[dtype] = total / predictions, {name: gate.grad.double() / predictions for name, gate in vectors.items()}
    (single_loss, single), (loss, double) = results[torch.float32], results[torch.float64]
    rounding = {name: float((single[name] - double[name]).norm() / double[name].norm()) for name in double}
    for place, (name, gradient) in enumerate(double.items()):
        probes = [counter_normal(FIRST_STREAM + 3 * place + other, gradient.numel()) for other in (1, 2)]
        products = [float(gradient @ torch.from_numpy(probe).double()) for probe in probes]
        entry = {"name": name, "norm": float(gradient.norm()), "products": products}
        lines.append(json.dumps(entry | {"rounding": float(f"{rounding[name]:.1e}")}))
    head = {"format": 1, "examples": chosen, "first_stream": FIRST_STREAM, "mean": MEAN, "std": STD}
    head |= {"loss_f64": loss, "loss_f32": single_loss}
    text = json.dumps(head)[:-1] + ', "gradients": [\n  ' + ",\n  ".join(lines) + "\n]}\n"
    (fixtures / "smollm2_gradients.json").write_text(text, encoding="utf-8")
    ordered = sorted(rounding.values())
    print(f"loss {loss:.9f}, in f32 {single_loss:.9f}")
    print(f"f32's gradients are off by {ordered[len(ordered) // 2]:.1e} of their length, at most by {ordered[-1]:.1e}")


if __name__ == "__main__":
    main()
