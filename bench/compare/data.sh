#!/usr/bin/env bash
# Speed of decoding and transforms against Pillow, torchvision, timm, NVIDIA DALI (CPU) and FFCV, on one core.
#
# usage: bench/compare/data.sh [OUT] [flags of data.py run…]
#        bench/compare/data.sh target/compare/data.jsonl --rounds 9
#        WITHOUT="dali ffcv" bench/compare/data.sh
#
# Builds the benchmark, lets scripts/python_env.sh install PyTorch and timm (5.5 GB, once; BEIT2_PYTHON_ENV names another
# folder), installs DALI and FFCV into environments beside it (1.5 GB, once; WITHOUT leaves them out), makes four JPEGs of
# 500 x 375 from scikit-image's photographs, and lets the programs take turns: about five minutes. OUT
# (target/compare/data.jsonl) gets a line of JSON behind what it holds; `data.py table OUT` prints it.
# FFCV is built from source: it needs g++, pkg-config, OpenCV and turbojpeg (Debian: libopencv-dev libturbojpeg0-dev).
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,13p' "$0"; exit ;; esac

out=target/compare/data.jsonl
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    out=$1
    shift
fi
mkdir -p "$(dirname "$out")"
out=$(realpath -m "$out")
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

venv=$(scripts/python_env.sh)
others=()
# add NAME PACKAGE: an environment with the package, and PyTorch's for what it imports from there
add() {
    case " ${WITHOUT:-} " in *" $1 "*) return ;; esac
    local other=$venv-$1 site
    if [ ! -e "$other/installed" ]; then
        "$venv/bin/python" -m venv "$other"
        site=$("$other/bin/python" -c 'import site; print(site.getsitepackages()[0])')
        "$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])' > "$site/torch.pth"
        if ! "$other/bin/python" -m pip install --quiet --disable-pip-version-check "$2"; then
            echo "data.sh: $2 cannot be installed here, so its rows stay empty" >&2
            return
        fi
        touch "$other/installed"
    fi
    others+=("--$1" "$other/bin/python")
}
add dali nvidia-dali-cuda120==2.4.0
add ffcv ffcv==1.0.2

photos=target/compare/photos
[ -e "$photos/rocket.jpg" ] || "$venv/bin/python" "$here/data.py" images "$photos"
# The last program that Cargo names is the benchmark's.
program=$(cargo bench -p beit2-data --bench throughput --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*throughput[^"]*\)".*/\1/p' | tail -n 1)
exec "$venv/bin/python" "$here/data.py" run --beit2 "$program" --out "$out" "${others[@]}" "$@" "$photos"/*.jpg
