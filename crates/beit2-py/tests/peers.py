"""Features and logits of timm's and transformers' own models equal those of this package on the same weights, and a DataLoader of
torch gives the bytes that the program trains on.

    scripts/python_test.sh --peers      # runs this in the environment of scripts/python_env.sh

The models are those of the golden suites I and T and base-size ones with random weights; the images are random, the precision is
f32. Prints a line for each comparison, and fails if one is not good.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import beit2
from token_cache import batches, digest

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"

# f32 sums in other orders through up to twelve blocks, relative to the largest value; less than 1e-6 was measured.
TOLERANCE = 2e-5
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

failed = False


def report(what: str, good: bool, told: str) -> None:
    global failed
    failed |= not good
    print(f"{what}: {told}: {'good' if good else 'NOT GOOD'}", flush=True)


def compare(what: str, found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    same = found.shape == expected.shape and expected.std() > 0
    off = float(np.abs(found - expected).max() / np.abs(expected).max()) if same else float("inf")
    told = f"shape {list(found.shape)}, largest difference {off:.1e} of the largest value, allowed {TOLERANCE:g}"
    if found.shape != expected.shape:
        told += f", expected shape {list(expected.shape)}"
    report(what, off <= TOLERANCE, told)


def stirred(model: Any) -> Any:
    """Random values everywhere, also where a library starts with zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(one + (0.1 if value.ndim < 2 or "table" in name else 0.03) * noise)
    return model.eval()


def images_of(side: int, seed: int) -> torch.Tensor:
    """Random pixels in [0, 1], [3, 3, side, side]."""
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(seed))


def classifier_of_timm(what: str, model: Any, file: Path, side: int) -> None:
    images = images_of(side, 1)
    with torch.no_grad():
        tokens = model.forward_features((images - MEAN) / STD)
        pooled = model.forward_head(tokens, pre_logits=True)
        logits = model((images - MEAN) / STD)
    compare(f"{what}, logits", beit2.Classifier.open(file, normalization="imagenet").logits(images), logits)
    compare(f"{what}, features", beit2.Embedder.open(file, normalization="imagenet")(images), pooled)


def golden_i(folder: Path) -> None:
    folder = folder / "golden-i"
    folder.mkdir()
    entries = json.loads((GOLDEN / "manifest_I.json").read_text())["entries"]
    for entry in entries:
        config = entry["config"]
        if "img" not in config:
            continue
        model = timm.models.beit.Beit(
            img_size=config["img"], patch_size=config["patch"], num_classes=config["classes"], embed_dim=config["width"],
            depth=config["depth"], num_heads=config["heads"], mlp_ratio=config["mlp_ratio"], init_values=config["init_values"],
            use_abs_pos_emb=config["abs_pos"], use_rel_pos_bias=config["rel_pos"],
            use_shared_rel_pos_bias=config["shared"], global_pool=config["pool"],
        )
        recorded = load_file(GOLDEN / entry["file"])
        weights = {name.removeprefix("weight/"): value for name, value in recorded.items() if name.startswith("weight/")}
        missing = model.load_state_dict(weights, strict=False)
        assert not missing.unexpected_keys, missing
        file = folder / f"{entry['case']}.safetensors"
        save_file(weights, file)
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": config["heads"]}))
        classifier_of_timm(f"golden I, {entry['case']}, timm", model.eval(), file, config["img"])


