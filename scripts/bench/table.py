"""The table of the README from the files of results."""

import json

from rows import ROWS

START, END = "<!-- bench:peer -->\n", "<!-- end of bench:peer -->"


def load(folder):
    """Results by `(row, cores)`."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {(value["row"], value["cores"]): value for value in found if "row" in value}


def number(value):
    return f"{value:.3g}"


def verdict(value, target, reached):
    return f"**{number(value)}** ({target}{'' if reached else ': falls short'})"


def speed(result, target):
    if result is None:
        return "not measured"
    if "not_measured" in result:
        return f"not measured: {result['not_measured']}"
    ratio = result["peer_secs"] / result["ours_secs"]
    times = f"{number(result['peer_secs'])} s / {number(result['ours_secs'])} s"
    return f"{times} = {verdict(ratio, f'at least {target:g}', ratio >= target)}"


def memory(result, target):
    if result is None or "not_measured" in result:
        return "not measured"
    mib = [result[f"{side}_peak_bytes"] / 2**20 for side in ("ours", "peer")]
    ratio = mib[0] / mib[1]
    return f"{mib[0]:.0f} MiB / {mib[1]:.0f} MiB = {verdict(ratio, f'at most 1/{1 / target:g}', ratio <= target)}"


def markdown(results):
    """The table, and what the figures stand on."""
    lines = ["| | one core | two cores |", "|---|---|---|"]
    for row in ROWS:
        cells = [speed(results.get((row.name, cores)), row.faster[cores - 1]) for cores in (1, 2)]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    for row in ROWS:
        if row.smaller is not None:
            cells = [memory(results.get((row.name, cores)), row.smaller) for cores in (1, 2)]
            lines.append(f"| peak memory, {row.label} | {' | '.join(cells)} |")
    measured = [result for result in results.values() if "not_measured" not in result]
    if measured:
        lines += ["", provenance(measured)]
    return "\n".join(lines) + "\n"


def provenance(measured):
    processors = " and ".join(sorted({result["processor"] for result in measured}))
    versions = " and ".join(sorted({result["version"] for result in measured}))
    others = max(result["other_cores"] for result in measured)
    text = f"{versions} on {processors}; other programs used at most {others:.2f} cores meanwhile."
    return text + (" Single turns, for a trial only." if any(result["quick"] for result in measured) else "")


def fill(text, results):
    """`text` with the table between its markers made anew."""
    if START not in text or END not in text:
        raise SystemExit(f"the markers {START.strip()} and {END} are missing")
    before, rest = text.split(START)
    return f"{before}{START}\n{markdown(results)}\n{END}{rest.split(END)[1]}"
