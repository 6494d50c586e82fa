#!/usr/bin/env python3
"""Which settings of the quickstart give better features, measured on images that no score is reported of.

usage: bench/quickstart_search.py OUT [NAME ...]

Trains the variants below (all, or those named) with one thread each, two side by side, and appends a line for each to
OUT/results.jsonl; runs that are complete are kept. The score is k-NN top-1 on bundled:train, where an image's neighbours are
the images outside of its own group of near-duplicates (grouped by scripts/make_quickstart_data.py, as for the split of
bundled:val): with neighbours of its own group, the teacher would have 50.5 percent instead of 37.4, and 35.0 on bundled:val.
One standard error is one point. Needs numpy, Pillow and safetensors (scripts/python_env.sh), and target/release/beit2 or $BEIT2.

The variants change the recipes that the quickstart had until 2026-11-29 (64 px), which are the ones called "recipe"; "now" are
those of today. Every variant of pretraining takes about as much processor time as the former recipe's, and so does every
tokenizer of another image size, unless its name begins with "now" or ends in -long.
"""
import concurrent.futures
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import make_quickstart_data as bundled  # noqa: E402

BEIT2 = os.environ.get("BEIT2", str(ROOT / "target/release/beit2"))
NEIGHBOURS, TEMPERATURE = 20, 0.07  # those of `beit2 knn`


def length(steps, warmup):
    return {"schedule.steps": steps, "schedule.warmup_steps": warmup}


