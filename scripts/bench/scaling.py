"""How the time of candlewick's GRPO step grows with its sizes: a table, fitted exponents and a figure in docs/."""

import json
import math

import compare
import ours

WIDTHS = (64, 128, 256, 512)
MODELS = [f"width-{width}" for width in WIDTHS]
BASE = {"kind": "step", "data": "prompts.jsonl", "prompts": 8, "group": 8, "completion": 32, "width": 128}
# What is varied: its name in the job, how it is called, its values, what else differs from BASE.
SERIES = [
    ("group", "completions a prompt", (2, 4, 8, 16, 32), {}),
    ("prompts", "prompts a step", (1, 2, 4, 8, 16, 32), {}),
    ("completion", "tokens a completion", (32, 64, 128, 256, 512, 1024), {"prompts": 2}),
    ("width", "width of the model", WIDTHS, {}),
]


def exponent(xs, ys):
    """The slope of a straight line through the logarithms, by least squares."""
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys)) / sum((x - x_mean) ** 2 for x in xs)


def step_secs(setup, cores, quick, changed):
    job = BASE | changed
    folder = setup.models / f"width-{job['width']}"
    job |= {"model": folder, "data": folder / job["data"], "warmup": 1, "steps": 1 if quick else 5}
    return ours.secs(job, ours.measure(setup.binary, job, cores, setup.work)[1])


def measure(setup, cores, quick):
    """For each series its points: the value, seconds a step, microseconds a completion token."""
    found = []
    for key, label, values, changed in SERIES:
        points = []
        for value in values:
            job = BASE | changed | {key: value}
            secs = step_secs(setup, cores, quick, changed | {key: value})
            tokens = job["prompts"] * job["group"] * job["completion"]
            points.append({"value": value, "secs": secs, "micros_per_token": 1e6 * secs / tokens})
        slope = exponent(values, [point["secs"] for point in points])
        found.append({"label": label, "points": points, "exponent": slope})
    return found


def page(found, cores, quick, machine):
    lines = [
        "# How the time of a step grows",
        "",
        "Made by `scripts/bench.sh --scaling`. One GRPO step with a KL term: 8 prompts of 40 tokens with 8",
        "completions of 32 tokens each, a Qwen2 of 4 layers and width 128 that writes characters. One of these sizes",
        "varies; where it is the length of the completions there are 2 prompts. The exponent is that of the time of a",
        "step, fitted to all points of a series.",
        "",
        f"{machine['version']} on {machine['processor']}; cores: {cores}; medians of {1 if quick else 5} step(s).",
        "",
        "![Seconds a step against each size, logarithmic axes](scaling.svg)",
    ]
    for series in found:
        points = series["points"]
        rows = {
            f"{series['label']} (exponent {series['exponent']:.2f})": [str(point["value"]) for point in points],
            "seconds a step": [f"{point['secs']:.3g}" for point in points],
            "microseconds a completion token": [f"{point['micros_per_token']:.3g}" for point in points],
        }
        head, *rest = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
        lines += ["", head, "|---" * (len(points) + 1) + "|", *rest]
    return "\n".join(lines) + "\n"


def height(secs, low, high):
    """Where a time stands in the figure, from the top."""
    return 200 - 170 * (math.log2(secs) - low) / (high - low)


def panel(series, left, low, high):
    """One series as SVG in a square of 170, its left edge at `left`; seconds from 2^low to 2^high."""
    points = series["points"]
    values = [math.log2(point["value"]) for point in points]
    place = [
        (left + 170 * (x - values[0]) / (values[-1] - values[0]), height(point["secs"], low, high))
        for x, point in zip(values, points)
    ]
    title = f'<text x="{left + 85}" y="20">{series["label"]}: exponent {series["exponent"]:.2f}</text>'
    frame = f'<rect x="{left}" y="30" width="170" height="170" fill="none" stroke="#999"/>'
    line = f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in place)}" fill="none" stroke="#1f5fa8"/>'
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#1f5fa8"/>' for x, y in place]
    marks = [f'<text x="{x:.1f}" y="215">{p["value"]}</text>' for (x, _), p in zip(place, points)]
    return [title, frame, line, *dots, *marks]


def figure(found):
    times = [math.log2(point["secs"]) for series in found for point in series["points"]]
    low, high = math.floor(min(times)), math.ceil(max(times))
    ticks = [
        f'<text x="40" y="{4 + height(2.0**tick, low, high):.1f}" text-anchor="end">{2.0**tick:.2g} s</text>'
        for tick in range(low, high + 1)
    ]
    panels = [part for i, series in enumerate(found) for part in panel(series, 50 + 210 * i, low, high)]
    width = 50 + 210 * len(found)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 225" font-family="sans-serif" font-size="10">'
    paper = f'<rect width="{width}" height="225" fill="#fff"/>'
    return "\n".join([head, paper, *ticks, '<g text-anchor="middle">', *panels, "</g>", "</svg>"]) + "\n"


def run(setup, cores, quick, docs):
    """Measures all series and writes scaling.json, scaling.md and scaling.svg."""
    found, machine = measure(setup, cores, quick), compare.machine(setup.binary)
    docs.mkdir(exist_ok=True)
    result = {"series": found, "cores": cores, "quick": quick, **machine}
    (setup.work.parent / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")
    (docs / "scaling.svg").write_text(figure(found))
    text = page(found, cores, quick, machine)
    (docs / "scaling.md").write_text(text)
    print(text)
