"""Writes tests/fixtures/trl/*.json: what TRL, transformers and torch compute, for tests/parity_trl.rs to compare with.

Pinned versions: torch 2.15.0, transformers 5.23.0, trl 1.16.0 (numpy as they bring it). From the repository root:

    OMP_NUM_THREADS=1 python scripts/make_trl_fixtures.py

The loss is TRL's own `GRPOTrainer._compute_loss`, called on a stand-in object whose model forward is replaced by a
leaf tensor of per-token log-probs in float64, so that autograd gives the gradient with respect to them. The advantages
are the lines of `GRPOTrainer._generate_and_score_completions` that compute them, cut out of TRL's source and run.
"""

import inspect
import json
import textwrap
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import get_scheduler
from trl.trainer import grpo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer

PINNED = {"torch": "2.15.0", "transformers": "5.23.0", "trl": "1.16.0"}
OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "trl"
MAX_COMPLETION_LENGTH = 9
LENGTHS = [5, 9, 1, 4, 7, 2, 9, 3]
TRUNCATED = [False, True, False, False, False, False, True, False]


class StandInAccelerator:
    """One process that gathers only its own values."""

    num_processes = 1
    sync_gradients = True

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        return x


def stand_in(logprobs, settings, micro_batches):
    """The attributes of a GRPOTrainer that `_compute_loss` reads."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, torch.zeros_like(logprobs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=settings["beta"],
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=settings["delta"], steps_per_generation=micro_batches
        ),
        loss_type=settings["loss_type"],
        epsilon_low=settings["epsilon"],
        epsilon_high=settings["epsilon_high"],
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=micro_batches,
        max_completion_length=MAX_COMPLETION_LENGTH,
        accelerator=StandInAccelerator(),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )


def make_inputs():
    """Ragged rows with ratios inside, below and above every clip bound, a zero advantage and an untouched row."""
    rng = np.random.default_rng(0)
    rows = len(LENGTHS)
    logprobs = -rng.exponential(1.0, (rows, MAX_COMPLETION_LENGTH))
    log_ratio = rng.choice([-0.7, -0.25, -0.05, 0.0, 0.03, 0.22, 0.3, 0.6], (rows, MAX_COMPLETION_LENGTH))
    log_ratio = log_ratio + 0.01 * rng.standard_normal(log_ratio.shape)
    log_ratio[3] = 0.0
    reference = logprobs + 0.4 * rng.standard_normal(logprobs.shape)
    advantages = rng.standard_normal(rows)
    advantages[4] = 0.0
    mask = np.arange(MAX_COMPLETION_LENGTH)[None] < np.array(LENGTHS)[:, None]
    return {k: torch.tensor(v) for k, v in dict(
        logprobs=logprobs, old=logprobs - log_ratio, reference=reference, advantages=advantages, mask=mask.astype(float)
    ).items()}


def run_loss(inputs, settings):
    """TRL's loss summed over the micro-batches of one optimizer step, and its gradient."""
    mask = inputs["mask"].clone()
    if settings["mask_truncated"]:
        mask[torch.tensor(TRUNCATED)] = 0.0
    leaf = inputs["logprobs"].clone().requires_grad_(True)
    rows, micro_batches = leaf.shape[0], settings["micro_batches"]
    total, metrics = 0.0, None
    for part in torch.arange(rows).chunk(micro_batches):
        trainer = stand_in(leaf[part], settings, micro_batches)
        ids = torch.zeros_like(mask[part], dtype=torch.long)
        batch = {
            "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask[part],
            "advantages": inputs["advantages"][part], "ref_per_token_logps": inputs["reference"][part],
            "num_items_in_batch": mask.sum(),
        }
        if settings["off_policy"]:
            batch["old_per_token_logps"] = inputs["old"][part]
        total = total + GRPOTrainer._compute_loss(trainer, None, batch)
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "entropy"}
    (grad,) = torch.autograd.grad(total, leaf)
    case = dict(settings, loss=total.item(), grad=flat(grad))
    if micro_batches == 1:  # TRL averages the metrics of micro-batches; only one of them is a figure of the step
        case["metrics"] = metrics
    return case


def flat(x):
    """The tokens within the rows' lengths, row after row."""
    return [value for row, length in zip(x.tolist(), LENGTHS) for value in row[:length]]


def make_objective():
    inputs = make_inputs()
    cases = []
    for loss_type in ["grpo", "bnpo", "dr_grpo", "dapo"]:
        for beta in [0.0, 0.04, 0.5]:
            for epsilon, epsilon_high, delta in [(0.2, 0.2, None), (0.2, 0.28, None), (0.1, 0.3, 1.5), (0.2, 0.2, 1.1)]:
                for micro_batches, mask_truncated, off_policy in [
                    (1, False, True), (1, True, True), (2, True, True), (4, False, True), (1, True, False)
                ]:
                    cases.append(run_loss(inputs, dict(
                        loss_type=loss_type, beta=beta, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta,
                        micro_batches=micro_batches, mask_truncated=mask_truncated, off_policy=off_policy,
                    )))
    return {
        "max_completion_length": MAX_COMPLETION_LENGTH, "lengths": LENGTHS, "truncated": TRUNCATED,
        "logprobs": flat(inputs["logprobs"]), "old_logprobs": flat(inputs["old"]),
        "ref_logprobs": flat(inputs["reference"]), "advantages": inputs["advantages"].tolist(), "cases": cases,
    }


