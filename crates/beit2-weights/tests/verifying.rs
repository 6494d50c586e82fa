//! Whole models pass, and every way of not being whole is one sentence that names the tensor.

#![allow(clippy::unwrap_used)]

mod support;

use std::borrow::Cow;

use beit2_weights::convert::{StateDict, convert};
use beit2_weights::inspect::{Pooling, RelativeBias};
use beit2_weights::layout::Family;
use beit2_weights::plan::Target;
use beit2_weights::verify::verify;
use beit2_weights::{DType, Tensor, TensorSource, WeightsError};
use indexmap::IndexMap;
use serde_json::Value;
use support::{golden_json, golden_tensors, open, part};

fn zeros(list: impl IntoIterator<Item = (String, Vec<usize>)>) -> StateDict {
    let tensor = |shape: Vec<usize>| {
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        Tensor::new(DType::F16, shape, bytes).unwrap()
    };
    list.into_iter().map(|(name, shape)| (name, tensor(shape))).collect()
}

fn target() -> Target {
    Target { grid: 3, patch: 8, width: 16, heads: 2, mlp_width: 64, depth: 2, classes: 5, ..Target::base() }
}

fn classifier() -> StateDict {
    convert(zeros(target().tensors()), None, Family::Official).unwrap().tensors
}

#[test]
fn whole_models_of_every_layout_pass() {
    let official = classifier();
    assert_eq!(verify(&official).unwrap().classes, Some(5));
    for to in [Family::Timm, Family::HuggingFace] {
        verify(&convert(official.clone(), None, to).unwrap().tensors).unwrap();
    }
    let plain = Target { bias: RelativeBias::None, abs_pos: true, pooling: Some(Pooling::Cls), ..target() };
    verify(&zeros(plain.tensors())).unwrap();
}

#[test]
fn what_is_not_whole_is_named() {
    let fails = |change: &dyn Fn(&mut StateDict), words: &[&str]| {
        let mut tensors = classifier();
        change(&mut tensors);
        let text = verify(&tensors).unwrap_err().to_string();
        for word in words {
            assert!(text.contains(word), "no `{word}` in: {text}");
        }
    };
    let remove = |key: &'static str| move |tensors: &mut StateDict| drop(tensors.shift_remove(key));
    let put = |key: &'static str, shape: &'static [usize]| {
        move |tensors: &mut StateDict| tensors.extend(zeros([(key.to_string(), shape.to_vec())]))
    };
    fails(&remove("blocks.1.mlp.fc2.bias"), &["`blocks.1.mlp.fc2.bias` is missing"]);
    fails(&remove("cls_token"), &["`cls_token` is missing"]);
    fails(&remove("head.bias"), &["`head.bias` is missing"]);
    fails(&put("blocks.1.attn.qkv.weight", &[32, 16]), &["blocks.1.attn.qkv.weight", "[32, 16]", "[48, 16]"]);
    fails(&put("head.bias", &[6]), &["`head.bias` has shape [6]", "[5]"]);
    fails(&put("blocks.0.attn.relative_position_bias_table", &[30, 2]), &["bias_table", "square grid"]);
    fails(&put("blocks.1.attn.relative_position_bias_table", &[52, 2]), &["blocks.1", "[52, 2]"]);
    fails(&put("blocks.0.attn.relative_position_index", &[10, 10]), &["index", "type F16"]);
    fails(&put("blocks.0.attn.relative_position_index", &[9, 9]), &["index", "[9, 9]", "[10, 10]"]);
    fails(
        &|tensors: &mut StateDict| {
            tensors.insert("fc_norm.bias".to_string(), Tensor::from_i64(vec![16], &[0; 16]).unwrap());
        },
        &["`fc_norm.bias` has type I64", "float"],
    );
    fails(
        &|tensors: &mut StateDict| {
            let index = Tensor::from_i64(vec![10, 10], &[0; 100]).unwrap();
            tensors.insert("blocks.1.attn.relative_position_index".to_string(), index);
        },
        &["blocks.1.attn.relative_position_index", "grid of 3×3"],
    );
}

/// A tensor of which only the shape matters: a published segmentation model takes 650 MB.
#[derive(Clone)]
struct Hollow(Vec<usize>);

impl TensorSource for Hollow {
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0
    }
    fn data(&self) -> Result<Cow<'_, [u8]>, WeightsError> {
        panic!("no value decides about a whole model but those of index buffers")
    }
}

/// Names and shapes of the published base model, without index buffers.
fn segmentation() -> Option<IndexMap<String, Hollow>> {
    let layouts = golden_json("G_segmentor_layouts.json")?;
    let key = |key: &Value| {
        (support::text(&key[0]).to_string(), Hollow(serde_json::from_value(key[1].clone()).unwrap()))
    };
    let keys = layouts["base"]["keys"].as_array().unwrap().iter().map(key);
    Some(keys.filter(|(name, _)| !name.ends_with("relative_position_index")).collect())
}

#[test]
fn golden_segmentation_models_are_whole_or_named() {
    let Some(whole) = segmentation() else { return };
    assert_eq!(verify(&whole).unwrap().classes, Some(150));
    let mut without = whole.clone();
    without.retain(|name, _| !name.starts_with("auxiliary_head.") && !name.ends_with("num_batches_tracked"));
    verify(&without).unwrap();
    for missing in [
        "backbone.fpn1.1.running_var",
        "backbone.fpn1.3.bias",
        "backbone.fpn2.0.weight",
        "decode_head.conv_seg.bias",
        "decode_head.lateral_convs.2.conv.weight",
        "decode_head.fpn_convs.1.bn.running_mean",
        "decode_head.psp_modules.3.1.bn.bias",
        "auxiliary_head.convs.0.conv.weight",
    ] {
        let mut tensors = whole.clone();
        tensors.shift_remove(missing);
        let text = verify(&tensors).unwrap_err().to_string();
        assert!(text.contains(&format!("`{missing}` is missing")), "{text}");
    }
    for (name, shape, expected) in [
        ("decode_head.bottleneck.conv.weight", vec![768, 3072, 3, 3], "[768, 3840, 3, 3]"),
        ("decode_head.conv_seg.weight", vec![150, 512, 1, 1], "512"),
        ("backbone.fpn1.0.weight", vec![768, 768, 4, 4], "[768, 768, 2, 2]"),
    ] {
        let mut tensors = whole.clone();
        tensors.insert(name.to_string(), Hollow(shape));
        let text = verify(&tensors).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn golden_checkpoints_are_whole() {
    let Some(index) = golden_json("checkpoints/index.json") else { return };
    for entry in index.as_array().unwrap() {
        let name = support::text(&entry["file"]);
        let Some(path) = support::file("checkpoints", entry, "file") else { continue };
        if name != "odd_storages.pth" {
            verify(&open(&path).tensors).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    // Recorded weights of the official code: both kinds of aggregation head, a tokenizer, both pyramids.
    let recorded = [
        ("B_cls_unshared", "weight/"),
        ("B_cls_droppath", "weight/"),
        ("A_dino_kmeans", "weight/"),
        ("G_patch8", "weight/"),
        ("G_patch16_grid4", "weight/"),
    ];
    for (name, prefix) in recorded {
        let Some(tensors) = golden_tensors(&format!("{name}.safetensors")) else { continue };
        let weights = part(&tensors, prefix);
        assert!(!weights.is_empty(), "{name}");
        verify(&weights).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in ["cls", "mim", "model"] {
        let Some(tensors) = golden_tensors(&format!("hf/{name}/model.safetensors")) else { continue };
        verify(&tensors).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
