"""How fast and how small candlewick is on a GPU, beside TRL, transformers and the machine's own limits."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import ours
from checks import Part
from process import NotMeasured, run

HALF, ONE_AND_A_HALF = "qwen2-0.5b-shape", "qwen2-1.5b-shape"
PEER = Path(__file__).resolve().parent.parent / "bench" / "peer.py"
CUDA = 'device = "cuda"\n'


LONG_PROMPT, SFT_TOKENS = 256, 128  # as make_models.py writes them


def model(setup, name):
    import make_models

    make_models.make(setup.models, name)
    return setup.models / name


def job(folder, kind, data="prompts.jsonl", **sizes):
    return {"kind": kind, "model": str(folder), "data": str(folder / data), "warmup": 1, "steps": 2} | sizes


def our_steps(setup, work, more=""):
    return ours.measure(setup.candlewick, work, 1, setup.work / "timing", CUDA + more)[1]


def peer(work):
    """What the peer prints, or why it could not be run."""
    finished = run([sys.executable, PEER, json.dumps(work | {"device": "cuda", "threads": 1})], 1)
    found = json.loads(finished.output.splitlines()[-1])
    return statistics.median(found["secs"]), found["memory_bytes"]


def ratio_row(name, ours_value, other, least, unit):
    ratio = other / ours_value
    return name, f"{other:.3g} / {ours_value:.3g} {unit} = {ratio:.2f}", f"at least {least}", ratio >= least


def memory(steps):
    return max(step["perf/peak_device_memory_bytes"] for step in steps)


def kv_bytes(folder):
    config = json.loads((folder / "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    return 2 * 2 * config["num_hidden_layers"] * width


def parameters(folder):
    return json.loads((folder / "size.json").read_text())["parameters"]


def limits():
    """`(bytes a second that a copy reads and writes, operations a second of a bf16 product)` of this GPU."""
    import torch

    def best(work):
        times = []
        for _ in range(8):
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begun.record()
            work()
            ended.record()
            torch.cuda.synchronize()
            times.append(begun.elapsed_time(ended) / 1e3)
        return min(times)

    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    copied = 2 * a.numel() / best(lambda: b.copy_(a))
    size = 8192
    x = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    return copied, 2 * size**3 / best(lambda: x @ x)


def decoding(setup):
    """64 rows against transformers, and the memory traffic of 256 rows against a plain copy."""
    folder = model(setup, HALF)
    work = job(folder, "decode", "prompts-long.jsonl", prompts=8, group=8, completion=256)
    secs = ours.secs(work, our_steps(setup, work))
    yield ratio_row(f"decode 64 rows to a context of 512, {HALF}", secs, peer(work)[0], 5, "s")
    rows, prompt, new = 256, LONG_PROMPT, 256
    wide = job(folder, "decode", "prompts-long.jsonl", prompts=32, group=8, completion=new)
    secs = ours.secs(wide, our_steps(setup, wide))
    contexts = sum(prompt + i for i in range(new))
    moved = new * 2 * parameters(folder) + rows * contexts * kv_bytes(folder)
    share = moved / secs / limits()[0]
    yield f"decode {rows} rows: bytes moved, of a copy's rate", f"{share:.0%}", "at least 40%", share >= 0.4


def training(setup):
    """Forward and backward on 16k tokens; 6 operations a parameter and token, attention not counted."""
    folder, rows = model(setup, ONE_AND_A_HALF), 128
    tokens = rows * SFT_TOKENS
    work = job(folder, "train", "texts.jsonl", prompts=rows, completion=None)
    more = f"max_tokens_per_micro_batch = {tokens}\ngradient_checkpointing = false\n"
    steps = our_steps(setup, work, more)
    secs = statistics.median(step["perf/train_secs"] for step in steps)
    share = 6 * parameters(folder) * tokens / secs / limits()[1]
    name = f"training on {tokens} tokens, {ONE_AND_A_HALF}: of the product's rate"
    yield name, f"{share:.0%}", "at least 40%", share >= 0.4
    yield f"full fine-tuning, {ONE_AND_A_HALF}", f"{memory(steps) / 1e9:.1f} GB", "", None
    small = our_steps(setup, job(folder, "step", prompts=4, group=8, completion=128))
    used = memory(small)
    yield f"full fine-tuning with GRPO, {ONE_AND_A_HALF}", f"{used / 1e9:.1f} GB", "at most 40 GB", used <= 40e9
    tiny = model(setup, "tinyllama-shape")
    more = "gradient_checkpointing = true\n"
    used = memory(our_steps(setup, job(tiny, "step", prompts=4, group=8, completion=128), more))
    name = "full fine-tuning with GRPO, tinyllama-shape, recomputed"
    yield name, f"{used / 1e9:.1f} GB", "at most 24 GB", used <= 24e9


def grpo(setup):
    """A whole step against TRL's, with transformers' generate."""
    folder = model(setup, HALF)
    work = job(folder, "step", prompts=16, group=16, completion=256, steps=1)
    steps = our_steps(setup, work)
    gap = max(step["sampling/sampling_logp_difference/max"] for step in steps)
    yield "log-probs of sampler and trainer, largest difference", f"{gap:.2g}", "0", gap == 0.0
    try:
        secs, peer_memory = peer(work)
    except NotMeasured as reason:
        yield f"GRPO step, {HALF}, beside TRL", f"not measured: {reason}", "", None
        return
    yield ratio_row(f"GRPO step of 16 x 16, {HALF}", ours.secs(work, steps), secs, 4, "s")
    yield ratio_row("peak memory of that step", memory(steps) / 1e9, peer_memory / 1e9, 2, "GB")


def gpu(_):
    line = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    copied, product = limits()
    found = f"{copied / 1e12:.2f} TB/s copied, {product / 1e12:.0f} TFLOP/s in bf16 products"
    yield line.stdout.strip() or "GPU", found, "", None


PARTS = [
    Part("the GPU", 10, gpu),
    Part("decoding", 90, decoding),
    Part("training", 90, training),
    Part("GRPO step", 120, grpo),
]
