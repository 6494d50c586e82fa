#!/usr/bin/env bash
# Reads what `beit2 embed` and `beit2 tokenizer encode` write, as an Arrow stream and as parquet, with pyarrow, Polars and DuckDB.
#
# usage: scripts/arrow_test.sh
#
# Installs scripts/arrow_test.txt from PyPI into target/arrow-test, once (400 MB). Needs Python 3.10 or newer (PYTHON names it); says
# so and passes where it or PyPI is missing.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,7p' "$0"; exit ;; esac

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
# shellcheck source=scripts/venv.sh
. scripts/venv.sh
venv=$target/arrow-test
if ! make_venv scripts/arrow_test.txt "$venv"; then
    echo "there is no Python 3.10 or newer, or PyPI cannot be reached: Arrow streams are not read by pyarrow, Polars and DuckDB"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
BEIT2_ONNX_CASES=$work/cases cargo test --release --quiet --test onnx -- graphs_compute
cargo build --release --quiet
"$venv/bin/python" scripts/arrow_test.py "$target/release/beit2" "$work"
