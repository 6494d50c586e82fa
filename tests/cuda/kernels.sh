#!/usr/bin/env bash
# Compiles the program's own CUDA kernels by the real NVRTC for every supported generation and assembles them by ptxas; fails
# on a kernel that either refuses, and on spills. `kernels.sh FOLDER` does it for the sources that a run left; see kernels.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
variables=$("$here/setup.sh")
eval "$variables"
exec python3 "$here/kernels.py" "$@"
