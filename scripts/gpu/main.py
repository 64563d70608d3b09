"""The checks and timings of scripts/gpu_check.sh: one table, and an exit code."""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "bench"), str(HERE.parent)]

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import checks  # noqa: E402
import timings  # noqa: E402
from process import NotMeasured  # noqa: E402

SECONDS = 8 * 60


def rows(setup, wanted):
    """Each part gives `(name, measured, wanted, whether it holds)`; holds is None where a figure is only told."""
    begun = time.monotonic()
    for part in wanted:
        if time.monotonic() - begun > SECONDS - part.secs:
            yield part.name, "not measured: no time left", "", None
            continue
        try:
            yield from part.run(setup)
        except NotMeasured as reason:
            yield part.name, f"not measured: {reason}", "", None
        except Exception:
            traceback.print_exc()
            yield part.name, "failed, see above", "", False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--checks", action="store_true")
    arguments = parser.parse_args()
    programs = {name: arguments.work / name for name in ("candlewick", "dump_outputs", "unit_tests")}
    setup = SimpleNamespace(work=arguments.work, device=arguments.device, models=arguments.work / "models", **programs)
    wanted = checks.PARTS
    if arguments.device == "cuda" and not arguments.checks:
        wanted = wanted + timings.PARTS
    print("| | measured | wanted | holds |\n|---|---|---|---|", flush=True)
    failed = False
    for name, measured, limit, holds in rows(setup, wanted):
        failed |= holds is False
        word = {None: "", True: "yes", False: "NO"}[holds]
        print(f"| {name} | {measured} | {limit} | {word} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
