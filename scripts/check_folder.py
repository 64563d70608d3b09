"""Checks a model folder without torch: the packages `tokenizers` and `safetensors` read it, and the numbers agree.

    python scripts/check_folder.py MODEL_FOLDER [STORED_JSON]

Checked: config.json names an architecture and a vocabulary; the weight files (one, or shards with an index) hold
exactly the tensors that they announce, of floating type, all finite, with the `format: pt` mark that transformers
asks for; the embedding is as large as the configuration says; tokenizer.json loads and its ids fit the embedding.

With STORED_JSON, written by `cargo run --release --example dump_outputs -- MODEL_FOLDER DATA.jsonl`, also: the
tokenizer gives the stored `token_ids` for the stored `prompts` and the stored `greedy_text` for the stored
`greedy_ids`, and each tensor has the stored `shape`, `sum` and `sum_squares` (the last two in float64, within 1e-9 of
their size).

Made for tokenizers 0.23.3 and safetensors 0.8.0. Exit code 0 when everything agrees, 1 otherwise.
"""

import argparse
import json
import math
import struct
import sys
from array import array
from pathlib import Path

from safetensors import deserialize
from tokenizers import Tokenizer


def read_values(dtype, data):
    """The elements of a tensor as Python floats."""
    if dtype == "BF16":  # the upper half of an f32
        words = array("I", [half << 16 for half in array("H", data)])
        return array("f", words.tobytes())
    codes = {"F32": "f", "F64": "d", "F16": "e"}
    if dtype not in codes:
        raise ValueError(f"dtype {dtype} is not a floating type that is trained")
    return struct.unpack(f"<{len(data) // struct.calcsize(codes[dtype])}{codes[dtype]}", data)


def read_metadata(path):
    """The `__metadata__` of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})


class FolderCheck:
    """Gathers every problem of a folder, so that one run shows them all."""

    def __init__(self, folder):
        self.folder = folder
        self.problems = []
        self.tensors = {}

    def expect(self, condition, message):
        if not condition:
            self.problems.append(message)
        return condition

    def read_json(self, name):
        path = self.folder / name
        if not self.expect(path.is_file(), f"{name} is missing"):
            return {}
        return json.loads(path.read_text(encoding="utf-8"))

    def weight_files(self):
        """Names of the weight files, each with the tensors that the index puts there (None without an index)."""
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            return {"model.safetensors": None}
        files = {}
        for tensor, name in json.loads(index.read_text())["weight_map"].items():
            files.setdefault(name, set()).add(tensor)
        return files

    def check_weights(self):
        for name, announced in self.weight_files().items():
            path = self.folder / name
            if not self.expect(path.is_file(), f"{name} is missing"):
                continue
            self.expect(read_metadata(path).get("format") == "pt", f"{name}: no metadata format = pt")
            found = dict(deserialize(path.read_bytes()))
            self.expect(announced in (None, set(found)), f"{name}: other tensors than the index says")
            for tensor, view in found.items():
                values = read_values(view["dtype"], bytes(view["data"]))
                self.expect(all(map(math.isfinite, values)), f"{tensor}: not every value is finite")
                self.tensors[tensor] = {
                    "shape": list(view["shape"]),
                    "sum": math.fsum(values),
                    "sum_squares": math.fsum(x * x for x in values),
                }
        self.expect(self.tensors, "there are no weights")

    def check_config(self):
        config = self.read_json("config.json")
        self.expect(config.get("architectures"), "config.json names no architecture")
        self.expect(config.get("model_type"), "config.json names no model_type")
        vocab_size, hidden_size = config.get("vocab_size"), config.get("hidden_size")
        embedding = self.tensors.get("model.embed_tokens.weight", {}).get("shape")
        self.expect(
            embedding == [vocab_size, hidden_size],
            f"model.embed_tokens.weight is {embedding}, config.json says [{vocab_size}, {hidden_size}]",
        )
        tied = config.get("tie_word_embeddings", False)
        self.expect(
            tied or "lm_head.weight" in self.tensors, "lm_head.weight is missing and config.json does not tie it"
        )
        return vocab_size or 0

    def check_tokenizer(self, vocab_size, stored):
        path = self.folder / "tokenizer.json"
        if not self.expect(path.is_file(), "tokenizer.json is missing"):
            return
        tokenizer = Tokenizer.from_file(str(path))
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.expect(highest < vocab_size, f"token id {highest} does not fit the {vocab_size} rows of the embedding")
        for prompt, ids in zip(stored.get("prompts", []), stored.get("token_ids", [])):
            got = tokenizer.encode(prompt).ids
            self.expect(got[: len(ids)] == ids and len(got) <= len(ids) + 1, f"{prompt!r}: ids {got}, stored {ids}")
        for text, ids in zip(stored.get("greedy_text", []), stored.get("greedy_ids", [])):
            got = tokenizer.decode(ids, skip_special_tokens=True)
            self.expect(got == text, f"decoded {got!r}, stored {text!r}")

    def check_stored_tensors(self, stored):
        expected = stored.get("tensors", {})
        if expected:
            differing = sorted(set(expected) ^ set(self.tensors))
            self.expect(not differing, f"tensors on one side only: {differing}")
        for name, numbers in expected.items():
            got = self.tensors.get(name)
            if got is None:
                continue
            self.expect(got["shape"] == numbers["shape"], f"{name}: shape {got['shape']}, stored {numbers['shape']}")
            # A sum may cancel to almost nothing: its rounding is of the size of the values that went into it.
            size = math.sqrt(got["sum_squares"] * max(1, math.prod(got["shape"])))
            for key, scale in [("sum", size), ("sum_squares", got["sum_squares"])]:
                close = abs(got[key] - numbers[key]) <= 1e-9 * scale
                self.expect(close, f"{name}: {key} {got[key]}, stored {numbers[key]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("stored_json", type=Path, nargs="?")
    arguments = parser.parse_args()
    stored = json.loads(arguments.stored_json.read_text()) if arguments.stored_json else {}
    check = FolderCheck(arguments.model_folder)
    check.check_weights()
    check.check_tokenizer(check.check_config(), stored)
    check.check_stored_tensors(stored)
    num_tensors, num_prompts = len(check.tensors), len(stored.get("prompts", []))
    print("\n".join(check.problems) or f"{arguments.model_folder}: {num_tensors} tensors, {num_prompts} prompts agree")
    sys.exit(1 if check.problems else 0)


if __name__ == "__main__":
    main()
