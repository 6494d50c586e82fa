#!/bin/sh
# The table of docs/benchmarks/fashion-mnist.md: the whole chain on Fashion-MNIST, for each seed.
#
# usage: bench/fashion_mnist.sh OUT [SEED...]        default: 0 1 2
#
# The images are Debian's package dataset-fashion-mnist (31 MB), downloaded with apt-get unless FASHION_MNIST names a folder with
# train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz and their labels. Runs that are complete are kept, interrupted ones
# continue; results lie in OUT/*.json, one for each row. About 45 minutes a seed on two cores.
set -eu
[ $# -ge 1 ] || { sed -n '2,8p' "$0"; exit 2; }
out=$1
shift
[ $# -ge 1 ] || set -- 0 1 2
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "${FASHION_MNIST:-}" ]; then
    FASHION_MNIST=$out/package/usr/share/datasets/fashion-mnist
    if [ ! -d "$FASHION_MNIST" ]; then
        (cd "$out" && apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb package)
    fi
fi
cd "$(dirname "$0")/.."
[ -n "${BEIT2:-}" ] || { cargo build --release --quiet; BEIT2=target/release/beit2; }
train=$FASHION_MNIST/train-images-idx3-ubyte.gz
test=$FASHION_MNIST/t10k-images-idx3-ubyte.gz
row() { # NAME COMMAND...
    name=$1
    shift
    [ -s "$out/$name.json" ] && return
    "$BEIT2" "$@" --quiet --json > "$out/$name.json.part"
    mv "$out/$name.json.part" "$out/$name.json"
    echo "$name: $(tr -d '\n ' < "$out/$name.json" | cut -c1-200)"
}
judge() { # NAME RUN FEATURES
    row "$1-knn" knn --weights "$2" --data "$train" --val "$test" --k 20 --features "$3"
    row "$1-probe" probe --weights "$2" --data "$train" --val "$test" --features "$3" --lr 1e-3
}
row pixels-knn knn --weights pixels --data "$train" --val "$test" --k 20 --image-size 28
row pixels-probe probe --weights pixels --data "$train" --val "$test" --image-size 28 --lr 1e-3
for seed; do
    s=seed-$seed
    row "$s-tokenizer" tokenizer train fashion_tokenizer --seed "$seed" --data "$train" --out "$out/$s/tokenizer"
    row "$s-pretrain" pretrain fashion_pretrain --seed "$seed" --data "$train" --tokenizer "$out/$s/tokenizer" --out "$out/$s/pretrain"
    judge "$s-pretrain" "$out/$s/pretrain" concat
    for start in pretrain scratch; do
        init=scratch
        [ "$start" = scratch ] || init=$out/$s/pretrain
        run=$out/$s/from-$start
        row "$s-from-$start" finetune fashion_finetune --seed "$seed" --data "$train" --val "$test" --init "$init" --out "$run"
        row "$s-from-$start-eval" eval --weights "$run" --data "$test"
    done
done
