"""Writes tests/fixtures/trl/*.json: what TRL, transformers and torch compute, for tests/parity_trl.rs to compare with.

Pinned versions: torch 2.15.0, transformers 5.23.0, trl 1.16.0 (numpy as they bring it). From the repository root:

    OMP_NUM_THREADS=1 python scripts/make_trl_fixtures.py [objective variants advantages preference optimizer rewards]

The loss is TRL's own `GRPOTrainer._compute_loss`, called on a stand-in object whose model forward is replaced by a
leaf tensor of per-token log-probs in float64, so that autograd gives the gradient with respect to them; that of RLOO is
`RLOOTrainer._compute_loss`, that of DPO `DPOTrainer._compute_loss`. The advantages are the lines of
`_generate_and_score_completions` that compute them, cut out of TRL's source and run.

What TRL does not have is written out here in torch and differentiated by autograd: the plain policy gradient, k2 and the
squared KL of whole completions, ReMax, REINFORCE++, RAFT, process supervision, smoothed labels with normalised lengths.
"""

import json
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import MethodType, SimpleNamespace

import numpy as np
import torch
from transformers import get_scheduler
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from trl_advantages import make_advantages
from trl_rewards import make_rewards

PINNED = {"torch": "2.15.0", "transformers": "5.23.0", "trl": "1.16.0"}
OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "trl"
MAX_COMPLETION_LENGTH = 9
LENGTHS = [5, 9, 1, 4, 7, 2, 9, 3]
TRUNCATED = [False, True, False, False, False, False, True, False]


class StandInAccelerator:
    """One process that gathers only its own values."""

    num_processes = 1
    sync_gradients = True
    device = "cpu"

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def pad_across_processes(self, x, dim, pad_index):
        return x

    def reduce(self, x, reduction="sum"):
        return x


# What a case of objective.json leaves alone.
PLAIN = dict(
    importance_sampling_level="token", use_bias_correction_kl=False, top_entropy_quantile=1.0, entropy_coef=0.0,
    sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
)
# "reinforce" sums a row's tokens and takes the mean over rows, which is what TRL's luspo does.
TRL_LOSS_TYPES = {"reinforce": "luspo"}


def stand_in(logprobs, entropies, settings, micro_batches):
    """The attributes of a GRPOTrainer or RLOOTrainer that `_compute_loss` reads."""
    settings = PLAIN | settings
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, entropies, None),
        aux_loss_enabled=False,
        top_entropy_quantile=settings["top_entropy_quantile"],
        off_policy_mask_threshold=None,
        importance_sampling_level=settings["importance_sampling_level"],
        beta=settings["beta"],
        args=SimpleNamespace(
            use_bias_correction_kl=settings["use_bias_correction_kl"], delta=settings["delta"],
            sapo_temperature_pos=settings["sapo_temperature_pos"],
            sapo_temperature_neg=settings["sapo_temperature_neg"], steps_per_generation=micro_batches,
        ),
        loss_type=TRL_LOSS_TYPES.get(settings["loss_type"], settings["loss_type"]),
        epsilon_low=settings["epsilon"],
        epsilon_high=settings["epsilon_high"],
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=micro_batches,
        max_completion_length=MAX_COMPLETION_LENGTH,
        accelerator=StandInAccelerator(),
        _entropy_bonus_enabled=settings["entropy_coef"] != 0.0,
        use_adaptive_entropy=False,
        entropy_coef=settings["entropy_coef"],
        _metrics={"train": defaultdict(list)},
    )
    trainer.get_high_entropy_mask = MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    return trainer


def make_inputs(seed=0):
    """Ragged rows with ratios inside, below and above every clip bound, a zero advantage and an untouched row."""
    rng = np.random.default_rng(seed)
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


def row_mask(inputs, settings):
    mask = inputs["mask"].clone()
    if settings["mask_truncated"]:
        mask[torch.tensor(TRUNCATED)] = 0.0
    return mask


