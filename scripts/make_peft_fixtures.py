"""Makes tests/fixtures/peft: adapters of PEFT beside the tiny models of tests/fixtures/hf, with what they compute.

Run:  OMP_NUM_THREADS=1 python scripts/make_peft_fixtures.py
With: torch 2.15.0, transformers 5.23.0, peft 0.21.2 (checked below), in f32 on the CPU.

Each folder is an adapter folder as `save_pretrained` writes it, whose base model is named relative to it, and beside it
  expected.safetensors  input_ids [T] i64; logits [T, V] f32; grad.<tensor of the adapter> f32; greedy_ids [16] i64
  expected.json         prompt, versions
The loss whose gradients are stored is the mean of -log p(token t+1 | tokens to t) over the T-1 targets.
"""

import json
import pathlib

import peft
import safetensors.torch
import torch
import transformers
from peft import LoraConfig, get_peft_model

PINNED = {"torch": "2.15.0", "transformers": "5.23.0", "peft": "0.21.2"}
ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
NUM_INPUT = 23
NUM_GREEDY = 16
PROMPT = "Q: 12+7=? A:"

ADAPTERS = [
    ("qwen2_tied", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
    (
        "qwen3",
        dict(
            r=3, lora_alpha=4, use_rslora=True, target_modules="all-linear",
            rank_pattern={"layers.1.mlp.up_proj": 5}, alpha_pattern={"down_proj": 9},
        ),
    ),
]


def versions():
    found = {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    if found != PINNED:
        raise SystemExit(f"pinned {PINNED}, found {found}")
    return found


def make(name, settings, seed):
    folder = ROOT / "peft" / name
    base = ROOT / "hf" / name
    generator = torch.Generator().manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    inner = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    model = get_peft_model(inner, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"../../hf/{name}"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")

    input_ids = torch.randint(1, inner.config.vocab_size, (NUM_INPUT,), generator=generator)
    logits = model(input_ids=input_ids[None]).logits[0]
    torch.nn.functional.cross_entropy(logits[:-1], input_ids[1:]).backward()
    expected = {"input_ids": input_ids, "logits": logits.detach().contiguous()}
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            expected[f"grad.{key.replace('.default', '')}"] = parameter.grad.contiguous()
    prompt_ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    ids = list(prompt_ids)
    with torch.no_grad():
        for _ in range(NUM_GREEDY):
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    expected["prompt_ids"] = torch.tensor(prompt_ids)
    expected["greedy_ids"] = torch.tensor(ids[len(prompt_ids) :])
    safetensors.torch.save_file(expected, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps({"prompt": PROMPT, "versions": versions()}, indent=2) + "\n")
    print(name, len(expected), "tensors")


if __name__ == "__main__":
    versions()
    for seed, (name, settings) in enumerate(ADAPTERS):
        make(name, settings, seed)
