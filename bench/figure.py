"""The CPU-time figure of the FineGates paper, redrawn as SVG: time of all threads that removal saves, against the share that is removed."""

import html

WIDTH, HEIGHT = 680, 430
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 56
COLOURS = ["#1f5fa8", "#b8431f", "#2a7d3f", "#7a3fa0", "#a07a1f", "#3fa0a0"]


def curves(results):
    """(name, [(removed, saved)]) of every scenario of the suite `cpu-time`, both as shares; the first entry is the dense model."""
    found = []
    for label, result in results:
        for scenario in result["scenarios"]:
            times = [entry for entry in scenario["entries"] if entry["by"] == "finegates" and "cpu_ms" in entry]
            whole = [entry["cpu_ms"]["median"] for entry in times if "removed_with_liveness" not in entry]
            if not whole:
                continue
            points = [(entry.get("removed_with_liveness", 0.0), 1 - entry["cpu_ms"]["median"] / whole[0]) for entry in times]
            name = scenario["name"].replace(", by share removed", "")
            found.append((f"{name} ({label})" if label else name, sorted(points)))
    return found


def cpu_time(results):
    """The figure of (label of the machine, result) pairs; None where no curve has points."""
    drawn = [(name, points) for name, points in curves(results) if len(points) > 1]
    if not drawn:
        return None
    every = [point for _, points in drawn for point in points]
    high = max(0.1, max(max(point) for point in every))
    low = min(0.0, min(saved for _, saved in every))

    def x(removed):
        return LEFT + removed / high * (WIDTH - LEFT - RIGHT)

    def y(saved):
        return HEIGHT - BOTTOM - (saved - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24">CPU time saved, of the dense model\'s</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">gated weights removed</text>',
        f'<line x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}" stroke="#888888" stroke-dasharray="5 4"/>',
    ]
    tick = 0.0
    while tick <= high + 1e-9:
        svg.append(f'<line x1="{LEFT}" y1="{y(tick):.1f}" x2="{WIDTH - RIGHT}" y2="{y(tick):.1f}" stroke="#dddddd"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>')
        svg.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{100 * tick:.0f} %</text>')
        tick += 0.1
    for number, (name, points) in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(removed):.1f},{y(saved):.1f}" for removed, saved in points)
        svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        svg += [f'<circle cx="{x(removed):.1f}" cy="{y(saved):.1f}" r="3" fill="{colour}"/>' for removed, saved in points]
        svg.append(f'<text x="{LEFT + 12}" y="{TOP + 18 * (number + 1)}" fill="{colour}">{html.escape(name)}</text>')
    return "\n".join(svg + ["</svg>", ""])
