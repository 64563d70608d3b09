"""What must hold on a GPU: the operations, parity with transformers, resuming, completions that do not vary."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Callable

from process import NotMeasured

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
KILLS = 20


@dataclass(frozen=True)
class Part:
    """A part of the table; `secs` is the longest that it should take."""

    name: str
    secs: float
    run: Callable


def call(command, **more):
    """Runs a program to its end; its output. Fails with its messages."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def operations(setup):
    """The unit tests of operations, decoder, sampler and training, on the GPU and one after the other."""
    names = ["ops::", "optim::", "model::decoder", "rollout::", "trainer::gpu"]
    demand = {"GPU_TESTS": "1"} if setup.device == "cuda" else {}
    out = call([setup.unit_tests, *names, "--test-threads", "1"], env=os.environ | demand)
    count = int(re.search(r"(\d+) passed", out)[1])
    yield "operations against their references", f"{count} tests", "all pass", count > 0


def transformers_or_skip():
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise NotMeasured(str(error)) from error
    return torch


def family_model(setup, family):
    import make_models

    make_models.make(setup.models, f"family-{family}")
    return setup.models / f"family-{family}"


def parity(setup):
    """f32 logits, greedy text and gradients of a model of each family with random weights."""
    torch = transformers_or_skip()
    import check_checkpoint

    for family in FAMILIES:
        folder = family_model(setup, family)
        out = call([setup.dump_outputs, folder, folder / "prompts.jsonl", 20, setup.device])
        problems, largest = check_checkpoint.check(folder, json.loads(out))
        print(*problems, sep="\n", file=sys.stderr)
        limit = check_checkpoint.LOGIT_TOLERANCE
        yield f"{family}: logits and greedy text", f"{largest:.2g}", f"{limit:g}, same text", not problems
        worst = gradient_difference(torch, setup, folder)
        yield f"{family}: gradients, of their norm", f"{worst:.2g}", "1e-4", worst <= 1e-4


def gradient_difference(torch, setup, folder):
    """The largest difference of a gradient from torch's, over its norm: Adam's first moment holds a tenth of it."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows, run = 4, setup.work / "gradients"
    config = f"""
algorithm = "sft"
model = "{folder}-endless"
train_file = "{folder}/texts.jsonl"
output_dir = "{run}"
device = "{setup.device}"
dtype = "f32"
offline = true
prompts_per_step = {rows}
max_steps = 1
save_steps = 1
max_grad_norm = 1e9
shuffle = false
"""
    shutil.rmtree(run, ignore_errors=True)
    (setup.work / "gradients.toml").write_text(config)
    call([setup.candlewick, "train", setup.work / "gradients.toml"])
    moments = load_file(run / "checkpoint-1" / "optimizer.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()[:rows]]
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
    model(input_ids=ids, labels=ids).loss.backward()
    apart = []
    for name, parameter in model.named_parameters():
        got = moments[f"m.{name}"] / 0.1
        apart.append(((got - parameter.grad).norm() / parameter.grad.norm()).item())
    # A NaN is not the largest of anything.
    return max(apart) if all(map(math.isfinite, apart)) else math.inf


def run_config(setup, output, steps):
    return f"""
model = "data/starter"
train_file = "data/math_tasks_train.jsonl"
output_dir = "{output}"
device = "{setup.device}"
offline = true
prompts_per_step = 4
num_generations = 4
max_completion_length = 8
beta = 0.04
max_steps = {steps}
save_steps = 2
seed = 7
eval_steps = 0
"""


def kills(setup):
    """A run killed again and again ends with the bits of one that was left alone."""
    rng, steps = random.Random(3), 40

    def start(name):
        config = setup.work / f"{name}.toml"
        config.write_text(run_config(setup, setup.work / name, steps))
        resume = ["--resume", "auto"] if (setup.work / name).exists() else []
        command = [setup.candlewick, "train", config, *resume]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    begun = time.monotonic()
    left_alone = start("alone")
    if left_alone.wait() != 0:
        raise RuntimeError(left_alone.stderr.read())
    whole = time.monotonic() - begun
    killed = 0
    while killed < KILLS:
        process = start("killed")
        try:
            # Long enough that the run gets on between two kills.
            if process.wait(timeout=whole * rng.uniform(0.2, 0.6)) != 0:
                raise RuntimeError(process.stderr.read())
            # It came to its end: from the start again.
            shutil.rmtree(setup.work / "killed")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    last = start("killed")
    if last.wait() != 0:
        raise RuntimeError(last.stderr.read())
    alone, resumed = ((setup.work / name / "model.safetensors").read_bytes() for name in ("alone", "killed"))
    bits = "same bits" if alone == resumed else "other bits"
    yield f"killed {killed} times and resumed", bits, "same bits", alone == resumed


def batches(setup):
    """The number of completions that decode together changes none of them."""
    def completions(slots):
        output = setup.work / f"eval-{slots}"
        command = [setup.candlewick, "eval", "data/starter", "--data", "data/math_tasks_eval.jsonl", "--num-rows", 64]
        command += ["--num-samples", 4, "--temperature", 1, "--slots", slots, "--max-completion-length", 16]
        call([*command, "--device", setup.device, "--output", output])
        (samples,) = output.rglob("*samples*.jsonl")
        return [json.loads(line) for line in samples.read_text().splitlines()]

    same = completions(3) == completions(64) == completions(256)
    yield "completions with 3, 64 and 256 slots", "the same" if same else "different", "the same", same


PARTS = [
    Part("operations against their references", 120, operations),
    Part("parity with transformers", 60, parity),
    Part("killed and resumed", 90, kills),
    Part("completions do not vary", 30, batches),
]
