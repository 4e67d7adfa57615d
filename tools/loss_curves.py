"""Draws the losses of runs from their metrics.jsonl: the mean over every N steps, and the evaluations as dots.

    python tools/loss_curves.py --output docs/curves.svg --every 10 dense=runs/dense paper=runs/paper

Prints a table of what the runs came to: losses, what was removed, and seconds a step at the start and at the end (medians).
"""

import argparse
import json
import statistics
from pathlib import Path

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50
COLOURS = ["#1f5fa8", "#b8431f", "#2a7d3f", "#7a3fa0"]


def read(folder):
    records = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == "step"], [r for r in records if r["kind"] == "evaluation"]


def table(runs, window):
    print("| run | steps | tokens | training loss, last | validation loss | perplexity | removed | seconds a step, start | end |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (steps, evaluations) in runs:
        last = evaluations[-1] if evaluations else None
        seconds = [step["seconds"] for step in steps]
        cells = [
            name,
            len(steps),
            f"{sum(step['tokens'] for step in steps):,}",
            f"{statistics.mean(step['task_loss'] for step in steps[-window:]):.4f}",
            f"{last['loss']:.4f}" if last else "–",
            f"{last['metrics']['perplexity']:.2f}" if last else "–",
            f"{100 * steps[-1]['removed']:.1f} %",
            f"{statistics.median(seconds[5 : 5 + window]):.3f}",
            f"{statistics.median(seconds[-window:]):.3f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")


def draw(runs, every):
    curves, dots = [], []
    for name, (steps, evaluations) in runs:
        means = [
            (steps[at + every - 1]["step"], statistics.mean(step["task_loss"] for step in steps[at : at + every]))
            for at in range(0, len(steps) - every + 1, every)
        ]
        curves.append((name, means))
        dots.append([(record["step"], record["loss"]) for record in evaluations])
    points = [point for _, means in curves for point in means] + [point for few in dots for point in few]
    right = max(step for step, _ in points)
    low, high = min(loss for _, loss in points) - 0.1, max(loss for _, loss in points) + 0.1
    low, high = int(low * 2) / 2, int(high * 2 + 1) / 2

    def x(step):
        return LEFT + step / right * (WIDTH - LEFT - RIGHT)

    def y(loss):
        return HEIGHT - BOTTOM - (loss - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22">loss by step: mean of {every} steps, and validation (dots)</text>',
    ]
    tick = low
    while tick <= high + 1e-9:
        svg.append(f'<line x1="{LEFT}" y1="{y(tick):.1f}" x2="{WIDTH - RIGHT}" y2="{y(tick):.1f}" stroke="#dddddd"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
        tick += 0.5
    for share in range(6):
        step = right * share / 5
        svg.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{step:.0f}</text>')
    for number, ((name, means), few) in enumerate(zip(curves, dots)):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in means)
        svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        svg += [f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="3.5" fill="{colour}"/>' for step, loss in few]
        svg.append(f'<text x="{WIDTH - RIGHT - 8}" y="{TOP + 18 * (number + 1)}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join(svg + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--output", required=True)
    parser.add_argument("--every", type=int, default=10)
    arguments = parser.parse_args()
    runs = [(name, read(folder)) for name, folder in (run.split("=", 1) for run in arguments.runs)]
    table(runs, 50)
    Path(arguments.output).write_text(draw(runs, arguments.every))


if __name__ == "__main__":
    main()
