#!/usr/bin/env bash
# Correctness, speed and memory of beit2 on a GPU, beside PyTorch eager and compiled, cheapest proof first.
#
# usage: bench/gpu.sh OUT
#        bench/gpu.sh --pack DIR              # makes what a machine without Rust or a network needs (bench/gpu_pack.sh)
#        PACK=DIR bench/gpu.sh OUT            # there, with this repository beside DIR
#        DEVICE=cpu SIZE=tiny BATCHES=4 BUDGET=300 bench/gpu.sh OUT     # without a GPU, to try the script itself
#
# Builds nothing and fetches nothing. It wants a program made by `cargo build --release --features cuda`, and for the comparison a
# Python with PyTorch (for CUDA) and timm. The parts, in their order, each with a limit of its own:
#   machine    the GPU, the libraries for it                            doctor.json, machine.txt
#   tiny       a prediction of the smallest model: kernels load         tiny.jsonl
#   golden     recorded outputs of the reference, on the device         golden.txt
#   kernels    own kernels against f64                                  kernels.txt
#   curve      a short pretraining against the CPU's losses             curve/curve.json
#   compare    speed and memory, ours and PyTorch's                     results.jsonl (one line a cell, after each program), table.md
#   profile    the longest kernels of a pretraining step                kernels-*.json; nsys.csv and ncu-*.txt where these tools are
# Every result is written when it is known: what stops the script loses none. OUT also gets parts.tsv (part, status, seconds)
# and log.txt (everything that was said).
#
# variables, with what they are when they are left out:
#   PARTS="machine tiny golden kernels curve compare profile"           some of them, for calls of ten minutes
#   BEIT2=target/release/beit2   the program             PYTHON=python3       the Python
#   DEVICE=cuda                  or cpu                  SIZE=base            tiny, small, base or large
#   BATCHES="128 64 256"         most important first    DTYPE=bf16           or f32
#   BUDGET=520                   seconds for everything  ROUNDS=3             of each program
#   GOLDEN_TEST= KERNEL_TEST=    test executables for the device: `golden` and `beit2_kernels` of `scripts/test_gpu.sh cuda pack DIR`
#   BEIT2_GOLDEN=tests/golden    its recorded outputs    STEPS=0              of a round; 0: by the cell
#   SLOW=1                       a part's limit, times   CURVE=               the CPU's half of `curve`, of loss_curve.py --prepare
#   CUBINS=                      own kernels, compiled elsewhere: BEIT2_KERNELS of the program
#   CACHE=                       kernels of this very program for an H100 or H200, as .tar.xz; OUT/kernels-after.tar.xz is such a file,
#                                with what was tuned on the card
#   PROGRAMS="beit2 pytorch-compile pytorch-eager"
# Programs may be packed by xz (NAME.xz), a third of the size.
#
# In `compare` the most important cell comes first: pretraining at the first batch, ours, compiled, eager; then fine-tuning,
# tokenizer, inference; then the other batches. What the budget has no room for is left out, and a line says so.
# The status is 0 when everything that ran succeeded, 1 when something failed.
set -euo pipefail
usage() { sed -n '2,/^[^#]/s/^#//p' "$0"; }
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
-h | --help) usage; exit ;;
--pack) shift; exec "$here/gpu_pack.sh" "$@" ;;
'' | -*) usage >&2; exit 2 ;;
esac
SECONDS=0
mkdir -p "$1"
out=$(realpath "$1")
root=$(dirname "$here")
if [ -n "${PACK:-}" ]; then
    pack=$(realpath "$PACK")
    : "${BEIT2:=$pack/beit2.xz}" "${CURVE:=$pack/curve}" "${CACHE:=$pack/kernels.tar.xz}"
    [ ! -d "$pack/cubins" ] || : "${CUBINS:=$pack/cubins}"
    [ ! -e "$pack/nvrtc.tar.xz" ] || nvrtc=$pack/nvrtc.tar.xz
    [ ! -e "$pack/golden.xz" ] || : "${GOLDEN_TEST:=$pack/golden.xz}"
    [ ! -e "$pack/beit2_kernels.xz" ] || : "${KERNEL_TEST:=$pack/beit2_kernels.xz}"
