#!/usr/bin/env bash
# Runs the tests that need a GPU: own kernels against f64, and the golden suites.
#
#   scripts/test_gpu.sh vulkan          any Vulkan driver; Mesa's software driver will do (Debian: mesa-vulkan-drivers)
#   scripts/test_gpu.sh cuda            an NVIDIA driver, and of the CUDA toolkit libnvrtc and the headers (CUDA_PATH)
#   scripts/test_gpu.sh cuda pack DIR   builds the test programs into DIR instead, for a machine without Rust;
#                                       there: DIR/run
#
# A device that is not there is skipped with a printed line.
set -euo pipefail
cd "$(dirname "$0")/.."
feature=${1:?vulkan or cuda}
# A driver in software takes minutes to compile the kernels that tuning tries for one large product.
if [ "$feature" = vulkan ]; then export CUBECL_AUTOTUNE_LEVEL=${CUBECL_AUTOTUNE_LEVEL:-minimal}; fi

if [ "${2:-}" != pack ]; then
    cargo test --release --features "$feature" --lib --test golden -- "on_$feature" --nocapture --test-threads 1
    exit
fi

folder=${3:?folder for the test programs}
mkdir -p "$folder"
cargo test --release --features "$feature" --lib --test golden --no-run --message-format=json |
    sed -n 's/.*"name":"\(beit2_kernels\|golden\)".*"executable":"\([^"]*\)".*/\1 \2/p' |
    while read -r name program; do cp "$program" "$folder/$name"; done
rm -rf "$folder/tests"
mkdir "$folder/tests"
cp -r tests/golden "$folder/tests/golden"
cat > "$folder/run" <<RUN
#!/usr/bin/env bash
set -euo pipefail
cd "\$(dirname "\$0")"
export BEIT2_GOLDEN=\$PWD/tests/golden
./beit2_kernels on_$feature --nocapture --test-threads 1
./golden on_$feature --nocapture --test-threads 1
RUN
chmod +x "$folder/run"
