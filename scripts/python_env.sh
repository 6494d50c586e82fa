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
# shellcheck source=scripts/venv.sh
. scripts/venv.sh
venv=${BEIT2_PYTHON_ENV:-target/python-env}
make_venv scripts/requirements.txt "$venv" 11
realpath "$venv"
