"""Trains the same checkpoint by a budget of several stops and without gates, for several tasks and seeds, and prints the table.

    python tools/budget_runs.py --finegates target/release/finegates --glue GLUE_FOLDER --output RUNS \\
        --tasks mrpc=10 cola=10 stsb=10 sst2=2 --seeds 42 43 44 --jobs 2 --threads 1

A run is `finegates train` with its defaults but for what the columns name; arguments this script does not know go to every run. A
run that is finished is not made again, one that was cut off is resumed. Figures are those of each stop's end, and of the last
epoch of the run without gates: nothing is chosen by the development split. Python's standard library is enough.
"""

import concurrent.futures
import json
import statistics
import subprocess
import sys
from pathlib import Path

from real_runs import FOLDERS, parser_of

BUDGET = "params=0.8,0.6,0.4,0.25,0.1"


def train(arguments, more, task, epochs, name, seed):
    """The summary of one run, which is made unless it is there."""
    folder = Path(arguments.output) / f"{task}-{name}-{seed}"
    summary = folder / "summary.json"
    if not summary.exists() and not arguments.only_read:
        command = [arguments.finegates, "train"]
        if (folder / "state" / "state.safetensors").exists():
            command += ["--resume", str(folder)]
        else:
            command += ["--model", arguments.model, "--task", task, "--data", str(Path(arguments.glue) / FOLDERS[task])]
            command += ["--epochs", epochs, "--seed", str(seed), "--output", str(folder), "--overwrite"]
            command += ["--budget", arguments.budget] if name == "budget" else ["--method", "bitfit"]
            command += more
        print(" ".join(command), file=sys.stderr, flush=True)
        with open(f"{folder}.log", "a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
    return json.loads(summary.read_text()) if summary.exists() else None


def spread(values):
    if not values:
        return "–"
    text = f"{statistics.mean(values):.4f}"
    return text + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--budget", default=BUDGET)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--only-read", action="store_true", help="print what is there, train nothing")
    arguments, more = parser.parse_known_args()
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    tasks = [(task, epochs) for task, _, epochs in (task.partition("=") for task in arguments.tasks)]
    wanted = [(task, epochs, name, seed) for seed in arguments.seeds for name in ("budget", "bitfit") for task, epochs in tasks]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        run = lambda run: train(arguments, more, *run)
        found = dict(zip(wanted, pool.map(run, wanted)))
    stops = arguments.budget.partition("=")[2].split(",")
    print("| task | epochs | metric | seeds | without gates | " + " | ".join(f"{stop} left" for stop in stops) + " |")
    print("|---" * (5 + len(stops)) + "|")
    means = {}
    for task, epochs in tasks:
        of = lambda name: [summary for seed in arguments.seeds if (summary := found[task, epochs, name, seed])]
        dense, budget = of("bitfit"), of("budget")
        columns = [[summary["last"]["score"] for summary in dense]]
        columns += [[summary["stops"][stop]["score"] for summary in budget] for stop in range(len(stops))]
        seeds = f"{len(dense)}, {len(budget)}"
        metric = (dense + budget)[0]["best_metric"] if dense + budget else "–"
        print(f"| {task} | {epochs} | {metric} | {seeds} | " + " | ".join(map(spread, columns)) + " |")
        for place, values in enumerate(columns):
            if values:
                means.setdefault(place, []).append(statistics.mean(values))
    cells = [f"{statistics.mean(means[place]):.4f}" if len(means.get(place, [])) == len(tasks) else "–" for place in range(1 + len(stops))]
    print("| mean | | | | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
