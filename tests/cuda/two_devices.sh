#!/usr/bin/env bash
# Trains a small model on one and on two emulated CUDA devices with the same batch, and compares the weights: kernels, cuBLASLt and
# NCCL are stood in for, and compute. The status is 1 when a weight differs by more than rounding.
#
# usage: tests/cuda/two_devices.sh OUT [DEVICE]      DEVICE: cuda (the default), or cpu to see what the script itself does
#
# BEIT2 names a program that is built with --features cuda; else it is built. Needs what setup.sh needs.
set -euo pipefail
case ${1:-} in
'' | -*) sed -n '2,/^[^#]/s/^#//p' "$0" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/../.."
out=$(realpath -m "$1")
device=${2:-cuda}
if [ -z "${BEIT2:-}" ]; then
    cargo build --release --features cuda --bin beit2
    BEIT2=target/release/beit2
fi
BEIT2=$(realpath "$BEIT2")
one=$device two=$device,$device
if [ "$device" = cuda ]; then
    variables=$(tests/cuda/setup.sh)
    eval "$variables"
    export STUB_COMPUTE=1 STUB_STRICT=1 STUB_DEVICES=2
    one=cuda:0 two=cuda:0,1
fi
mkdir -p "$out"
small=(--batch-size 4 --set model.vit.depth=2 --set model.intermediate_layer=1 --set model.head_layers=1 --set schedule.warmup_steps=0
    --set augment.color_jitter=0.0 --set optimizer.eps=1e-4 --set logging.checkpoint_every=1000 --seed 0)
if [ ! -e "$out/tokenizer" ]; then
    "$BEIT2" tokenizer train quickstart_tokenizer --device cpu --steps 2 --set schedule.warmup_steps=0 --set codebook.kmeans_warmup_steps=1 --seed 0 \
        --out "$out/tokenizer" -q > "$out/tokenizer.txt"
fi
for precision in f32 bf16; do
    for devices in "$one" "$two"; do
        run="$out/$precision-${devices//[:,]/-}"
        rm -rf "$run"
        # The log of the second run says what NCCL was asked for.
        STUB_DIR="$run-stub" STUB_LOG=1 "$BEIT2" pretrain quickstart_pretrain --tokenizer "$out/tokenizer" --device "$devices" \
            --precision "$precision" --steps 4 "${small[@]}" --out "$run" -q > "$run.txt"
    done
    python3 tests/cuda/compare_weights.py "$out/$precision-${one//[:,]/-}" "$out/$precision-${two//[:,]/-}" "$precision"
done
