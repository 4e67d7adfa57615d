"""Writes docs/performance.md and docs/cpu-time.svg from the results in bench/results, and nothing that is not in them.

    python bench/render.py             writes the page
    python bench/render.py --check     exit status 1 if the page is not what the results say

Needs Python alone.
"""

import argparse
import json
import sys
from pathlib import Path

import figure

ROOT = Path(__file__).resolve().parent.parent
FORMAT_VERSION = 1
# Suites in the order of the page: heading, and what the reader must know.
SUITES = {
    "machine": (
        "The machine",
        "Measured by `finegates bench` without a model: a loop of multiply-adds in registers, and a block of memory read over "
        "and over.",
    ),
    "encoder": (
        "Encoders",
        "Random weights; the same checkpoint for all. Removed rows and columns are random ones, the share is of the gated "
        "weights with liveness included.",
    ),
    "texts": (
        "Real texts",
        "Peers pad batches of 16 texts, in their order, to the longest; finegates gets the texts as they are and computes no "
        "padding.",
    ),
    "latency": ("One short text", "A batch of one."),
    "train": (
        "Training",
        "A step with gates, biases and head trained, everything else frozen. PyTorch \"as written\" draws noise and computes the "
        "penalty layer by layer; \"tuned\" does it for all layers at once with the fused optimizer. Memory is the most that a run "
        "held.",
    ),
    "decoder": (
        "Decoders",
        "Reading prompts, and making one token at a time for one sequence after its prompt. Memory bandwidth is that of reading "
        "a block as large as the weights over and over.",
    ),
    "decoder-1b": ("Decoders of a thousand million parameters", "As above, with random weights."),
    "cpu-time": (
        "CPU time against what is removed",
        "Time of all threads, of random rows and columns removed. In the figure the dashed line is time in proportion to what is "
        "removed. Bandwidth is the median over the processes of a table.\n\n![CPU time saved against the share removed](cpu-time.svg)",
    ),
}
HEADER = """\
# Performance

Made by `python bench/render.py` from `bench/results`; the measuring is `bench/compare.py` (`bench/README.md`). Times are medians over
rounds in which all took turns, in parentheses the quartiles; "finegates is faster by" is the peer's median over that of finegates,
dense and in the same precision. A figure counts for its machine and no other.
"""


def number(value, digits=3):
    """Three significant digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def spread(times):
    return f"{number(times['median'])} ({number(times['lower_quartile'])}–{number(times['upper_quartile'])})"


def percent(share):
    return f"{100 * share:.0f} %"


def row(cells):
    return "| " + " | ".join(cells) + " |\n"


def table(headings, rows):
    return row(headings) + row("---" if place == 0 else "--:" for place in range(len(headings))) + "".join(map(row, rows))


def dense(entry):
    return entry["by"] == "finegates" and "removed_with_liveness" not in entry and "closed" not in entry


def time_of(entry, scenario):
    """What counts in a scenario: a step of decoding where tokens are made one at a time, and otherwise the whole round."""
    steps = scenario["input"].get("steps", 0)
    if "decode_ms" not in entry or steps == 0:
        return entry["ms"]
    return {name: value / steps for name, value in entry["decode_ms"].items() if name != "times"}


def peaks_of(scenarios):
    """The peak in each precision: every process measures that of what it multiplies in, and what disturbed one makes its own too low."""
    peaks = {}
    for entry in (entry for scenario in scenarios for entry in scenario["entries"]):
        peaks[entry["precision"]] = max(entry.get("peak_gflops", 0.0), peaks.get(entry["precision"], 0.0))
    return peaks


def scenario_table(scenario, peaks):
    """A row an entry, with the columns for which somebody has a value."""
    entries, given = scenario["entries"], scenario["input"]
    timed = {entry["name"]: time_of(entry, scenario)["median"] for entry in entries if "failed" not in entry}
    ours = {entry["precision"]: timed[entry["name"]] for entry in entries if dense(entry) and entry["name"] in timed}
    # A short measurement in each process: one alone says little.
    measured = sorted(entry["measured_gb_per_second"] for entry in entries if "measured_gb_per_second" in entry)
    bandwidth = measured[len(measured) // 2] if measured else 0.0
    decoding = given.get("steps", 0) > 0 and any("decode_ms" in entry for entry in entries)
    sequences = given.get("sequences") or given.get("batch")
    unit = "ms a token" if decoding else "ms a step" if "train" in scenario["name"].lower() else "ms"
    columns = {
        unit: lambda entry: spread(time_of(entry, scenario)),
        ("tokens/s" if decoding else "sequences/s"): lambda entry: number(1e3 * sequences / timed[entry["name"]]),
        "finegates is faster by": lambda entry: faster_by(entry, ours, timed),
        "removed": lambda entry: percent(entry["removed_with_liveness"]) if "removed_with_liveness" in entry else "",
        "of dense": lambda entry: of_dense(entry, entries, timed),
        "GFLOP/s": lambda entry: number(entry["gflops"]) if "gflops" in entry and not decoding else "",
        "of peak": lambda entry: percent(entry["gflops"] / peaks[entry["precision"]]) if "gflops" in entry and not decoding else "",
        "MB a token": lambda entry: number(entry["step_bytes"] / 1e6) if "step_bytes" in entry else "",
        "GB/s": lambda entry: number(entry["gb_per_second"]) if "gb_per_second" in entry else "",
        "of bandwidth": lambda entry: percent(entry["gb_per_second"] / bandwidth) if bandwidth and "gb_per_second" in entry else "",
        "CPU ms": lambda entry: number(entry["cpu_ms"]["median"]) if "cpu_ms" in entry else "",
        "memory, GB": lambda entry: number(entry["peak_bytes"] / 1e9) if "peak_bytes" in entry else "",
    }
    well = [entry for entry in entries if "failed" not in entry]
    shown = {heading: show for heading, show in columns.items() if any(show(entry) for entry in well)}
    rows = [[entry["name"], *(show(entry) for show in shown.values())] for entry in well]
    text = table(["", *shown], rows)
    failed = [f"{entry['name']}: {' '.join(entry['failed'].split())[:200]}" for entry in entries if "failed" in entry]
    return text + "".join(f"\nFailed: {line}\n" for line in failed)


def faster_by(entry, ours, timed):
    """A peer's time over ours in the same precision."""
    own = ours.get(entry["precision"].partition(" ")[0])
    return "" if own is None or entry["by"] == "finegates" else f"{timed[entry['name']] / own:.2f}×"


