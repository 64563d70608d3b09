"""candlewick's side: `candlewick train` on a configuration made for the job; times come from its metrics.jsonl."""

import json
import shutil
import statistics

from process import NotMeasured, run

STEP = """
beta = 0.04
rewards = [{ name = "last_integer", weight = 1.0 }, { name = "uppercase", weight = 1.0 }]
"""
# Equal rewards and no KL term: nothing is left to learn from, so the step is the sampling alone.
DECODE = """
beta = 0.0
rewards = [{ name = "length", weight = 1.0, target_length = 1 }]
"""


def settings(job, output_dir, threads):
    """The configuration file of a job; its keys are those of `rows.Row`."""
    text = f"""
algorithm = "{"sft" if job["kind"] == "train" else "grpo"}"
model = "{job["model"]}-endless"
train_file = "{job["data"]}"
output_dir = "{output_dir}"
threads = {threads}
offline = true
prompts_per_step = {job["prompts"]}
max_steps = {job["warmup"] + job["steps"]}
num_train_epochs = 1000
learning_rate = 1e-6
lr_scheduler_type = "constant"
shuffle = false
save_steps = 0
logging_steps = 1000
"""
    if job["kind"] == "train":
        return text
    text += f"num_generations = {job['group']}\nmax_completion_length = {job['completion']}\nlog_completions = 0\n"
    return text + (STEP if job["kind"] == "step" else DECODE)


def measure(binary, job, cores, work, more=""):
    """`(finished process, lines of metrics.jsonl after the warm-up)` of one run in the folder `work`.

    `more` are further lines of its configuration.
    """
    output_dir, config = work / "run", work / "run.toml"
    shutil.rmtree(output_dir, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    config.write_text(settings(job, output_dir, cores) + more)
    finished = run([binary, "train", config], cores)
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(output_dir)
    steps = [line for line in map(json.loads, lines) if "step_time" in line][job["warmup"] :]
    if len(steps) != job["steps"]:
        raise NotMeasured(f"{len(steps)} steps, not {job['steps']}")
    lengths = {step.get("completions/mean_length", job["completion"]) for step in steps}
    if lengths != {job["completion"]}:
        raise NotMeasured(f"completions of {lengths} tokens, not {job['completion']}")
    return finished, steps


def secs(job, steps):
    """The time of a job: the median over its steps."""
    key = "perf/rollout_secs" if job["kind"] == "decode" else "step_time"
    return statistics.median(step[key] for step in steps)
