#!/usr/bin/env bash
# Correctness, speed and memory of beit2 on a GPU, beside PyTorch eager and compiled, in one call of under nine minutes.
#
# usage: bench/gpu.sh OUT
#        DEVICE=cpu SIZE=tiny BATCHES=4 BUDGET=300 bench/gpu.sh OUT     # without a GPU, to try the script itself
#
# Builds nothing and fetches nothing. It wants a program made by `cargo build --release --features cuda`, and a Python
# with PyTorch (for CUDA) and timm. OUT gets, all flat:
#   doctor.json            the machine, its GPU and the libraries for it
#   golden.txt             what GOLDEN_TEST printed, when it is given
#   results.jsonl          one line for each cell, written after each program; `compare.py table` prints it
#   table.md               that table
#   kernels-*.json         time of one pretraining step by kernel, ours and PyTorch's, when time is left
#   log.txt                everything that was said
#
# variables, with what they are when they are left out:
#   BEIT2=target/release/beit2   the program             PYTHON=python3       the Python
#   DEVICE=cuda                  or cpu                  SIZE=base            tiny, small, base or large
#   BATCHES="128 64 256"         most important first    DTYPE=bf16           or f32
#   BUDGET=520                   seconds for everything  ROUNDS=3             of each program
#   GOLDEN_TEST=                 a test executable for the device, run first: `golden` of `scripts/test_gpu.sh cuda pack DIR`;
#                                BEIT2_GOLDEN names its recorded outputs
#   GOLDEN_SECONDS=150           its limit               STEPS=0              of a round; 0: by the cell
# Both programs may be packed by xz (NAME.xz), a third of the size.
#
# The most important cell comes first: pretraining at the first batch, ours, compiled, eager; then fine-tuning,
# tokenizer, inference; then the other batches. What the budget has no room for is left out, and a line says so.
# The status is 0 when everything that ran succeeded, 1 when something failed.
set -euo pipefail
usage() { sed -n '2,/^[^#]/s/^#//p' "$0"; }
case ${1:-} in
-h | --help) usage; exit ;;
'' | -*) usage >&2; exit 2 ;;
esac
SECONDS=0
mkdir -p "$1"
out=$(realpath "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
beit2=$(realpath -m "${BEIT2:-$root/target/release/beit2}")
python=${PYTHON:-python3}
# Absolute, but not through links: the link is what makes a virtual environment.
case $python in /*) ;; */*) python=$PWD/$python ;; esac
device=${DEVICE:-cuda} size=${SIZE:-base} dtype=${DTYPE:-bf16}
read -r -a batches <<< "${BATCHES:-128 64 256}"
budget=${BUDGET:-520} rounds=${ROUNDS:-3} steps=${STEPS:-0}
golden=${GOLDEN_TEST:+$(realpath -m "$GOLDEN_TEST")}
BEIT2_GOLDEN=$(realpath -m "${BEIT2_GOLDEN:-$root/tests/golden}")
export BEIT2_GOLDEN
# The kernels' share of the budget, with what the last lines take.
reserve=$((budget / 6))
status=0

# Everything goes to the log as well. Lines are written at once: what stops the script must lose none.
exec > >(tee "$out/log.txt") 2>&1
export PYTHONUNBUFFERED=1
say() { printf 'gpu.sh: [%s s] %s\n' "$SECONDS" "$*"; }
stop() { say "$*"; exit 2; }
left() { echo $((budget - SECONDS)); }

usable() { [ -x "$1" ] || { [ -f "$1" ] && [ "${1%.xz}" != "$1" ]; }; }
usable "$beit2" || stop "$beit2 is no program: cargo build --release --features cuda makes it, BEIT2=… names another"
[ -z "$golden" ] || usable "$golden" || stop "GOLDEN_TEST is no program: $golden"
"$python" - "$device" << 'CHECK' || stop "this Python cannot be used: $python; name another with PYTHON=…"
import importlib.util, sys
missing = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
sys.exit(f"{', '.join(missing)} is not installed for {sys.executable}" if missing else 0)
CHECK

# Programs start in a folder of their own with settings for CubeCL: compiled and tuned kernels are kept from one to the
# next.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/cubecl.toml" << TOML
[compilation]
cache = { file = "$work/kernels" }
[autotune]
cache = { file = "$work/tuned" }
TOML
cd "$work"

