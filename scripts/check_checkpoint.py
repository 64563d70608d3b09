"""Checks that transformers reads a checkpoint as candlewick does: token ids, last-position logits, greedy text.

    OMP_NUM_THREADS=1 python scripts/check_checkpoint.py MODEL_FOLDER STORED_JSON

MODEL_FOLDER is a checkpoint or output folder; STORED_JSON holds what candlewick computed from it:

    cargo run --release --example dump_outputs -- MODEL_FOLDER DATA.jsonl > STORED_JSON

    {"prompts": [str], "token_ids": [[int]], "logits_last": [[float]], "greedy_text": [str], "max_new_tokens": int}

one entry a prompt: its ids, the logits after its last token, and the greedy completion (special tokens skipped).
Needs torch 2.15.0 and transformers 5.23.0 (about 6 GB), so it is no part of CI: `check_folder.py` is.
Exit code 0 when everything agrees, 1 otherwise.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOGIT_TOLERANCE = 1e-4
MIN_PROMPTS = 20


def encode(tokenizer, prompt):
    """The ids of a plain prompt; an EOS that a tokenizer appends would end the text, and is left off by candlewick."""
    ids = tokenizer(prompt)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


@torch.no_grad()
def check(folder, stored):
    """One line for each disagreement, and the largest difference of a logit."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    problems, largest = [], 0.0
    columns = [stored[name] for name in ("prompts", "token_ids", "logits_last", "greedy_text")]
    for prompt, ids, logits, text in zip(*columns, strict=True):
        expected_ids = encode(tokenizer, prompt)
        if ids != expected_ids:
            problems.append(f"{prompt!r}: token ids {ids}, transformers has {expected_ids}")
            continue
        input_ids = torch.tensor([ids])
        expected = model(input_ids=input_ids).logits[0, -1]
        if len(logits) != expected.numel():
            problems.append(f"{prompt!r}: {len(logits)} logits, transformers has {expected.numel()}")
            continue
        difference = (torch.tensor(logits) - expected).abs().max().item()
        largest = max(largest, difference)
        if not difference <= LOGIT_TOLERANCE:
            problems.append(f"{prompt!r}: a logit differs by {difference:.3g}")
        output = model.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), do_sample=False,
            max_new_tokens=stored["max_new_tokens"], pad_token_id=tokenizer.pad_token_id or 0,
        )
        expected_text = tokenizer.decode(
            output[0, len(ids):], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if text != expected_text:
            problems.append(f"{prompt!r}: greedy text {text!r}, transformers has {expected_text!r}")
    return problems, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("stored_json", type=Path)
    arguments = parser.parse_args()
    stored = json.loads(arguments.stored_json.read_text())
    if len(stored["prompts"]) < MIN_PROMPTS:
        sys.exit(f"{arguments.stored_json}: {len(stored['prompts'])} prompts, at least {MIN_PROMPTS} are needed")
    problems, largest = check(arguments.model_folder, stored)
    print("\n".join(problems) or f"{len(stored['prompts'])} prompts: same token ids and greedy text", flush=True)
    print(f"largest difference of a logit: {largest:.3g} (allowed {LOGIT_TOLERANCE:g})")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