# Settings of a variant that is the recipe of today; the others change the former ones.
TODAY = {"today": True}
FORMER_TOKENIZER = {
    "init.std": 0.02, "targets.whiten": "false", "model.image_size": 64, "model.code_dim": 16,
    "codebook.kmeans_warmup_steps": 160, **length(800, 80),
}  # fmt: skip
FORMER_PRETRAINING = {"init.std": 0.02, "model.vit.image_size": 64, "mask.patches": 25, **length(2000, 150)}
T_48 = {"model.image_size": 48, **length(1200, 100)}
KMEANS_1000 = {"codebook.kmeans_warmup_steps": 1000}
STD_008 = {**T_48, **KMEANS_1000, "model.code_dim": 32, "init.std": 0.08}
WHITENED = {**STD_008, "targets.whiten": "true"}
WHITENED_1600 = {**WHITENED, **length(1600, 100), "codebook.kmeans_warmup_steps": 1350}
TOKENIZERS = {
    "recipe": {},
    "now": TODAY,
    "40-px": {"model.image_size": 40, **length(1600, 120)},
    "48-px": T_48,
    "48-px-lr-2e-3": {**T_48, "optimizer.lr": 2e-3},
    "48-px-lr-3e-3": {**T_48, "optimizer.lr": 3e-3},
    "48-px-kmeans-600": {**T_48, "codebook.kmeans_warmup_steps": 600},
    "48-px-kmeans-1000": {**T_48, **KMEANS_1000},
    "48-px-kmeans-1000-wide-codes": {**T_48, **KMEANS_1000, "model.code_dim": 32},
    "48-px-kmeans-1000-wide-codes-std-0.05": {**T_48, **KMEANS_1000, "model.code_dim": 32, "init.std": 0.05},
    "48-px-std-0.08": STD_008,
    "48-px-std-0.08-long": {**STD_008, **length(2400, 100), "codebook.kmeans_warmup_steps": 2100},
    "whitened": WHITENED,
    "whitened-1800-steps-long": {**WHITENED, **length(1800, 100), "codebook.kmeans_warmup_steps": 1500},
    "whitened-72-px-patch-12-long": {**WHITENED_1600, "model.image_size": 72, "model.patch_size": 12},
    "whitened-256-codes-long": {**WHITENED_1600, "model.codebook_size": 256},
    "48-px-long": {"model.image_size": 48, **length(4000, 100)},
    "48-px-128-codes": {"model.image_size": 48, **length(1200, 100), "model.codebook_size": 128},
    "80-px": {"model.image_size": 80, **length(560, 60), "codebook.kmeans_warmup_steps": 110},
}
AT_40 = {"model.vit.image_size": 40, "mask.patches": 10}
AT_48 = {"model.vit.image_size": 48, "mask.patches": 14}
AT_48_STD_008 = {**AT_48, **length(3400, 250), "init.std": 0.08}
MASK_20 = {**AT_48_STD_008, **length(3200, 250), "mask.patches": 20}
AT_80 = {"model.vit.image_size": 80, "mask.patches": 39}
# A checkpoint every 50 steps; means of the weights of the last ones are scored too.
KEPT = {"logging.checkpoint_every": 50, "logging.keep_checkpoints": 40}
AVERAGED = [2, 4, 8, 16]
# By the image size of training, larger ones at which the last block's features are scored too.
LARGER = {40: (56, 64), 48: (64, 72, 80), 64: (80, 96)}
# Name: tokenizer, seed, settings.
PRETRAININGS = {
    "now-seed-0": ("now", 0, TODAY),
    "now-seed-1": ("now", 1, TODAY),
    "now-seed-2": ("now", 2, TODAY),
    "recipe-seed-0": ("recipe", 0, {}),
    "recipe-seed-1": ("recipe", 1, {}),
    "recipe-seed-2": ("recipe", 2, {}),
    "40-px": ("40-px", 0, {**AT_40, **length(4400, 300)}),
    "48-px": ("48-px", 0, {**AT_48, **length(3400, 250)}),
    "48-px-seed-1": ("48-px", 1, {**AT_48, **length(3400, 250)}),
    "48-px-seed-2": ("48-px", 2, {**AT_48, **length(3400, 250)}),
    "48-px-std-0.08": ("48-px", 0, {**AT_48, **length(3400, 250), "init.std": 0.08}),
    "48-px-std-0.08-seed-1": ("48-px", 1, {**AT_48, **length(3400, 250), "init.std": 0.08}),
    "48-px-std-0.08-seed-2": ("48-px", 2, {**AT_48, **length(3400, 250), "init.std": 0.08}),
    "48-px-std-0.16": ("48-px", 0, {**AT_48, **length(3400, 250), "init.std": 0.16}),
    "48-px-std-0.08-of-std-0.05": (
        "48-px-kmeans-1000-wide-codes-std-0.05", 0, {**AT_48, **length(3400, 250), "init.std": 0.08},
    ),  # fmt: skip
    "48-px-std-0.08-of-std-0.08": ("48-px-std-0.08", 0, AT_48_STD_008),
    "std-0.08-lr-6e-3": ("48-px-std-0.08", 0, {**AT_48_STD_008, "optimizer.lr": 6e-3}),
    "std-0.08-lr-1.5e-3": ("48-px-std-0.08", 0, {**AT_48_STD_008, "optimizer.lr": 1.5e-3}),
    "std-0.08-mask-20": ("48-px-std-0.08", 0, {**AT_48_STD_008, "mask.patches": 20}),
    "whitened": ("whitened", 0, AT_48_STD_008),
    "whitened-lr-1.5e-3-mask-20": ("whitened", 0, {**AT_48_STD_008, "optimizer.lr": 1.5e-3, "mask.patches": 20}),
    "whitened-lr-1.5e-3-layer-2": (
        "whitened", 0, {**AT_48_STD_008, "optimizer.lr": 1.5e-3, "model.intermediate_layer": 2},
    ),  # fmt: skip
    "whitened-lr-1.5e-3-layer-scale-1": (
        "whitened", 0, {**AT_48_STD_008, "optimizer.lr": 1.5e-3, "model.vit.layer_scale_init": 1.0},
    ),  # fmt: skip
    "whitened-1800-steps": ("whitened-1800-steps-long", 0, AT_48_STD_008),
    "whitened-1800-steps-mask-20": ("whitened-1800-steps-long", 0, {**AT_48_STD_008, "mask.patches": 20}),
    "whitened-1800-steps-mask-26": ("whitened-1800-steps-long", 0, {**MASK_20, "mask.patches": 26}),
    "whitened-1800-steps-absolute-positions": ("whitened-1800-steps-long", 0, {**MASK_20, "model.vit.abs_pos_emb": "true"}),
    "whitened-1800-steps-layer-2": ("whitened-1800-steps-long", 0, {**MASK_20, "model.intermediate_layer": 2}),
    "whitened-72-px-patch-12": (
        "whitened-72-px-patch-12-long", 0, {**MASK_20, "model.vit.image_size": 72, "model.vit.patch_size": 12},
    ),  # fmt: skip
    "whitened-256-codes": ("whitened-256-codes-long", 0, {**MASK_20, "model.vocab_size": 256}),
    "48-px-of-a-long-tokenizer": ("48-px-long", 0, {**AT_48, **length(3400, 250)}),
    "48-px-128-codes": ("48-px-128-codes", 0, {**AT_48, **length(3400, 250), "model.vocab_size": 128}),
    "80-px": ("80-px", 0, {**AT_80, **length(1250, 100)}),
    "depth-3": ("recipe", 0, {"model.vit.depth": 3, "model.intermediate_layer": 2}),
    "48-px-depth-6": ("48-px", 0, {**AT_48, **length(2400, 180), "model.vit.depth": 6, "model.intermediate_layer": 4}),
    "40-px-width-192": ("40-px", 0, {**AT_40, **length(2200, 150), "model.vit.width": 192, "model.vit.heads": 6}),
    "head-layers-1": ("recipe", 0, {"model.head_layers": 1}),
    "intermediate-layer-2": ("recipe", 0, {"model.intermediate_layer": 2}),
    "layer-scale-1": ("recipe", 0, {"model.vit.layer_scale_init": 1.0}),
    "mask-18": ("recipe", 0, {"mask.patches": 18}),
    "mask-36": ("recipe", 0, {"mask.patches": 36}),
    "min-block-9": ("recipe", 0, {"mask.min_block": 9}),
    "min-crop-0.15": ("recipe", 0, {"augment.min_crop_scale": 0.15}),
    "min-crop-0.6": ("recipe", 0, {"augment.min_crop_scale": 0.6}),
    "no-jitter": ("recipe", 0, {"augment.color_jitter": 0.0}),
    "lr-1.5e-3": ("recipe", 0, {"optimizer.lr": 1.5e-3}),
    "lr-6e-3": ("recipe", 0, {"optimizer.lr": 6e-3}),
    "min-lr-1e-3": ("recipe", 0, {"optimizer.min_lr": 1e-3, **KEPT}),
    "weight-decay-0.2": ("recipe", 0, {"optimizer.weight_decay": 0.2}),
    "beta2-0.95": ("recipe", 0, {"optimizer.beta2": 0.95}),
    "weights-averaged": ("recipe", 0, KEPT),
    "batch-8": ("recipe", 0, {"schedule.batch_size": 8, **length(4000, 300), "optimizer.lr": 4e-3}),
    "batch-32": ("recipe", 0, {"schedule.batch_size": 32, **length(1000, 75), "optimizer.lr": 2e-3}),
}


