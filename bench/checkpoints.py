"""Makes what is timed and not published: checkpoints of a known shape with random weights, and adapters with random gates closed.

    python bench/checkpoints.py roberta-base FOLDER
    python bench/checkpoints.py llama-1b FOLDER --tokenizer FOLDER_OF_A_LLAMA

Weights are normal with the deviation 0.02 from a fixed seed: they say nothing, and cost as much as any. `removed` closes rows
and columns of every gated projection at random, as many as remove the share asked for, liveness included, in PEFT's FineGates layout,
and has `finegates compress` make the smaller checkpoint.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from gates import GATED_SUFFIXES  # noqa: E402

SEED = 0
DEVIATION = 0.02
# theta of a closed and of an open gate: tanh(theta) + 1/2 is below 0, or above 1.
CLOSED, OPEN = -1.0, 1.0

LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def roberta_base(folder):
    """A RoBERTa of the base size that classifies, with a tokenizer of bytes."""
    from tiny_tokenizers import write_byte_pairs
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(SEED)
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=2)
    folder.mkdir(parents=True)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    write_byte_pairs(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(folder / "tokenizer_config.json", settings | {"model_max_length": 512})


def llama_1b(folder, tokenizer):
    """A decoder of the shape of Llama-3.2-1B in bf16, with somebody else's tokenizer."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape):
        return (torch.randn(*shape, generator=generator) * DEVIATION).to(torch.bfloat16)

    config = LLAMA_1B
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden), "model.norm.weight": ones.clone()}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        for name, shape in shapes.items():
            tensors[f"{place}{name}.weight"] = normal(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}{name}.weight"] = ones.clone()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer) / name, folder / name)


def projections(folder):
    """{module path: [out, in]} of the projections that get gates."""
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                path = name.removesuffix(".weight")
                if path != name and GATED_SUFFIXES.search(path):
                    found[path] = tensors.get_slice(name).get_shape()
    return found


def random_gates(checkpoint, closed, output):
    """An adapter of the checkpoint in which the share `closed` of each projection's rows is closed, and of its columns."""
    checkpoint, generator = Path(checkpoint).resolve(), torch.Generator().manual_seed(SEED)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tensors = {}
    for path, (rows, columns) in projections(checkpoint).items():
        for kind, count in (("rows", rows), ("columns", columns)):
            theta = torch.full((count,), OPEN)
            theta[torch.randperm(count, generator=generator)[: round(closed * count)]] = CLOSED
            tensors[f"base_model.model.{path}.finegates_{kind}"] = theta
    language = any(name.endswith("ForCausalLM") for name in config["architectures"])
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(
        output / "adapter_config.json",
        {
            "peft_type": "FINEGATES",
            "task_type": "CAUSAL_LM" if language else "SEQ_CLS",
            "base_model_name_or_path": str(checkpoint),
            "bias": "none",
            "gate_init_mean": 1.0,
            "gate_init_std": 0.1,
            "gate_noise_std": 0.1,
            "sparsity_loss_weight": 50.0,
            "target_sparsity": closed,
            "target_modules": sorted({path.rpartition(".")[2] for path in projections(checkpoint)}),
            "modules_to_save": None,
        },
    )


def removed(finegates, checkpoint, share, folder):
    """A compact checkpoint with `share` of the gated weights removed, rows and columns at random; made once in `folder`."""
    compact, adapter = folder / f"removed-{share:g}", folder / f"gates-{share:g}"
    if compact.exists():
        return compact
    low, high = 0.0, share
    # More closed rows and columns never remove less: halve the range until what is removed is what was asked for.
    for _ in range(12):
        closed = (low + high) / 2
        random_gates(checkpoint, closed, adapter)
        found = subprocess.run([finegates, "inspect", adapter, "--json"], stdout=subprocess.PIPE, check=True)
        report = json.loads(found.stdout)
        taken = report["removed_with_liveness"] / report["gated_parameters"]
        if abs(taken - share) < 0.002:
            break
        low, high = (closed, high) if taken < share else (low, closed)
    subprocess.run([finegates, "compress", adapter, "--output", compact], stdout=subprocess.DEVNULL, check=True)
    return compact


def share_removed(compact):
    """The shares of the gated weights that gates took, and that gates and liveness took, as the checkpoint says."""
    report = json.loads((compact / "compression.json").read_text(encoding="utf-8"))
    return {name: round(report[name] / report["gated_parameters"], 4) for name in ("removed_by_gates", "removed_with_liveness")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=("roberta-base", "llama-1b"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", help="folder with a tokenizer.json (llama-1b)")
    arguments = parser.parse_args()
    if arguments.shape == "roberta-base":
        roberta_base(arguments.folder)
    elif arguments.tokenizer:
        llama_1b(arguments.folder, arguments.tokenizer)
    else:
        parser.error("llama-1b needs --tokenizer")


if __name__ == "__main__":
    main()
