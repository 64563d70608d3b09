#!/usr/bin/env bash
# Runs candlewick and its peer, TRL on torch, in turn on the same work and the same cores, and prints how much faster
# candlewick is. Needs Linux, Rust and Python 3.10 or later; the peer is installed into output/bench/venv (6 GB).
#
#   scripts/bench.sh                      everything: all rows on one core and on two, and the checks; about two hours
#   scripts/bench.sh --rows tiny-step     one row
#   scripts/bench.sh --checks             start-up, size of the program, memory of the loss, cost of long contexts
#   scripts/bench.sh --quick              one short turn of each program: a trial, its figures mean little
#   scripts/bench.sh --readme             puts the table of all results so far into README.md
#   scripts/bench.sh --scaling            how the time of candlewick's step grows with its sizes; writes docs/scaling.md
#   scripts/bench.sh --help               the rows and the other options
#
# PEER_PYTHON names a Python that has the peer's packages already. Results are kept in output/bench/*.json. Figures that
# are to be kept need a machine on which nothing else runs: each result says how much of it other programs used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=output/bench/venv
python=${PEER_PYTHON:-$venv/bin/python}
# Installs the peer. The marker is written last: an installation that was stopped is done again.
install() {
    [ -z "${PEER_PYTHON:-}" ] && [ ! -f "$venv/complete" ] || return 0
    python3 -m venv "$venv"
    "$python" -m pip install --quiet torch==2.15.0 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
    touch "$venv/complete"
}

case " $* " in
    *" --help "* | *" -h "* | *" --readme "*) ;; # Nothing is run.
    *)
        install
        cargo build --release --locked --quiet --bin candlewick
        ;;
esac
exec python3 -B scripts/bench/main.py --binary "${CARGO_TARGET_DIR:-target}/release/candlewick" --python "$python" "$@"
