"""Makes tests/fixtures/reward: tiny random reward models of each family with the scores that transformers gives.

Run:  OMP_NUM_THREADS=1 python scripts/make_reward_fixtures.py
With: torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, safetensors 0.8.0 (checked), in f32 on the CPU.

Each folder is what `...ForSequenceClassification.save_pretrained` writes for one label, with the tokenizer of
make_hf_fixtures.py. Beside it stands expected.json:
  plain   prompt, completion, score of prompt + completion, tokenised without special tokens
  chat    messages, completion, score of the chat template over messages + the completion as the assistant's turn
          (qwen3 alone has a template)
and for qwen2 `loss`, of the Bradley-Terry objective with center_rewards_coefficient 0.1 over the pairs `pairs` (prompt,
chosen, rejected), with its gradients in gradients.safetensors, one of each parameter.
Texts are scored one by one, as TRL's GRPOTrainer renders them.
"""

import json
import pathlib

import safetensors.torch
import torch
from make_hf_fixtures import randomize, tokenizer, versions
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "reward"
CENTER = 0.1
TEMPLATE = (
    "{% for message in messages %}{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{{ message['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN = [
    ("Q: 12+7=? A:", " 19"),
    ("Q: 12+7=? A:", " 21"),
    ("Q: 12+7=? A:", ""),
    ("Q: 12+7=? A:", " 19, as 12+7=19."),
    ("7-9=", "-2"),
    ("7-9=", "-2<eos>"),  # the end-of-text token is no padding token here: it is read
    ("7-9=", "-2<pad><pad>"),  # padding is not
    ("tell me a story", "\nonce upon a time there was a number. it was small, and it was not sad.\n"),
    ("a", "b"),
]
CHAT = [
    ([{"role": "user", "content": "12+7=?"}], "19"),
    ([{"role": "user", "content": "12+7=?"}, {"role": "assistant", "content": "18"},
      {"role": "user", "content": "no"}], "it is 19."),
]
PAIRS = [
    ("Q: 12+7=? A:", " 19", " 21, or so"),
    ("7-9=", "-2", "2"),
    ("tell me a story", "\nit was small", "no"),
]


def families(vocab):
    common = dict(
        vocab_size=vocab, num_hidden_layers=2, max_position_embeddings=128, rms_norm_eps=1e-6, num_labels=1,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, initializer_range=0.1, dtype="float32",
    )
    rope = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    return [
        (
            "llama",
            LlamaConfig(**common, **rope, hidden_size=18, intermediate_size=21, num_attention_heads=3,
                        num_key_value_heads=1, head_dim=6),
            LlamaForSequenceClassification,
        ),
        (
            "mistral",
            MistralConfig(**common, **rope, hidden_size=16, intermediate_size=22, num_attention_heads=2,
                          num_key_value_heads=2, head_dim=8, sliding_window=None),
            MistralForSequenceClassification,
        ),
        (
            "qwen2",
            Qwen2Config(**common, **rope, hidden_size=20, intermediate_size=19, num_attention_heads=5,
                        num_key_value_heads=1, tie_word_embeddings=True),
            Qwen2ForSequenceClassification,
        ),
        (
            "qwen3",
            Qwen3Config(**common, **rope, hidden_size=14, intermediate_size=23, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=6, tie_word_embeddings=True),
            Qwen3ForSequenceClassification,
        ),
    ]


def score(model, tok, text):
    ids = tok(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model(input_ids=ids).logits[0, 0]


def make(name, config, model_class, tok, seed):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    randomize(model, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.score.weight.mul_(10.0)
    model.save_pretrained(folder)
    tok.chat_template = TEMPLATE if name == "qwen3" else None
    tok.save_pretrained(folder)
    model = model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

    expected = {"versions": versions(), "plain": [], "chat": []}
    with torch.no_grad():
        for prompt, completion in PLAIN:
            value = score(model, tok, prompt + completion).item()
            expected["plain"].append({"prompt": prompt, "completion": completion, "score": value})
        for messages, completion in CHAT if name == "qwen3" else []:
            turns = messages + [{"role": "assistant", "content": completion}]
            value = score(model, tok, tok.apply_chat_template(turns, tokenize=False)).item()
            expected["chat"].append({"messages": messages, "completion": completion, "score": value})
    if name == "qwen2":
        loss = 0.0
        for prompt, chosen, rejected in PAIRS:
            c, r = score(model, tok, prompt + chosen), score(model, tok, prompt + rejected)
            loss = loss - torch.nn.functional.logsigmoid(c - r) + CENTER * (c + r) ** 2
        loss = loss / len(PAIRS)
        loss.backward()
        gradients = {name: parameter.grad.contiguous() for name, parameter in model.named_parameters()}
        assert all(gradient.abs().max() > 0 for gradient in gradients.values())
        safetensors.torch.save_file(gradients, folder / "gradients.safetensors", metadata={"format": "pt"})
        expected |= {"loss": loss.item(), "pairs": [dict(zip(("prompt", "chosen", "rejected"), p)) for p in PAIRS]}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
    scores = [row["score"] for row in expected["plain"] + expected["chat"]]
    print(f"{name}: scores from {min(scores):.3f} to {max(scores):.3f}")
    assert max(scores) - min(scores) > 0.5


def main():
    versions()
    torch.use_deterministic_algorithms(True)
    tok = tokenizer()
    for index, (name, config, model_class) in enumerate(families(len(tok) + 3)):
        make(name, config, model_class, tok, seed=7 + index)
    total = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{total} bytes in all")
    assert total < 300_000


if __name__ == "__main__":
    main()
