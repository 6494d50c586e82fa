#!/usr/bin/env bash
# Makes a CUDA machine without a GPU: installs NVRTC, CUDA's headers and ptxas from PyPI, builds the stand-ins for the driver
# and its libraries, and prints the variables that put them in place.
#
#   eval "$(tests/cuda/setup.sh)"                    everything lies in target/cuda
#   tests/cuda/setup.sh FOLDER; . FOLDER/env.sh      elsewhere
#   BEIT2_CUDA=…/nvidia/cu13                         a toolkit of CUDA 13.0 that is there already: nothing is installed
#
# What is there is not made again. Needs g++, gcc and python3 with pip. With these variables:
#
#   (none)           sources go to the real NVRTC; launches are checked and counted, nothing computes
#   STUB_FAKE=1      nothing is compiled either: the host's part of a step, in seconds
#   STUB_COMPUTE=1   kernels are compiled by g++ and run on the CPU: results are right
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../target/cuda}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

toolkit=${BEIT2_CUDA:-$folder/toolkit/nvidia/cu13}
if [ ! -e "$toolkit/bin/ptxas" ] || [ ! -e "$toolkit/include/nvrtc.h" ]; then
    echo "installing NVRTC, headers and ptxas of CUDA 13.0 from PyPI into $folder/toolkit" >&2
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$folder/toolkit" \
        nvidia-cuda-nvrtc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-nvcc==13.0.* nvidia-cuda-crt==13.0.* nvidia-nvvm==13.0.* \
        nvidia-cuda-cccl==13.0.* >&2
fi
"$here/stub/build.sh" "$toolkit" "$folder/stub" >&2

cat > "$folder/env.sh" <<ENV
export CUDA_PATH='$toolkit'
export LD_LIBRARY_PATH='$folder/stub:$toolkit/lib'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export STUB_NVRTC='$toolkit/lib/libnvrtc.so.13'
export BEIT2_EMULATE_BUILD='$folder/stub/kernels'
ENV
cat "$folder/env.sh"
