"""What a RoBERTa adapter's gates remove, counted in numpy straight from METHOD.md sections 2 and 6.

Independent of the Rust code; tests/published_adapter.rs holds its numbers for the authors' adapter.
Usage: removal_reference.py ADAPTER_FOLDER [HEAD_DIMENSION]   (needs numpy and safetensors)
"""

import json
import sys

import numpy as np
from safetensors.numpy import load_file

PREFIX = "base_model.model."
MODULES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def read_gates(folder):
    """Evaluation values of every module's gates: path -> {"rows": omega, "columns": omega}."""
    gates = {}
    for name, theta in load_file(folder + "/adapter_model.safetensors").items():
        for side in ("rows", "columns"):
            suffix = ".finegates_" + side
            if name.endswith(suffix):
                path = name.removeprefix(PREFIX).removesuffix(suffix)
                omega = np.clip(np.tanh(theta.astype(np.float32)) + np.float32(0.5), 0, 1)
                gates.setdefault(path, {})[side] = omega
    return gates


def liveness(live, head_dimension):
    """Applies the identities of an encoder layer by layer until nothing changes; `live` is changed in place."""
    layer = 0
    while f"roberta.encoder.layer.{layer}.output.dense" in live:
        query, key, value, output, up, down = (live[f"roberta.encoder.layer.{layer}.{module}"] for module in MODULES)
        before = None
        while before != (now := sum(int(side.sum()) for pair in (query, key, value, output, up, down) for side in pair)):
            before = now
            up[0] = down[1] = up[0] & down[1]
            value[0] = output[1] = value[0] & output[1]
            head = np.repeat(value[0].reshape(-1, head_dimension).any(axis=1), head_dimension)
            query[0] = key[0] = query[0] & key[0] & head
            for pair in (query, key, value, output, up, down):
                if not pair[0].any():
                    pair[1] = np.zeros_like(pair[1])
        layer += 1


def main(folder, head_dimension):
    gates = read_gates(folder)
    live = {path: [gate["rows"] > 0, gate["columns"] > 0] for path, gate in gates.items()}
    total = sum(rows.size * columns.size for rows, columns in live.values())
    left = lambda: sum(int(rows.sum()) * int(columns.sum()) for rows, columns in live.values())
    by_gates = total - left()
    liveness(live, head_dimension)
    values = np.concatenate([side for gate in gates.values() for side in gate.values()])
    print(
        json.dumps(
            {
                "modules": len(gates),
                "gated_parameters": total,
                "removed_by_gates": by_gates,
                "removed_with_liveness": total - left(),
                "open": int((values == 1).sum()),
                "fractional": int(((values > 0) & (values < 1)).sum()),
                "closed": int((values == 0).sum()),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 64)