fi
beit2=$(realpath -m "${BEIT2:-$root/target/release/beit2}")
python=${PYTHON:-python3}
# Absolute, but not through links: the link is what makes a virtual environment.
case $python in /*) ;; */*) python=$PWD/$python ;; esac
device=${DEVICE:-cuda} size=${SIZE:-base} dtype=${DTYPE:-bf16}
read -r -a batches <<< "${BATCHES:-128 64 256}"
read -r -a parts <<< "${PARTS:-machine tiny golden kernels curve compare profile}"
read -r -a programs <<< "${PROGRAMS:-beit2 pytorch-compile pytorch-eager}"
budget=${BUDGET:-520} rounds=${ROUNDS:-3} steps=${STEPS:-0}
golden=${GOLDEN_TEST:+$(realpath -m "$GOLDEN_TEST")}
kernels=${KERNEL_TEST:+$(realpath -m "$KERNEL_TEST")}
curve=${CURVE:+$(realpath -m "$CURVE")}
cache=${CACHE:+$(realpath -m "$CACHE")}
BEIT2_GOLDEN=$(realpath -m "${BEIT2_GOLDEN:-$root/tests/golden}")
export BEIT2_GOLDEN
# The kernels' share of the budget, with what the last lines take. ncu runs a kernel dozens of times, in a program of its own.
reserve=$((budget / 6))
! command -v ncu > /dev/null || reserve=$((budget / 3))
failed=() left_out=()

# Everything goes to the log as well. Lines are written at once: what stops the script must lose none, and not the log first.
exec > >(trap '' INT TERM; exec tee -a "$out/log.txt") 2>&1
export PYTHONUNBUFFERED=1
say() { printf 'gpu.sh: [%s s] %s\n' "$SECONDS" "$*"; }
stop() { say "$*"; exit 2; }
left() { echo $((budget - SECONDS)); }
wanted() { case " ${parts[*]} " in *" $1 "*) return 0 ;; esac; return 1; }
pytorch() { case " ${programs[*]} " in *" pytorch"*) return 0 ;; esac; return 1; }
# Not every machine has xz.
unxz() { "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"; }
# In the foreground: what stops this script stops the program too.
limited() { timeout --foreground --kill-after=10 "$@"; }

usable() { [ -x "$1" ] || { [ -f "$1" ] && [ "${1%.xz}" != "$1" ]; }; }
usable "$beit2" || stop "$beit2 is no program: cargo build --release --features cuda makes it, BEIT2=… names another"
for test in "$golden" "$kernels"; do
    [ -z "$test" ] || usable "$test" || stop "this is no test program: $test"
done
if pytorch && { wanted compare || wanted profile; }; then
    "$python" - << 'CHECK' || { say "this Python has no PyTorch: $python; PYTHON=… names another. Only ours is measured"; programs=(beit2); }
import importlib.util, sys
missing = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
sys.exit(f"{', '.join(missing)} is not installed for {sys.executable}" if missing else 0)
CHECK
fi

# Programs start in a folder of their own, with a cache of their own: compiled and tuned kernels are kept from one to the next.
work=$(mktemp -d)
# What was tuned and compiled here is worth keeping: the next call starts from it.
keep() {
    tar -C "$work/cache" -cf - . 2> /dev/null |
        "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(sys.stdin.buffer, lzma.open(sys.argv[1], "wb", preset=1))' \
            "$out/kernels-after.tar.xz.new" &&
        mv "$out/kernels-after.tar.xz.new" "$out/kernels-after.tar.xz"
    rm -rf "$work" "$out/kernels-after.tar.xz.new"
}
trap keep EXIT
trap 'say "stopped by a signal"; exit 143' TERM INT
mkdir -p "$work/cache/cubecl"
export XDG_CACHE_HOME=$work/cache
[ -z "${CUBINS:-}" ] || { BEIT2_KERNELS=$(realpath "$CUBINS"); export BEIT2_KERNELS; }
if [ -n "$cache" ] && [ -e "$cache" ]; then
    # What is carried is code for compute capability 9.0; CubeCL's names do not tell generations apart. A driver before 580 does not
    # take what NVRTC of CUDA 13 made.
    card=$(nvidia-smi --query-gpu=compute_cap,driver_version --format=csv,noheader 2> /dev/null | head -n 1 || true)
    driver=${card#*, }
    if [ "${card%%,*}" = 9.0 ] && [ "${driver%%.*}" -ge 580 ] 2> /dev/null; then
        unxz "$cache" | tar -C "$work/cache" -xf - || say "$cache cannot be unpacked; its kernels are compiled instead"
    else
        say "the carried kernels are for compute capability 9.0 and driver 580, and this is ${card:-unknown}: they are compiled instead"
    fi
fi
printf '[compilation]\ncache = { file = "%s" }\n' "$work/cache/cubecl" > "$work/cubecl.toml"
cd "$work"

# NVRTC, CUDA's include files and cuBLASLt may lie in a toolkit, beside nvcc, or in Python's packages, as PyTorch brings them.
# Ours alone is told, so that PyTorch keeps the libraries it was built with.
packages() { # folders of Python's packages with libraries of CUDA, those of the whole toolkit first
    local site
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    compgen -G "$site/nvidia/cu[0-9]*" || true
    compgen -G "$site/nvidia/*/" || true
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
    for library in libnvrtc.so libcublasLt.so libnccl.so; do
        while read -r folder; do
            if compgen -G "$folder/$library*" > /dev/null; then
                case ":$libraries:" in *":$folder:"*) ;; *) libraries=${libraries:+$libraries:}$folder ;; esac
                break
            fi
        done < <(printf '%s\n' "$toolkit"/{lib64,targets/x86_64-linux/lib,lib}; packages | sed 's,/*$,/lib,')
    done
    if [ -n "${nvrtc:-}" ] && [ ! -e "$toolkit/include/cuda_runtime.h" ]; then
        say "there is no CUDA toolkit: NVRTC and headers come from $nvrtc"
        toolkit=$work/nvrtc
        mkdir "$toolkit"
        unxz "$nvrtc" | tar -C "$toolkit" -xf -
        libraries=${libraries:+$libraries:}$toolkit/lib
    fi
    say "CUDA toolkit: $toolkit; LD_LIBRARY_PATH: $libraries"
