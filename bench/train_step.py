"""A gated training step of `finegates train` beside the same layers in PyTorch, in turns on the same rows (for compare.py).

PyTorch's side is tools/bench_train_step.py: "as written" draws noise and computes the penalty layer by layer, as the method is
written down; "tuned" has what helps PyTorch without changing the method. Both train on the first rows of MRPC's training file in
batches of 16, every text repeated and cut to 64 tokens so that nobody computes padding. Each turn is a run of its own, whose first
steps do not count; `ms` is the mean of a step in each turn, `peak_bytes` the most memory that a run held, its loading included.

"40 % closed" is finegates with a budget that closes 40 % of the gated weights early on: the steps after the last closing count.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import turns

sys.path.insert(0, str(turns.ROOT / "tools"))

import glue  # noqa: E402
from machine import OtherLoad  # noqa: E402

TASK, BATCH, TOKENS = "mrpc", 16, 64
WARM_UP_STEPS = 4
CLOSED = 0.4
ENTRIES = [
    {"by": "finegates", "name": "finegates f32", "precision": "f32"},
    {"by": "finegates", "name": "finegates bf16", "precision": "bf16"},
    {"by": "finegates", "name": "finegates f32, 40% closed", "precision": "f32", "closed": CLOSED},
    {"by": "finegates", "name": "finegates bf16, 40% closed", "precision": "bf16", "closed": CLOSED},
    {"by": "pytorch", "name": "PyTorch f32, as written", "precision": "f32", "plain": True},
    {"by": "pytorch", "name": "PyTorch bf16 autocast, as written", "precision": "bf16", "plain": True},
    {"by": "pytorch", "name": "PyTorch f32, tuned", "precision": "f32"},
    {"by": "pytorch", "name": "PyTorch bf16 autocast, tuned", "precision": "bf16"},
]


def cut(root, rows, folder):
    """A GLUE folder with the first training rows alone, every text long enough, for both programs."""
    name, first, _, _, _ = glue.TASKS[TASK]
    source = (Path(root) / name / "train.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    header, lines = source[0], source[1 : rows + 1]
    if len(lines) < rows:
        raise SystemExit(f"{name}: {len(lines)} rows, {rows} needed")
    place = header.lstrip("\ufeff").split("\t").index(first)
    cells = [line.rstrip("\r").split("\t") for line in lines]
    for cell in cells:
        cell[place] = " ".join([cell[place]] * TOKENS)
    lines = ["\t".join(cell) for cell in cells]
    (folder / name).mkdir()
    for split in ("train", "dev"):
        (folder / name / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def run(command):
    """Standard output of a program, and the most memory it held in bytes."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise turns.Failed(f"exit status {process.returncode}: {errors.read().strip()[-turns.REASON_CHARACTERS :]}")
        return output.read(), usage.ru_maxrss * 1024


def finegates(entry, arguments, model, data, folder):
    """One turn: milliseconds a step, and memory."""
    closes = "closed" in entry
    # A run that closes has as many steps after its last closing as another has in all.
    steps = WARM_UP_STEPS + (2 if closes else 1) * arguments.train_steps
    command = [arguments.finegates, "train", "--model", model, "--task", TASK, "--data", data / glue.TASKS[TASK][0]]
    command += ["--method", "gates", "--max-steps", steps, "--max-validation-rows", 16, "--checkpoint-every", "1000000 steps"]
    command += ["--max-length", TOKENS, "--threads", arguments.threads, "--precision", entry["precision"]]
    if closes:
        command += ["--budget", f"params={1 - entry['closed']:g}", "--adapt-ratio", 0.1, "--settle-ratio", 0.6]
    else:
        command += ["--objective", "paper"]
    _, peak = run([*command, "--output", folder / "run", "--overwrite", "--json"])
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    timed = [record for record in map(json.loads, lines) if record["kind"] == "step"][WARM_UP_STEPS:]
    if closes:
        timed = [step for step in timed if step["removed"] >= entry["closed"] - 0.01]
        # The first of them still packs what is left.
        timed = timed[1:]
    if not timed:
        raise turns.Failed("no step with so many gates closed")
    return {"ms": 1e3 * sum(step["seconds"] for step in timed) / len(timed), "peak_bytes": peak}


def pytorch(entry, arguments, model, data, _):
    """One turn: milliseconds a step, and memory."""
    command = [sys.executable, turns.ROOT / "tools/bench_train_step.py", "--model", model, "--data", data]
    command += ["--task", TASK, "--methods", "gates", "--steps", arguments.train_steps, "--warmup", WARM_UP_STEPS]
    command += ["--max-length", TOKENS, "--threads", arguments.threads, "--precision", entry["precision"]]
    output, peak = run([*command, "--plain"] if entry.get("plain") else command)
    report = json.loads(output)
    versions = {name: report[name] for name in ("torch", "transformers")}
    return {"ms": report["gates"]["mean_ms"], "peak_bytes": peak, "versions": versions}


def scenario(arguments, model, root):
    """Runs all entries in turns."""
    entries = [dict(entry) for entry in turns.chosen(ENTRIES, arguments.only)]
    name = f"Gates-only training step of RoBERTa-base, {BATCH} × {TOKENS} tokens"
    print(name, file=sys.stderr, flush=True)
    turns_of = {entry["name"]: [] for entry in entries}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        data = cut(root, BATCH * (WARM_UP_STEPS + arguments.train_steps), place)
        load = OtherLoad()
        load.start()
        for number in range(arguments.train_rounds):
            for index in range(len(entries)):
                entry = entries[(index + number) % len(entries)]
                if "failed" in entry:
                    continue
                try:
                    taken = SIDES[entry["by"]](entry, arguments, model, data, place)
                except turns.Failed as error:
                    entry["failed"] = str(error)
                    print(f"  {entry['name']}: {error}", file=sys.stderr, flush=True)
                    continue
                print(f"  {entry['name']}: {taken['ms']:.0f} ms a step", file=sys.stderr, flush=True)
                entry["versions"] = taken.pop("versions", {})
                turns_of[entry["name"]].append(taken)
        busy = load.cores()
    for entry in entries:
        if "failed" not in entry:
            times = turns_of[entry["name"]]
            entry["peak_bytes"] = max(taken.pop("peak_bytes") for taken in times)
            entry |= turns.summary(times)
    shape = {"batch": BATCH, "length": TOKENS, "steps": arguments.train_steps}
    return {"name": name, "rounds": arguments.train_rounds, "cores_busy_elsewhere": busy, "input": shape, "entries": entries}


SIDES = {"finegates": finegates, "pytorch": pytorch}