def run_loss(inputs, settings):
    """TRL's loss summed over the micro-batches of one optimizer step, and its gradient."""
    mask = row_mask(inputs, settings)
    leaf = inputs["logprobs"].clone().requires_grad_(True)
    entropies = inputs.get("entropies", torch.zeros_like(leaf)).clone().requires_grad_(True)
    rows, micro_batches = leaf.shape[0], settings["micro_batches"]
    is_rloo = settings.get("importance_sampling_level") == "sequence_sum"
    total, metrics = 0.0, None
    for part in torch.arange(rows).chunk(micro_batches):
        trainer = stand_in(leaf[part], entropies[part], settings, micro_batches)
        ids = torch.zeros_like(mask[part], dtype=torch.long)
        batch = {
            "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask[part],
            "advantages": token_advantages(inputs, settings)[part], "ref_per_token_logps": inputs["reference"][part],
            "num_items_in_batch": mask.sum(),
        }
        if settings["off_policy"]:
            batch["old_per_token_logps"] = inputs["old"][part]
        if is_rloo:
            batch["old_logps"] = ((inputs["old"] if settings["off_policy"] else inputs["logprobs"]) * mask)[part].sum(1)
            total = total + RLOOTrainer._compute_loss(trainer, None, batch) / micro_batches
        else:
            total = total + GRPOTrainer._compute_loss(trainer, None, batch)
        metrics = {
            name: values[-1] for name, values in trainer._metrics["train"].items()
            if name.startswith(("clip_ratio", "cispo_clip_ratio")) or name == "kl"
        }
    grad, entropy_grad = torch.autograd.grad(total, [leaf, entropies], allow_unused=True)
    case = dict(settings, loss=total.item(), grad=flat(grad))
    if settings.get("entropy_coef"):
        case["entropy_grad"] = flat(entropy_grad)
    if micro_batches == 1:  # TRL averages the metrics of micro-batches; only one of them is a figure of the step
        case["metrics"] = metrics
    return case


def token_advantages(inputs, settings):
    """The advantages as TRL takes them: one a row, or one a token where they differ within a row."""
    advantages = inputs["advantages"]
    gamma, supervised = settings.get("gamma", 1.0), settings.get("process", False)
    if gamma == 1.0 and not supervised:
        return advantages
    after = torch.tensor(LENGTHS)[:, None] - 1 - torch.arange(MAX_COMPLETION_LENGTH)[None]
    discounted = advantages[:, None] * gamma ** after.clamp(min=0).double()
    return discounted + inputs["token_advantages"] if supervised else discounted


def run_plain(inputs, settings):
    """A loss that TRL does not have, written out: one micro-batch, or denominators that do not ask for their number."""
    mask = row_mask(inputs, settings)
    leaf = inputs["logprobs"].clone().requires_grad_(True)
    old = inputs["old"] if settings["off_policy"] else leaf.detach()
    advantages = token_advantages(inputs, settings)
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    if settings["importance_sampling_level"] == "none":
        terms = -advantages * leaf
    else:
        ratio = (leaf - old).exp()
        clipped = ratio.clamp(1 - settings["epsilon"], 1 + settings["epsilon_high"])
        terms = -torch.min(ratio * advantages, clipped * advantages)
    gap = leaf - inputs["reference"]
    if settings["kl_estimator"] == "k2":
        terms = terms + settings["beta"] * gap ** 2 / 2
    elif settings["kl_estimator"] == "k3":
        terms = terms + settings["beta"] * ((-gap).exp() + gap - 1)
    terms = terms * mask
    total = {
        "grpo": lambda: (terms.sum(1) / mask.sum(1).clamp(min=1)).mean(),
        "bnpo": lambda: terms.sum() / mask.sum(),
        "dr_grpo": lambda: terms.sum() / (len(LENGTHS) * MAX_COMPLETION_LENGTH),
        "dapo": lambda: terms.sum() / mask.sum(),
        "reinforce": lambda: terms.sum(1).mean(),
    }[settings["loss_type"]]()
    if settings["kl_estimator"] == "sequence_squared":
        total = total + settings["beta"] * ((gap * mask).sum(1) ** 2).mean()
    (grad,) = torch.autograd.grad(total, leaf)
    return dict(settings, loss=total.item(), grad=flat(grad))


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


