#!/usr/bin/env bash
# Opens pages of `beit2 tokenizer demo` in headless Chromium and compares their token ids with `beit2 tokenizer encode`.
#
# usage: scripts/demo_test.sh
#
# Needs Chromium or Chrome (CHROMIUM names it) and Python 3.10 or newer (PYTHON names it); says so and passes where one is missing.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,6p' "$0"; exit ;; esac

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null || {
    echo "there is no Python 3.10 or newer: the browser demo is not tested"
    exit
}
for name in "${CHROMIUM:-chromium}" chromium-browser google-chrome; do
    chromium=$(command -v "$name") && break
done
if [ -z "${chromium:-}" ]; then
    echo "there is no Chromium: the browser demo is not tested"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
BEIT2_ONNX_CASES=$work/cases cargo test --release --quiet --test onnx -- graphs_compute
cargo build --release --quiet
"$python" scripts/demo_test.py "$chromium" "${CARGO_TARGET_DIR:-target}/release/beit2" "$work"
