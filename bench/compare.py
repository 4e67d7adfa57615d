"""Times finegates and its peers in turns, on the same checkpoint and inputs in one run; writes a JSON file a suite.

    python bench/compare.py encoder texts latency --finegates target/release/finegates --work FOLDER \\
        --minilm FOLDER --mpnet FOLDER --glue FOLDER [--rounds 10] --output bench/results/MACHINE

Suites:
  machine   what the machine can do at most: `finegates bench` without a model
  encoder   RoBERTa-base's shape, random weights: 16 x 64, 1 x 32 and 32 x 128 tokens; dense, and with 20 % and 40 % removed
  texts     MiniLM and MPNet on the development texts of MRPC and SST-2: peers pad batches of 16, finegates computes no padding
  latency   MiniLM on one text of 16 tokens
  train     a gated training step of RoBERTa-base's shape at 16 x 64 tokens (bench/train_step.py), with peak memory
  decoder   SmolLM2: reading 8 x 128 tokens, and making 64 after 128 one at a time; dense, and with 20 % and 40 % removed
  decoder-1b  the same of Llama-3.2-1B's shape with random weights: wants about 20 GB of memory; see --only
  cpu-time  CPU seconds of SmolLM2 with 0 to 60 % removed; with --only 1b of the 1 B shape

Every peer is a process of its own with as many threads; one computes at a time, and each round begins with another. Random
checkpoints, converted models and compact checkpoints are made once in --work and found again there. A peer that fails is
recorded with the reason. Speeds count only if `cores_busy_elsewhere` is near 0.
"""

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import train_step
import turns

sys.path.insert(0, str(turns.ROOT / "tools"))

import glue  # noqa: E402
from machine import cpu_name  # noqa: E402

FORMAT_VERSION = 1
PEERS = [
    ("pytorch", "f32"),
    ("pytorch", "bf16"),
    ("pytorch", "bf16 autocast"),
    ("onnxruntime", "f32"),
    ("openvino", "f32"),
    ("openvino", "bf16"),
]
NAMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
ENCODER_SHAPES = [(16, 64), (1, 32), (32, 128)]
REMOVED = [0.2, 0.4]
CPU_TIME_REMOVED = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
# Reading, and one token at a time: sequences, tokens of each, tokens after them.
PREFILL, DECODE = (8, 128, 0), (1, 128, 64)


def dense(precisions=("f32", "bf16")):
    return [{"by": "finegates", "name": f"finegates {precision}", "precision": precision} for precision in precisions]


def peers(kinds):
    return [{"by": by, "name": f"{NAMES[by]} {precision}", "precision": precision} for by, precision in kinds]


def smaller(arguments, model, folder, shares, precision="bf16"):
    """Entries of finegates with parts removed at random."""
    entries = []
    for share in shares:
        compact = checkpoints.removed(arguments.finegates, model, share, folder)
        name = f"finegates {precision}, {share:.0%} removed"
        entry = {"by": "finegates", "name": name, "precision": precision, "model": str(compact)}
        entries.append(entry | checkpoints.share_removed(compact))
    return entries


