#!/usr/bin/env bash
# Runs the quickstart with seeds 1, 2, 3 and checks what the README says of it: greedy accuracy from at most 0.6 to at
# least 0.95, each within 3 minutes. Prints a line a seed.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
candlewick="${CARGO_TARGET_DIR:-target}/release/candlewick"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0
for seed in 1 2 3; do
    "$candlewick" --quiet train configs/quickstart.toml --seed "$seed" --output-dir "$out/$seed" --json \
        2>/dev/null > "$out/$seed.json"
    number() { sed -n "/\"$1\"/,/}/s/.*\"$2\": \([0-9.e-]*\).*/\1/p" "$out/$seed.json" | head -n 1; }
    before=$(number before accuracy)
    after=$(number after accuracy)
    seconds=$(sed -n 's/.*"seconds": \([0-9.e-]*\).*/\1/p' "$out/$seed.json")
    verdict=$(awk -v b="$before" -v a="$after" -v s="$seconds" \
        'BEGIN { print (b <= 0.6 && a >= 0.95 && s <= 180) ? "ok" : "falls short" }')
    printf 'seed %s  accuracy %.3f -> %.3f  %.0f s  %s\n' "$seed" "$before" "$after" "$seconds" "$verdict"
    [ "$verdict" = ok ] || failed=1
done
exit "$failed"
