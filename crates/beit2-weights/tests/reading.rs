//! What lies beside weights, which file and entry is meant, and files as other training software writes them: small files made
//! by real torch (scripts/make_torch_goldens.py).

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use beit2_weights::convert::to_canonical;
use beit2_weights::inspect::inspect;
use beit2_weights::layout::Family;
use beit2_weights::sidecar::ViewMode;
use beit2_weights::{Normalization, ReadOptions, Root, Sidecar, Tensor, read, read_with, write_safetensors};
use indexmap::IndexMap;
use serde_json::{Value, json};
use support::{checks, golden_tensors, part};

fn torch(name: &str) -> Option<PathBuf> {
    let path = checks::root().join("torch").join(name);
    if !path.is_file() {
        checks::skip(format!("{} is not in this folder", path.display()));
        return None;
    }
    Some(path)
}

/// The sidecar of a folder with these files.
fn beside(files: &[(&str, Value)]) -> Result<Sidecar, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in files {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    Sidecar::beside(&folder.path().join("model.safetensors")).map_err(|error| error.to_string())
}

fn error(path: &Path) -> String {
    let text = read(path).map(|_| ()).unwrap_err().to_string();
    assert!(
        !text.contains('\n') && text.contains(&path.file_name().unwrap().to_string_lossy().into_owned()),
        "{text}"
    );
    text
}

#[test]
fn hugging_face_s_files_are_understood() {
    let config = json!({
        "model_type": "beit", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
        "image_size": 32, "patch_size": 8, "num_channels": 3, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        "use_mean_pooling": true, "use_shared_relative_position_bias": false, "use_relative_position_bias": false,
        "layer_scale_init_value": 0.1, "id2label": { "0": "cat", "1": "dog", "2": "eel" },
    });
    let processor = json!({
        "feature_extractor_type": "BeitFeatureExtractor", "do_resize": true, "size": 32, "do_center_crop": false, "crop_size": 24,
        "resample": 2, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    });
    let found =
        beside(&[("config.json", config.clone()), ("preprocessor_config.json", processor.clone())]).unwrap();
    assert_eq!((found.sizes.heads, found.norm_eps, found.classes), (Some(4), Some(1e-12), Some(3)));
    assert_eq!(found.class_names, ["cat", "dog", "eel"]);
    assert_eq!(found.normalization, Some(Normalization::half()));
    assert_eq!(
        (found.view.size, found.view.mode, found.view.crop_pct),
        (Some(32), Some(ViewMode::Squash), Some(1.0))
    );
    assert_eq!(found.view.interpolation.as_deref(), Some("bilinear"));
    let line = found.describe().unwrap();
    assert_eq!(
        line,
        "from config.json and preprocessor_config.json: 4 heads, layer norm ε 1e-12, mean 0.5 std 0.5, view 32 px crop 1 \
         squashed bilinear, 3 class names"
    );

    let edge = json!({
        "image_processor_type": "ViTImageProcessor", "size": { "shortest_edge": 256 }, "do_center_crop": true,
        "crop_size": { "height": 224, "width": 224 }, "resample": 3, "do_rescale": true, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    });
    let found = beside(&[("preprocessor_config.json", edge)]).unwrap();
    assert_eq!(
        (found.view.size, found.view.mode, found.view.crop_pct),
        (Some(224), Some(ViewMode::Center), Some(0.875))
    );
    assert_eq!(found.normalization, Some(Normalization::imagenet()));

    // The resized side comes back, whatever the fraction.
    for from in 1..600 {
        let odd = json!({ "size": { "shortest_edge": from }, "crop_size": 224, "do_center_crop": true });
        let share = beside(&[("preprocessor_config.json", odd)]).unwrap().view.crop_pct.unwrap();
        assert_eq!((224.0 / share) as usize, from);
    }

    // Values that are not scaled to [0, 1] before.
    let bytes = json!({ "do_rescale": false, "image_mean": [127.5, 127.5, 127.5], "image_std": [127.5, 127.5, 127.5] });
    assert_eq!(
        beside(&[("preprocessor_config.json", bytes)]).unwrap().normalization,
        Some(Normalization::half())
    );
    let plain = json!({ "do_normalize": false });
    let unchanged = Normalization { mean: vec![0.0; 3], std: vec![1.0; 3] };
    assert_eq!(beside(&[("preprocessor_config.json", plain)]).unwrap().normalization, Some(unchanged));
    // transformers 5 puts it into one file with others, and a processor's own default holds where the file is silent.
    let nested = json!({ "image_processor": { "image_processor_type": "BeitImageProcessor", "size": { "height": 32, "width": 32 } } });
    assert_eq!(
        beside(&[("processor_config.json", nested)]).unwrap().normalization,
        Some(Normalization::half())
    );
    let unsized_ = json!({ "do_resize": false, "image_mean": 0.5, "image_std": 0.5 });
    assert_eq!(beside(&[("preprocessor_config.json", unsized_)]).unwrap().remarks.len(), 1);

    // A model of images and texts: its image side.
    let clip = json!({ "model_type": "clip", "vision_config": { "hidden_size": 48, "num_attention_heads": 6, "hidden_act": "quick_gelu" } });
    let found = beside(&[("config.json", clip)]).unwrap();
    assert_eq!((found.sizes.heads, found.activation.as_deref()), (Some(6), Some("quick_gelu")));
}