class Runner:
    """Runs scenarios of one suite."""

    def __init__(self, arguments):
        self.arguments = arguments

    def kept(self, name):
        folder = (self.arguments.work / name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def roberta(self):
        return self.made("roberta-base", checkpoints.roberta_base)

    def llama_1b(self):
        return self.made("llama-1b", lambda folder: checkpoints.llama_1b(folder, self.arguments.smollm2))

    def made(self, name, make):
        """A checkpoint that is made once."""
        folder = self.arguments.work.resolve() / name / "checkpoint"
        if not folder.exists():
            part = folder.with_name("checkpoint.part")
            subprocess.run(["rm", "-rf", part], check=True)
            make(part)
            part.rename(folder)
        return folder

    def scenario(self, name, entries, model, shape, rounds=None):
        """Times entries on one input: `shape` holds what a job says of it."""
        entries = turns.chosen(entries, self.arguments.only)
        print(name, file=sys.stderr, flush=True)
        commands = [self.command(entry, model, shape) for entry in entries]
        plain = [{key: value for key, value in entry.items() if key != "model"} for entry in entries]
        rounds = rounds or self.arguments.rounds
        results, busy = turns.alternate(plain, commands, rounds, self.arguments.warm_up)
        shape = {key: value for key, value in shape.items() if key not in ("texts", "kept")}
        return {"name": name, "rounds": rounds, "cores_busy_elsewhere": busy, "input": shape, "entries": results}

    def command(self, entry, model, shape):
        arguments, threads = self.arguments, self.arguments.threads
        model = entry.get("model", model)
        if entry["by"] != "finegates":
            task = "decoder" if "steps" in shape else "encoder"
            job = {"peer": entry["by"], "task": task, "precision": entry["precision"], "model": str(model), "threads": threads}
            return [sys.executable, turns.ROOT / "bench/peer.py", json.dumps(job | shape)]
        command = [arguments.finegates, "bench", model, "--on-request", "--json", "--threads", threads]
        command += ["--precision", entry["precision"]]
        if "texts" in shape:
            columns = ["--text", "text"] + (["--text-pair", "pair"] if shape["pairs"] else [])
            return [*command, "--data", shape["texts"], *columns, "--limit", shape["sequences"]]
        command += ["--batch", shape["batch"], "--length", shape["length"]]
        return command + (["--generate", shape["steps"]] if "steps" in shape else [])

    def machine(self):
        found = run([self.arguments.finegates, "bench", "--json", "--threads", self.arguments.threads])
        return {"machine": json.loads(found)}

    def encoder(self):
        model, kept = self.roberta(), self.kept("roberta-base")
        removed = smaller(self.arguments, model, kept, REMOVED)
        entries = dense() + removed + peers(PEERS)
        return {
            "scenarios": [
                self.scenario(
                    f"RoBERTa-base, {batch} × {length} tokens",
                    entries,
                    model,
                    {"batch": batch, "length": length, "kept": str(kept)},
                )
                for batch, length in ENCODER_SHAPES
            ]
        }

    def texts(self):
        scenarios = []
        for kind in ("minilm", "mpnet"):
            model, kept = self.folder(kind), self.kept(kind)
            for task in ("mrpc", "sst2"):
                file, shape = self.text_file(task)
                shape |= {"texts": str(file), "kept": str(kept)}
                name = f"{LABELS[kind]}, {shape['sequences']} development texts of {task.upper()}"
                scenarios.append(self.scenario(name, dense() + peers(PEERS), model, shape))
        return {"scenarios": scenarios}

    def text_file(self, task):
        """Development texts as JSON lines for everybody."""
        texts, pairs, _ = glue.read_split(self.folder("glue"), task, "dev")
        count = min(self.arguments.texts, len(texts))
        rows = [{"text": texts[row]} | ({"pair": pairs[row]} if pairs else {}) for row in range(count)]
        file = self.kept("texts") / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file, {"sequences": count, "pairs": bool(pairs)}

    def latency(self):
        model, kept = self.folder("minilm"), self.kept("minilm")
        shape = {"batch": 1, "length": 16, "kept": str(kept)}
        rounds = 10 * self.arguments.rounds
        return {"scenarios": [self.scenario("MiniLM, one text of 16 tokens", dense() + peers(PEERS), model, shape, rounds)]}

    def train(self):
        return {"scenarios": [train_step.scenario(self.arguments, self.roberta(), self.folder("glue"))]}

    def decoder(self):
        return self.decoding("SmolLM2-135M", self.folder("smollm2"), self.kept("smollm2"), PEERS, ("f32", "bf16"))

    def decoder_1b(self):
        kinds = [(by, precision) for by, precision in PEERS if precision == "bf16"]
        return self.decoding("Llama-3.2-1B's shape", self.llama_1b(), self.kept("llama-1b"), kinds, ("bf16",))

    def decoding(self, label, model, kept, kinds, precisions):
        entries = dense(precisions) + smaller(self.arguments, model, kept, REMOVED)
        entries += peers(kind for kind in kinds if kind[0] != "onnxruntime")
        scenarios = []
        for name, (batch, length, steps) in (("reading", PREFILL), ("one token at a time", DECODE)):
            shape = {"batch": batch, "length": length, "steps": steps, "kept": str(kept)}
            tokens = f"{batch} × {length}" + (f" + {steps}" if steps else "")
            scenarios.append(self.scenario(f"{label}, {name}, {tokens} tokens", entries, model, shape))
        return {"scenarios": scenarios}

    def cpu_time(self):
        only, self.arguments.only = self.arguments.only, None
        try:
            return self.by_share_removed("1b" in (only or ()))
        finally:
            self.arguments.only = only

    def by_share_removed(self, large):
        model, kept = (self.llama_1b(), self.kept("llama-1b")) if large else (self.folder("smollm2"), self.kept("smollm2"))
        entries = dense(("bf16",)) + smaller(self.arguments, model, kept, CPU_TIME_REMOVED)
        label = "Llama-3.2-1B's shape" if large else "SmolLM2-135M"
        scenarios = []
        for name, (batch, length, steps) in (("reading", PREFILL), ("one token at a time", DECODE)):
            shape = {"batch": batch, "length": length, "steps": steps}
            scenarios.append(self.scenario(f"{label}, {name}, by share removed", entries, model, shape))
        return {"scenarios": scenarios}

    def folder(self, name):
        folder = getattr(self.arguments, name)
        if folder is None:
            raise SystemExit(f"--{name}: not given, and this suite needs it")
        return folder


LABELS = {"minilm": "MiniLM", "mpnet": "MPNet base"}
SUITES = {
    "machine": Runner.machine,
    "encoder": Runner.encoder,
    "texts": Runner.texts,
    "latency": Runner.latency,
    "train": Runner.train,
    "decoder": Runner.decoder,
    "decoder-1b": Runner.decoder_1b,
    "cpu-time": Runner.cpu_time,
}


def run(command):
    return subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True).stdout


