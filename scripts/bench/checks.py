"""Properties of candlewick alone that a change must not lose: start-up, size, memory of the loss, decoding."""

import json
import math
import statistics
import subprocess
import time
from dataclasses import dataclass

import ours
from process import NotMeasured, first_cores
from scaling import exponent

MODELS = ["tiny-qwen2", "vocab-4096", "vocab-151936"]
LENGTHS = [60, 120, 240, 480, 960]


@dataclass(frozen=True)
class Check:
    """A figure and the most that it may be."""

    name: str
    value: float
    most: float
    unit: str

    @property
    def holds(self):
        return self.value <= self.most

    def line(self):
        holds = "yes" if self.holds else "NO"
        return f"| {self.name} | {self.value:.3g} {self.unit} | {self.most:g} {self.unit} | {holds} |"


def millis_to_output(command):
    """From the start of a program to the first byte that it prints."""
    begun = time.perf_counter()
    command = ["taskset", "-c", first_cores(1), *map(str, command)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        first = process.stdout.read(1)
        millis = 1000 * (time.perf_counter() - begun)
        process.stdout.read()
    if not first or process.returncode != 0:
        raise NotMeasured(f"{' '.join(command)} ended with {process.returncode}")
    return millis


def start(setup):
    helped = [millis_to_output([setup.binary, "--help"]) for _ in range(21)]
    prompt = [setup.binary, "generate", f"{setup.models}/tiny-qwen2-endless", "12 + 7 ="]
    # Only as much as one core gives: a second one must not be needed.
    prompt += ["--max-completion-length", "8", "--threads", "1"]
    token = [millis_to_output(prompt) for _ in range(21)]
    return [
        Check("`candlewick --help`", statistics.median(helped), 20, "ms"),
        Check("start to first token, tiny-qwen2", statistics.median(token), 50, "ms"),
    ]


def loss_memory(setup):
    """What a supervised step holds besides weights, gradients and moments, at two sizes of the vocabulary."""
    beyond = []
    for name in ("vocab-4096", "vocab-151936"):
        model = setup.models / name
        job = {"kind": "train", "model": model, "data": model / "texts.jsonl", "prompts": 16, "warmup": 0, "steps": 1}
        finished, _ = ours.measure(setup.binary, job | {"completion": None}, 1, setup.work)
        parameters = json.loads((model / "size.json").read_text())["parameters"]
        beyond.append(finished.peak_bytes - 4 * 4 * parameters)
    difference = abs(beyond[1] - beyond[0]) / 2**20
    return [Check("memory of a step besides the weights, V = 152k against V = 4k", difference, 32, "MiB")]


def decode_growth(setup):
    """The exponent with which the time of one more token grows with the tokens before it."""
    model = setup.models / "tiny-qwen2"
    job = {"kind": "decode", "model": model, "data": model / "prompts.jsonl", "prompts": 1, "group": 8}
    job |= {"warmup": 1, "steps": 5}
    secs = []
    for length in LENGTHS:
        one = job | {"completion": length}
        secs.append(ours.secs(one, ours.measure(setup.binary, one, 1, setup.work)[1]))
    pairs = list(zip(LENGTHS, secs))
    contexts = [math.sqrt(a * b) for (a, _), (b, _) in zip(pairs, pairs[1:])]
    costs = [(t - s) / (b - a) for (a, s), (b, t) in zip(pairs, pairs[1:])]
    return [Check("cost of a decoded token against its context, exponent", exponent(contexts, costs), 1, "")]


def run(setup, path):
    """Prints the checks and writes them to `path`; whether one of them fails."""
    size = setup.binary.stat().st_size / 1e6
    found = [*start(setup), Check("release binary", size, 30, "MB"), *loss_memory(setup), *decode_growth(setup)]
    path.write_text(json.dumps([vars(check) | {"holds": check.holds} for check in found], indent=2) + "\n")
    print("| | measured | at most | holds |\n|---|---|---|---|", *(check.line() for check in found), sep="\n")
    return not all(check.holds for check in found)
