"""The rows of the comparison: what both sides do, and how much faster candlewick is meant to be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One piece of work, done by both programs with the same weights and prompts.

    kind: `step` is a GRPO step with a KL term, `decode` the sampling of all its completions, `train` a supervised step
    on rows of one length (`prompts` rows; `group` and `completion` do not count).
    """

    name: str
    label: str
    kind: str
    model: str
    faster: tuple[float, float]  # the peer's time over ours, at least: on one core, on two
    smaller: float | None = None  # our peak memory over the peer's, at most
    data: str = "prompts.jsonl"
    prompts: int = 8
    group: int = 8
    completion: int = 32
    warmup: int = 1
    steps: int = 3  # measured in each turn
    memory_gib: int = 4  # what the peer needs


TINY, SMALL, HALF = "tiny-qwen2", "small-llama", "qwen2-0.5b-shape"

ROWS = [
    Row("tiny-step", "GRPO step, tiny-qwen2", "step", TINY, (3, 4), smaller=1 / 8, steps=6),
    Row("small-step", "GRPO step, small-llama", "step", SMALL, (1.6, 1.6), smaller=1 / 3),
    Row(
        "small-step-long",
        "GRPO step, small-llama, prompts of 256 tokens",
        "step",
        SMALL,
        (4.5, 4.5),
        data="prompts-long.jsonl",
        steps=1,
        memory_gib=14,
    ),
    Row("tiny-decode", "decode 64 x 64 tokens, tiny-qwen2", "decode", TINY, (4, 4), completion=64, steps=6),
    Row("small-decode", "decode 64 x 64 tokens, small-llama", "decode", SMALL, (2, 2), completion=64),
    Row(
        "small-train",
        "training on 16 x 128 tokens, small-llama, nothing shared",
        "train",
        SMALL,
        (1.15, 1.15),
        data="texts.jsonl",
        prompts=16,
    ),
    Row(
        "half-b-decode",
        "decode 8 x 16 tokens, qwen2-0.5b-shape",
        "decode",
        HALF,
        (1.5, 1.5),
        prompts=1,
        completion=16,
        memory_gib=6,
    ),
    Row(
        "half-b-step",
        "GRPO step of 2 x 8 completions, qwen2-0.5b-shape",
        "step",
        HALF,
        (1.5, 1.5),
        prompts=2,
        steps=1,
        memory_gib=14,
    ),
]
