"""The advantages for tests/fixtures/trl/advantages.json: run by make_trl_fixtures.py, which says how."""

import inspect
import textwrap
from types import SimpleNamespace

import numpy as np
import torch
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer


def advantage_lines(trainer):
    """TRL's lines from the weighted sum of the rewards to the advantages."""
    source = inspect.getsource(trainer._generate_and_score_completions)
    start = source.index("        unscorable_mask = ")
    end = source.index("        # Slice to keep only the local part of the data")
    return compile(textwrap.dedent(source[start:end]), "trl advantages", "exec")


NAN = float("nan")
REWARD_SETS = [
    [1, 0, 0, 1, 0.5, 0.5, 0.5, 0.5, -2, 3, 0.25, 7],
    [1, NAN, 0, 1, NAN, NAN, NAN, NAN, -2, 3, NAN, 7],
    [0.1, 0.1, 0.1, 0.1, 1, 1, 1, 1.0001, NAN, NAN, NAN, 4],
]


def make_advantages():
    code = advantage_lines(GRPOTrainer)
    cases = []
    for rewards in REWARD_SETS:
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
                    "rewards": or_none(rewards), "num_generations": num_generations,
                    "scale_rewards": scale, "advantages": scope["advantages"].tolist(),
                    "reward": torch.nanmean(scope["rewards"]).item(),
                    "reward_std": grpo_trainer.nanstd(scope["rewards"]).item(),
                })
    return {"cases": cases, "estimators": make_estimators(), "process": make_process()}


def or_none(values):
    return [None if value != value else value for value in values]


def make_estimators():
    """Advantages of RLOO (TRL's, with its KL penalty), ReMax, REINFORCE++ and RAFT (written out)."""
    code = advantage_lines(RLOOTrainer)
    rng = np.random.default_rng(2)
    lengths = [3, 1, 2, 4, 1, 1, 2, 3, 2, 1, 4, 2]
    mask = (np.arange(4)[None] < np.array(lengths)[:, None]).astype(float)
    mask[5] = 0.0
    old, reference = (torch.tensor(-rng.exponential(1.0, mask.shape)) for _ in range(2))
    tokens = lambda x: [value for row, length in zip(x.tolist(), lengths) for value in row[:length]]
    cases = []
    for rewards in REWARD_SETS:
        for num_generations in [2, 4, 6]:
            shared = {"rewards": or_none(rewards), "num_generations": num_generations}
            for beta in [0.0, 0.3]:
                scope = dict(
                    vars(rloo_trainer), device="cpu", num_generations=num_generations, gather=lambda x: x,
                    rewards_per_func=torch.tensor(rewards, dtype=torch.float64)[:, None],
                    old_per_token_logps=old, ref_per_token_logps=reference, completion_mask=torch.tensor(mask),
                    self=SimpleNamespace(
                        reward_weights=torch.ones(1, dtype=torch.float64), reward_clip_range=None, beta=beta,
                        normalize_advantages=False,
                    ),
                )
                exec(code, scope)
                cases.append(dict(shared, estimator="rloo", beta=beta, advantages=scope["advantages"].tolist()))
            grouped = torch.tensor(rewards, dtype=torch.float64).view(-1, num_generations)
            greedy = torch.tensor(rng.standard_normal(len(grouped)))
            greedy[0] = NAN if num_generations == 4 else greedy[0]
            remax = torch.nan_to_num((grouped - greedy[:, None]).flatten(), nan=0.0)
            cases.append(dict(
                shared, estimator="remax", greedy=or_none(greedy.tolist()), advantages=remax.tolist()))
            centred = (grouped - torch.nanmean(grouped, 1, keepdim=True)).flatten()
            scored = centred[~centred.isnan()]
            white = (centred - scored.mean()) / (scored.std() + 1e-4)
            cases.append(dict(shared, estimator="reinforce++", advantages=torch.nan_to_num(white, nan=0.0).tolist()))
            for least in [None, 0.5]:
                kept = torch.nan_to_num(grouped, nan=-torch.inf)
                best = torch.zeros_like(grouped).scatter(1, kept.argmax(1, keepdim=True), 1.0)
                best = best * (kept > (-torch.inf if least is None else least))
                cases.append(dict(shared, estimator="raft", min_reward=least, advantages=best.flatten().tolist()))
    return {
        "lengths": lengths, "old_logprobs": tokens(old), "ref_logprobs": tokens(reference),
        "completion_mask": [value > 0 for value in tokens(torch.tensor(mask))], "cases": cases,
    }


def make_process():
    """Per-token advantages of process supervision: the normalised values at a token and after it."""
    rng = np.random.default_rng(3)
    lengths = [3, 1, 2, 4, 5, 2]
    mask = np.arange(5)[None] < np.array(lengths)[:, None]
    values = torch.tensor(np.where(mask & (rng.random(mask.shape) < 0.6), rng.standard_normal(mask.shape), NAN))
    flatten = lambda x: [value for row, length in zip(x.tolist(), lengths) for value in row[:length]]
    cases = []
    for num_generations in [2, 3]:
        for scale in ["group", "batch", "none"]:
            normal = torch.empty_like(values)
            for first in range(0, len(lengths), num_generations):
                group = values[first : first + num_generations]
                there = group[~group.isnan()]
                whole = values[~values.isnan()] if scale == "batch" else there
                normal[first : first + num_generations] = (group - there.mean()) / (
                    1.0 if scale == "none" else whole.std() + 1e-4)
            after = torch.nan_to_num(normal, nan=0.0).flip(1).cumsum(1).flip(1)
            cases.append({"num_generations": num_generations, "scale_rewards": scale, "advantages": flatten(after)})
    return {"lengths": lengths, "values": or_none(flatten(values)), "cases": cases}
