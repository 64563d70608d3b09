"""Measures rows of the comparison, ours and the peer's in turn, and writes each to a file of results."""

import json
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import ours
from process import NotMeasured, free_memory_gib, run

HERE = Path(__file__).parent


def job_of(row, models, quick):
    folder = models / row.model
    job = asdict(row) | {"model": str(folder), "data": str(folder / row.data)}
    return job | {"steps": 1} if quick else job


def peer_turn(python, job, cores):
    finished = run([python, HERE / "peer.py", json.dumps(job | {"threads": cores})], cores)
    return statistics.median(json.loads(finished.output.splitlines()[-1])["secs"]), finished


def our_turn(binary, job, cores, work):
    finished, steps = ours.measure(binary, job, cores, work)
    return ours.secs(job, steps), finished


def measure(row, cores, setup, quick):
    """The result of a row: the medians over the turns, and what every turn gave."""
    if free_memory_gib() < row.memory_gib:
        raise NotMeasured(f"{row.memory_gib} GiB of free memory needed, {free_memory_gib():.0f} there")
    job = job_of(row, setup.models, quick)
    sides = {"ours": [], "peer": []}
    for turn in range(1 if quick else 5):
        for side in sides:
            if side == "ours":
                secs, finished = our_turn(setup.binary, job, cores, setup.work)
            else:
                secs, finished = peer_turn(setup.python, job, cores)
            sides[side].append({"secs": secs, "peak_bytes": finished.peak_bytes, "other_cores": finished.other_cores})
            print(f"{row.name}, {cores} core(s), turn {turn + 1}, {side}: {secs:.3f} s", file=sys.stderr, flush=True)
    return {f"{side}_{key}": median(turns, key) for side, turns in sides.items() for key in ("secs", "peak_bytes")} | {
        "other_cores": max(median(turns, "other_cores") for turns in sides.values()),
        "turns": sides,
    }


def median(turns, key):
    return statistics.median(turn[key] for turn in turns)


def result(row, cores, setup, quick):
    """`measure`, with what was measured, or with the reason why it could not be."""
    try:
        measured = measure(row, cores, setup, quick)
    except NotMeasured as reason:
        measured = {"not_measured": str(reason)}
    return {"row": row.name, "cores": cores, "quick": quick, **machine(setup.binary), **measured}


def machine(binary):
    """What a figure depends on besides the row."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "processor": models[0].split(":")[1].strip() if models else platform.machine(),
        "version": f"{version} {commit.stdout.strip()}",
    }
