"""What transformers and timm make of folders that `beit2 weights convert` has written.

usage: peers.py WORK

WORK/cases.json lists the cases: `library`, `folder`, `images` (safetensors with `images` [B, 3, H, W], standardised, and
for masked image models `mask` [B, N]), `photo` (an image file) and `out`. OUT.safetensors gets what the library computes
and OUT.json what it says. Written for the tests of `beit2`; it compares nothing itself.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)


def hugging_face(case, inputs):
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = case["folder"]
    config = transformers.AutoConfig.from_pretrained(folder)
    (architecture,) = config.architectures
    model, loading = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    model.eval()
    said = {
        "architecture": architecture,
        "problems": [f"{kind}: {key}" for kind, keys in loading.items() for key in keys],
        "labels": [config.id2label[label] for label in range(config.num_labels)],
        "eps": config.layer_norm_eps,
    }
    found = {}
    images = inputs["images"].to(model.dtype)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    photo = Image.open(case["photo"])
    found["pixels"] = processor(images=photo, return_tensors="pt")["pixel_values"]
    processor_pil = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    found["pixels_pil"] = processor_pil(images=photo, return_tensors="pt")["pixel_values"]
    more = {}
    if architecture == "BeitForMaskedImageModeling":
        more["bool_masked_pos"] = inputs["mask"].bool()
        plain = transformers.AutoModel.from_pretrained(folder).eval()
        found["features"] = plain(images).last_hidden_state
    if architecture == "BeitForSemanticSegmentation" and model.auxiliary_head is not None:

        def keep(module, given, made):
            found.setdefault("auxiliary", made)

        model.auxiliary_head.register_forward_hook(keep)
    made = model(images, output_hidden_states=True, **more)
    for name in ("logits", "last_hidden_state", "pooler_output"):
        if made.get(name) is not None:
            found[name] = made[name]
    for block, tokens in enumerate(made.hidden_states):
        found[f"hidden{block}"] = tokens
    if architecture == "BeitForImageClassification":
        best = transformers.pipeline("image-classification", folder)(case["photo"], top_k=len(said["labels"]))
        said["predictions"] = [[one["label"], one["score"]] for one in best]
    if architecture == "BeitForSemanticSegmentation":
        parts = transformers.pipeline("image-segmentation", folder)(case["photo"])
        said["masks"] = [[part["label"], list(part["mask"].size)] for part in parts]
        outputs = model(found["pixels"].to(model.dtype))
        (ids,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[photo.size[::-1]])
        found["ids"] = ids
    return found, said


def timm_(case, inputs):
    import timm

    model = timm.create_model("local-dir:" + case["folder"], pretrained=True).eval()
    images = inputs["images"]
    said = {"classes": model.num_classes, "labels": model.pretrained_cfg.get("label_names")}
    found = {"output": model(images), "features": model.forward_features(images)}
    for block, tokens in enumerate(model.forward_intermediates(images, intermediates_only=True, norm=False)):
        found[f"block{block}"] = tokens
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    found["pixels"] = transform(Image.open(case["photo"]).convert("RGB"))[None]
    return found, said


def main():
    work = Path(sys.argv[1])
    for case in json.loads((work / "cases.json").read_text()):
        inputs = load_file(case["images"])
        try:
            with torch.no_grad():
                found, said = (hugging_face if case["library"] == "hf" else timm_)(case, inputs)
        except Exception as error:  # the test that reads this says which case it is
            found, said = {}, {"error": f"{type(error).__name__}: {error}"}
        as_f32 = {name: value.detach().float().contiguous().clone() for name, value in found.items()}
        save_file(as_f32 or {"nothing": torch.zeros(1)}, case["out"] + ".safetensors")
        Path(case["out"] + ".json").write_text(json.dumps(said))


main()
