#!/usr/bin/env bash
# Makes a folder with everything that bench/gpu.sh needs on a machine with a GPU and without Rust, a network or time: the program,
# the tests, own kernels as machine code, CubeCL's kernels, and the CPU's half of the loss curve.
#
# usage: bench/gpu_pack.sh DIR         (or bench/gpu.sh --pack DIR)
#        there: PACK=DIR bench/gpu.sh OUT
#
# Builds what it packs; BEIT2 names a program that is built already, TESTS a folder with the test programs `golden` and `beit2_kernels`.
# NO_TESTS=1 leaves these out. NVRTC=1 is for a machine with nothing but a driver (580 or later) and Python: it adds NVRTC and CUDA's
# headers (34 MB; with the tests the folder has more than 64 MB). Without cuBLASLt, which is too large to carry, the program then takes its
# slower portable kernels. Needs what tests/cuda/setup.sh needs. DIR gets
#   beit2.xz                      the program, stripped
#   golden.xz, beit2_kernels.xz   the test programs, stripped; the recorded outputs are in the repository (tests/golden)
#   cubins/                       own kernels for sm_90a, sm_89, sm_86 and sm_80: a driver compiles nothing of them
#   kernels.tar.xz                CubeCL's kernels of one step of every stage, compiled by the real NVRTC for an H100 or H200
#   curve/                        tokenizer and losses of the CPU (loss_curve.py)
#   nvrtc.tar.xz                  with NVRTC=1
# Nothing that was tuned or searched is carried: the emulated card has no times.
set -euo pipefail
case ${1:-} in
'' | -*) sed -n '2,/^[^#]/s/^#//p' "$0" >&2; exit 2 ;;
esac
mkdir -p "$1"
pack=$(realpath "$1")
cd "$(dirname "$0")/.."
say() { printf 'gpu_pack.sh: %s\n' "$*"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "the program"
beit2=${BEIT2:-}
if [ -z "$beit2" ]; then
    cargo build --release --features cuda --bin beit2
    beit2=target/release/beit2
fi
strip -o "$work/beit2" "$beit2"
xz -T0 -6 -c "$work/beit2" > "$pack/beit2.xz"
if [ -z "${NO_TESTS:-}" ]; then
    say "the tests"
    tests=${TESTS:-}
    if [ -z "$tests" ]; then
        tests=$work/tests
        scripts/test_gpu.sh cuda pack "$tests"
    fi
    for name in golden beit2_kernels; do
        strip -o "$work/$name" "$tests/$name"
        xz -T0 -6 -c "$work/$name" > "$pack/$name.xz"
    done
fi
say "the CPU's half of the loss curve"
python3 bench/loss_curve.py --beit2 "$work/beit2" --prepare "$pack/curve"

say "own kernels for four generations"
variables=$(tests/cuda/setup.sh)
eval "$variables"
mkdir -p "$pack/cubins"
rm -f "$pack/cubins"/*.cubin "$pack/nvrtc.tar.xz" # of a program before
"$work/beit2" doctor --kernels "$pack/cubins"
if [ -n "${NVRTC:-}" ]; then
    say "NVRTC"
    (cd "$CUDA_PATH" && tar -chf - lib/libnvrtc.so.13 lib/libnvrtc-builtins.so.13.0 include) | xz -T0 -6 > "$pack/nvrtc.tar.xz"
fi

say "CubeCL's kernels"
mkdir "$work/cubecl"
printf '[compilation]\ncache = { file = "%s" }\n' "$work/cubecl" > "$work/cubecl.toml"
export XDG_CACHE_HOME=$work/cache STUB_FIRST_F32=8 BEIT2_KERNELS=$pack/cubins
program=$work/beit2
for precision in bf16 f32; do
    for batch in 128 64 256; do
        for kind in "train --stage pretrain" "train --stage finetune" "train --stage tokenizer" infer; do
            # Batches matter little: kernels are compiled for types and widths, not for numbers of images.
            [ "$precision" = bf16 ] || [ "$batch" = 128 ] || continue
            # shellcheck disable=SC2086 (a command and its flag)
            (cd "$work" && "$program" bench $kind --size base --batch-size $batch --precision $precision --device cuda \
                --steps 1 --rounds 1 -q > /dev/null)
        done
    done
done
(cd "$work" && "$program" bench infer --size tiny --batch-size 8 --precision bf16 --device cuda --steps 1 --rounds 1 -q > /dev/null)
tar -C "$work" -cJf "$pack/kernels.tar.xz" cubecl
say "$(du -sh --apparent-size "$pack" | cut -f 1) in $pack:"
(cd "$pack" && du -sh --apparent-size -- *)
