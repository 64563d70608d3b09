"""The reward scores for tests/fixtures/trl/rewards.json: run by make_trl_fixtures.py, which says how."""

import numpy as np
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment


def make_rewards():
    rng = np.random.default_rng(2)
    # From much repetition to none, shorter and longer than an n-gram.
    completions = [[], [3], [3, 3], [3, 3, 3], list(range(12)), [1, 2] * 8] + [
        rng.integers(0, vocabulary, length).tolist() for vocabulary in (2, 4, 9) for length in (2, 5, 9, 14, 20)
    ]
    repetition = [
        dict(
            ngram_size=ngram_size, max_penalty=max_penalty,
            scores=get_repetition_penalty_reward(ngram_size, max_penalty)(completion_ids=completions),
        )
        for ngram_size in (1, 2, 3, 5) for max_penalty in (0.0, -0.3, -1.0, -2.5)
    ]
    overlong = [
        dict(
            max_completion_len=longest, soft_punish_cache=cache,
            scores=get_soft_overlong_punishment(longest, cache)(completion_ids=completions),
        )
        for longest in (3, 9, 14, 20) for cache in (0, 1, 3, 7, 14) if cache <= longest
    ]
    return {"completions": completions, "repetition": repetition, "overlong": overlong}