def make_variants():
    """The objectives beyond GRPO's own, and the options that change its terms."""
    inputs = make_inputs(600)  # the ratios of whole rows, too, lie on both sides of every bound
    rng = np.random.default_rng(1)
    shape = inputs["logprobs"].shape
    # TRL takes the quantile in f32: entropies that are f32 values keep the comparison exact.
    inputs["entropies"] = torch.tensor(rng.exponential(1.0, shape).astype(np.float32).astype(np.float64))
    inputs["token_advantages"] = torch.tensor(rng.standard_normal(shape))
    base = PLAIN | dict(
        loss_type="dapo", beta=0.0, epsilon=0.2, epsilon_high=0.2, delta=None, kl_estimator="k3", micro_batches=1,
        mask_truncated=False, off_policy=True, gamma=1.0, process=False,
    )
    clipped = ["grpo", "bnpo", "dr_grpo", "dapo", "reinforce"]
    changes = []
    for level in ["token", "sequence"]:
        for loss_type in ["cispo", "sapo", "reinforce"] + (clipped[:4] if level == "sequence" else []):
            bounds = dict(epsilon=0.05, epsilon_high=0.03) if level == "sequence" else {}
            bounds = dict(epsilon_high=1.02 if level == "sequence" else 1.25) if loss_type == "cispo" else bounds
            this = dict(loss_type=loss_type, importance_sampling_level=level, **bounds)
            delta = dict(delta=1.1 if level == "sequence" else 1.5) if loss_type in clipped else {}
            changes += [
                this,
                this | delta | dict(beta=0.3, use_bias_correction_kl=True, mask_truncated=True),
                this | delta | dict(beta=0.04, micro_batches=2, mask_truncated=True),
            ]
    for loss_type in clipped[:4]:
        this = dict(loss_type=loss_type, beta=0.5, use_bias_correction_kl=True)
        changes += [this, this | dict(off_policy=False), this | dict(micro_batches=4, mask_truncated=True)]
    changes += [dict(loss_type="sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=0.5)]
    for loss_type, rho in [("dapo", 0.2), ("dapo", 0.5), ("grpo", 0.9), ("dr_grpo", 0.01), ("cispo", 0.2)]:
        changes += [dict(
            loss_type=loss_type, top_entropy_quantile=rho, beta=0.1, mask_truncated=True,
            epsilon_high=1.25 if loss_type == "cispo" else 0.2,
        )]
    changes += [dict(loss_type=loss_type, entropy_coef=coef, mask_truncated=True) for loss_type, coef in
                [("dapo", 0.01), ("grpo", 0.3), ("reinforce", -0.1)]]
    for loss_type in ["dapo", "grpo"]:
        changes += [dict(loss_type=loss_type, gamma=0.9), dict(loss_type=loss_type, process=True, beta=0.04)]
        changes += [dict(loss_type=loss_type, gamma=0.9, process=True, importance_sampling_level="sequence")]
    rloo = dict(loss_type="grpo", importance_sampling_level="sequence_sum")
    changes += [rloo, rloo | dict(off_policy=False), rloo | dict(micro_batches=4, epsilon=0.5, epsilon_high=0.9)]
    plain = [
        dict(loss_type=loss_type, importance_sampling_level="none", mask_truncated=mask, **kl)
        for loss_type, mask, kl in [
            ("dapo", True, {}), ("grpo", False, dict(beta=0.04)), ("reinforce", False, dict(gamma=0.9)),
            ("reinforce", True, dict(beta=0.3, kl_estimator="k2")),
            ("dr_grpo", False, dict(beta=0.1, kl_estimator="sequence_squared")),
        ]
    ]
    plain += [dict(loss_type=loss_type, beta=beta, kl_estimator=kl, mask_truncated=mask)
              for loss_type, beta, kl, mask in [
                  ("dapo", 0.04, "k2", True), ("grpo", 0.5, "k2", False), ("bnpo", 0.3, "k2", True),
                  ("dapo", 0.04, "sequence_squared", True), ("grpo", 0.5, "sequence_squared", False),
                  ("reinforce", 0.3, "sequence_squared", True),
              ]]
    torch.set_default_dtype(torch.float64)  # TRL turns the temperatures of SAPO into a tensor of this type
    cases = [run_loss(inputs, base | change) for change in changes]
    torch.set_default_dtype(torch.float32)
    cases += [run_plain(inputs, base | change) for change in plain]
    return {
        "max_completion_length": MAX_COMPLETION_LENGTH, "lengths": LENGTHS, "truncated": TRUNCATED,
        "logprobs": flat(inputs["logprobs"]), "old_logprobs": flat(inputs["old"]),
        "ref_logprobs": flat(inputs["reference"]), "entropies": flat(inputs["entropies"]),
        "advantages": inputs["advantages"].tolist(), "token_advantages": flat(inputs["token_advantages"]),
        # What is as in `base` is left out.
        "cases": [{k: v for k, v in case.items() if k in ("loss_type", "loss", "grad") or k not in base or v != base[k]}
                  for case in cases],
    }


def run_preference(inputs, settings):
    """TRL's loss of a step of pairs, and its gradient."""
    leaf, lengths = inputs["logprobs"].clone().requires_grad_(True), torch.tensor(inputs["lengths"])
    mask = (torch.arange(leaf.shape[1])[None] < lengths[:, None]).double()
    pairs = len(lengths) // 2

    def trl_loss(kind, which):
        rows = torch.cat([2 * which, 2 * which + 1])  # TRL's batch has all chosen completions first
        outputs = SimpleNamespace(
            log_probs=(leaf * mask)[rows], entropy=mask[rows], mean_logits=mask[rows], is_top1=mask[rows] > 0)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True), accelerator=StandInAccelerator(), aux_loss_enabled=False,
            ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", use_weighting=False,
            loss_types=[kind], loss_weights=[1.0], beta=settings["beta"], _total_train_tokens=0, _tp_size=1,
            label_smoothing=settings["label_smoothing"], _metrics={"train": defaultdict(list)},
        )
        with_prompt = torch.cat([torch.zeros(len(rows), 1), mask[rows]], 1)
        reference = (inputs["reference"] * mask)[rows].sum(1)
        batch = {
            "input_ids": torch.zeros_like(with_prompt, dtype=torch.long), "attention_mask": with_prompt,
            "completion_mask": with_prompt, "ref_chosen_logps": reference[: len(which)],
            "ref_rejected_logps": reference[len(which) :],
        }
        return DPOTrainer._compute_loss(trainer, lambda **k: outputs, batch, False), trainer._metrics["train"]

    total, metrics = trl_loss(settings["loss_type"], torch.arange(pairs))
    if settings["label_smoothing"] and settings["loss_type"] == "sigmoid":
        # TRL smooths the labels in `aot`, which for a single pair is the smoothed sigmoid loss.
        total = sum(trl_loss("aot", torch.tensor([pair]))[0] for pair in range(pairs)) / pairs
    elif settings["label_smoothing"]:
        means = ((leaf - inputs["reference"]) * mask).sum(1) / mask.sum(1)
        x, eps = settings["beta"] * (means[0::2] - means[1::2]), settings["label_smoothing"]
        total = -((1 - eps) * x.sigmoid().log() + eps * (-x).sigmoid().log()).mean()
    (grad,) = torch.autograd.grad(total, leaf)
    names = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"]
    return dict(
        settings, loss=total.item(), metrics={name: metrics[name][-1] for name in names},
        grad=[value for row, length in zip(grad.tolist(), inputs["lengths"]) for value in row[:length]],
    )


