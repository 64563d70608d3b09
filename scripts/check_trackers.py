"""Checks that wandb, trackio and pandas find in a run what its metrics.jsonl says, also after `kill -9` and resume.

    python scripts/check_trackers.py target/release/candlewick

Made for wandb 0.31.0, trackio 0.43.0, pandas 3.1.1, in the interpreter that runs this script. It trains the quickstart
model in a temporary folder, without a network: wandb writes its offline files, trackio its database. The run is killed
between two checkpoints and continued, so that some steps are made twice: each tracker must have each step once.
Exit code 0 when every value agrees, 1 otherwise.
"""

import glob
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

SAVE_STEPS = 10
KILL_AT = 27
STEPS = 40


def is_wall_clock(name):
    name = name.removeprefix("eval_")
    return name == "step_time" or name.startswith("perf/")


def command(binary, folder, python, *settings):
    reports = 'report_to=["wandb", "trackio", "csv"]'
    values = [reports, f"python='{python}'", "project='check'", "run_name='sums'", f"save_steps={SAVE_STEPS}"]
    values += [f"max_steps={STEPS}", "eval_steps=5", "eval_max_rows=64", "logging_steps=1000", *settings]
    sets = [word for value in values for word in ("--set", value)]
    return [binary, "train", "configs/quickstart.toml", "--output-dir", str(folder), *sets]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def kill_between_checkpoints(binary, folder):
    """Starts a run, kills it, waits for its bridges to finish. Returns the last step that it had logged."""
    log = (folder.parent / "killed.log").open("w")
    run = subprocess.Popen(command(binary, folder, sys.executable), stderr=log, stdout=log)
    while len(lines_of(folder / "metrics.jsonl")) <= KILL_AT:
        if run.poll() is not None:
            sys.exit(f"the run ended: {(folder.parent / 'killed.log').read_text()}")
        time.sleep(0.05)
    bridges = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{bridge}").exists() for bridge in bridges):
        if time.monotonic() > deadline:
            sys.exit("a bridge did not finish after its run was killed")
        time.sleep(0.1)
    print(f"killed with {len(bridges)} bridges, which finished by themselves")
    return lines_of(folder / "metrics.jsonl")[-1]["step"]


