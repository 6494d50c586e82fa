#!/usr/bin/env bash
# Runs the tests of the CUDA path (those named `on_cuda`: own kernels, and the golden suites) on an emulated card: kernels are
# compiled by g++ and run on the CPU, cuBLASLt and NCCL are stand-ins that compute. No GPU is needed.
#
#   tests/cuda/golden.sh [native|portable] [FILTER…]
#
# `native` (the default) is the path that NVIDIA's cards of 2020 and later take; `portable` is CubeCL alone, as on older cards.
# FILTER is a part of the names of tests (default: on_cuda). BEIT2_TESTS names test programs that are built already. Results are
# those of one order of threads; BEIT2_EMULATE_ORDER=reverse or shuffle:1 takes another.
set -euo pipefail
cd "$(dirname "$0")/../.."
way=native
case ${1:-} in native | portable) way=$1; shift ;; esac
# Before the variables are set: with another CUDA_PATH, Cargo would build the whole framework again.
if [ -z "${BEIT2_TESTS:-}" ]; then
    BEIT2_TESTS=$(cargo test --release --features cuda --lib --test golden --no-run --message-format=json |
        sed -n 's/.*"name":"\(beit2_kernels\|golden\)".*"executable":"\([^"]*\)".*/\2/p')
fi
variables=$(tests/cuda/setup.sh)
eval "$variables"
export STUB_COMPUTE=1 STUB_STRICT=${STUB_STRICT:-1} STUB_DEVICES=${STUB_DEVICES:-2} STUB_DIR=${STUB_DIR:-target/cuda/golden}
# A card without tensor cores, of which CubeCL's tuner has few candidates to try.
[ "$way" = native ] || export STUB_CC=60
export CUBECL_AUTOTUNE_LEVEL=${CUBECL_AUTOTUNE_LEVEL:-minimal}
[ $# -gt 0 ] || set -- on_cuda
export BEIT2_GOLDEN=${BEIT2_GOLDEN:-$PWD/tests/golden}
rm -rf "$STUB_DIR"
status=0
for program in $BEIT2_TESTS; do
    "$program" "$@" --nocapture --test-threads 1 || status=1
done
exit $status
