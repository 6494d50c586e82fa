#!/bin/sh
# How fast packed shards are read, against the originals: the second table of docs/benchmarks/data.md.
#
# usage: bench/pack.sh PHOTOS OUT [COUNT [flags of `beit2 bench data`…]]      default: 2000
#
# PHOTOS is a folder of a few photographs. COUNT JPEGs of 1500 x 1125 pixels are made of them (200 MB for 1,000), packed as they are and shrunk to
# a shorter side of 500, 300 and 256, and measured in turn. Needs Python with Pillow (scripts/python_env.sh; BEIT2_PYTHON_ENV names another folder).
set -eu
[ $# -ge 2 ] || { sed -n '2,8p' "$0"; exit 2; }
photos=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
count=${3:-2000}
shift 2
[ $# -eq 0 ] || shift
cd "$(dirname "$0")/.."
[ -n "${BEIT2:-}" ] || { cargo build --release --quiet; BEIT2=target/release/beit2; }
if [ ! -d "$out/originals" ]; then
    python=$(scripts/python_env.sh)/bin/python
    "$python" bench/pack_images.py "$photos" "$out/originals.part" "$count"
    mv "$out/originals.part" "$out/originals"
fi
pack() { # NAME FLAGS...
    name=$1
    shift
    [ -d "$out/$name" ] || "$BEIT2" data pack "$out/originals" -o "$out/$name" "$@"
}
pack copied
pack side500 --short-side 500
pack side300 --short-side 300
pack side256 --short-side 256
pack side256-lossless --short-side 256 --lossless
pack side256-parquet --short-side 256 --format parquet
cd "$out"
case $BEIT2 in /*) ;; *) BEIT2=$OLDPWD/$BEIT2 ;; esac
"$BEIT2" bench data originals copied side500 side300 side256 side256-lossless side256-parquet --workers 1 "$@"
