"""Checks downloads, pushes and model cards against Hugging Face's own client, with a Hub on the loopback device.

    cargo build --release && cargo build --release --example hub_server
    python scripts/check_hub.py MODEL_FOLDER [TARGET_FOLDER]

MODEL_FOLDER is the output of a run; TARGET_FOLDER is where cargo builds (default `target`). The server speaks the LFS
transfers; Xet is not part of this. Checked, each in both directions: what one side uploads the other finds byte for
byte; a second upload of the same folder by the other side changes nothing, so both compute the same hashes; the cache
that one side fills is whole for the other; transformers loads what was pushed and computes what it computes from the
folder; the card's head is what `ModelCard` understands.

Made for huggingface_hub 2.4.0, transformers 5.23.0, torch 2.15.0. Exit code 0 when everything agrees, 1 otherwise.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
TOKEN = "hf_of_the_check"
UPLOADED, PUSHED = "them/uploaded", "us/pushed"


def start_server(target):
    server = subprocess.Popen(
        [target / "release/examples/hub_server", TOKEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return server, server.stdout.readline().strip()


def candlewick(target, cache, *arguments):
    """Runs the program with a cache of its own; returns what it printed."""
    environment = os.environ | {"HF_HOME": str(cache)}
    done = subprocess.run(
        [target / "release/candlewick", *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"candlewick {arguments[0]} ended with {done.returncode}: {done.stderr}")
    assert TOKEN not in done.stdout + done.stderr, "the token was printed"
    return done.stdout


def same_files(left, right, skip=()):
    """Names of the files that both folders have, and of those that differ."""
    names = {path.name for path in left.iterdir() if path.is_file()} - set(skip)
    differing = [name for name in names if not (right / name).is_file()]
    differing += [name for name in names - set(differing) if (left / name).read_bytes() != (right / name).read_bytes()]
    return sorted(names), sorted(differing)


class Checks:
    def __init__(self):
        self.failed = 0

    def expect(self, holds, text):
        self.failed += not holds
        print(("ok      " if holds else "WRONG   ") + text)


def check_card(checks, card, pushed):
    """The head is what the Hub reads: names, licence, tags, results."""
    data = card.data
    checks.expect(data.library_name == "transformers", f"library_name {data.library_name}")
    checks.expect(data.pipeline_tag == "text-generation", f"pipeline_tag {data.pipeline_tag}")
    checks.expect({"candlewick", "generated_from_trainer"} <= set(data.tags), f"tags {data.tags}")
    for result in data.eval_results or []:
        checks.expect(isinstance(result.metric_value, float), f"{result.metric_type} {result.metric_value}")
    checks.expect(f'model="{pushed}"' in card.text, "the quick start names the model")


def logits(where, **options):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    model = AutoModelForCausalLM.from_pretrained(where, **options)
    with torch.no_grad():
        return model(**tokenizer("12 + 7 =", return_tensors="pt")).logits


def main():
    folder, target = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "target")
    server, endpoint = start_server(target)
    os.environ |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN}
    # Only now: the address is read when the package is loaded.
    from huggingface_hub import HfApi, ModelCard, snapshot_download

    api, checks = HfApi(), Checks()
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Path(scratch, "ours"), Path(scratch, "theirs")
        plan = json.loads(candlewick(target, ours, "push", folder, PUSHED, "--dry-run", "--json"))
        paths = [file["path"] for file in plan["files"]]

        api.create_repo(UPLOADED, private=True)
        api.upload_folder(repo_id=UPLOADED, folder_path=folder, allow_patterns=paths)
        candlewick(target, ours, "generate", UPLOADED, "12 + 7 =", "--device", "cpu")
        found = Path(snapshot_download(UPLOADED, cache_dir=ours / "hub", local_files_only=True))
        names, differing = same_files(found, folder)
        checks.expect("model.safetensors" in names and not differing, f"downloaded what they uploaded: {names}")
        before = api.model_info(UPLOADED).sha
        again = json.loads(candlewick(target, ours, "push", folder, UPLOADED, "--json"))
        only_card = again["files"] in ([], ["README.md"])
        checks.expect(only_card, f"pushed over their upload: new or changed {again['files']} since {before[:8]}")

        pushed = json.loads(candlewick(target, ours, "push", folder, PUSHED, "--private", "--json"))
        info = api.model_info(PUSHED)
        checks.expect(info.private and info.sha == pushed["commit"], f"they see commit {pushed['commit'][:8]}")
        found = Path(snapshot_download(PUSHED, cache_dir=theirs))
        names, differing = same_files(found, folder, skip=("README.md", ".gitattributes"))
        checks.expect(sorted([*names, "README.md"]) == paths and not differing, f"they downloaded it: {names}")
        readme = Path(scratch, "upload")
        readme.mkdir()
        for name in paths:
            (readme / name).write_bytes((found / name).read_bytes())
        api.upload_folder(repo_id=PUSHED, folder_path=readme)
        checks.expect(api.model_info(PUSHED).sha == pushed["commit"], "their upload of the same files changes nothing")
        branch = json.loads(candlewick(target, ours, "push", folder, PUSHED, "--revision", "v/2", "--json"))
        checks.expect(api.model_info(PUSHED, revision="v/2").sha == branch["commit"], "they see the branch")

        check_card(checks, ModelCard.load(PUSHED), PUSHED)
        equal = bool((logits(PUSHED, cache_dir=theirs) == logits(folder)).all())
        checks.expect(equal, "transformers loads it from the Hub and computes the same logits")
    server.stdin.close()
    server.wait()
    sys.exit(bool(checks.failed))


if __name__ == "__main__":
    main()
