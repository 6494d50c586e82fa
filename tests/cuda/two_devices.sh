#!/usr/bin/env bash
# Trains a small model on one and on two emulated CUDA devices with the same batch, and compares the weights: kernels, cuBLASLt and
# NCCL are stood in for, and compute. Pretraining takes a step at once, fine-tuning in two micro-batches. In bf16, where a block
# is one operation, exchanges of pretraining must begin before the backward pass has ended. The status is 1 when a weight differs by
# more than rounding, when nothing overlaps, or when a device uses what is still exchanged.
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
    # Kernels that other runs kept may lie where this one's stand-ins are not.
    export XDG_CACHE_HOME="$out/caches"
    one=cuda:0 two=cuda:0,1
fi
mkdir -p "$out"
# Heads of 64, which fused blocks need.
small=(--batch-size 4 --set model.vit.depth=2 --set model.vit.heads=2 --set schedule.warmup_steps=0 --set augment.color_jitter=0.0
    --set optimizer.eps=1e-4 --set logging.checkpoint_every=1000 --seed 0 --val "$out/images" --no-check)
python3 - "$out/images" << 'END'
import sys
from pathlib import Path
sys.path.insert(0, "tests/cuda")
from count import png
for name, value in (("first", 0), ("second", 100)):
    folder = Path(sys.argv[1]) / name
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(2):
        png(folder / f"{at}.png", 64, 3, value + 20 * at)
END
if [ ! -e "$out/tokenizer" ]; then
    "$BEIT2" tokenizer train quickstart_tokenizer --device cpu --steps 2 --set schedule.warmup_steps=0 --set codebook.kmeans_warmup_steps=1 --seed 0 \
        --out "$out/tokenizer" -q > "$out/tokenizer.txt"
fi

# compare PRECISION NAME COMMAND…: runs of the command on one device and on two
compare() {
    local precision=$1 name=$2
    shift 2
    for devices in "$one" "$two"; do
        run="$out/$name-$precision-${devices//[:,]/-}"
        rm -rf "$run"
        # The log says what NCCL was asked for.
        STUB_DIR="$run-stub" STUB_LOG=1 STUB_PARAMS=0 "$BEIT2" "$@" --device "$devices" --precision "$precision" "${small[@]}" --out "$run" -q > "$run.txt"
    done
    python3 tests/cuda/compare_weights.py "$out/$name-$precision-${one//[:,]/-}" "$out/$name-$precision-${two//[:,]/-}" "$precision"
}
for precision in f32 bf16; do
    compare "$precision" pretrain pretrain quickstart_pretrain --tokenizer "$out/tokenizer" --steps 4 --set model.intermediate_layer=1 \
        --set model.head_layers=1
    compare "$precision" finetune finetune quickstart_finetune --init scratch --data "$out/images" --steps 2 --set grad_accum_steps=2
done
if [ "$device" = cuda ]; then
    python3 tests/cuda/overlap.py "$out/pretrain-bf16-${two//[:,]/-}-stub"
fi
