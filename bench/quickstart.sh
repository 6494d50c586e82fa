#!/bin/sh
# The figures of docs/benchmarks/quickstart.md: three seeds at the default length, and the curve of points against minutes.
#
# usage: bench/quickstart.sh OUT [seeds|bf16|curve|long]
#
# Runs one after the other on an otherwise idle machine; results lie in OUT/*.json, runs that are complete are kept.
# seeds takes 3 x 5 minutes, bf16 (the same in that precision) 3 x 4, curve 55, long 90; without a second argument all. The steps of curve and
# long follow from the machine's speed.
set -eu
[ $# -ge 1 ] || { sed -n '2,8p' "$0"; exit 2; }
out=$1
what=${2:-seeds bf16 curve long}
cd "$(dirname "$0")/.."
mkdir -p "$out"
cargo build --release --quiet
run() { # NAME FLAGS...
    name=$1
    shift
    target/release/beit2 quickstart --quiet --json --out "$out/$name" "$@" > "$out/$name.json.part"
    mv "$out/$name.json.part" "$out/$name.json"
    echo "$name: $(tr -d '\n ' < "$out/$name.json" | grep -o '"knn":{[^}]*}')"
}
for part in $what; do
    case $part in
    seeds) for seed in 0 1 2; do run "seed-$seed" --seed "$seed"; done ;;
    bf16) for seed in 0 1 2; do run "bf16-seed-$seed" --seed "$seed" --precision bf16; done ;;
    curve) for minutes in 1 2 4 16 32; do run "minutes-$minutes" --minutes "$minutes"; done ;;
    long) run minutes-90 --minutes 90 ;;
    *) echo "no part is called $part; there are seeds, bf16, curve and long" >&2; exit 2 ;;
    esac
done
