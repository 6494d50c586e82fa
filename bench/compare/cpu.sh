#!/usr/bin/env bash
# Speed and memory of beit2 against PyTorch, eager and compiled, on this machine's CPU.
#
# usage: bench/compare/cpu.sh [OUT] [flags of compare.py run…]
#        bench/compare/cpu.sh target/compare/cpu.jsonl --only train:pretrain:small:8:f32
#
# Builds the release binary, lets scripts/python_env.sh install PyTorch and timm (5.5 GB and two minutes, once;
# BEIT2_PYTHON_ENV names another folder), then lets the three programs take turns on each cell. OUT
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

venv=$(scripts/python_env.sh)
if ! command -v "${CXX:-g++}" > /dev/null; then
    echo "cpu.sh: there is no g++ (or \$CXX), so torch.compile cannot run: its columns stay empty" >&2
fi

cargo build --release --quiet --bin beit2
exec "$venv/bin/python" "$here/compare.py" run \
    --beit2 target/release/beit2 --python "$venv/bin/python" --out "$out" "$@"
