"""Times a training step of `finegates train` and of PyTorch in f32 on the same rows, in alternation in one run; prints JSON.

    python bench/train_step.py --finegates target/release/finegates --model FOLDER --glue GLUE_FOLDER \\
        [--task mrpc] [--methods gates bitfit] [--tokens 64] > bench/results/NAME.json

PyTorch's side is tools/bench_train_step.py (which says what helps it). Both train on the first rows of the task's training file
in batches of 16, f32, as many threads, the first steps not counted; PyTorch pads each batch to its longest text as its users do,
finegates computes no padding. With `--tokens N` every text is repeated and cut so that all have N tokens and nothing is padded.
`speed` is PyTorch's time a sequence over that of finegates, from the medians over the rounds. Requirements: tools/requirements.txt.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import glue  # noqa: E402

BATCH = 16


def cut(root, task, rows, tokens, folder):
    """A GLUE folder with the first training rows alone, for both programs."""
    name, first, _, _, _ = glue.TASKS[task]
    source = (Path(root) / name / "train.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    header, lines = source[0], source[1 : rows + 1]
    if len(lines) < rows:
        raise SystemExit(f"{name}: {len(lines)} rows, {rows} needed")
    if tokens:
        place = header.lstrip("\ufeff").split("\t").index(first)
        cells = [line.rstrip("\r").split("\t") for line in lines]
        for cell in cells:
            cell[place] = " ".join([cell[place]] * tokens)
        lines = ["\t".join(cell) for cell in cells]
    (folder / name).mkdir()
    for split in ("train", "dev"):
        (folder / name / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def run(command):
    return subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=True).stdout


def finegates(arguments, method, data, folder):
    """Milliseconds a sequence of one run."""
    name = glue.TASKS[arguments.task][0]
    steps = arguments.warmup + arguments.steps
    command = [arguments.finegates, "train", "--model", arguments.model, "--task", arguments.task, "--data", data / name]
    command += ["--method", method, "--max-steps", steps, "--max-validation-rows", 16, "--checkpoint-every", "1000000 steps"]
    command += ["--max-length", arguments.tokens or 512, "--threads", arguments.threads]
    run([*command, "--output", folder / "run", "--overwrite", "--json"])
    records = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    timed = [record for record in records if record["kind"] == "step"][arguments.warmup :]
    return 1e3 * sum(step["seconds"] for step in timed) / sum(step["sequences"] for step in timed)


def pytorch(arguments, method, data):
    """Milliseconds a sequence of one run, and all the script says."""
    command = [sys.executable, ROOT / "tools/bench_train_step.py", "--model", arguments.model, "--data", data]
    command += ["--task", arguments.task, "--methods", method, "--steps", arguments.steps, "--warmup", arguments.warmup]
    command += ["--max-length", arguments.tokens or 512, "--threads", arguments.threads]
    report = json.loads(run(command))
    return 1e3 / report[method]["sequences_per_second"], report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finegates", required=True, help="the binary")
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--glue", required=True, help="folder that holds GLUE's tasks")
    parser.add_argument("--task", choices=glue.TASKS, default="mrpc")
    parser.add_argument("--methods", nargs="+", choices=("gates", "bitfit"), default=["gates", "bitfit"])
    parser.add_argument("--tokens", type=int, help="make every text this long")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    commit = run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]).strip()
    result = {"task": arguments.task, "model": Path(arguments.model).name, "batch_size": BATCH, "tokens": arguments.tokens}
    result |= {"steps": arguments.steps, "rounds": arguments.rounds, "threads": arguments.threads, "commit": commit}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        data = cut(arguments.glue, arguments.task, BATCH * (arguments.steps + arguments.warmup), arguments.tokens, place)
        for method in arguments.methods:
            times = {"pytorch": [], "finegates": []}
            for _ in range(arguments.rounds):
                elapsed, report = pytorch(arguments, method, data)
                times["pytorch"].append(elapsed)
                times["finegates"].append(finegates(arguments, method, data, place))
            medians = {name: statistics.median(values) for name, values in times.items()}
            result |= {key: report[key] for key in ("cpu", "torch", "transformers", "precision")}
            result[method] = {
                "step_ms": {name: [round(BATCH * value, 1) for value in values] for name, values in times.items()},
                "speed": round(medians["pytorch"] / medians["finegates"], 2),
                "tokens_a_step": report[method]["tokens_a_step"],
                "padded_tokens_a_step": report[method]["padded_tokens_a_step"],
                "cores_busy_elsewhere": report[method]["cores_busy_elsewhere"],
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
