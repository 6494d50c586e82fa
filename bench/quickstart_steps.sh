#!/usr/bin/env bash
# How long a step of the quickstart's recipes takes, beside one of those until 2026-11-29 (64 px).
#
# usage: bench/quickstart_steps.sh OUT [ROUNDS]
#
# Trains each for a few hundred steps, in turns, so that a busy machine slows all of them. Prints the median of milliseconds a step
# from the second pass over the images on: in the first one they are decoded. Needs target/release/beit2 or $BEIT2, and Python 3.
set -euo pipefail
out=${1:?usage: bench/quickstart_steps.sh OUT [ROUNDS]}
beit2=$(realpath "${BEIT2:-$(dirname "$0")/../target/release/beit2}")
mkdir -p "$out"
cd "$out"

train() { # name, steps, warm-up of k-means or "", then the command and its settings
    local name=$1 steps=$2 kmeans=$3
    shift 3
    "$beit2" "$@" --out "$name" --seed 0 --quiet --restart --set schedule.steps="$steps" --set schedule.warmup_steps=10 \
        --set logging.log_every=10 ${kmeans:+--set codebook.kmeans_warmup_steps="$kmeans"} > /dev/null 2> "$name.err" || { cat "$name.err" >&2; exit 1; }
    rm -rf "$name".old-*
    python3 - "$name" <<'PY'
import json, statistics, sys
lines = [json.loads(line) for line in open(f"{sys.argv[1]}/metrics.jsonl")]
steps = [16e3 / line["images_per_second"] for line in lines if line["kind"] == "step" and line["step"] > 140]
print(f"{sys.argv[1]}: {statistics.median(steps):.1f} ms a step")
PY
}

for _ in $(seq "${2:-3}"); do
    train tokenizer 400 338 tokenizer train quickstart_tokenizer
    train tokenizer-former 300 60 tokenizer train quickstart_tokenizer --set model.image_size=64 --set model.code_dim=16 \
        --set targets.whiten=false --set init.std=0.02
    train pretrain 300 "" pretrain quickstart_pretrain --tokenizer tokenizer
    train pretrain-former 300 "" pretrain quickstart_pretrain --tokenizer tokenizer-former --set model.vit.image_size=64 \
        --set mask.patches=25 --set init.std=0.02
done
