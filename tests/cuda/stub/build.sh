#!/usr/bin/env bash
# Builds the stand-ins for libcuda, libnvrtc, libcublasLt and libnccl.
#
# usage: build.sh CUDA OUT      CUDA: a folder with include/cuda.h and include/nvrtc.h; OUT: where the libraries go
#
# Each is built again only when a source is newer.
set -euo pipefail
cuda=${1:?folder of CUDA}
out=${2:?folder for the libraries}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)

# build LIBRARY SONAME SOURCE…
build() {
    local library=$1 soname=$2
    shift 2
    [ -e "$1" ] || return 0
    if [ -e "$out/$library" ] && [ -z "$(find "$here" "$here/../emulate/kernel.h" -newer "$out/$library" -type f | head -1)" ]; then return 0; fi
    local compiler=(g++ -std=c++17 -fvisibility=hidden)
    case $1 in *.c) compiler=(gcc -std=gnu11) ;; esac
    "${compiler[@]}" -O3 -march=native -fPIC -shared -Wall -Wextra -I "$cuda/include" \
        -DEMULATE_FOLDER="\"$(dirname "$here")/emulate\"" -DEMULATE_BUILD="\"$out/kernels\"" \
        -Wl,-soname,"$soname" -o "$out/$library.new" "$@" -ldl -lpthread -lm
    mv "$out/$library.new" "$out/$library"
}

# Not libcuda.so.1: the real NVRTC opens that name itself and asks it for things that are not there.
build libcuda.so libcuda_of_the_stub.so "$here"/driver/*.cpp
build libnvrtc.so libnvrtc_of_the_stub.so "$here"/nvrtc/*.cpp
build libcublasLt.so.13 libcublasLt.so.13 "$here"/cublaslt.c*
build libnccl.so.2 libnccl.so.2 "$here"/nccl.c*