def wandb_records(path):
    """The records of an offline file: a LevelDB log of protocol buffers behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = Path(path).read_bytes(), 7, b""
    assert data[:4] == b":W&B", data[:7]
    while at + 7 <= len(data):
        # A record does not go over the end of a block of 32 KiB; less than a header's room there is left empty.
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + 7])
        body = data[at + 7 : at + 7 + length]
        assert zlib.crc32(body, zlib.crc32(bytes([kind]))) == crc, f"checksum at {at}"
        parts = body if kind in (1, 2) else parts + body
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
        at += 7 + length


def from_wandb(folder):
    """Rows of all offline files as (step, {name: value}), the tables' rows, and the run's ids."""
    rows, num_texts, ids, summary = [], 0, set(), {}
    for path in sorted(glob.glob(str(folder / "wandb/offline-run-*/run-*.wandb"))):
        for record in wandb_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("summary"):
                summary.update({item.key: json.loads(item.value_json) for item in record.summary.update})
            if record.HasField("history"):
                items = {tuple(i.nested_key) or (i.key,): json.loads(i.value_json) for i in record.history.item}
                num_texts += items.get(("completions", "nrows"), 0)
                # A table is a dictionary; the names of metrics are single words, whatever slashes they have.
                items = {name[0]: value for name, value in items.items() if len(name) == 1}
                step = items.pop("_step")
                rows.append((step, {name: value for name, value in items.items() if not name.startswith("_")}))
    return rows, num_texts, ids, summary


def from_trackio():
    from trackio.sqlite_storage import SQLiteStorage

    runs = SQLiteStorage.get_runs("check")
    rows, num_texts = [], 0
    for row in SQLiteStorage.get_logs("check", "sums"):
        step = row.pop("step")
        row.pop("timestamp", None)
        table = row.pop("completions", None)
        num_texts += len(table["_value"]) if table else 0
        rows.append((step, row))
    return rows, num_texts, runs


def compare(name, rows, expected, results, is_redone):
    """Each value of the log is there once, with the same bits; returns how many are not."""
    found, wrong = {}, 0
    for step, values in rows:
        for metric, value in values.items():
            found.setdefault((step, metric), []).append(value)
    num_exact = 0
    for key, value in expected.items():
        values = found.pop(key, [])
        if is_wall_clock(key[1]) and is_redone(key[0]):
            # The tracker has the time of the first attempt.
            wrong += len(values) != 1
        elif values == [value]:
            num_exact += 1
        else:
            wrong += 1
            print(f"  {name}: step {key[0]}: {key[1]} is {value}, found {values}")
    last = max(step for step, _ in expected)
    extra = {key: values for key, values in found.items() if values != [results.get(key[1])] or key[0] != last}
    for key, values in list(extra.items())[:5]:
        print(f"  {name}: step {key[0]}: {key[1]} is {values}, which is not in the log")
    print(f"{name}: {num_exact} values the same, {wrong} wrong, {len(extra)} too many; {len(found) - len(extra)} of the final evaluation")
    return wrong + len(extra)


def main():
    binary = os.path.abspath(sys.argv[1])
    place = Path(tempfile.mkdtemp())
    folder = place / "run"
    os.environ.update(WANDB_MODE="offline", TRACKIO_DIR=str(place / "trackio"))
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        os.environ.pop(name, None)

    bare = place / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    refused = subprocess.run(command(binary, place / "refused", bare), capture_output=True, text=True)
    print(f"without the package: exit code {refused.returncode}: {refused.stderr.strip().splitlines()[-3]}")
    num_wrong = int(refused.returncode != 2 or lines_of(place / "refused/metrics.jsonl") != [])

    killed_at = kill_between_checkpoints(binary, folder)
    resumed_at = killed_at // SAVE_STEPS * SAVE_STEPS
    print(f"killed at step {killed_at}, continued after step {resumed_at}")
    subprocess.run([*command(binary, folder, sys.executable), "--resume", "auto"], check=True, stdout=subprocess.DEVNULL)

    log = lines_of(folder / "metrics.jsonl")
    results = json.loads((folder / "all_results.json").read_text())
    expected = {
        (row["step"], name): value
        for row in log
        for name, value in row.items()
        if name not in ("step", "time") and value is not None
    }
    num_texts = len(lines_of(folder / "completions.jsonl"))

    def is_redone(step):
        return resumed_at < step <= killed_at

    rows, num_found, ids, summary = from_wandb(folder)
    num_wrong += compare("wandb", rows, expected, results, is_redone)
    num_wrong += int(num_found != num_texts) + int(len(ids) != 1) + int(summary["eval_accuracy"] != results["eval_accuracy"])
    print(f"wandb: {num_found} of {num_texts} completions in tables; ids: {len(ids)}; summary: {summary['eval_accuracy']}")

    rows, num_found, runs = from_trackio()
    num_wrong += compare("trackio", rows, expected, results, is_redone)
    num_wrong += int(num_found != num_texts) + int(runs != ["sums"])
    print(f"trackio: {num_found} of {num_texts} completions in tables; runs: {runs}")

    import pandas
    import trackio

    table = pandas.read_csv(folder / "metrics.csv", parse_dates=["timestamp"])
    rows = [(row.pop("step"), row) for row in table.drop(columns="timestamp").to_dict("records")]
    rows = [(step, {name: value for name, value in row.items() if value == value}) for step, row in rows]
    num_wrong += compare("metrics.csv", rows, expected, {}, lambda step: False)
    late = (table["timestamp"].map(lambda time: time.timestamp()) - pandas.Series([row["time"] for row in log])).abs().max()
    num_wrong += int(late > 2e-6)
    trackio.import_csv(folder / "metrics.csv", project="imported", name="sums")
    num_imported = len(trackio.sqlite_storage.SQLiteStorage.get_logs("imported", "sums"))
    num_wrong += int(num_imported != len(log))
    print(f"metrics.csv: times within {late:.1e} s; trackio imports {num_imported} of {len(log)} rows")
    sys.exit(bool(num_wrong))


if __name__ == "__main__":
    main()
