#!/bin/sh
# The table of docs/benchmarks/segmentation.md: segmentation from a pretrained backbone and from random numbers, equal budget.
#
# usage: bench/segment_scenes.sh OUT [SEED...]       default: 0
#
# The scenes are made by scripts/make_segment_scenes.sh (Debian packages, python3) unless SCENES names a folder of them. The
# backbone is pretrained on the training scenes' images, without their masks. Runs that are complete are kept, interrupted ones
# continue; results lie in OUT/*.json. About 35 minutes a seed on two cores.
set -eu
[ $# -ge 1 ] || { sed -n '2,8p' "$0"; exit 2; }
out=$1
shift
[ $# -ge 1 ] || set -- 0
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
if [ -z "${SCENES:-}" ]; then
    SCENES=$out/scenes
    [ -s "$SCENES/val/classes.txt" ] || scripts/make_segment_scenes.sh "$SCENES"
fi
[ -n "${BEIT2:-}" ] || { cargo build --release --quiet; BEIT2=target/release/beit2; }
row() { # NAME COMMAND...
    name=$1
    shift
    [ -s "$out/$name.json" ] && return
    "$BEIT2" "$@" --quiet --json > "$out/$name.json.part"
    mv "$out/$name.json.part" "$out/$name.json"
    echo "$name: $(tr -d '\n ' < "$out/$name.json" | cut -c1-200)"
}
images=$SCENES/train/images
for seed; do
    s=seed-$seed
    row "$s-tokenizer" tokenizer train quickstart_tokenizer --seed "$seed" --data "$images" --val "$SCENES/val/images" \
        --set schedule.steps=1600 --set schedule.warmup_steps=80 --set model.image_size=64 --set init.std=0.02 \
        --set model.code_dim=16 --set codebook.kmeans_warmup_steps=160 --set targets.whiten=false --out "$out/$s/tokenizer"
    row "$s-pretrain" pretrain quickstart_pretrain --seed "$seed" --data "$images" --val "$SCENES/val/images" \
        --set schedule.steps=4000 --set schedule.warmup_steps=150 --set model.vit.image_size=64 --set mask.patches=25 --set init.std=0.02 \
        --tokenizer "$out/$s/tokenizer" --out "$out/$s/pretrain"
    for start in pretrain scratch; do
        init=scratch
        [ "$start" = scratch ] || init=$out/$s/pretrain
        run=$out/$s/from-$start
        row "$s-from-$start" segment train segment_scenes --seed "$seed" --data "$SCENES/train" --val "$SCENES/val" --init "$init" --out "$run"
        row "$s-from-$start-eval" segment eval --weights "$run" --data "$SCENES/val"
    done
done
