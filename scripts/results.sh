#!/usr/bin/env bash
# Runs one row of the README's result tables with one seed, or goes on with it, and writes results/ROW-SEED.json.
#
#   scripts/results.sh ROW SEED [further arguments of candlewick train]
#
# The rows: addition-grpo, addition-grpo-clipped, addition-rloo, addition-remax, addition-raft, addition-dpo, letter-e,
# letter-e-beta025, shouting. Data and start model are made where they are missing; every run has one thread, and what
# belongs to it stands in output/results/ROW-SEED. It may be stopped at any time and called again with the same
# arguments; several rows may run side by side. To make a row again, remove its result and its folder.
#
# For a trial: RESULTS names another folder for the result, START_ARGS further arguments for the start model's training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'results: %s\n' "$*" >&2
    exit 2
}

[ $# -ge 2 ] || fail "the arguments are ROW SEED, as in: scripts/results.sh addition-grpo 1"
row=$1 seed=$2
shift 2
case $seed in *[!0-9]* | '') fail "the seed is a whole number, not '$seed'" ;; esac
settings=()
case $row in
    addition-grpo | addition-rloo | addition-remax | addition-raft | addition-dpo)
        recipe=configs/addition/${row#addition-}.toml ;;
    addition-grpo-clipped) recipe=configs/addition/grpo_clipped.toml ;;
    letter-e) recipe=configs/letter_e.toml ;;
    letter-e-beta025) recipe=configs/letter_e.toml settings=(--set beta=0.25) ;;
    shouting) recipe=configs/shouting.toml ;;
    *) fail "there is no row '$row'" ;;
esac
case $row in
    addition-*) start_recipe=configs/addition/pretrain.toml ;;
    *) start_recipe=configs/text_pretrain.toml ;;
esac

work=output/results/$row-$seed
result=${RESULTS:-results}/$row-$seed.json
if [ -f "$result" ]; then
    echo "$result is there; remove it and $work to make it again"
    exit 0
fi
cargo build --release --locked --quiet --bin candlewick --example results_table
bin=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$work" "$(dirname "$result")"
: >"$work/commands"

child=
# SIGINT of a terminal reaches the child by itself; a second signal would end it before it has saved.
trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM
trap : INT

# Runs candlewick to its end, also where a signal comes in between.
candlewick() {
    local code=0
    "$bin/candlewick" "$@" &
    child=$!
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    child=
    return "$code"
}

# Writes a command down as it is typed, whether or not it has to be run this time.
note() {
    { printf candlewick && printf ' %q' "$@" && printf '\n'; } >>"$work/commands"
}

# A setting of a configuration, without the quotes of a text.
setting() {
    "$bin/candlewick" config show "$1" | sed -n "s/^$2 = \(.*\)  # .*/\1/p" | sed 's/^"\(.*\)"$/\1/'
}

# A model folder is complete once its manifest is there: it is written last.
is_model() {
    [ -f "$1/MANIFEST.json" ] && [ -f "$1/model.safetensors" ]
}

if [[ $row = addition-* ]]; then
    data=(data arithmetic output/addition/train.jsonl --test-file output/addition/test.jsonl --rows 64000 --seed 1
        --digits 3 --zero-pad --operators + --prompt-template '{a}{op}{b}=' --completion-template '{answer}')
    note "${data[@]}"
    # The test file is written last. Rows that run side by side write the same bytes.
    [ -f output/addition/test.jsonl ] || candlewick "${data[@]}"
fi

start=$(setting "$recipe" model)
read -ra start_args <<<"${START_ARGS:-}"
make_start=(train "$start_recipe" --output-dir "$start" --threads 1 "${start_args[@]}")
note "${make_start[@]}"
until is_model "$start"; do
    code=0
    candlewick "${make_start[@]}" --resume auto || code=$?
    case $code in
        0) ;;
        # Another row is making it; should that one be stopped, this one goes on.
        7) for _ in {1..12}; do is_model "$start" || sleep 5; done ;;
        *) exit "$code" ;;
    esac
done

make_run=(train "$recipe" --seed "$seed" --threads 1 --output-dir "$work/run" "${settings[@]}" "$@")
note "${make_run[@]}"
if [ ! -f "$work/trained" ]; then
    printf '%s\n' "$("$bin/candlewick" --version) $(git describe --always --dirty 2>/dev/null || true)" >"$work/version"
    "$bin/candlewick" config show "${make_run[@]:1}" --json >"$work/config.json"
    [ -d "$work/run" ] || rm -f "$work/parts"
    now=${EPOCHREALTIME:-$(date +%s)}
    echo "${now/,/.}" >>"$work/parts"
    candlewick "${make_run[@]}" --resume auto
    touch "$work/trained"
fi

measure=(eval "$start" "$work/run" --config "$recipe" --label start --label end --seed "$seed" --threads 1 --json)
if [[ $row != addition-* ]]; then
    prompts=$(setting "$recipe" eval_file)
    prompts=${prompts:-$(setting "$recipe" train_file)}
    rows=$(grep -c . "$prompts")
    rows=$((rows < 256 ? rows : 256))
    # What the start model did not learn: the end of its text. A token is a character of one byte.
    book=$(setting "$start_recipe" train_file)
    validation=output/text/validation.txt
    mkdir -p output/text
    bytes=$(awk -v bytes="$(wc -c <"$book")" -v share="$(setting "$start_recipe" validation_fraction)" \
        'BEGIN { kept = int(bytes * share); print kept < bytes * share ? kept + 1 : kept }')
    cut=(tail -c "$bytes" "$book")
    "${cut[@]}" >"$work/validation.txt"
    mv "$work/validation.txt" "$validation"
    measure+=(--data "$prompts" --num-rows "$rows" --num-samples $(((256 + rows - 1) / rows)) --temperature 1
        --letter e --text "$validation")
    printf '%s > %s\n' "${cut[*]}" "$validation" >>"$work/commands"
fi
note "${measure[@]}"
candlewick "${measure[@]}" >"$work/eval.json"

printf '%s\n' "$row" >"$work/row"
printf '%s\n' "$seed" >"$work/seed"
printf '%s\n' "$recipe" >"$work/recipe"
echo 1 >"$work/threads"
"$bin/examples/results_table" record "$work" >"$work/result.json"
mv "$work/result.json" "$result"
echo "$result is written"
