#!/usr/bin/env bash
# Everything that must hold before a change is accepted, in the order of cost. Needs Rust with rustfmt and clippy, a C++
# compiler (it runs the kernels of the GPU), and Python 3 for one step, which installs two packages for itself; no GPU.
# Every cargo call uses the release profile, so that the dependencies are built once.
#
#   scripts/ci.sh          all of it
#   scripts/ci.sh quick    formatting, lints and unit tests only
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
export CARGO_INCREMENTAL=0

fail() {
    printf 'ci: %s\n' "$*" >&2
    exit 1
}

# Runs one step and says how long it took.
step() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" || fail "$name failed: $*"
    printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

command -v cargo >/dev/null || fail "cargo is not on the PATH: install Rust (https://rustup.rs)"
cargo fmt --version >/dev/null 2>&1 || fail "rustfmt is missing: rustup component add rustfmt"
"${CXX:-c++}" --version >/dev/null 2>&1 || fail "a C++ compiler is missing (tests of the GPU kernels): apt-get install g++"
cargo clippy --version >/dev/null 2>&1 || fail "clippy is missing: rustup component add clippy"

step format cargo fmt --check
step lints cargo clippy --release --locked --all-targets -- -D warnings
if [ "${1:-}" = quick ]; then
    step tests cargo test --release --locked --lib
    exit 0
fi
step docs env RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps
# The documentation tests are part of this.
step tests cargo test --release --locked --no-fail-fast

# The first command of the README, cut to a few steps: it must run from a fresh clone without any setting.
smoke=$(mktemp -d)
trap 'rm -rf "$smoke"' EXIT
step smoke cargo run --release --locked -- train configs/quickstart.toml \
    --set "output_dir='$smoke/run'" --set max_steps=3 --set eval_max_rows=20
[ -f "$smoke/run/model.safetensors" ] || fail "smoke left no model.safetensors"
[ "$(wc -l <"$smoke/run/metrics.jsonl")" -ge 3 ] || fail "smoke left no metrics.jsonl of 3 steps"

# The folder that it wrote, read by the Python packages that other tools build on.
command -v python3 >/dev/null || fail "python3 is missing: apt-get install python3 python3-venv"
python3 -m venv "$smoke/venv" || fail "python3 has no venv module: apt-get install python3-venv"
step packages "$smoke/venv/bin/pip" install --quiet tokenizers==0.23.3 safetensors==0.8.0
cargo run --release --locked --quiet --example dump_outputs -- "$smoke/run" data/math_tasks_eval.jsonl 20 \
    >"$smoke/stored.json" || fail "dump_outputs failed on the folder of the smoke run"
step folder "$smoke/venv/bin/python" scripts/check_folder.py "$smoke/run" "$smoke/stored.json"

printf '\nci: all passed in %d s\n' "$SECONDS"
