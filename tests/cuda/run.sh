#!/usr/bin/env bash
# Tests the CUDA path on a machine without a GPU: runs a step of every stage on the emulated card and compares what it does with
# limits.toml. Prints a table; the status is 1 when something exceeds its limit or fails, with one sentence for each.
#
# usage: tests/cuda/run.sh OUT [--quick] [--only CELL…] [--no-startup] [--no-kernels] [--write PAGE]
#        CELL: pretrain.bf16, infer.f32, …
#
# Builds the program (BEIT2 names one that is built). Needs Rust, gcc, Python 3.11, and at the first run a network: setup.sh
# installs NVRTC, CUDA's headers and ptxas from PyPI into target/cuda.
set -euo pipefail
case ${1:-} in
'' | -*) sed -n '2,/^[^#]/s/^#//p' "$0" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/../.."
out=$(realpath -m "$1")
shift
if [ -z "${BEIT2:-}" ]; then
    cargo build --release --features cuda --bin beit2
    BEIT2=target/release/beit2
fi
# Prints the variables that put the stub and the stand-ins in the place of the driver and its libraries.
variables=$(tests/cuda/setup.sh)
eval "$variables"
exec python3 tests/cuda/count.py --beit2 "$BEIT2" --out "$out" "$@"