def golden_t(folder: Path) -> None:
    for entry in json.loads((GOLDEN / "manifest_T.json").read_text())["entries"]:
        meta, config = entry["meta"], entry["config"]
        source = GOLDEN / meta["folder"]
        side = load_file(GOLDEN / entry["file"])["input/images"].shape[-1]
        images, prefix = images_of(side, 2), meta["prefix_tokens"]
        inputs = (images - 0.5) / 0.5
        if "timm_name" in meta:
            model = timm.create_model(meta["timm_name"], pretrained=False, num_classes=0, **meta["overrides"])
            model.load_state_dict(load_file(source / "model.safetensors"), strict=False)
            path = folder / entry["case"]
            path.mkdir()
            (path / "config.json").write_text(
                json.dumps({"architecture": meta["timm_name"], "model_args": meta["overrides"]})
            )
            (path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
            with torch.no_grad():
                tokens = model.eval().forward_features(inputs)
        else:
            path = source
            model = getattr(transformers, meta["class"]).from_pretrained(source).eval()
            more = {"interpolate_pos_encoding": True} if side != config["config"]["image_size"] and "v3" not in meta["class"] else {}
            if meta["class"].startswith("Dinov2"):
                more = {}
            with torch.no_grad():
                tokens = model(inputs, **more).last_hidden_state
                if meta["class"].startswith("CLIP"):
                    tokens = model.vision_model.post_layernorm(tokens)
        options = {"teacher": "dino"} if entry["case"] == "hf_dino" else {}
        embedder = beit2.Embedder.open(path, normalization="half", image_size=side, **options)
        library = meta["library"].split()[0]
        compare(f"golden T, {entry['case']}, {library}", embedder(images, features="patches"), tokens[:, prefix:])


def base_timm(folder: Path) -> None:
    model = stirred(timm.create_model("beitv2_base_patch16_224", pretrained=False, num_classes=10))
    file = folder / "timm.safetensors"
    save_file(model.state_dict(), file)
    classifier_of_timm("base, timm", model, file, 224)


def base_transformers(folder: Path) -> None:
    config = transformers.BeitConfig(
        num_labels=10, use_relative_position_bias=True, use_mean_pooling=True, layer_scale_init_value=0.1, drop_path_rate=0.0
    )
    model = stirred(transformers.BeitForImageClassification(config))
    model.save_pretrained(folder / "hf")
    images = images_of(224, 3)
    with torch.no_grad():
        out = model.beit((images - MEAN) / STD)
        logits = model((images - MEAN) / STD).logits
    classifier = beit2.Classifier.open(folder / "hf", normalization="imagenet")
    embedder = beit2.Embedder.open(folder / "hf", normalization="imagenet")
    compare("base, transformers, logits", classifier.logits(images), logits)
    compare("base, transformers, features", embedder(images), out.pooler_output)


def program(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "beit2", *arguments, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def data_loader(folder: Path) -> None:
    """A DataLoader's batches are those of a pretraining run of the program, of which it kept digests."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for at in range(27):
        pixels = rng.integers(0, 256, (rng.integers(230, 400), 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{at}.jpg")
    sizes = ["--set", "model.vit.depth=2", "--set", "model.vit.width=32", "--set", "model.vit.heads=2", "--set", "model.intermediate_layer=1"]
    sizes += ["--set", "model.vocab_size=32"]
    tiny = ["--set", "model.width=32", "--set", "model.depth=2", "--set", "model.heads=2", "--set", "model.codebook_size=32"]
    tiny += ["--set", "codebook.kmeans_warmup_steps=1"]
    steps = ["--steps", "4", "--batch-size", "4", "--data", str(folder / "photos")]
    program("tokenizer", "train", "quickstart_tokenizer", *tiny, *steps, "--out", str(folder / "tokenizer"))
    told = ["--tokenizer", str(folder / "tokenizer"), "--set", f"tokenizer.cache={folder / 'ids'}", "--epochs", "2"]
    run = str(folder / "run")
    program("pretrain", "quickstart_pretrain", *sizes, *told, "--batch-size", "8", *steps[4:], "--out", run)
    for epoch in range(2):
        expected = batches(folder / "ids", epoch)
        for workers, start in [(0, None), (2, "fork"), (2, "spawn")]:
            images = beit2.TrainingImages.open(run)
            loader = torch.utils.data.DataLoader(
                images, batch_size=8, sampler=images.order(epoch), num_workers=workers, drop_last=True,
                multiprocessing_context=start,
            )
            found = [digest(batch.get("second", batch["image"]).numpy()) for batch in loader]
            told_ = f"{len(found)} batches, SHA-256 of the pixels, {workers} workers ({start})"
            report(f"torch DataLoader, epoch {epoch}", len(found) == 3 and found == expected, told_)


def evaluation(folder: Path) -> None:
    """Views of an embedder, by a DataLoader, go through the model as the files do."""
    paths = sorted(str(path) for path in (folder / "photos").iterdir())
    embedder = beit2.Embedder.open(folder / "timm.safetensors", normalization="imagenet")
    loader = torch.utils.data.DataLoader(
        paths, batch_size=8, collate_fn=embedder.preprocess, num_workers=2, multiprocessing_context="spawn"
    )
    views = torch.cat([torch.from_numpy(batch) for batch in loader])
    compare("torch DataLoader, features", embedder(views.permute(0, 3, 1, 2) / 255), embedder(paths))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        for work in (golden_i, golden_t, base_timm, base_transformers, data_loader, evaluation):
            work(Path(name))
    sys.exit(failed)
