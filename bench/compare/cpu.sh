#!/usr/bin/env bash
# Speed and memory of beit2 against PyTorch, eager and compiled, on this machine's CPU.
#
# usage: bench/compare/cpu.sh [OUT] [flags of compare.py run…]
#        bench/compare/cpu.sh target/compare/cpu.jsonl --only train:pretrain:small:8:f32
#
# Builds the release binary, installs PyTorch and timm of requirements.txt into target/compare-venv (5.5 GB and two
# minutes, once; COMPARE_VENV names another folder), then lets the three programs take turns on each cell. OUT
# (target/compare/cpu.jsonl) gets one JSON line for each cell, behind what it holds; `compare.py table OUT` prints it.
# All 26 cells should take about two hours on two cores, a single one 1 to 5 minutes, of which torch.compile takes up
# to 2. The machine must be otherwise idle; the script says so when it sees that it is not.
# Needs Python 3.11 (PYTHON names it), and g++ for the compiled half.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,12p' "$0"; exit ;; esac

out=target/compare/cpu.jsonl
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    out=$1
    shift
fi
mkdir -p "$(dirname "$out")"
out=$(realpath -m "$out")
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

venv=${COMPARE_VENV:-target/compare-venv}
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "cpu.sh: $python is missing or older than 3.11; name another with PYTHON=…" >&2
        exit 1
    }
    echo "cpu.sh: installing PyTorch into $venv (once)" >&2
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt" # last: an interrupted installation is begun again
fi
if ! command -v "${CXX:-g++}" > /dev/null; then
    echo "cpu.sh: there is no g++ (or \$CXX), so torch.compile cannot run: its columns stay empty" >&2
fi

cargo build --release --quiet --bin beit2
exec "$venv/bin/python" "$here/compare.py" run \
    --beit2 target/release/beit2 --python "$venv/bin/python" --out "$out" "$@"
