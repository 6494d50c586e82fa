#!/usr/bin/env bash
# Runs exported ONNX graphs with two runtimes, tract and ONNX Runtime, and compares with what the program computes.
#
# usage: scripts/onnx_test.sh
#
# The models are the cases of crates/beit2/tests/onnx. tract is compiled from crates.io into target/onnx-tract (two minutes of
# CPU time, once); ONNX Runtime and onnx's checker come from PyPI (scripts/onnx_test.txt, 200 MB) into target/onnx-test, once.
# What cannot be had is named and left out; what was compared and differs fails.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,8p' "$0"; exit ;; esac

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(realpath "$target")
cases=$(mktemp -d)
trap 'rm -rf "$cases"' EXIT
BEIT2_ONNX_CASES=$cases cargo test --release --quiet --test onnx

tract=(cargo run --quiet --locked --manifest-path tests/onnx-tract/Cargo.toml --target-dir "$target/onnx-tract" --)
if cargo fetch --quiet --locked --manifest-path tests/onnx-tract/Cargo.toml; then
    "${tract[@]}" "$cases"
else
    echo "crates.io cannot be reached: exports are not run by tract"
fi

# shellcheck source=scripts/venv.sh
. scripts/venv.sh
venv=$target/onnx-test
if make_venv scripts/onnx_test.txt "$venv"; then
    cargo build --release --quiet
    "$venv/bin/python" scripts/onnx_test.py "$cases" "$target/release/beit2"
else
    echo "there is no Python 3.10 or newer, or PyPI cannot be reached: exports are not run by ONNX Runtime"
fi
