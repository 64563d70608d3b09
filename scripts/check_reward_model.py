"""Checks that transformers gives a reward model's scores as candlewick does.

    pip install torch==2.15.0 transformers==5.23.0
    python scripts/check_reward_model.py                  # random models of each family, made by transformers
    python scripts/check_reward_model.py MODEL_FOLDER     # a folder, such as one that `algorithm = "reward"` wrote

Each model scores 100 texts on both sides: sums, words, some of them as conversations where the model has a chat template.
Here they are scored one by one, rendered and tokenised as TRL's GRPOTrainer does it. A difference above 1e-4 fails, and
so does a folder that `AutoModelForSequenceClassification` does not load whole. Exit code 0 when all agrees.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
PINNED = {"torch": "2.15.0", "transformers": "5.23.0"}
TOLERANCE = 1e-4
NUM_TEXTS = 100


def texts(has_template):
    draw = random.Random(5)
    word = lambda: "".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(1, 7)))
    for index in range(NUM_TEXTS):
        a, b = draw.randint(0, 99), draw.randint(0, 99)
        prompt = draw.choice([f"{a} + {b} =", f"Q: {a}-{b}=? A:", " ".join(word() for _ in range(draw.randint(1, 9)))])
        if has_template and index % 2:
            prompt = [{"role": "user", "content": prompt}]
        completion = draw.choice([f" {a + b}", f" {a - b}, since {a} - {b}", " " + word() + ".\n" + word()])
        yield {"prompt": prompt, "completion": completion}


def ours(folder, rows):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        program = ["cargo", "run", "--quiet", "--release", "--example", "score_texts", "--"]
        found = subprocess.check_output(program + [pathlib.Path(folder).resolve(), file.name], cwd=ROOT)
        return json.loads(found)


def theirs(folder, rows, tokenizer):
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {name: keys for name, keys in loading.items() if keys}
    if problems or model.config.num_labels != 1:
        raise SystemExit(f"{folder}: loaded with {problems}, {model.config.num_labels} labels")
    model.eval()
    for row in rows:
        text = row["prompt"]
        if isinstance(text, list):
            turns = text + [{"role": "assistant", "content": row["completion"]}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        else:
            text += row["completion"]
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            yield model(input_ids=inputs["input_ids"]).logits[0, 0].item()


def check(name, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = list(texts(tokenizer.chat_template is not None))
    found, expected = ours(folder, rows), list(theirs(folder, rows, tokenizer))
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    spread = max(expected) - min(expected)
    print(f"{name}: {len(rows)} texts, scores over {spread:.2f}, largest difference {worst:.1e}")
    return worst <= TOLERANCE


def random_models(out):
    sys.path.insert(0, str(ROOT / "scripts"))
    from make_hf_fixtures import randomize, tokenizer
    from make_reward_fixtures import TEMPLATE, families

    tok = tokenizer()
    for seed, (name, config, model_class) in enumerate(families(len(tok) + 3)):
        config.max_position_embeddings = 512
        model = model_class(config)
        randomize(model, torch.Generator().manual_seed(100 + seed))
        model.save_pretrained(out / name)
        tok.chat_template = TEMPLATE
        tok.save_pretrained(out / name)
        yield name, out / name


def main():
    found = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    if found != PINNED:
        raise SystemExit(f"pinned {PINNED}, found {found}")
    if len(sys.argv) > 1:
        sys.exit(0 if all([check(folder, pathlib.Path(folder)) for folder in sys.argv[1:]]) else 1)
    with tempfile.TemporaryDirectory() as out:
        sys.exit(0 if all([check(name, folder) for name, folder in random_models(pathlib.Path(out))]) else 1)


if __name__ == "__main__":
    main()
