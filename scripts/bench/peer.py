"""The peer's side: TRL's GRPOTrainer, transformers' generate, and torch's own training loop.

On the CPU in f32; with `"device": "cuda"` in the job, on a GPU in bf16. Reads one job as a JSON object from the command
line, prints {"secs": [seconds of each measured piece of work]} and, on a GPU, its largest "memory_bytes". The keys of a
job are those of `rows.Row`, with `model` and `data` as paths, and `threads`.
"""

import json
import os
import re
import sys
import tempfile
import time

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
ON_GPU = json.loads(sys.argv[1]).get("device") == "cuda"
if not ON_GPU:
    os.environ |= {"CUDA_VISIBLE_DEVICES": ""}

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


def last_integer(completions, answer, **_):
    """1 where the last integer is the answer."""
    numbers = [re.findall(r"-?\d+", text) for text in completions]
    return [float(bool(found) and int(found[-1]) == wanted) for found, wanted in zip(numbers, answer)]


def uppercase(completions, **_):
    """Uppercase letters over letters: random completions differ in it, so that their advantages are not 0."""
    letters = [[c for c in text if c.isalpha()] for text in completions]
    return [sum(c.isupper() for c in found) / max(len(found), 1) for found in letters]


class StepTimes(TrainerCallback):
    """Wall time of each optimizer step; TRL samples within it."""

    def __init__(self):
        self.secs, self.lengths = [], []

    def on_step_begin(self, *_, **__):
        self.begun = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.secs.append(time.perf_counter() - self.begun)

    def on_log(self, *args, logs=None, **_):
        self.lengths += [logs["completions/mean_length"]] if "completions/mean_length" in logs else []


def grpo_steps(job):
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    times, completions = StepTimes(), job["prompts"] * job["group"]
    with tempfile.TemporaryDirectory() as scratch:
        data = load_dataset("json", data_files=job["data"], split="train", cache_dir=scratch)
        config = GRPOConfig(
            output_dir=scratch,
            use_cpu=not ON_GPU,
            bf16=ON_GPU,
            # Masters are f32 on both sides.
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            # A GPU does not hold the logits of all completions at once.
            per_device_train_batch_size=job["group"] if ON_GPU else completions,
            gradient_accumulation_steps=job["prompts"] if ON_GPU else 1,
            num_generations=job["group"],
            max_completion_length=job["completion"],
            generation_kwargs={"min_new_tokens": job["completion"]},
            shuffle_dataset=False,
            beta=0.04,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            max_steps=job["warmup"] + job["steps"],
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            model=job["model"],
            reward_funcs=[last_integer, uppercase],
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
            callbacks=[times],
        )
        trainer.train()
    if set(times.lengths) != {job["completion"]}:
        sys.exit(f"completions of {times.lengths} tokens, not {job['completion']}")
    return times.secs[job["warmup"] :]


def timed(work, job):
    """Wall time of `work` after the warm-up."""
    secs = []
    for _ in range(job["warmup"] + job["steps"]):
        begun = time.perf_counter()
        work()
        if ON_GPU:
            torch.cuda.synchronize()
        secs.append(time.perf_counter() - begun)
    return secs[job["warmup"] :]


def load(job):
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPE).to(DEVICE)


def decode(job):
    """All completions of all prompts, sampled in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    with open(job["data"]) as file:
        prompts = [json.loads(next(file))["prompt"] for _ in range(job["prompts"])]
    batch = tokenizer([p for p in prompts for _ in range(job["group"])], return_tensors="pt", padding=True)
    inputs = {key: batch[key].to(DEVICE) for key in ("input_ids", "attention_mask")}
    model, new = load(job).eval(), job["completion"]
    width = batch["input_ids"].shape[1] + new

    def work():
        out = model.generate(**inputs, do_sample=True, top_k=0, top_p=1.0, min_new_tokens=new, max_new_tokens=new)
        assert out.shape[1] == width

    return timed(work, job)


def train(job):
    """Forward, cross entropy, backward and AdamW on rows of one length."""
    model = load(job).train()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    with open(job["data"]) as file:
        rows = [tokenizer(json.loads(next(file))["text"])["input_ids"] for _ in range(job["prompts"])]
    ids = torch.tensor(rows, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def work():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(work, job)


def main():
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    secs = {"step": grpo_steps, "decode": decode, "train": train}[job["kind"]](job)
    memory = {"memory_bytes": torch.cuda.max_memory_reserved()} if ON_GPU else {}
    print(json.dumps({"secs": secs} | memory))


if __name__ == "__main__":
    main()
