//! Tensors of a teacher's file as our module has them: one weight for queries, keys and values, the gate of a gated MLP by
//! itself, CLS and registers in one tensor.

use std::collections::BTreeMap;

use burn::tensor::{DType, TensorData};

use super::TeacherKind;
use super::names::Renamed;
use crate::error::{Error, config_error};

type Tensors = BTreeMap<String, TensorData>;

/// Renames, joins and reshapes.
///
/// `prefix_tokens` `[1, P, D]` is CLS (with its position added), then the registers; `pos_embed` `[1, N, D]` has the patches
/// only.
pub(super) fn canonical(
    kind: TeacherKind,
    renamed: &Renamed,
    mut tensors: Tensors,
) -> Result<Tensors, Error> {
    let mut out = Tensors::new();
    for (ours, full) in &renamed.source {
        let Some(tensor) = tensors.remove(full) else { continue };
        if ours == "projection" {
            out.insert("head.weight".into(), transposed(full, tensor)?);
        } else {
            // A student of mean pooling has its final norm under another name.
            let ours = match kind {
                TeacherKind::Distilled => ours.replace("fc_norm.", "norm."),
                _ => ours.clone(),
            };
            out.insert(ours, tensor);
        }
    }
    // A classifier is no part of a teacher; a projection, which has no bias, is.
    let projects =
        kind == TeacherKind::Distilled || (kind == TeacherKind::Clip && !out.contains_key("head.bias"));
    if !projects {
        out.retain(|name, _| !name.starts_with("head."));
    }
    for block in 0..renamed.blocks() {
        let name = |rest: &str| format!("blocks.{block}.{rest}");
        join_qkv(&mut out, &name)?;
        split_gate(&mut out, &name)?;
    }
    positions(&mut out, renamed)?;
    Ok(out)
}

/// `attn.q`, `attn.k` and `attn.v` → `attn.qkv`. A bias that only some of them have is 0 in the others.
fn join_qkv(out: &mut Tensors, name: &impl Fn(&str) -> String) -> Result<(), Error> {
    let mut take = |part: &str| ["q", "k", "v"].map(|one| out.remove(&name(&format!("attn.{one}.{part}"))));
    let (weights, biases) = (take("weight"), take("bias"));
    let qkv = name("attn.qkv");
    if weights.iter().any(Option::is_some) {
        let [Some(q), Some(k), Some(v)] = weights else {
            return config_error(format!("the teacher's `{qkv}` lacks its query, key or value part"));
        };
        out.insert(name("attn.qkv.weight"), stacked(&qkv, &[q, k, v])?);
    }
    if let Some(one) = biases.iter().flatten().next() {
        let zeros = TensorData::zeros::<f64, _>(one.shape.clone());
        let parts = biases.map(|bias| bias.unwrap_or_else(|| zeros.clone()));
        out.insert(name("attn.qkv.bias"), stacked(&qkv, &parts)?);
    }
    // DINOv3's original code multiplies the bias by a mask that is 0 for the keys.
    if let Some(mask) = out.remove(&name("attn.qkv.bias_mask"))
        && let Some(bias) = out.remove(&name("attn.qkv.bias"))
    {
        let (shape, mask) = (bias.shape.to_vec(), floats(mask));
        let values: Vec<f64> = floats(bias).into_iter().zip(mask).map(|(bias, mask)| bias * mask).collect();
        if [values.len()] != shape[..] {
            return config_error(format!(
                "the bias and the bias mask of the teacher's `{qkv}` differ in shape"
            ));
        }
        out.insert(name("attn.qkv.bias"), TensorData::new(values, shape));
    }
    Ok(())
}

/// A weight with the gate's rows first and the other half after them → `mlp.gate` and `mlp.fc1`.
fn split_gate(out: &mut Tensors, name: &impl Fn(&str) -> String) -> Result<(), Error> {
    for part in ["weight", "bias"] {
        let (fc1, fc2) = (name(&format!("mlp.fc1.{part}")), name("mlp.fc2.weight"));
        let packed = match out.remove(&name(&format!("mlp.gate_up.{part}"))) {
            Some(packed) => packed,
            // timm calls it `fc1`, and `fc2` takes half as many values.
            None => match (out.get(&fc1).map(|t| t.shape[0]), out.get(&fc2).map(|t| t.shape.to_vec())) {
                (Some(rows), Some(shape)) if shape.len() == 2 && rows == 2 * shape[1] => {
                    out.remove(&fc1).unwrap_or_else(|| TensorData::zeros::<f32, _>([0]))
                }
                _ => continue,
            },
        };
        let mut shape = packed.shape.to_vec();
        if shape.is_empty() || !shape[0].is_multiple_of(2) {
            return config_error(format!(
                "the teacher's `{fc1}` has shape {shape:?}, which cannot be halved"
            ));
        }
        shape[0] /= 2;
        let mut gate = floats(packed);
        let up = gate.split_off(gate.len() / 2);
        out.insert(name(&format!("mlp.gate.{part}")), TensorData::new(gate, shape.clone()));
        out.insert(fc1, TensorData::new(up, shape));
    }
    Ok(())
}

