"""Writes the models with random weights that the benchmarks run on, and the prompts.

    tiny-qwen2          1M parameters, a token for each printable ASCII character
    small-llama         28M parameters, byte-level BPE of 4096 tokens
    qwen2-0.5b-shape    the shape of Qwen2.5-0.5B, bf16, the same BPE
    qwen2-1.5b-shape    the shape of Qwen2.5-1.5B, likewise
    tinyllama-shape     the shape of TinyLlama-1.1B, likewise
    family-NAME         a very small model of the family llama, mistral, qwen2 or qwen3
    width-64 .. 512     the tiny model in other widths (scaling)
    vocab-4096, -151936 a very small model with two sizes of its vocabulary (memory of the loss)

Each is a Hugging Face folder. `NAME-endless` beside it is the same model without an end token, so that a program that
has no `min_new_tokens` cannot end a completion early. Folders that are there already are kept.

    python make_models.py FOLDER NAME...
"""

import json
import os
import random
import shutil
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import Qwen2Config, Qwen2ForCausalLM

NUM_PROMPTS = 256
LONG_PROMPT = 256
NUM_SFT_ROWS = 512
SFT_TOKENS = 128


def fast(tokenizer, eos, pad):
    """The tokenizer as transformers saves it; ByteLevel keeps spaces, whatever class a family brings."""
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def char_tokenizer():
    """A token for a line break and for each printable ASCII character: byte-level BPE without merges."""
    tokens = ["<pad>", "<eos>", "Ċ", "Ġ", *map(chr, range(ord("!"), ord("~") + 1))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(tokens[:2])
    return fast(tokenizer, "<eos>", "<pad>")


def bpe_tokenizer():
    """4096 tokens learned from Python's help texts and from sums; a digit is always a token of its own."""
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sums = [question(rng)[0] for _ in range(5000)]
    tokenizer.train_from_iterator([*topics.values(), *sums], trainer)
    return fast(tokenizer, "<|endoftext|>", "<|pad|>")


def question(rng):
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"What is {a} + {b}? Answer with an integer.", a + b


def qwen2(tokenizer, vocab, width, inner, layers, heads, kv_heads, context=1024, **more):
    return Qwen2ForCausalLM, Qwen2Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def llama(tokenizer, vocab, width, inner, layers, heads, kv_heads):
    return LlamaForCausalLM, LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )


# Tokens, width, inner width, layers, heads, heads of keys.
LLAMA_SHAPES = {"small-llama": (4096, 512, 1408, 8, 8, 4), "tinyllama-shape": (32_000, 2048, 5632, 22, 32, 4)}
# The same without the tokens, of which all have as many.
QWEN2_SHAPES = {"qwen2-0.5b-shape": (896, 4864, 24, 14, 2), "qwen2-1.5b-shape": (1536, 8960, 28, 12, 2)}


def family(name, tokenizer):
    """`(model class, configuration)` of a very small model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim={"llama": 16, "qwen3": 32}.get(name, 16),
        max_position_embeddings=512,
        sliding_window=None,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config, config


def describe(name):
    """`(tokenizer, model class, configuration, number format)` of a model."""
    if name in LLAMA_SHAPES:
        tokenizer = bpe_tokenizer()
        dtype = torch.float32 if name == "small-llama" else torch.bfloat16
        return tokenizer, *llama(tokenizer, *LLAMA_SHAPES[name]), dtype
    if name in QWEN2_SHAPES:
        tokenizer = bpe_tokenizer()
        rope = {"rope_type": "default", "rope_theta": 1e6}
        model, config = qwen2(tokenizer, 151_936, *QWEN2_SHAPES[name], context=32_768, rope_parameters=rope)
        return tokenizer, model, config, torch.bfloat16
    if name.startswith("family-"):
        tokenizer = char_tokenizer()
        return tokenizer, *family(name.removeprefix("family-"), tokenizer), torch.float32
    tokenizer = char_tokenizer()
    if name == "tiny-qwen2":
        model, config = qwen2(tokenizer, len(tokenizer), 128, 384, 4, 4, 2)
    elif name.startswith("width-"):
        width = int(name.removeprefix("width-"))
        model, config = qwen2(tokenizer, len(tokenizer), width, 3 * width, 4, width // 32, width // 32, context=2048)
    elif name.startswith("vocab-"):
        model, config = qwen2(tokenizer, int(name.removeprefix("vocab-")), 32, 64, 1, 1, 1)
    else:
        raise SystemExit(f"there is no model '{name}'")
    return tokenizer, model, config, torch.float32


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_prompts(folder, tokenizer):
    """Sums; the same after solved sums that fill them up to `LONG_PROMPT` tokens; rows of `SFT_TOKENS` digits."""
    rng = random.Random(1)
    rows = [dict(zip(("prompt", "answer"), question(rng))) for _ in range(NUM_PROMPTS)]
    write_rows(folder / "prompts.jsonl", rows)
    filled = []
    for row in rows:
        text = row["prompt"]
        while True:
            a, b = rng.randint(10, 99), rng.randint(10, 99)
            longer = f"{a} + {b} = {a + b}. {text}"
            if len(tokenizer(longer).input_ids) > LONG_PROMPT:
                break
            text = longer
        filled.append(row | {"prompt": text})
    write_rows(folder / "prompts-long.jsonl", filled)
    digits = ["".join(rng.choices("0123456789", k=SFT_TOKENS)) for _ in range(NUM_SFT_ROWS)]
    assert all(len(tokenizer(text).input_ids) == SFT_TOKENS for text in digits)
    write_rows(folder / "texts.jsonl", [{"text": text} for text in digits])


def write_endless(folder):
    """The copy without an end token; the weights are shared."""
    copy = folder.with_name(folder.name + "-endless")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".json":
            os.link(file, copy / file.name)
            continue
        value = json.loads(file.read_text())
        for key in ("eos_token_id", "eos_token"):
            value.pop(key, None)
        (copy / file.name).write_text(json.dumps(value, indent=2) + "\n")


def make(root, name):
    folder, done = root / name, root / name / "texts.jsonl"
    if done.exists() and (root / f"{name}-endless").is_dir():
        return
    torch.manual_seed(0)
    tokenizer, model_class, config, dtype = describe(name)
    model = model_class(config).to(dtype)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(do_sample=True, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_prompts(folder, tokenizer)
    write_endless(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    (folder / "size.json").write_text(json.dumps({"parameters": count}))
    print(f"{name}: {count / 1e6:.2f}M parameters", file=sys.stderr)


def main():
    root, *names = sys.argv[1:]
    for name in names:
        make(Path(root), name)


if __name__ == "__main__":
    main()
