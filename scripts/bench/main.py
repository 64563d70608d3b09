"""What scripts/bench.sh runs; that file says how to call it."""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import checks
import compare
import scaling
import table
from rows import ROWS

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
OUTPUT = ROOT / "output/bench"


@dataclass(frozen=True)
class Setup:
    """Where things are: our program, the peer's Python, the models, a folder for runs."""

    binary: Path
    python: Path
    models: Path = OUTPUT / "models"
    work: Path = OUTPUT / "work"


def make_models(setup, names):
    subprocess.run([setup.python, HERE / "make_models.py", setup.models, *sorted(set(names))], check=True)


def measure_rows(setup, names, cores, quick):
    rows = [row for row in ROWS if not names or row.name in names]
    make_models(setup, [row.model for row in rows])
    for row in rows:
        for count in cores:
            result = compare.result(row, count, setup, quick)
            (OUTPUT / f"{row.name}-{count}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table.markdown(table.load(OUTPUT)))


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", allow_abbrev=False)
    names = [row.name for row in ROWS]
    only = f"only these rows, and no checks: {', '.join(names)}"
    parser.add_argument("--rows", nargs="+", choices=names, default=[], metavar="NAME", help=only)
    parser.add_argument("--cores", type=int, choices=(1, 2), help="on so many cores (default: both)")
    parser.add_argument("--quick", action="store_true", help="one short turn of each program: for a trial only")
    parser.add_argument("--checks", action="store_true", help="only the checks: start-up, size, memory of the loss, decoding")
    parser.add_argument("--scaling", action="store_true", help="how the time grows; writes docs/scaling.md")
    parser.add_argument("--readme", action="store_true", help="measure nothing; put the table into README.md")
    parser.add_argument("--binary", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--python", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    setup = Setup(args.binary.resolve(), args.python.absolute())
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if args.readme:
        readme = ROOT / "README.md"
        readme.write_text(table.fill(readme.read_text(), table.load(OUTPUT)))
    elif args.scaling:
        make_models(setup, scaling.MODELS)
        scaling.run(setup, args.cores or 2, args.quick, ROOT / "docs")
    else:
        if not args.checks:
            measure_rows(setup, args.rows, [args.cores] if args.cores else [1, 2], args.quick)
        if not args.rows:
            make_models(setup, checks.MODELS)
            sys.exit(checks.run(setup, OUTPUT / "checks.json"))


if __name__ == "__main__":
    main()
