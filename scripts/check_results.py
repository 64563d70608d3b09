"""Checks files of `candlewick eval --output` against lm-evaluation-harness: its schema, its names, its table.

    pip install --no-deps lm_eval==0.4.13
    pip install pydantic==2.14.3 pytablewriter==1.2.1 numpy requests pyyaml jinja2
    python scripts/check_results.py target/release/candlewick

It evaluates data/starter on a few rows, greedily and with several samples a prompt. `EvalResults` and `SampleResult` of
`lm_eval.result_schema` are checked strictly by pydantic, with two exceptions that it prints: `configs`, whose declared
type the harness's own files do not have either (they hold lists and tables), and the members of samples that are ours.
Exit code 0 when everything agrees, 1 otherwise.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from lm_eval import result_schema
from lm_eval.utils import (
    get_file_datetime,
    get_file_task_name,
    get_results_filenames,
    get_sample_results_filenames,
    hash_string,
    make_table,
    sanitize_model_name,
)
from pydantic import TypeAdapter, ValidationError

# What a completion got, one value a completion: the schema knows numbers of a prompt only.
OURS = ["is_correct", "reward", "rewards", "num_tokens", "finish_reason"]


def faults(kind, value):
    """What the schema says against a value, strictly: a whole number is no text."""
    try:
        TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return []


def check(binary, folder, arguments):
    command = [binary, "eval", "data/starter", "--data", "data/math_tasks_eval.jsonl", "--num-rows", "24"]
    command += ["--max-completion-length", "32", "--output", str(folder), "--show", "0", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    (results_file,), (samples_file,) = get_results_filenames(files), get_sample_results_filenames(files)
    results = json.loads(Path(results_file).read_text())
    samples = [json.loads(line) for line in Path(samples_file).read_text().splitlines()]
    wrong = []

    configs = results.pop("configs")
    known = result_schema.EvalResults.__annotations__
    extra = [name for name in results if name not in known]
    wrong += faults(result_schema.EvalResults, results)
    for row in samples:
        wrong += faults(result_schema.SampleResult, {name: value for name, value in row.items() if name not in OURS})
    num_members = sum(len(row) - len(OURS) for row in samples)
    print(f"schema: {len(results) - len(extra)} members of the results, {num_members} of {len(samples)} samples, {len(wrong)} faults")
    print(f"  not in the schema: {', '.join(extra)}; in samples {', '.join(OURS)}; not checked: configs ({len(configs)} task)")

    (task,) = results["results"]
    figures = results["results"][task]
    names = Path(samples_file).name, Path(results_file).name
    if get_file_task_name(names[0]) != task:
        wrong.append(f"the harness reads the task {get_file_task_name(names[0])} in {names[0]}")
    # The harness takes off the end of the name of samples only.
    if get_file_datetime(names[0]) != get_file_datetime(names[1]).removesuffix(".json"):
        wrong.append("the two files have different times")
    if Path(results_file).parent.name != sanitize_model_name("data/starter") != results["model_name_sanitized"]:
        wrong.append(f"the folder is {Path(results_file).parent.name}")
    for row in samples:
        if row["prompt_hash"] != hash_string(row["arguments"]["gen_args_0"]["arg_0"]) or row["target_hash"] != hash_string(row["target"]):
            wrong.append(f"the hashes of document {row['doc_id']}")
    name = next(name for name in figures if name.startswith("exact_match,"))
    mean = sum(row["exact_match"] for row in samples) / len(samples)
    if abs(mean - figures[name]) > 1e-12 or figures["sample_len"] != len(samples) == results["n-samples"][task]["effective"]:
        wrong.append(f"{name} is {figures[name]}, the samples give {mean}")
    lines = make_table({**results, "configs": configs}).splitlines()
    shown = [line for line in lines if "exact_match" in line or "pass@" in line]
    print(f"names, times and {2 * len(samples)} hashes as the harness makes them; {name} = {mean:.4f} from the samples; its table:")
    print("\n".join(f"  {line}" for line in [lines[0], *shown]))
    for fault in wrong:
        print(f"WRONG: {fault}")
    return len(wrong)


def main():
    num_wrong = 0
    for arguments in ([], ["--num-samples", "4", "--temperature", "1"]):
        with tempfile.TemporaryDirectory() as folder:
            num_wrong += check(sys.argv[1], Path(folder), arguments)
    sys.exit(bool(num_wrong))


if __name__ == "__main__":
    main()