def advantage_lines():
    """TRL's lines from the weighted sum of the rewards to the advantages."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    start = source.index("        unscorable_mask = ")
    end = source.index("        # Slice to keep only the local part of the data")
    return compile(textwrap.dedent(source[start:end]), "trl advantages", "exec")


def make_advantages():
    code = advantage_lines()
    nan = float("nan")
    reward_sets = [
        [1, 0, 0, 1, 0.5, 0.5, 0.5, 0.5, -2, 3, 0.25, 7],
        [1, nan, 0, 1, nan, nan, nan, nan, -2, 3, nan, 7],
        [0.1, 0.1, 0.1, 0.1, 1, 1, 1, 1.0001, nan, nan, nan, 4],
    ]
    cases = []
    for rewards in reward_sets:
        for num_generations in [2, 4, 6]:
            for scale in ["group", "batch", "none"]:
                scope = dict(
                    vars(grpo_trainer), device="cpu", num_generations=num_generations,
                    rewards_per_func=torch.tensor(rewards, dtype=torch.float64)[:, None],
                    self=SimpleNamespace(
                        multi_objective_aggregation="sum_then_normalize", scale_rewards=scale,
                        reward_weights=torch.ones(1, dtype=torch.float64),
                    ),
                )
                exec(code, scope)
                cases.append({
                    "rewards": [None if r != r else r for r in rewards], "num_generations": num_generations,
                    "scale_rewards": scale, "advantages": scope["advantages"].tolist(),
                    "reward": torch.nanmean(scope["rewards"]).item(),
                    "reward_std": grpo_trainer.nanstd(scope["rewards"]).item(),
                })
    return {"cases": cases}


def f32(x):
    """The shortest decimals that read back as the same f32 values."""
    return [float(str(value)) for value in x.detach().numpy().ravel()]


def run_optimizer(grads, start, settings):
    steps = len(grads)
    parameters = [torch.nn.Parameter(x.clone()) for x in start]
    optimizer = torch.optim.AdamW(
        [{"params": parameters[:1], "weight_decay": settings["weight_decay"]},
         {"params": parameters[1:], "weight_decay": 0.0}],
        lr=settings["lr"], betas=(0.9, 0.999), eps=1e-8, foreach=False,
    )
    kind = "constant_with_warmup" if settings["schedule"] == "constant" else settings["schedule"]
    scheduler = get_scheduler(kind, optimizer, settings["warmup_steps"], steps)
    case = dict(settings, lrs=[], norms=[], theta={})
    for step, step_grads in enumerate(grads, 1):
        for parameter, grad in zip(parameters, step_grads):
            parameter.grad = grad.clone()
        case["norms"].append(torch.nn.utils.clip_grad_norm_(parameters, settings["max_grad_norm"]).item())
        case["lrs"].append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        if step in (1, 2, 10, steps):
            case["theta"][str(step)] = [f32(parameter) for parameter in parameters]
    case["m"] = [f32(optimizer.state[parameter]["exp_avg"]) for parameter in parameters]
    case["v"] = [f32(optimizer.state[parameter]["exp_avg_sq"]) for parameter in parameters]
    return case


def make_optimizer():
    generator = torch.Generator().manual_seed(0)
    sizes = [13, 4, 1]
    start = [torch.randn(size, generator=generator) for size in sizes]
    # The size of the gradient changes from step to step, so that some are clipped and some are not.
    grads = [[torch.randn(size, generator=generator) * 10.0 ** ((step % 5) - 3) for size in sizes] for step in range(50)]
    cases = [
        run_optimizer(grads, start, dict(
            schedule=schedule, warmup_steps=warmup_steps, lr=1e-2, weight_decay=weight_decay, max_grad_norm=max_grad_norm
        ))
        for schedule, warmup_steps, weight_decay, max_grad_norm in [
            ("constant", 0, 0.0, 1.0), ("constant", 5, 0.1, 1.0), ("linear", 0, 0.01, 0.5), ("linear", 7, 0.0, 1.0),
            ("cosine", 0, 0.0, 1e9), ("cosine", 10, 0.1, 1.0),
        ]
    ]
    return {"start": [f32(x) for x in start], "grads": [[f32(x) for x in step] for step in grads], "cases": cases}


def main():
    for package, pinned in PINNED.items():
        if version(package).split("+")[0] != pinned:
            raise SystemExit(f"{package} {version(package)} is installed; the fixtures are made with {pinned}")
    OUT.mkdir(parents=True, exist_ok=True)
    for name, make in [("objective", make_objective), ("advantages", make_advantages), ("optimizer", make_optimizer)]:
        path = OUT / f"{name}.json"
        path.write_text(json.dumps(dict(versions=PINNED, **make()), separators=(",", ":")) + "\n")
        print(path.relative_to(OUT.parent.parent.parent), path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
