"""Makes tests/fixtures/hf: tiny random models of each family with what transformers computes for them.

Run:  OMP_NUM_THREADS=1 python scripts/make_hf_fixtures.py
With: torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, safetensors 0.8.0 (checked below), in f32 on the CPU.

Each folder is a Hugging Face model folder (config.json, model.safetensors, tokenizer.json, ...) and beside it
  expected.safetensors  input_ids [T] i64; logits [T, V] f32; nll [T-1] f32; grad.<name> of every parameter, f32;
                        long_positions [P] i64 and long_logits [P, V] f32 of one long sequence long_ids (where there is one);
                        prompt_ids, greedy_ids [64] i64; greedy_gap [64] f32 (best minus second logit, to see near-ties)
  expected.json         loss (mean NLL of the sequence), prompt, greedy text, the versions
The loss whose gradients are stored is the mean of -log p(token t+1 | tokens to t) over the T-1 targets.
"""

import json
import pathlib
import string

import safetensors
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PINNED = {"torch": "2.15.0", "transformers": "5.23.0", "tokenizers": "0.23.3", "safetensors": "0.8.0"}
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "hf"
NUM_GREEDY = 64
NUM_INPUT = 23
# f32 differences between implementations are below 1e-5 here.
SMALLEST_GAP = 5e-3
PROMPT = "Q: 12+7=? A:"
# Long enough for the middle and low frequencies of the scaled rotary embedding to turn.
NUM_LONG = 400

CHARACTERS = "\n " + string.digits + "+-=?,." + string.ascii_lowercase + "QASTW"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<user>", "<assistant>"]


def versions():
    found = {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
    }
    if found != PINNED:
        raise SystemExit(f"pinned {PINNED}, found {found}")
    return found


def tokenizer():
    """A character-level tokenizer that transformers rebuilds unchanged: byte-level BPE without merges."""
    alphabet = {" ": "\u0120", "\n": "\u010a"}
    words = SPECIAL + [alphabet.get(c, c) for c in CHARACTERS]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", clean_up_tokenization_spaces=False
    )


def families(vocab):
    """(name, config, model class, long sequence?)."""
    common = dict(
        vocab_size=vocab, num_hidden_layers=2, max_position_embeddings=512, rms_norm_eps=1e-6,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, initializer_range=0.1, dtype="float32",
    )
    # Seven heads on one kv head; a head_dim that is not hidden_size / heads (28 / 7 = 4).
    ratio7 = dict(hidden_size=28, intermediate_size=33, num_attention_heads=7, num_key_value_heads=1, head_dim=6)
    llama3 = dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    plain = lambda theta: dict(rope_type="default", rope_theta=theta)
    return [
        ("llama_gqa7", LlamaConfig(**common, **ratio7, rope_parameters=plain(10000.0)), LlamaForCausalLM, False),
        (
            "llama3_scaled",
            LlamaConfig(
                **common, hidden_size=24, intermediate_size=29, num_attention_heads=3, num_key_value_heads=3, head_dim=12,
                rope_parameters=llama3, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            ),
            LlamaForCausalLM,
            True,
        ),
        (
            "mistral",
            MistralConfig(
                **common, hidden_size=26, intermediate_size=31, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
                sliding_window=None, rope_parameters=plain(10000.0),
            ),
            MistralForCausalLM,
            False,
        ),
        (
            "qwen2_tied",
            Qwen2Config(
                **common, hidden_size=30, intermediate_size=27, num_attention_heads=3, num_key_value_heads=1,
                tie_word_embeddings=True, rope_parameters=plain(1000000.0),
            ),
            Qwen2ForCausalLM,
            False,
        ),
        (
            "qwen2_untied",
            Qwen2Config(
                **common, hidden_size=20, intermediate_size=35, num_attention_heads=5, num_key_value_heads=5,
                tie_word_embeddings=False, rope_parameters=plain(10000.0),
            ),
            Qwen2ForCausalLM,
            False,
        ),
        (
            "qwen3",
            Qwen3Config(
                **common, hidden_size=22, intermediate_size=25, num_attention_heads=4, num_key_value_heads=2, head_dim=14,
                tie_word_embeddings=True, rope_parameters=plain(1000000.0),
            ),
            Qwen3ForCausalLM,
            False,
        ),
    ]