def header(arguments, suite):
    """What every result says of itself."""
    git = ["git", "-C", turns.ROOT]
    return {
        "format_version": FORMAT_VERSION,
        "suite": suite,
        "date": datetime.date.today().isoformat(),
        "commit": run([*git, "rev-parse", "--short", "HEAD"]).strip(),
        "changed_since": bool(run([*git, "status", "--porcelain", "--untracked-files=no"]).strip()),
        "program": run([arguments.finegates, "--version"]).strip(),
        "program_sha256": hashlib.sha256(Path(arguments.finegates).read_bytes()).hexdigest(),
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "warm_up": arguments.warm_up,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=SUITES)
    parser.add_argument("--finegates", required=True, type=Path, help="the binary")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is made once")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--mpnet", type=Path, help="folder of all-mpnet-base-v2")
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--glue", type=Path, help="folder that holds GLUE's tasks")
    parser.add_argument("--texts", type=int, default=256, help="texts of a task")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train-steps", type=int, default=20, help="steps of a training turn that count")
    parser.add_argument("--train-rounds", type=int, default=3, help="turns of each in the suite train")
    parser.add_argument("--only", nargs="+", help="entries whose name holds one of these words")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results: bench/results/MACHINE")
    arguments = parser.parse_args()
    # Peers run elsewhere, so that a path must not depend on where this began.
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.resolve())
    arguments.output.mkdir(parents=True, exist_ok=True)
    for suite in arguments.suites:
        started = time.perf_counter()
        result = header(arguments, suite) | SUITES[suite](Runner(arguments))
        result["seconds"] = round(time.perf_counter() - started)
        name = f"{suite}-1b" if suite == "cpu-time" and "1B" in result["scenarios"][0]["name"] else suite
        file = arguments.output / f"{name}.json"
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{file}: {result['seconds']} s", file=sys.stderr)


if __name__ == "__main__":
    main()
