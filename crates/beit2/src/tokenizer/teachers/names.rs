//! Names in teachers' files → names of our one teacher module.

use std::collections::BTreeMap;

use burn::tensor::{DType, TensorData};

use super::TeacherKind;
use crate::error::{Error, config_error};

type Tensors = BTreeMap<String, TensorData>;

/// Renames and reshapes a family's tensors; tensors that no teacher needs (text towers, classifier
/// heads, mask tokens) are left out.
pub(super) fn canonical(kind: TeacherKind, tensors: Tensors) -> Result<Tensors, Error> {
    match kind {
        TeacherKind::Clip => clip(tensors),
        TeacherKind::Dino => Ok(dino(tensors)),
        TeacherKind::Dinov2 => dinov2(tensors),
        TeacherKind::Distilled => Ok(distilled(tensors)),
    }
}

/// DINO's names are ours; `backbone.`/`module.` wrappers and the projection head go.
fn dino(tensors: Tensors) -> Tensors {
    let mut out = Tensors::new();
    for (name, tensor) in tensors {
        let name = name.trim_start_matches("module.").trim_start_matches("backbone.");
        if !name.starts_with("head.") && name != "mask_token" {
            out.insert(name.to_owned(), tensor);
        }
    }
    out
}

/// A model of this software: trunk names as in the reference's `VisionTransformer`.
fn distilled(tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (name.replace("fc_norm.", "norm."), tensor)).collect()
}

const CLIP_PARTS: [(&str, &str); 8] = [
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.in_proj_bias", "attn.qkv.bias"),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("transformer.resblocks.", "blocks."),
];

fn clip(tensors: Tensors) -> Result<Tensors, Error> {
    let mut out = Tensors::new();
    for (name, tensor) in tensors {
        // Text tower and logit scale have no `visual.`.
        let Some((_, name)) = name.split_once("visual.") else {
            continue;
        };
        let (name, tensor) = match name {
            "class_embedding" => {
                let [width] = dims(name, &tensor)?;
                ("cls_token".to_owned(), reshaped(tensor, vec![1, 1, width]))
            }
            "positional_embedding" => {
                let [tokens, width] = dims(name, &tensor)?;
                ("pos_embed".to_owned(), reshaped(tensor, vec![1, tokens, width]))
            }
            "conv1.weight" => ("patch_embed.proj.weight".to_owned(), tensor),
            "proj" => ("head.weight".to_owned(), transposed(tensor)?),
            name => {
                let name = CLIP_PARTS.iter().fold(name.to_owned(), |n, (from, to)| n.replace(from, to));
                (name.replace("ln_post.", "norm."), tensor)
            }
        };
        out.insert(name, tensor);
    }
    if out.is_empty() {
        return config_error(
            "the teacher's file holds no `visual.` tensors: it is not a CLIP model with a ViT tower",
        );
    }
    Ok(out)
}

const DINOV2_PARTS: [(&str, &str); 6] = [
    ("encoder.layer.", "blocks."),
    ("attention.output.dense.", "attn.proj."),
    ("layer_scale1.lambda1", "gamma_1"),
    ("layer_scale2.lambda1", "gamma_2"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("layernorm.", "norm."),
];

/// Hugging Face's `Dinov2Model` names, or the original repository's (`blocks.i.ls1.gamma`).
fn dinov2(tensors: Tensors) -> Result<Tensors, Error> {
    let mut out = Tensors::new();
    let mut parts: BTreeMap<String, [Option<TensorData>; 3]> = BTreeMap::new();
    for (name, tensor) in tensors {
        let name = name.strip_prefix("dinov2.").unwrap_or(&name).to_owned();
        if name.ends_with("mask_token") || name.starts_with("classifier") {
            continue;
        }
        let name = DINOV2_PARTS.iter().fold(name, |n, (from, to)| n.replace(from, to));
        let name = name
            .replace("ls1.gamma", "gamma_1")
            .replace("ls2.gamma", "gamma_2")
            .replace("embeddings.cls_token", "cls_token")
            .replace("embeddings.position_embeddings", "pos_embed");
        let part = ["query", "key", "value"]
            .iter()
            .position(|p| name.contains(&format!("attention.attention.{p}.")));
        match part {
            Some(at) => {
                let parts_of = ["query", "key", "value"][at];
                let fused = name.replace(&format!("attention.attention.{parts_of}."), "attn.qkv.");
                parts.entry(fused).or_default()[at] = Some(tensor);
            }
            None => {
                out.insert(name, tensor);
            }
        }
    }
    for (name, three) in parts {
        let [Some(q), Some(k), Some(v)] = three else {
            return config_error(format!("the teacher's `{name}` lacks its query, key or value part"));
        };
        if q.shape != k.shape || q.shape != v.shape || q.shape.num_dims() == 0 {
            return config_error(format!("the parts of the teacher's `{name}` have different shapes"));
        }
        out.insert(name, stacked(&[q, k, v]));
    }
    Ok(out)
}

fn floats(tensor: TensorData) -> Vec<f64> {
    tensor.convert_dtype(DType::F64).into_vec().unwrap_or_default()
}

/// The shape of a tensor that must have N dimensions.
pub(super) fn dims<const N: usize>(name: &str, tensor: &TensorData) -> Result<[usize; N], Error> {
    tensor.shape.as_slice().try_into().map_err(|_| {
        let found = tensor.shape.as_slice();
        Error::Config(format!("the teacher's `{name}` has shape {found:?}, expected {N} dimensions"))
    })
}

fn reshaped(tensor: TensorData, shape: Vec<usize>) -> TensorData {
    TensorData::new(floats(tensor), shape)
}

fn transposed(tensor: TensorData) -> Result<TensorData, Error> {
    let [rows, cols] = tensor.shape.as_slice()[..] else {
        return config_error("the teacher's projection is not a matrix");
    };
    let values = floats(tensor);
    let flipped: Vec<f64> = (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect();
    Ok(TensorData::new(flipped, [cols, rows]))
}

fn stacked(parts: &[TensorData; 3]) -> TensorData {
    let mut shape = parts[0].shape.to_vec();
    shape[0] *= 3;
    let values: Vec<f64> = parts.iter().cloned().flat_map(floats).collect();
    TensorData::new(values, shape)
}