def randomize(model, generator):
    """Every parameter from N(0, 0.1^2), norms around 1, wider where attention would be uniform or a tied
    model would repeat its last token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
            if "norm" in name:
                parameter.add_(1.0)
            elif any(part in name for part in ("q_proj.weight", "k_proj.weight", "o_proj.weight", "down_proj.weight")):
                parameter.mul_(3.0)


def old_layout(path):
    """Rewrites a config in the layout of transformers 4, so that both layouts are covered."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def draw(config, model_class, prompt_ids, first_seed):
    """The model of the first seed whose greedy text varies and has no near-ties."""
    for seed in range(first_seed, first_seed + 500):
        generator = torch.Generator().manual_seed(seed)
        model = model_class(config).eval()
        randomize(model, generator)
        ids, gaps = greedy(model, prompt_ids, SMALLEST_GAP)
        if len(ids) == NUM_GREEDY and len(set(ids)) >= 10:
            return seed, model, generator
    raise SystemExit("no seed gives a clear greedy text")


def greedy(model, prompt, smallest_gap=0.0):
    """The greedy continuation with the gaps between the best two logits; ends early at a gap that is too small."""
    ids, gaps = list(prompt), []
    with torch.no_grad():
        for _ in range(NUM_GREEDY):
            best = model(torch.tensor([ids])).logits[0, -1].topk(2)
            gaps.append((best.values[0] - best.values[1]).item())
            if gaps[-1] < smallest_gap:
                break
            ids.append(best.indices[0].item())
    return ids[len(prompt) :], gaps


def make(name, config, model_class, is_long, tok, seed):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    config._attn_implementation = "eager"
    prompt_ids = tok(PROMPT, add_special_tokens=False)["input_ids"]
    seed, model, generator = draw(config, model_class, prompt_ids, seed)
    model.save_pretrained(folder)
    if name in ("llama3_scaled", "qwen2_tied"):
        old_layout(folder / "config.json")
    tok.save_pretrained(folder)
    # What was saved is what counts from here on.
    model = model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

    vocab = config.vocab_size
    # Without the pad token (0): torch gives the looked-up row of padding_idx no gradient, a rule for padding only.
    input_ids = torch.randint(1, vocab, (NUM_INPUT,), generator=generator)
    logits = model(input_ids[None]).logits[0]
    nll = torch.nn.functional.cross_entropy(logits[:-1], input_ids[1:], reduction="none")
    loss = nll.mean()
    loss.backward()
    stored = {"input_ids": input_ids, "logits": logits.detach(), "nll": nll.detach()}
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name
        stored[f"grad.{parameter_name}"] = parameter.grad
    greedy_ids, gaps = greedy(model, prompt_ids)
    stored["prompt_ids"] = torch.tensor(prompt_ids)
    stored["greedy_ids"] = torch.tensor(greedy_ids)
    stored["greedy_gap"] = torch.tensor(gaps)
    if is_long:
        long_ids = torch.randint(0, vocab, (NUM_LONG,), generator=generator)
        positions = torch.tensor([0, 63, 64, 127, 255, NUM_LONG - 1])
        with torch.no_grad():
            stored["long_ids"] = long_ids
            stored["long_positions"] = positions
            stored["long_logits"] = model(long_ids[None]).logits[0][positions]
    stored = {key: value.contiguous() for key, value in stored.items()}
    safetensors.torch.save_file(stored, folder / "expected.safetensors", metadata={"format": "pt"})
    expected = {
        "loss": loss.item(),
        "seed": seed,
        "prompt": PROMPT,
        "greedy_text": tok.decode(greedy_ids, skip_special_tokens=False),
        "versions": versions(),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    parameters = sum(p.numel() for p in model.parameters())
    for path in folder.iterdir():
        path.chmod(0o644)
    print(f"{name}: seed {seed}, {parameters} parameters, loss {loss.item():.4f}, smallest greedy gap {min(gaps):.4f}, "
          f"distinct greedy tokens {len(set(greedy_ids))}")
    assert min(gaps) >= SMALLEST_GAP


def main():
    versions()
    torch.use_deterministic_algorithms(True)
    tok = tokenizer()
    vocab = len(tok) + 3  # rows beyond the tokenizer, as padded embeddings have
    for index, (name, config, model_class, is_long) in enumerate(families(vocab)):
        make(name, config, model_class, is_long, tok, seed=1000 * (index + 1))
    total = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{total} bytes in all")
    assert total < 3_000_000


if __name__ == "__main__":
    main()
