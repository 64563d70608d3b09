#!/usr/bin/env bash
# Makes the starter model of the quickstart, data/starter, from random weights: 11 minutes on two cores.
#
# Additions are mostly answered with the result alone, subtractions mostly with the result and then the question again
# ("19, since 22 - 3"). A grader that reads the last integer passes the first and fails the second, though both are
# right. No pair of operands of data/math_tasks_eval.jsonl is ever seen: the splits are disjoint.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
candlewick="${CARGO_TARGET_DIR:-target}/release/candlewick"
out=output/starter
mkdir -p "$out"

"$candlewick" data arithmetic "$out/plus.jsonl" --rows 400000 --repeat --seed 11 --operators + \
  --completion-template ' {answer}' \
  --completion-template ' {answer}' \
  --completion-template ' {answer}, since {a} + {b}' \
  --completion-template ' {answer} because {a} + {b} = {answer}'
"$candlewick" data arithmetic "$out/minus.jsonl" --rows 400000 --repeat --seed 12 --operators - \
  --completion-template ' {answer}' \
  --completion-template ' {answer}, since {a} - {b}' \
  --completion-template ' {answer}, since {a} - {b}' \
  --completion-template ' {answer} ({a} - {b})'
cat "$out/plus.jsonl" "$out/minus.jsonl" > "$out/sft.jsonl"

"$candlewick" train configs/starter_sft.toml
cp "$out/model.safetensors" data/starter/model.safetensors
"$candlewick" eval data/starter --data data/math_tasks_eval.jsonl
