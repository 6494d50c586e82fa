#!/usr/bin/env python3
"""Record what mmsegmentation's own training pipeline does (crates/beit2-data/tests/data/segment.*).

usage:
    python3 -m venv env && env/bin/pip install 'setuptools<60' wheel addict pyyaml pillow yapf 'numpy<2' safetensors \\
        opencv-python-headless==4.5.5.64
    env/bin/pip install --no-deps --no-build-isolation mmcv==1.3.0 mmsegmentation==0.11.0
    env/bin/python scripts/record_segment_data.py crates/beit2-data/tests/data

The pipeline file of mmsegmentation is loaded by itself, so that PyTorch is not needed. Its random numbers are written down as
they are drawn; a port replays them. Everything is seeded: the same versions give the same bytes.
"""
import hashlib
import importlib.util
import json
import os
import sys
import types

import cv2
import mmcv
import numpy as np
from safetensors.numpy import save_file

CROP = 64
BASE = (160, 64)


def transforms():
    """mmseg/datasets/pipelines/transforms.py with a registry that registers nothing."""
    folder = os.path.join(os.path.dirname(os.path.dirname(mmcv.__file__)), "mmseg", "datasets")
    registry = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
    for name in ["mmseg", "mmseg.datasets", "mmseg.datasets.pipelines"]:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["mmseg.datasets.builder"] = types.SimpleNamespace(PIPELINES=registry)
    path = os.path.join(folder, "pipelines", "transforms.py")
    spec = importlib.util.spec_from_file_location("mmseg.datasets.pipelines.transforms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """Stands in for numpy.random and keeps what it hands out."""

    def __init__(self):
        self.drawn = []

    def __getattr__(self, name):
        function = getattr(np.random, name)

        def call(*args, **kwargs):
            value = function(*args, **kwargs)
            self.drawn.append(float(value))
            return value

        return call

    def take(self):
        drawn, self.drawn = self.drawn, []
        return drawn


def photometric(drawn):
    """The draws of PhotoMetricDistortion by name; None where an operation is not done."""
    values = iter(drawn)

    def optional():
        return next(values) if next(values) else None

    out = {"brightness": optional()}
    out["contrast_first"] = next(values) == 1
    order = ["saturation", "hue"]
    for name in ["contrast"] * out["contrast_first"] + order + ["contrast"] * (not out["contrast_first"]):
        out[name] = optional()
    assert next(values, None) is None
    return out


def image(random, height, width):
    """Coloured blobs with some noise, BGR."""
    small = random.randint(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + random.randint(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def label(random, height, width, classes, share):
    """Blobs of ids, about `share` of them 0; a few of them without a label."""
    small = np.minimum(random.geometric(share, (height // 12 + 2, width // 12 + 2)) - 1, classes)
    small = np.where(small == classes, 255, small).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def main(out):
    module = transforms()
    recorder = Recorder()
    random = np.random.RandomState(20)
    tensors, cases = {}, {"resize": [], "photometric": [], "pipeline": []}

    def rgb(bgr):
        return np.ascontiguousarray(bgr[..., ::-1])

    source = image(random, 41, 53)
    tensors["resize/input"] = rgb(source)
    for number, (width, height) in enumerate([(26, 20), (106, 82), (60, 41), (53, 90), (17, 77), (1, 1), (107, 3)]):
        tensors[f"resize/{number}"] = rgb(cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR))
        cases["resize"].append([width, height])

    module.random = recorder
    source = image(random, 40, 64)
    tensors["photometric/input"] = rgb(source)
    distortion = module.PhotoMetricDistortion()
    for number in range(24):
        np.random.seed(number)
        tensors[f"photometric/{number}"] = rgb(distortion({"img": source.copy()})["img"])
        cases["photometric"].append(photometric(recorder.take()))

    # The module's np.random is numpy's own, so the recorder is put in front of it for the pipeline.
    module.np = types.SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if name != "random"}, random=recorder)
    pipeline = {
        "resize": module.Resize(img_scale=BASE, ratio_range=(0.5, 2.0)),
        "crop": module.RandomCrop(crop_size=(CROP, CROP), cat_max_ratio=0.75),
        "flip": module.RandomFlip(prob=0.5),
        "photometric": distortion,
        "pad": module.Pad(size=(CROP, CROP), pad_val=0, seg_pad_val=255),
    }
    for number in range(16):
        height, width = [(50, 72), (72, 50), (40, 110), (64, 64)][number % 4]
        source, ids = image(random, height, width), label(random, height, width, 6, [0.5, 0.7, 0.75, 1.0][number // 4])
        tensors[f"pipeline/{number}/input"], tensors[f"pipeline/{number}/mask"] = rgb(source), ids
        np.random.seed(100 + number)
        results = {"img": source, "gt_semantic_seg": ids, "seg_fields": ["gt_semantic_seg"], "img_fields": ["img"]}
        drawn = {}
        for name, step in pipeline.items():
            results = step(results)
            drawn[name] = recorder.take()
            if name == "resize":
                resized = results["img"].shape[:2]
            if name == "photometric":
                content = results["img"].shape[:2]
        offsets = np.array(drawn["crop"], int).reshape(-1, 2).tolist()
        tensors[f"pipeline/{number}/image_out"] = rgb(results["img"])
        tensors[f"pipeline/{number}/mask_out"] = results["gt_semantic_seg"]
        cases["pipeline"].append({
            "ratio": drawn["resize"][0] * 1.5 + 0.5,
            "resized_hw": list(resized),
            "tops_and_lefts": offsets,
            "flip": bool(results["flip"]),
            "photometric": photometric(drawn["photometric"]),
            "content_hw": list(content),
        })

    # All colours, in rows of 256 so that OpenCV's vector code sees every pixel.
    def axes(*lengths):
        return np.stack(np.meshgrid(*(np.arange(n, dtype=np.uint8) for n in lengths), indexing="ij"), -1)

    every = {
        "rgb_to_hsv": cv2.cvtColor(axes(256, 256, 256).reshape(-1, 256, 3), cv2.COLOR_RGB2HSV),
        "hsv_to_rgb": cv2.cvtColor(axes(180, 256, 256).reshape(-1, 256, 3), cv2.COLOR_HSV2RGB),
    }
    cases["sha256"] = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in every.items()}
    cases["versions"] = {"mmsegmentation": "0.11.0", "mmcv": mmcv.__version__, "opencv": cv2.__version__, "numpy": np.__version__}
    cases["crop"], cases["base"] = CROP, list(BASE)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, os.path.join(out, "segment.safetensors"))
    with open(os.path.join(out, "segment.json"), "w") as file:
        json.dump(cases, file, indent=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
