#!/usr/bin/env bash
# Makes the Python environment with PyTorch, timm and transformers that tests and benchmarks compare with.
#
# usage: scripts/python_env.sh
#
# Installs scripts/requirements.txt into target/python-env (BEIT2_PYTHON_ENV names another folder) and prints the
# folder. Takes 5.5 GB and two minutes, once; a finished environment with the same requirements is left as it is.
# Needs Python 3.11 or newer (PYTHON names it) and the network. The tests that use it:
#   cargo test --release --test weights -- peers
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,9p' "$0"; exit ;; esac

cd "$(dirname "$0")/.."
venv=${BEIT2_PYTHON_ENV:-target/python-env}
if ! cmp -s scripts/requirements.txt "$venv/installed.txt"; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "python_env.sh: $python is missing or older than 3.11; name another with PYTHON=…" >&2
        exit 1
    }
    echo "python_env.sh: installing PyTorch, timm and transformers into $venv (once, 5.5 GB)" >&2
    rm -f "$venv/installed.txt"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r scripts/requirements.txt >&2
    cp scripts/requirements.txt "$venv/installed.txt" # last: an interrupted installation is begun again
fi
realpath "$venv"