# CubeCL compiles kernels at run time with NVRTC, which needs CUDA's include files; it asks CUDA_PATH, then usual places.
# The toolkit may lie elsewhere: beside nvcc, or in Python's packages, as PyTorch brings it. Ours alone is told, so that
# PyTorch keeps the libraries it was built with.
packages() {
    local site
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    compgen -G "$site/nvidia/cu[0-9]*" || true
}
toolkit=${CUDA_PATH:-/usr/local/cuda}
libraries=${LD_LIBRARY_PATH:-}
if [ "$device" = cuda ]; then
    if [ -z "${CUDA_PATH:-}" ] && [ ! -e "$toolkit/include/cuda_runtime.h" ]; then
        beside=$(command -v nvcc || true)
        [ -z "$beside" ] || beside=$(dirname "$(dirname "$(readlink -f "$beside")")")
        while read -r folder; do
            # Tensor cores need crt/, which Python's packages have in a wheel of its own.
            if [ -e "$folder/include/cuda_runtime.h" ] && [ -e "$folder/include/crt/mma.h" ]; then
                toolkit=$folder
                break
            fi
        done < <(printf '%s\n' "${beside:-/opt/cuda}"; packages)
    fi
    while read -r folder; do
        if compgen -G "$folder/libnvrtc.so*" > /dev/null; then
            libraries=$folder${libraries:+:$libraries}
            break
        fi
    done < <(printf '%s\n' "$toolkit"/{lib64,targets/x86_64-linux/lib,lib}; packages | sed 's,$,/lib,')
    say "CUDA toolkit: $toolkit; LD_LIBRARY_PATH: $libraries"
fi
unpacked() { # PROGRAM NAME: prints where the program is, which is the work folder when it was packed
    case $1 in
    *.xz)
        "$python" -c 'import lzma, shutil, sys
with lzma.open(sys.argv[1]) as packed, open(sys.argv[2], "wb") as plain: shutil.copyfileobj(packed, plain)' \
            "$1" "$work/$2.plain"
        chmod +x "$work/$2.plain"
        echo "$work/$2.plain"
        ;;
    *) echo "$1" ;;
    esac
}
beit2=$(unpacked "$beit2" beit2)
golden=${golden:+$(unpacked "$golden" golden)}
launcher() { # PROGRAM NAME: a script in the work folder that starts it with what it needs
    printf '#!/usr/bin/env bash\nexport LD_LIBRARY_PATH=%q CUDA_PATH=%q\nexec %q "$@"\n' \
        "$libraries" "$toolkit" "$1" > "$work/$2"
    chmod +x "$work/$2"
}
if [ "$device" = cuda ]; then
    launcher "$beit2" beit2
    beit2=$work/beit2
    [ -z "$golden" ] || { launcher "$golden" golden; golden=$work/golden; }
fi

say "the machine"
timeout 60 "$beit2" doctor --json > "$out/doctor.json" || { say "doctor failed"; status=1; }
[ "$device" = cpu ] || timeout 60 "$beit2" doctor | grep -E '^(software|device cuda|GPU|CUDA)' || true

if [ -n "$golden" ]; then
    limit=${GOLDEN_SECONDS:-150}
    filter=
    [ "$device" = cpu ] || filter=on_$device
    say "golden tests: $golden (at most $limit s)"
    # With a GPU those that run there; the others are the CPU's.
    if timeout "$limit" "$golden" ${filter:+"$filter"} --nocapture --test-threads 1 > "$out/golden.txt" 2>&1; then
        say "golden tests passed: $(grep -h '^test result' "$out/golden.txt" | tail -n 1 || true)"
    else
        say "golden tests failed or were cut off (status $?); the end of golden.txt:"
        tail -n 15 "$out/golden.txt"
        status=1
    fi
fi

cells=()
for batch in "${batches[@]}"; do
    for kind in train:pretrain train:finetune train:tokenizer infer; do
        cells+=(--only "$kind:$size:$batch:$dtype")
    done
done
say "speed and memory: ${#batches[@]} batch sizes, $(left) s left"
rm -f "$out/results.jsonl"
# A program that says nothing for a third of the budget must not cost the others theirs.
"$python" "$root/bench/compare/compare.py" run --beit2 "$beit2" --python "$python" --device "$device" --turns program \
    --programs beit2 pytorch-compile pytorch-eager --rounds "$rounds" --steps "$steps" \
    --patience $((budget / 3)) \
    --budget "$(($(left) - reserve))" --out "$out/results.jsonl" "${cells[@]}" || status=1
if [ -s "$out/results.jsonl" ]; then
    "$python" "$root/bench/compare/compare.py" table "$out/results.jsonl" > "$out/table.md" || status=1
fi

if [ "$(left)" -ge $((reserve / 2)) ]; then
    say "kernels of a pretraining step, $(left) s left"
    "$python" "$root/bench/compare/kernels.py" --beit2 "$beit2" --python "$python" --device "$device" --stage pretrain \
        --size "$size" --batch-size "${batches[0]}" --precision "$dtype" --config "$work/cubecl.toml" \
        --timeout "$(($(left) / 2))" --out "$out" || status=1
else
    say "no time is left for the kernels of a step"
fi
say "done, status $status; results in $out"
exit "$status"