def make_preference():
    rng = np.random.default_rng(4)
    lengths = [4, 2, 1, 6, 3, 3, 5, 1]
    logprobs = -rng.exponential(1.0, (len(lengths), 6))
    inputs = {
        "lengths": lengths, "logprobs": torch.tensor(logprobs),
        "reference": torch.tensor(logprobs + rng.standard_normal(logprobs.shape)),
    }
    cases = [
        run_preference(inputs, {"loss_type": loss_type, "beta": beta, "label_smoothing": 0.0})
        for loss_type in ["sigmoid", "hinge", "ipo", "sigmoid_norm"] for beta in [0.1, 0.5, 2.0]
    ] + [
        run_preference(inputs, {"loss_type": loss_type, "beta": 0.5, "label_smoothing": smoothing})
        for loss_type in ["sigmoid", "sigmoid_norm"] for smoothing in [0.1, 0.3]
    ]
    tokens = lambda x: [value for row, length in zip(x.tolist(), lengths) for value in row[:length]]
    return {
        "lengths": lengths, "logprobs": tokens(inputs["logprobs"]), "ref_logprobs": tokens(inputs["reference"]),
        "cases": cases,
    }


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
    fixtures = {
        "objective": make_objective, "variants": make_variants, "advantages": make_advantages,
        "preference": make_preference, "optimizer": make_optimizer, "rewards": make_rewards,
    }
    for name in sys.argv[1:] or fixtures:
        make = fixtures[name]
        path = OUT / f"{name}.json"
        path.write_text(json.dumps(dict(versions=PINNED, **make()), separators=(",", ":")) + "\n")
        print(path.relative_to(OUT.parent.parent.parent), path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
