#!/usr/bin/env bash
# Builds what scripts/gpu_check.sh runs, on a machine that needs no GPU: the program, its unit tests and dump_outputs,
# with CUDA 13.0, stripped and packed into one folder of at most 40 MB. CUDA_COMPUTE_CAP names the GPU (default: 90, an
# H100 or H200).
#
#   scripts/gpu_build.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?usage: scripts/gpu_build.sh FOLDER}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

eval "$(CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} scripts/install_cuda.sh)"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
build() {
    cargo "$@" --release --locked --features cuda --message-format=json-render-diagnostics |
        python3 -c 'import json, sys; print(*(m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")))'
}
program=$(build build --bin candlewick)
dump=$(build build --example dump_outputs)
tests=$(build test --lib --no-run)

mkdir -p "$folder"
pack() {
    cp "$1" "$folder/$2"
    strip "$folder/$2"
    xz -9 --force --threads=0 "$folder/$2"
}
pack "$program" candlewick
pack "$dump" dump_outputs
pack "$tests" unit_tests
du -cb "$folder"/*.xz
[ "$(cat "$folder"/*.xz | wc -c)" -le 40000000 ] || { echo "more than 40 MB" >&2; exit 1; }