def of_dense(entry, entries, timed):
    """Time over that of the same precision without removal."""
    if "removed_with_liveness" not in entry and "closed" not in entry:
        return ""
    whole = [other for other in entries if dense(other) and other["precision"] == entry["precision"] and other["name"] in timed]
    return f"{timed[entry['name']] / timed[whole[0]['name']]:.2f}" if whole else ""


def machine_table(result):
    peaks = result["machine"]["peaks"]
    memory, bf16 = peaks["memory"], peaks.get("bf16")
    block = f"reading {number(memory['block_bytes'] / 1e9)} GB, GB/s"
    rows = [
        ["f32 multiply-adds, GFLOP/s", number(peaks["gflops_one_thread"]), number(peaks["gflops"])],
        *([["bf16 multiply-adds, GFLOP/s", number(bf16["gflops_one_thread"]), number(bf16["gflops"])]] if bf16 else []),
        [block, number(memory["gb_per_second_one_thread"]), number(memory["gb_per_second"])],
    ]
    return table(["", "one thread", f"{result['threads']} threads"], rows)


def versions(result):
    found = {}
    for scenario in result.get("scenarios", []):
        for entry in scenario["entries"]:
            found |= entry.get("versions") or {}
    return ", ".join(f"{name} {version.partition('-')[0].partition('+')[0]}" for name, version in sorted(found.items()))


def provenance(result):
    """The line under a suite's tables."""
    changed = " (with changes)" if result.get("changed_since") else ""
    parts = [f"{result['date']}, commit {result['commit']}{changed}, {result['cpu']}, {result['threads']} threads"]
    entries = [entry for scenario in result.get("scenarios", []) for entry in scenario["entries"]]
    parts += sorted({entry["instruction_set"] for entry in entries if "instruction_set" in entry})
    parts += [part for part in [versions(result)] if part]
    busy = [scenario.get("cores_busy_elsewhere") for scenario in result.get("scenarios", [])]
    busy = [value for value in busy if value is not None]
    if busy:
        parts.append(f"cores busy elsewhere at most {max(busy):.2f}")
    return "; ".join(parts) + ".\n"


def section(result, opens, level):
    """What a file says; under a heading of its own where its suite begins."""
    heading, words = SUITES[result["suite"]]
    text = f"\n{level} {heading}\n\n{words}\n" if opens else ""
    if "machine" in result:
        text += "\n" + machine_table(result)
    scenarios = result.get("scenarios", [])
    peaks = peaks_of(scenarios)
    for scenario in scenarios:
        text += f"\n{level}# {scenario['name']}\n\n{scenario_table(scenario, peaks)}"
    return f"{text}\n{provenance(result)}"


def machines(folder):
    """The folders of the machines, each with its name."""
    for place in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        name = place / "NAME"
        yield (name.read_text(encoding="utf-8").strip() if name.exists() else place.name), place


def page(folder):
    """The whole page: the results of a folder, and those of its folders, one a machine."""
    text = HEADER + sections(read(folder), "##")
    return text + "".join(f"\n## {name}\n{sections(read(place), '###')}" for name, place in machines(folder))


def cpu_time_figure(folder):
    """The figure of the suite `cpu-time`; None without results of it."""
    everywhere = [("", read(folder)), *((name, read(place)) for name, place in machines(folder))]
    found = [(name, result) for name, results in everywhere for result in results if result["suite"] == "cpu-time"]
    one = len({name for name, _ in found}) == 1
    return figure.cpu_time([("" if one else name, result) for name, result in found])


def read(folder):
    """The results of one machine; those of one suite may lie in several files, in the order of their names."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))]
    for result in results:
        found = result.get("format_version")
        if found != FORMAT_VERSION:
            raise SystemExit(f"{result.get('suite')}: format_version: expected {FORMAT_VERSION}, found {found}")
    unknown = {result["suite"] for result in results} - set(SUITES)
    if unknown:
        raise SystemExit(f"unknown suites: {', '.join(sorted(unknown))}")
    order = list(SUITES)
    return sorted(results, key=lambda result: order.index(result["suite"]))


def sections(results, level):
    before = [None, *(result["suite"] for result in results)]
    return "".join(section(result, result["suite"] != suite, level) for result, suite in zip(results, before))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is another")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/performance.md")
    arguments = parser.parse_args()
    wanted = {arguments.page: page(arguments.results)}
    drawn = cpu_time_figure(arguments.results)
    if drawn is not None:
        wanted[arguments.page.with_name("cpu-time.svg")] = drawn
    elif arguments.page.with_name("cpu-time.svg").exists():
        raise SystemExit(f"{arguments.page.with_name('cpu-time.svg')}: there is no result that it shows; remove it")
    for path, text in wanted.items():
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path}: is not what the results say; run python bench/render.py", file=sys.stderr)
            raise SystemExit(1)


if __name__ == "__main__":
    main()