fi
unpacked() { # PROGRAM NAME: prints where the program is, which is the work folder when it was packed
    case $1 in
    *.xz)
        unxz "$1" > "$work/$2.plain"
        chmod +x "$work/$2.plain"
        echo "$work/$2.plain"
        ;;
    *) echo "$1" ;;
    esac
}
launcher() { # PROGRAM NAME: a script in the work folder that starts it with what it needs
    printf '#!/usr/bin/env bash\nexport LD_LIBRARY_PATH=%q CUDA_PATH=%q\nexec %q "$@"\n' \
        "$libraries" "$toolkit" "$1" > "$work/$2"
    chmod +x "$work/$2"
}
ready() { # PROGRAM NAME: prints how it is started here
    local program
    program=$(unpacked "$1" "$2")
    [ "$device" = cuda ] || { echo "$program"; return; }
    launcher "$program" "$2"
    echo "$work/$2"
}
beit2=$(ready "$beit2" beit2)

part() { # NAME LIMIT COMMAND...: runs a part when it is wanted and fits the budget; its status is a line of parts.tsv
    local name=$1 limit=$(($2 * ${SLOW:-1})) began=$SECONDS code=0
    shift 2
    wanted "$name" || return 0
    if [ "$(left)" -lt 10 ]; then
        skip "$name"
        return 0
    fi
    [ "$limit" -lt "$(left)" ] || limit=$(left)
    say "$name (at most $limit s)"
    "$@" "$limit" || code=$?
    printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - began)) >> "$out/parts.tsv"
    case $code in
    0) return 0 ;;
    124 | 137) say "$name was not done in its time" ;;
    *) say "$name failed: status $code" ;;
    esac
    failed+=("$name")
}
skip() { # NAME: no time is left for a part
    say "no time is left for $1"
    printf '%s\tleft out\t0\n' "$1" >> "$out/parts.tsv"
    left_out+=("$1")
}