#[test]
fn timm_s_files_are_understood() {
    let pretrained = json!({
        "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 2, "label_names": ["n01", "n02"],
    });
    let whole = json!({
        "architecture": "beit_base_patch16_224", "num_classes": 2, "global_pool": "avg", "model_args": { "num_heads": 12 },
        "pretrained_cfg": pretrained,
    });
    for config in [whole, pretrained] {
        let found = beside(&[("config.json", config)]).unwrap();
        assert_eq!(found.normalization, Some(Normalization::half()));
        assert_eq!((found.view.crop_pct, found.view.size), (Some(0.9), Some(224)));
        assert_eq!(found.class_names, ["n01", "n02"]);
    }
}

#[test]
fn files_of_something_else_and_damaged_ones() {
    assert!(beside(&[("config.json", json!({ "editor": "vim" }))]).unwrap().is_empty());
    assert!(beside(&[]).unwrap().is_empty());
    let numbered = json!({ "model_type": "beit", "id2label": { "0": "LABEL_0", "1": "LABEL_1" } });
    let found = beside(&[("config.json", numbered)]).unwrap();
    assert_eq!((found.classes, found.class_names.len()), (Some(2), 0));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{").unwrap();
    let text = Sidecar::beside(folder.path()).unwrap_err().to_string();
    assert!(text.contains("config.json") && text.contains("not valid JSON"), "{text}");
    let zero = json!({ "image_mean": [0.5, 0.5, 0.5], "image_std": [0.0, 1.0, 1.0] });
    assert!(beside(&[("preprocessor_config.json", zero)]).unwrap_err().contains("not above 0"));
}

#[test]
fn golden_contradictions_are_errors() {
    let Some(tensors) = golden_tensors("I_timm_rel.safetensors") else { return };
    let tensors = part(&tensors, "weight/");
    let summary = inspect(&tensors).unwrap();
    let good =
        json!({ "model_type": "beit", "hidden_size": summary.width, "num_attention_heads": summary.heads });
    beside(&[("config.json", good)]).unwrap().check(&summary).unwrap();
    for (key, value) in [
        ("hidden_size", json!(999)),
        ("num_hidden_layers", json!(99)),
        ("num_attention_heads", json!(summary.heads.unwrap() + 1)),
        ("intermediate_size", json!(5)),
        ("patch_size", json!(3)),
        ("num_channels", json!(1)),
        ("image_size", json!(1000)),
        ("num_labels", json!(12345)),
        ("use_absolute_position_embeddings", json!(!summary.abs_pos)),
        ("use_shared_relative_position_bias", json!(true)),
        ("layer_scale_init_value", json!(if summary.layer_scale { 0.0 } else { 0.1 })),
    ] {
        let found = beside(&[("config.json", json!({ "model_type": "beit", key: value }))]).unwrap();
        let text = found.check(&summary).unwrap_err().to_string();
        assert!(text.contains("config.json beside the weights says"), "{key}: {text}");
    }
}

/// A file with one tensor of each of these names.
fn save(path: &Path, names: &[&str]) {
    let tensor = Tensor::from_f32(vec![2], &[1.0, 2.0]).unwrap();
    write_safetensors(path, names.iter().map(|name| (*name, &tensor)), &Default::default()).unwrap();
}

#[test]
fn sharded_models_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    save(&at("model-00001-of-00002.safetensors"), &["a", "b"]);
    save(&at("model-00002-of-00002.safetensors"), &["c"]);
    let map = |c: &str| json!({ "weight_map": { "a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors", "c": c } });
    let index = at("model.safetensors.index.json");
    fs::write(&index, map("model-00002-of-00002.safetensors").to_string()).unwrap();
    for path in [folder.path(), &index] {
        let all = read(path).unwrap().load_all().unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
    let before = beit2_weights::fingerprint(&index).unwrap();
    save(&at("model-00002-of-00002.safetensors"), &["c", "d"]);
    assert_ne!(beit2_weights::fingerprint(&index).unwrap(), before);
    fs::write(&index, map("model-00003-of-00003.safetensors").to_string()).unwrap();
    assert!(error(&index).contains("1 of 2 shards are missing, for example model-00003"));
    fs::write(&index, map("../secret").to_string()).unwrap();
    assert!(error(&index).contains("not in a file beside the index"));
    fs::write(&index, map("model-00001-of-00002.safetensors").to_string()).unwrap();
    assert!(error(&index).contains("tensor `c` is not in"));
}

#[test]
fn names_and_folders_without_weights_lead_somewhere() {
    let folder = tempfile::tempdir().unwrap();
    for (name, part) in [
        ("microsoft/beit-base-patch16-224", "hf download microsoft/beit-base-patch16-224 --local-dir"),
        ("beit_base_patch16_224.in22k_ft_in22k", "hf download timm/beit_base_patch16_224.in22k_ft_in22k"),
        ("beitv2_base_patch16_224_pt1k", "beit2 weights fetch beitv2_base_patch16_224_pt1k"),
        ("ViT-B-16.pt", "beit2 weights fetch ViT-B-16.pt"),
        ("runs/typo.safetensors", "No such file"),
    ] {
        let text = error(Path::new(name));
        assert!(text.contains(part), "{text}");
    }
    assert!(error(folder.path()).contains("a folder without model.safetensors"));
    let flax = folder.path().join("flax_model.msgpack");
    fs::write(&flax, [0x82, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    assert!(error(folder.path()).contains("Flax"));
    assert!(error(&flax).contains("a Flax file"));
    fs::write(folder.path().join("mine.pth"), "x").unwrap();
    assert!(error(folder.path()).contains("name the file in it: mine.pth"));
    for (name, bytes, part) in [
        ("a.onnx", &b"\x08\x07\x12\x07pytorch\x1a\x052.1.0"[..], "an ONNX file"),
        ("a.h5", b"\x89HDF\r\n\x1a\n0123456789", "an HDF5 file"),
        ("a.gguf", b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file"),
        ("a.pb", b"\x0a\x20\x0a\x05input\x12\x0b", "a TensorFlow graph"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("b.pth", b"<!DOCTYPE html><html></html>", "HTML page"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let text = error(&path);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn golden_torchscript_archives_hold_the_same_weights() {
    checks::golden(|| {
        let (Some(expected), Some(scripted), Some(traced)) =
            (torch("expected.safetensors"), torch("scripted.pt"), torch("traced.pt"))
        else {
            return;
        };
        let expected = read(&expected).unwrap();
        for path in [scripted, traced] {
            let found = read(&path).unwrap();
            checks::equal("root", &found.root, &Root::Script);
            for (name, view) in &expected.tensors {
                let Some(name) = name.strip_prefix("weight/") else { continue };
                checks::equal(name, &found.tensor(name).unwrap(), &view.load().unwrap());
            }
            // The mask of −∞ is no broken weight.
            checks::check(found.load_all().is_ok(), || "values".to_owned());
        }
    });
}

#[test]
fn golden_dino_s_checkpoints_give_the_teacher() {
    let Some(path) = torch("dino.pth") else { return };
    let teacher = read(&path).unwrap();
    assert_eq!(teacher.root.to_string(), "teacher");
    assert_eq!(teacher.entries, ["student", "teacher"]);
    let names = |file: &beit2_weights::Checkpoint| file.tensors.keys().cloned().collect::<Vec<_>>();
    assert!(names(&teacher).contains(&"blocks.1.attn.qkv.bias".to_owned()), "{:?}", names(&teacher));
    assert!(names(&teacher).iter().all(|name| !name.contains("head") && !name.contains("backbone")));
    let notes = teacher.notes();
    assert!(notes[0].contains("entry `teacher`") && notes[0].contains("student (--entry NAME)"), "{notes:?}");
    assert!(notes[1].contains("after `backbone.`; 3 tensors of other parts"), "{notes:?}");
    let student = read_with(&path, &ReadOptions { root: Some("student"), ..Default::default() }).unwrap();
    let same = |one: &beit2_weights::Checkpoint, other: &beit2_weights::Checkpoint| {
        one.tensor("cls_token").unwrap() == other.tensor("cls_token").unwrap()
    };
    assert_eq!(names(&student), names(&teacher));
    assert!(!same(&student, &teacher));
    // One dictionary with both, and blocks in chunks.
    let Some(path) = torch("dinov2.pth") else { return };
    let chunked = read(&path).unwrap();
    assert_eq!(names(&chunked), names(&teacher));
    assert!(
        chunked.notes()[0].contains("after `teacher.backbone.` (also in the file: student.)"),
        "{:?}",
        chunked.notes()
    );
    let text = read_with(&path, &ReadOptions { root: Some("teacher"), ..Default::default() })
        .unwrap_err()
        .to_string();
    assert!(text.contains("has no entry `teacher`; its entries are"), "{text}");
}

#[test]
fn golden_mmpretrain_s_names_are_understood() {
    let Some(path) = torch("mmpretrain.pth") else { return };
    let file = read(&path).unwrap();
    let summary = inspect(&file.tensors).unwrap();
    assert_eq!(summary.layout.family, Family::MmPretrain);
    assert_eq!((summary.depth, summary.width, summary.heads, summary.classes), (2, 8, Some(2), Some(3)));
    let raw = read_with(&path, &ReadOptions { keep_ddp_prefix: true, ..Default::default() }).unwrap();
    let (canonical, _) = to_canonical(file.load_all().unwrap()).unwrap();
    for (official, theirs) in [
        ("patch_embed.proj.weight", "backbone.patch_embed.projection.weight"),
        ("blocks.1.norm1.weight", "backbone.layers.1.ln1.weight"),
        ("blocks.1.norm2.bias", "backbone.layers.1.ln2.bias"),
        ("blocks.0.mlp.fc1.weight", "backbone.layers.0.ffn.layers.0.0.weight"),
        ("blocks.0.mlp.fc2.weight", "backbone.layers.0.ffn.layers.1.weight"),
        ("fc_norm.weight", "backbone.ln2.weight"),
        ("head.bias", "head.fc.bias"),
    ] {
        assert!(canonical[official] == raw.tensor(theirs).unwrap(), "{official}");
    }
}

#[test]
fn values_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let good = Tensor::from_f32(vec![2], &[1.0, 2.0]).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let wrong = Tensor::from_f32(vec![3], &[bad, 1.0, bad]).unwrap();
        let all: IndexMap<&str, &Tensor> =
            IndexMap::from([("good", &good), ("norm.weight", &wrong), ("attn_mask", &wrong)]);
        write_safetensors(&path, all, &Default::default()).unwrap();
        let file = read(&path).unwrap();
        let text = file.load_all().unwrap_err().to_string();
        assert!(text.contains("tensor `norm.weight` has 2 of 3 values that are NaN or infinite"), "{text}");
        // Looking at such a file stays possible.
        assert_eq!(file.tensor("norm.weight").unwrap().count_non_finite(), 2);
    }
}
