#!/usr/bin/env bash
# Trains a reward model of arithmetic pairs and reinforces the starter with it, with seeds 1, 2, 3, and checks what the
# README says of it: at least 95 % of 1,000 held-out pairs ranked right, and greedy accuracy on 500 held-out sums, graded by
# their last integer, raised by at least 0.2. Prints a line a seed.
#
#   scripts/check_reward_training.sh [FOLDER]    # keeps what it makes there
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --quiet
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
candlewick="$target/release/candlewick"
if [ $# -gt 0 ]; then
    out=$1
    mkdir -p "$out"
else
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
pairs() {
    "$candlewick" data arithmetic "$@" --completion-template ' {answer}' \
        --rejected-template ' {wrong}' --rejected-template ' {wrong}' \
        --rejected-template ' {answer}, since {a} {op} {b}' --rejected-template ' {answer} ({a} {op} {b})' >/dev/null
}
number() { sed -n "/\"$2\"/,/}/s/.*\"$3\": \([0-9.e-]*\).*/\1/p" "$1" | head -n 1; }
seconds() { sed -n 's/.*"seconds": \([0-9.e-]*\).*/\1/p' "$1"; }
failed=0
for seed in 1 2 3; do
    pairs "$out/train-$seed.jsonl" --rows 16000 --seed "$seed"
    pairs "$out/held-out-$seed.jsonl" --rows 1000 --seed "$((seed + 100))" --split eval
    "$candlewick" --quiet train configs/reward_model/train.toml --seed "$seed" --output-dir "$out/model-$seed" \
        --train-file "$out/train-$seed.jsonl" --set "eval_file='$out/held-out-$seed.jsonl'" --json \
        2>"$out/model-$seed.log" >"$out/model-$seed.json"
    "$candlewick" --quiet train configs/reward_model/grpo.toml --seed "$seed" --output-dir "$out/grpo-$seed" \
        --set "rewards=[{ name = 'model', model = '$out/model-$seed' }]" --set eval_max_rows=500 --json \
        2>"$out/grpo-$seed.log" >"$out/grpo-$seed.json"
    ranked=$(number "$out/model-$seed.json" after accuracy)
    before=$(number "$out/grpo-$seed.json" before accuracy)
    after=$(number "$out/grpo-$seed.json" after accuracy)
    verdict=$(awk -v r="$ranked" -v b="$before" -v a="$after" \
        'BEGIN { print (r >= 0.95 && a >= b + 0.2) ? "ok" : "falls short" }')
    printf 'seed %s  pairs ranked right %.3f, %.0f s  GRPO: accuracy %.3f -> %.3f, %.0f s  %s\n' "$seed" "$ranked" \
        "$(seconds "$out/model-$seed.json")" "$before" "$after" "$(seconds "$out/grpo-$seed.json")" "$verdict"
    [ "$verdict" = ok ] || failed=1
done
exit "$failed"