machine() {
    if [ "$device" = cuda ]; then
        timeout 30 nvidia-smi 2>&1 | tee "$out/machine.txt" || say "there is no nvidia-smi"
        timeout 30 nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.sm,pcie.link.gen.max --format=csv \
            >> "$out/machine.txt" 2>&1 || true
    fi
    limited "$1" "$beit2" doctor --json > "$out/doctor.json" || return
    limited "$1" "$beit2" doctor | tee -a "$out/machine.txt" | grep -iE '^(software|device|gpu|cuda|nccl|matmuls)' || true
}
tiny() {
    limited "$1" "$beit2" bench infer --size tiny --batch-size 8 --precision "$dtype" --device "$device" --steps 2 --rounds 1 --json \
        2>&1 | tee "$out/tiny.jsonl"
}
tests() { # FILE PROGRAM LIMIT: with a GPU those that run there; the others are the CPU's
    local code=0 filter=
    [ "$device" = cpu ] || filter=on_$device
    # Line by line into the file, so that a test that hangs costs its own result only.
    limited "$3" "$2" ${filter:+"$filter"} --nocapture --test-threads 1 > "$out/$1" 2>&1 || code=$?
    # What each failed test said, and which one did not end.
    [ "$code" = 0 ] || { grep -h -A 2 "^thread '.*panicked" "$out/$1" || true; } | head -n 40
    case $code in 124 | 137) say "the last that began: $(grep -h '^test ' "$out/$1" | tail -n 1)" ;; esac
    grep -h '^test result' "$out/$1" | tail -n 1 || true
    return "$code"
}
loss_curve() {
    "$python" "$root/bench/loss_curve.py" --beit2 "$beit2" --device "$device" --out "$out/curve" --timeout "$1" \
        ${curve:+--reference "$curve"}
}
compare() {
    local cells=() code=0
    for batch in "${batches[@]}"; do
        for kind in train:pretrain train:finetune train:tokenizer infer; do
            cells+=(--only "$kind:$size:$batch:$dtype")
        done
    done
    # A program that says nothing for that long must not cost the others theirs: compiling a step takes PyTorch a minute or two.
    local patience=$((budget / 3))
    [ "$patience" -lt 180 ] || patience=180
    "$python" "$root/bench/compare/compare.py" run --beit2 "$beit2" --python "$python" --device "$device" --turns program \
        --programs "${programs[@]}" --rounds "$rounds" --steps "$steps" --patience "$patience" \
        --budget "$1" --out "$out/results.jsonl" "${cells[@]}" || code=$?
    if [ -s "$out/results.jsonl" ]; then
        "$python" "$root/bench/compare/compare.py" table "$out/results.jsonl" > "$out/table.md" || code=1
    fi
    return "$code"
}
profile() {
    local code=0 bench=("$beit2" bench train --stage pretrain --size "$size" --batch-size "${batches[0]}" --precision "$dtype" --device "$device")
    if [ "$device" = cuda ]; then
        # Events around our own kernels and matmuls: the card's own times, without another tool.
        limited $(($1 / 4)) "${bench[@]}" --steps 3 --rounds 1 -q --kernel-times "$out/kernels-native.json" > /dev/null || code=1
        rm -f "$out/nsys.csv" # of a call before
        if command -v nsys > /dev/null; then
            limited $(($1 / 4)) nsys profile --trace=cuda --force-overwrite true -o "$work/step" "${bench[@]}" --steps 3 --rounds 1 -q > /dev/null &&
                limited 60 nsys stats --report cuda_gpu_kern_sum --format csv "$work/step.nsys-rep" > "$out/nsys.csv" || code=1
        else
            say "there is no nsys: kernels are timed by the programs' own logs"
        fi
        if command -v ncu > /dev/null; then
            "$python" "$root/bench/compare/longest.py" "$out/nsys.csv" "$out/kernels-native.json" > "$work/longest"
            while read -r kernel <&3; do
                limited $(($1 / 10)) ncu --target-processes all --kernel-name "regex:^$kernel" --launch-skip 3 --launch-count 1 --set full \
                    "${bench[@]}" --steps 1 --rounds 1 -q > "$out/ncu-$kernel.txt" 2>&1 || { say "ncu of $kernel failed"; code=1; }
            done 3< "$work/longest"
        else
            say "there is no ncu: the five longest kernels are not looked into"
        fi
    fi
    "$python" "$root/bench/compare/kernels.py" --beit2 "$beit2" --python "$python" --device "$device" --stage pretrain \
        --size "$size" --batch-size "${batches[0]}" --precision "$dtype" --config "$work/cubecl.toml" \
        --programs "${programs[@]}" --timeout "$(($(left) / 2))" --out "$out" || code=1
    return "$code"
}

part machine 60 machine
part tiny 90 tiny
if [ "${#failed[@]}" != 0 ] && [ "${failed[-1]}" = tiny ]; then
    # The parts after it would fail too, and cost their time; `doctor` has said what is missing, the line above what went wrong.
    say "the smallest model does not run, so nothing else is tried; results in $out"
    exit 1
fi
[ -z "$golden" ] || part golden 150 tests golden.txt "$(ready "$golden" golden)"
[ -z "$kernels" ] || part kernels 90 tests kernels.txt "$(ready "$kernels" kernels)"
part curve 90 loss_curve
spare=0
! wanted profile || spare=$reserve
part compare $(($(left) - spare > 10 ? $(left) - spare : 10)) compare
if wanted profile && [ "$(left)" -lt $((reserve / 2)) ]; then
    skip profile
else
    part profile "$(left)" profile
fi
[ ${#left_out[@]} = 0 ] || say "left out: ${left_out[*]}"
if [ ${#failed[@]} = 0 ]; then
    say "done, nothing failed; results in $out"
    exit 0
fi
say "done; these failed: ${failed[*]}; results in $out"
exit 1