/// CLS, registers and positions.
fn positions(out: &mut Tensors, renamed: &Renamed) -> Result<(), Error> {
    let file = |name: &str| renamed.source.get(name).cloned().unwrap_or_else(|| name.to_owned());
    let [width, _, _, _] = match out.get("patch_embed.proj.weight") {
        Some(weight) => dims(&file("patch_embed.proj.weight"), weight)?,
        None => return config_error("the teacher's file has no patch embedding"),
    };
    // `[D]`, `[T, D]` or `[1, T, D]` → values of T tokens.
    let mut rows = |name: &str, rank: usize| -> Result<Option<Vec<f64>>, Error> {
        let Some(tensor) = out.remove(name) else { return Ok(None) };
        let shape = tensor.shape.to_vec();
        let full = shape.len() == 3 && shape[0] == 1;
        if shape.last() != Some(&width) || !(full || shape.len() == rank) {
            let (name, found) = (file(name), shape.len());
            return config_error(format!(
                "the teacher's `{name}` has shape {shape:?} of {found} dimensions, expected {rank} or 3 dimensions, the last \
                 of {width}"
            ));
        }
        Ok(Some(floats(tensor)))
    };
    let mut cls = rows("cls_token", 1)?;
    let registers = rows("register_tokens", 2)?;
    if let Some(mut pos) = rows("pos_embed", 2)? {
        let tokens = pos.len() / width;
        let square = |count: usize| count > 0 && count.isqrt().pow(2) == count;
        let with_cls = cls.is_some() && tokens > 1 && square(tokens - 1);
        if let Some(cls) = cls.as_mut().filter(|_| with_cls) {
            for (value, shift) in cls.iter_mut().zip(pos.drain(..width)) {
                *value += shift;
            }
        } else if !square(tokens) {
            let name = file("pos_embed");
            return config_error(format!(
                "the teacher's `{name}` has positions of {tokens} tokens, which are no square grid of patches"
            ));
        }
        let count = pos.len() / width;
        out.insert("pos_embed".into(), TensorData::new(pos, [1, count, width]));
    }
    let prefix: Vec<f64> = [cls, registers].into_iter().flatten().flatten().collect();
    if !prefix.is_empty() {
        let count = prefix.len() / width;
        out.insert("prefix_tokens".into(), TensorData::new(prefix, [1, count, width]));
    }
    Ok(())
}

/// All values.
pub(super) fn floats(tensor: TensorData) -> Vec<f64> {
    tensor.convert_dtype(DType::F64).into_vec().unwrap_or_default()
}

/// The shape of a tensor that must have N dimensions.
pub(super) fn dims<const N: usize>(name: &str, tensor: &TensorData) -> Result<[usize; N], Error> {
    tensor.shape.as_slice().try_into().map_err(|_| {
        let found = tensor.shape.as_slice();
        Error::Config(format!("the teacher's `{name}` has shape {found:?}, expected {N} dimensions"))
    })
}

fn transposed(name: &str, tensor: TensorData) -> Result<TensorData, Error> {
    let [rows, cols] = dims(name, &tensor)?;
    let values = floats(tensor);
    let flipped: Vec<f64> = (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect();
    Ok(TensorData::new(flipped, [cols, rows]))
}

fn stacked(name: &str, parts: &[TensorData; 3]) -> Result<TensorData, Error> {
    let [q, k, v] = parts;
    if q.shape != k.shape || q.shape != v.shape || q.shape.num_dims() == 0 {
        return config_error(format!("the parts of the teacher's `{name}` have different shapes"));
    }
    let mut shape = q.shape.to_vec();
    shape[0] *= 3;
    let values: Vec<f64> = parts.iter().cloned().flat_map(floats).collect();
    Ok(TensorData::new(values, shape))
}