class Images:
    """Labels of bundled:train and which images are of one group, in the order of their rows."""

    def __init__(self):
        found = {}
        for shard in sorted((ROOT / "crates/beit2-quickstart-data/data").glob("train-*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    if member.name.endswith(".webp"):
                        image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                        found[f"{shard.name}:{member.name}"] = image
        names = sorted({key.split(":")[1].split("/")[0] for key in found})
        self.keys, drawings = list(found), []
        self.labels = np.array([names.index(key.split(":")[1].split("/")[0]) for key in found])
        for key, label in zip(found, self.labels):
            drawing = bundled.describe(found[key])
            drawing.category = label
            drawing.series = bundled.series_of(re.sub(r"_\d+$", "", Path(key).stem) + ".png")
            drawings.append(drawing)
        bundled.group(drawings)
        groups = np.array([drawing.group for drawing in drawings])
        self.same_group = groups[:, None] == groups[None]

    def knn(self, features):
        """Top-1 in percent."""
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
        similarity = features @ features.T
        similarity[self.same_group] = -9
        nearest = np.argpartition(-similarity, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        weights = np.exp(np.take_along_axis(similarity, nearest, 1) / TEMPERATURE)
        of_class = [(weights * (self.labels[nearest] == label)).sum(1) for label in range(self.labels.max() + 1)]
        return round(100 * float((np.stack(of_class, 1).argmax(1) == self.labels).mean()), 1)


def beit2(*words):
    """Seconds of processor time."""
    threads = {**os.environ, "RAYON_NUM_THREADS": "1"}
    process = subprocess.Popen([BEIT2, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=threads)
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        sys.exit(f"beit2 {' '.join(words)}\n{told.decode()[-2000:]}")
    return round(usage.ru_utime)


def averaged(run, count):
    """A file with the mean of the weights of a run's last checkpoints."""
    files = sorted((run / "checkpoints").glob("*/model.safetensors"))[-count:]
    with safe_open(files[-1], "np") as last:
        metadata, names = last.metadata(), last.keys()
    tensors = [load_file(file) for file in files]
    mean = {name: np.mean([tensor[name] for tensor in tensors], axis=0, dtype=np.float64) for name in names}
    out = run / "averaged.safetensors"
    save_file({name: value.astype(tensors[-1][name].dtype) for name, value in mean.items()}, out, metadata)
    return out


def features(run, images, *flags):
    out = run.with_name(f"{run.name}-features.npy")
    beit2("embed", "bundled:train", "--weights", str(run), "--out", str(out), "--quiet", "--force", *flags)
    keys = [json.loads(line)["path"] for line in Path(f"{out}.paths.jsonl").read_text().splitlines()]
    if keys != images.keys:
        sys.exit(f"{out}: its rows are not in the order of the shards")
    return np.load(out).astype(np.float32)


def train(out, stage, name, seed, settings, words):
    former = FORMER_TOKENIZER if stage == "tokenizer" else FORMER_PRETRAINING
    settings = {} if settings is TODAY else {**former, **settings}
    run = out / f"{stage}-{name}"
    if (run / "report.html").exists():
        return run, None
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return run, beit2(*words, "--out", str(run), "--seed", str(seed), "--quiet", *sets)


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[2:] or list(PRETRAININGS)
    unknown = [name for name in wanted if name not in PRETRAININGS]
    if unknown:
        sys.exit(f"no variant is called {unknown[0]}; there are {', '.join(PRETRAININGS)}")
    images, lock = Images(), threading.Lock()

    def note(**line):
        with lock, open(out / "results.jsonl", "a") as file:
            print(json.dumps(line), file=file)
            print(json.dumps(line), flush=True)

    def scores(both):
        width = both.shape[1] // 2
        return {"cls": images.knn(both[:, :width]), "mean": images.knn(both[:, width:]), "cls + mean": images.knn(both)}

    def tokenizer(name):
        settings = TOKENIZERS[name]
        words = ["tokenizer", "train", "quickstart_tokenizer"]
        run, seconds = train(out, "tokenizer", name, 0, settings, words)
        if seconds is not None:
            knn = {"mean": images.knn(features(run, images))}
            note(stage="tokenizer", name=name, cpu_seconds=seconds, knn=knn, settings=settings)

    def pretrain(name):
        of, seed, settings = PRETRAININGS[name]
        words = ["pretrain", "quickstart_pretrain", "--tokenizer", str(out / f"tokenizer-{of}")]
        run, seconds = train(out, "pretrain", name, seed, settings, words)
        if seconds is None:
            return
        depth, knn = settings.get("model.vit.depth", 4), {}
        for layer in range(depth, depth - 3, -1):
            # The last block's features are after the final norm.
            both = features(run, images, "--features", "concat", *(["--layer", str(layer)] if layer < depth else []))
            knn[f"block {layer}"] = scores(both)
        for size in LARGER.get(settings.get("model.vit.image_size", 48 if settings is TODAY else 64), ()):
            both = features(run, images, "--features", "concat", "--image-size", str(size))
            knn[f"block {depth} at {size} px"] = scores(both)
        for count in AVERAGED if "logging.keep_checkpoints" in settings else []:
            both = features(averaged(run, count), images, "--features", "concat")
            knn[f"mean of {count} checkpoints"] = scores(both)
        note(stage="pretrain", name=name, tokenizer=of, seed=seed, cpu_seconds=seconds, knn=knn, settings=settings)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(tokenizer, {PRETRAININGS[name][0]: None for name in wanted}))
        list(pool.map(pretrain, wanted))


if __name__ == "__main__":
    main()
