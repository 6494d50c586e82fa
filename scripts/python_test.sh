#!/usr/bin/env bash
# Builds the wheel of the Python package, installs it into an environment of its own, and tests it there.
#
# usage: scripts/python_test.sh [--setup | --peers | --engines [ray|dask|spark] | arguments of pytest]
#
# Installs scripts/python_test.txt into target/python-test (once), builds the wheel with maturin (as long as any first
# build, unless `cargo build --release` came before; then a minute), and runs pytest, mypy and stubtest; --setup only installs.
# Needs Python 3.10 or newer (PYTHON names it) and, the first time, the network.
# --engines builds the same wheel and runs it in a local Ray, Dask and Spark, installed from scripts/python_engines.txt (1.5 GB; Spark needs Java).
# --peers builds the same wheel and compares it with timm, transformers and torch in the environment of scripts/python_env.sh.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,10p' "$0"; exit ;; esac

cd "$(dirname "$0")/.."
# shellcheck source=scripts/venv.sh
. scripts/venv.sh
venv=${CARGO_TARGET_DIR:-target}/python-test
make_venv scripts/python_test.txt "$venv"
venv=$(realpath "$venv")
if [ "${1:-}" = --setup ]; then exit; fi
# pip's way, with the versions from above: the same as `pip install .`.
PATH=$venv/bin:$PATH "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-build-isolation --no-deps --force-reinstall .
if [ "${1:-}" = --peers ] || [ "${1:-}" = --engines ]; then
    if [ "$1" = --peers ]; then
        environment=$(scripts/python_env.sh)
    else
        environment=${CARGO_TARGET_DIR:-target}/python-engines
        make_venv scripts/python_engines.txt "$environment"
    fi
    # Only this package: the other libraries are those of that environment.
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    mkdir -p "$venv/peers"
    ln -sfn "$packages/beit2" "$venv/peers/beit2"
    PYTHONPATH=$venv/peers "$environment/bin/python" "crates/beit2-py/tests/${1#--}.py" "${@:2}"
    exit
fi
"$venv/bin/python" -m pytest --quiet -p no:cacheprovider "$@"
"$venv/bin/python" -m mypy
"$venv/bin/python" -m mypy.stubtest beit2._beit2 --ignore-unused-allowlist \
    --allowlist crates/beit2-py/tests/stubtest.txt
