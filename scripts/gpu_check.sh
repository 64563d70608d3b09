#!/usr/bin/env bash
# Checks and times candlewick on a GPU and prints one table. Needs a driver of the 580 series or later, the programs that
# scripts/gpu_build.sh has packed, and Python with torch (CUDA 13), transformers and, for the comparison, TRL; neither a
# network nor Rust. Takes less than 8 minutes; rows that cannot be run say so. Ends with 1 if a check fails.
#
#   scripts/gpu_check.sh FOLDER                 the folder with candlewick.xz, dump_outputs.xz and unit_tests.xz
#   scripts/gpu_check.sh FOLDER --checks        without the timings
#   scripts/gpu_check.sh FOLDER --device cpu    the checks on the CPU: a rehearsal on a machine without a GPU
#
# PYTHON names the Python to use (default: python3).
set -euo pipefail
folder=$(realpath "${1:?usage: scripts/gpu_check.sh FOLDER [--checks] [--device cpu]}")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for program in candlewick dump_outputs unit_tests; do
    if [ -e "$folder/$program.xz" ]; then
        xz --decompress --stdout "$folder/$program.xz" >"$work/$program"
    else
        cp "$folder/$program" "$work/$program"
    fi
    chmod +x "$work/$program"
done
# CUDA's libraries come with torch's wheels where CUDA itself is not installed.
libraries=$("$python" -c 'import nvidia.cu13 as m; print(list(m.__path__)[0] + "/lib")' 2>/dev/null || true)
export LD_LIBRARY_PATH="$libraries${libraries:+:}${LD_LIBRARY_PATH:-}"
"$python" -B scripts/gpu/main.py --work "$work" "$@"
