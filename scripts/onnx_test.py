"""Runs exported graphs with ONNX Runtime; scripts/onnx_test.sh calls it.

    python scripts/onnx_test.py CASES BEIT2

CASES has NAME.onnx, NAME.safetensors (`in.*`, `out.*`: what the program computes) and NAME.weights.safetensors, the model.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from safetensors.numpy import load_file

# Both compute in f32, in different orders, and ONNX Runtime has erf and exp of its own. Of these small models the sums have at
# most a few hundred terms: 1e-5 of the largest value is fifty times the last bit.
ROUNDING = 1e-5

Arrays = dict[str, np.ndarray]


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def values(cases: Path, name: str) -> tuple[Arrays, Arrays]:
    """What goes in and what comes out."""
    tensors = load_file(cases / f"{name}.safetensors")
    inputs = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
    if "mask" in inputs:
        inputs["mask"] = inputs["mask"].astype(bool)
    return inputs, {key[4:]: value for key, value in tensors.items() if key.startswith("out.")}


def worst(path: Path, inputs: Arrays, expected: Arrays, allowed: float = ROUNDING) -> float:
    """The largest difference relative to the largest value, with batches of 3 and 1; ids must be equal."""
    run, largest = session(path), 0.0
    names = [output.name for output in run.get_outputs()]
    assert sorted(names) == sorted(expected), (path, names)
    for batch in (3, 1):
        found = run.run(None, {name: value[:batch] for name, value in inputs.items()})
        for name, value in zip(names, found, strict=True):
            target = expected[name][:batch]
            assert value.shape == target.shape and value.dtype == target.dtype, (path, name, value.shape, value.dtype)
            difference = np.abs(value - target).max() / np.abs(target).max()
            assert difference <= (0 if name == "ids" else allowed), f"{path.name}: {name} differs by {difference:.1e}"
            largest = max(largest, float(difference))
    return largest


class Calibration(CalibrationDataReader):
    """Each image of a case by itself."""

    def __init__(self, inputs: Arrays) -> None:
        self.rows = iter([{name: value[at : at + 1] for name, value in inputs.items()} for at in range(3)])

    def get_next(self) -> Arrays | None:
        return next(self.rows, None)


def quantized(cases: Path, name: str) -> None:
    """ONNX Runtime's quantizers take the file as it is, find every linear layer, and the results stay near."""
    inputs, expected = values(cases, name)
    source = cases / f"{name}.onnx"
    stored = {tensor.name for tensor in onnx.load(source).graph.initializer}
    layers = sum(node.op_type == "MatMul" and node.input[1] in stored for node in onnx.load(source).graph.node)
    dynamic, static = cases / "dynamic.onnx", cases / "static.onnx"
    quantize_dynamic(source, dynamic, weight_type=QuantType.QInt8)
    kinds = [node.op_type for node in onnx.load(dynamic).graph.node]
    found = kinds.count("MatMulInteger") + kinds.count("DynamicQuantizeMatMul")
    assert found >= layers > 0, f"{name}: {found} of {layers} linear layers are in integers"
    quantize_static(source, static, Calibration(inputs))
    kinds = [node.op_type for node in onnx.load(static).graph.node]
    assert kinds.count("QuantizeLinear") > layers, f"{name}: {kinds.count('QuantizeLinear')} quantized inputs"
    for path in (dynamic, static):
        for output, value in zip(session(path).get_outputs(), session(path).run(None, inputs), strict=True):
            one, other = value.ravel(), expected[output.name].ravel()
            cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
            # 8 bits on random weights of 16 values: no measure of accuracy, only that nothing is wrong with the graph.
            assert cosine > 0.98, f"{name}, {path.stem}: {output.name} has a cosine of {cosine:.3f}"
            print(f"{path.stem} int8 of {name}: {layers} layers, {output.name} has a cosine of {cosine:.4f}")


def command(beit2: Path, *arguments: object) -> str:
    done = subprocess.run([str(part) for part in (beit2, *arguments)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(cases: Path, beit2: Path) -> None:
    """What the command writes: half precision, and weights in a file of their own."""
    name = "classifier_own_mean"
    inputs, expected = values(cases, name)
    weights = cases / f"{name}.weights.safetensors"
    out = cases / "exported.onnx"
    # Weights rounded to 11 or 8 bits.
    for dtype, allowed in (("f32", ROUNDING), ("f16", 5e-3), ("bf16", 4e-2)):
        for flags in ((), ("--external-data",)):
            told = json.loads(
                command(beit2, "weights", "export", weights, "--out", out, "--dtype", dtype, *flags, "--force", "--json")
            )
            onnx.checker.check_model(out, full_check=True)
            worst(out, inputs, expected, allowed)
            metadata = session(out).get_modelmeta().custom_metadata_map
            assert metadata == told["metadata"] and metadata["beit2.weights_type"] == dtype, metadata
            assert (Path(f"{out}.data").is_file() and told["data"] is not None) == bool(flags)
            for path in cases.glob("exported.onnx*"):
                path.unlink()
    print("beit2 weights export: f32, f16 and bf16, in one file and in two")


def ids_of_an_image(cases: Path, beit2: Path) -> None:
    """From an image file: what `tokenizer encode` gives."""
    weights, out = cases / "tokenizer.weights.safetensors", cases / "bytes.onnx"
    command(beit2, "weights", "export", weights, "--out", out, "--pixels", "bytes")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (cases / "image.ppm").write_bytes(b"P6 32 32 255\n" + image.tobytes())
    command(beit2, "tokenizer", "encode", cases / "image.ppm", "--tokenizer", weights, "--out", cases / "ids.npy", "--quiet")
    (ids,) = session(out).run(None, {"images": image.transpose(2, 0, 1)[None]})
    assert (ids == np.load(cases / "ids.npy")).all()
    print("token ids of an image file: equal")


def main() -> None:
    logging.disable(logging.WARNING)  # the quantizers recommend a step that these graphs do not need
    cases, beit2 = Path(sys.argv[1]), Path(sys.argv[2])
    names = sorted(path.stem for path in cases.glob("*.onnx"))
    assert names, f"{cases} has no *.onnx"
    largest = 0.0
    for name in names:
        onnx.checker.check_model(cases / f"{name}.onnx", full_check=True)
        largest = max(largest, worst(cases / f"{name}.onnx", *values(cases, name)))
    print(f"onnxruntime: {len(names)} models agree, batches of 3 and 1; worst difference {largest:.1e} of the largest value")
    exported(cases, beit2)
    ids_of_an_image(cases, beit2)
    for name in ("classifier_own_mean", "classifier_shared_cls", "backbone_mim"):
        quantized(cases, name)


if __name__ == "__main__":
    main()
