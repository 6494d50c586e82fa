//! Whether a state dict is a whole model: every tensor is there, every shape fits the others, and the index
//! buffers are those that follow from the tables.
//!
//! [`mod@crate::inspect`] believes the first block; this looks at all of them.

use indexmap::IndexMap;

use crate::WeightsError;
use crate::inspect::{ModelSummary, RelativeBias, Shapes, canonical_shapes, summarize};
use crate::layout::{Fate, Kind, LayoutError, account, wrong_shape};
use crate::plan::Target;
use crate::resize::relative_position_index;
use crate::tensor::{DType, Tensor};
use crate::write::TensorSource;

/// What can be wrong: the file, or the model in it.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] WeightsError),
    /// The tensors are no whole model.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Checks all names, types and shapes, and the values of the index buffers; gives the summary of a model that is whole. Values of
/// the other tensors are not read.
///
/// # Errors
/// What [`crate::inspect::inspect`] says; the first tensor that is missing, too much, or of a wrong shape or type; an index that is not the one of
/// its table.
pub fn verify<T: TensorSource>(tensors: &IndexMap<String, T>) -> Result<ModelSummary, VerifyError> {
    let account = account(tensors.keys().map(String::as_str))?;
    let shapes = canonical_shapes(tensors, &account)?;
    let summary = summarize(&account, &shapes)?;
    match summary.layout.kind {
        Kind::Tokenizer => tokenizer(&summary, &shapes)?,
        Kind::Segmentation => segmentation(&summary, &shapes)?,
        Kind::Pretraining | Kind::Classifier | Kind::Backbone => {
            let target = target(&summary, "", &shapes)?;
            expect(&shapes, "", target.tensors()).map_err(|error| of_head(error, &summary))?;
            expect(&shapes, "", pretraining(&summary, &target))?;
        }
    }
    let mut index = None;
    for (entry, (key, tensor)) in account.entries.iter().zip(tensors) {
        let dtype = tensor.dtype();
        match entry.fate {
            Fate::Derived(_) => check_index(key, tensor, &summary, &mut index)?,
            Fate::Used { parameter: true, .. } | Fate::Joined { .. } if !dtype.is_float() => {
                let expected = "a float type, as it is learned".to_string();
                return Err(LayoutError::Type { key: key.clone(), found: dtype, expected }.into());
            }
            _ => {}
        }
    }
    Ok(summary)
}

/// The error about a head, with the classes that its weights are for.
fn of_head(error: LayoutError, summary: &ModelSummary) -> LayoutError {
    match (error, summary.classes) {
        (LayoutError::Shape { key, found, expected }, Some(classes)) if key.starts_with("head.") => {
            let expected = format!("{expected}, as `head.weight` is for {classes} classes");
            LayoutError::Shape { key, found, expected }
        }
        (error, _) => error,
    }
}

/// The trunk that the summary describes.
fn target(summary: &ModelSummary, prefix: &str, shapes: &Shapes) -> Result<Target, LayoutError> {
    let positions = ["rel_pos_bias.relative_position_bias_table", "pos_embed"];
    let own = "blocks.0.attn.relative_position_bias_table";
    // A summary without a grid is that of a table or an embedding that fits no square of patches.
    for name in positions.into_iter().chain([own]) {
        let key = format!("{prefix}{name}");
        if let (None, Some((_, shape))) = (summary.grid, shapes.get(&key)) {
            return Err(wrong_shape(&key, shape, "the size that belongs to a square grid of patches"));
        }
    }
    Ok(Target {
        grid: summary.grid.unwrap_or(0),
        patch: summary.patch,
        channels: summary.channels,
        width: summary.width,
        heads: summary.heads.unwrap_or(0),
        mlp_width: summary.mlp_width,
        depth: summary.depth,
        classes: if summary.layout.kind == Kind::Segmentation { 0 } else { summary.classes.unwrap_or(0) },
        bias: summary.bias,
        abs_pos: summary.abs_pos,
        pooling: summary.pooling,
        layer_scale: summary.layer_scale,
        qkv_bias: summary.qkv_bias,
    })
}

/// What pretraining has besides the trunk (docs/method.md §3.1, §3.2).
fn pretraining(summary: &ModelSummary, trunk: &Target) -> Vec<(String, Vec<usize>)> {
    let d = summary.width;
    let mut list = Vec::new();
    let mut add = |name: &str, shape: &[usize]| list.push((name.to_string(), shape.to_vec()));
    if summary.mask_token {
        add("mask_token", &[1, 1, d]);
    }
    if let Some(codes) = summary.vocab_size {
        add("lm_head.weight", &[codes, d]);
        add("lm_head.bias", &[codes]);
    }
    let Some(aggregation) = summary.patch_aggregation else { return list };
    if !aggregation.shared_lm_head {
        let codes = summary.vocab_size.unwrap_or(0);
        add("cls_pt_norm.weight", &[d]);
        add("cls_pt_norm.bias", &[d]);
        add("cls_pt_lm_head.weight", &[codes, d]);
        add("cls_pt_lm_head.bias", &[codes]);
    }
    // The head's blocks are blocks of the trunk under another name.
    let blocks = Target { depth: aggregation.head_layers, ..trunk.clone() }.tensors();
    let blocks = blocks.into_iter().filter_map(|(name, shape)| {
        Some((format!("cls_pt_layers.{}", name.strip_prefix("blocks.")?), shape))
    });
    list.extend(blocks);
    list
}

/// Both trunks, the layers between them and the codebook (docs/method.md §2.7).
fn tokenizer(summary: &ModelSummary, shapes: &Shapes) -> Result<(), LayoutError> {
    let Some(sizes) = summary.tokenizer else { return Ok(()) };
    expect(shapes, "encoder.", target(summary, "encoder.", shapes)?.tensors())?;
    let part: Shapes = shapes
        .iter()
        .filter_map(|(name, found)| Some((name.strip_prefix("decoder.")?.to_string(), found.clone())))
        .collect();
    let names = account(part.keys().map(String::as_str));
    let decoder =
        names.and_then(|names| summarize(&names, &part)).map_err(|error| within("decoder.", error))?;
    expect(shapes, "decoder.", target(&decoder, "decoder.", shapes)?.tensors())?;
    let (codes, dim) = (sizes.codebook_size, sizes.code_dim);
    let [inner, outer] = [summary.width, decoder.width];
    let list: [(&str, &[usize]); 9] = [
        ("encode_task_layer.0.weight", &[inner, inner]),
        ("encode_task_layer.0.bias", &[inner]),
        ("encode_task_layer.2.weight", &[dim, inner]),
        ("encode_task_layer.2.bias", &[dim]),
        ("decode_task_layer.0.weight", &[outer, outer]),
        ("decode_task_layer.0.bias", &[outer]),
        ("decode_task_layer.2.weight", &[sizes.teacher_dim, outer]),
        ("decode_task_layer.2.bias", &[sizes.teacher_dim]),
        ("quantize.embedding.weight", &[codes, dim]),
    ];
    expect(shapes, "", list.map(|(name, shape)| (name.to_string(), shape.to_vec())))
}

/// The backbone with its pyramid, and the heads (docs/method.md §5). Channels, scales and convolutions are counted from the tensors.
fn segmentation(summary: &ModelSummary, shapes: &Shapes) -> Result<(), LayoutError> {
    expect(shapes, "backbone.", target(summary, "backbone.", shapes)?.tensors())?;
    expect(shapes, "backbone.", pyramid(summary))?;
    let (d, classes) = (summary.width, summary.classes.unwrap_or(0));
    let auxiliary = shapes.keys().any(|name| name.starts_with("auxiliary_head."));
    // The classifiers first: their inputs are what the other layers must have.
    let channels = |head: &str| {
        let inputs = shapes.get(&format!("{head}.conv_seg.weight")).and_then(|(_, shape)| shape.get(1));
        let inputs = inputs.copied().unwrap_or(0);
        let list = [("weight", vec![classes, inputs, 1, 1]), ("bias", vec![classes])];
        expect(shapes, &format!("{head}.conv_seg."), list.map(|(name, shape)| (name.to_string(), shape)))?;
        Ok(inputs)
    };
    let count = |stem: &str, conv: &str| {
        (0..).take_while(|n| shapes.contains_key(&format!("{stem}.{n}.{conv}.weight"))).count()
    };
    let c = channels("decode_head")?;
    let branches = count("decode_head.psp_modules", "1.conv");
    let levels = (0..3).flat_map(|level| {
        [(format!("lateral_convs.{level}"), [c, d, 1]), (format!("fpn_convs.{level}"), [c, c, 3])]
    });
    let pooled = (0..branches).map(|branch| (format!("psp_modules.{branch}.1"), [c, d, 1]));
    let joined = [("bottleneck", d + branches * c), ("fpn_bottleneck", 4 * c)];
    let joined = joined.map(|(name, inputs)| (name.to_string(), [c, inputs, 3]));
    expect(shapes, "decode_head.", levels.chain(pooled).chain(joined).flat_map(convolution))?;
    if auxiliary {
        let c = channels("auxiliary_head")?;
        let convs = (0..count("auxiliary_head.convs", "conv").max(1))
            .map(|at| (format!("convs.{at}"), [c, if at == 0 { d } else { c }, 3]));
        expect(shapes, "auxiliary_head.", convs.flat_map(convolution))?;
    }
    Ok(())
}

/// What a norm has besides its counter of batches, which old files lack.
const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// What makes maps of four sizes from tokens of one: one doubling from patches of 8 pixels, three from patches of 16.
fn pyramid(summary: &ModelSummary) -> Vec<(String, Vec<usize>)> {
    let d = summary.width;
    let (doublings, norms): (&[&str], &[&str]) = match summary.patch {
        8 => (&["fpn1.0"], &[]),
        _ => (&["fpn1.0", "fpn1.3", "fpn2.0"], &["fpn1.1"]),
    };
    let doublings = doublings
        .iter()
        .flat_map(|name| [(format!("{name}.weight"), vec![d, d, 2, 2]), (format!("{name}.bias"), vec![d])]);
    let norms = norms.iter().flat_map(|name| NORM.map(|field| (format!("{name}.{field}"), vec![d])));
    doublings.chain(norms).collect()
}

/// A convolution without bias and its batch norm: outputs, inputs and side of the kernel.
fn convolution(
    (name, [outputs, inputs, side]): (String, [usize; 3]),
) -> impl Iterator<Item = (String, Vec<usize>)> {
    let norm = NORM.map(|field| (format!("{name}.bn.{field}"), vec![outputs]));
    [(format!("{name}.conv.weight"), vec![outputs, inputs, side, side])].into_iter().chain(norm)
}

/// All of these are there, in these shapes.
fn expect(
    shapes: &Shapes,
    prefix: &str,
    list: impl IntoIterator<Item = (String, Vec<usize>)>,
) -> Result<(), LayoutError> {
    for (name, expected) in list {
        let key = format!("{prefix}{name}");
        match shapes.get(&key) {
            Some((_, found)) if *found == expected => {}
            Some((_, found)) => return Err(wrong_shape(&key, found, format!("{expected:?}"))),
            None => {
                let needed_by = "the model that the other tensors make has it".to_string();
                return Err(LayoutError::Missing { key, needed_by });
            }
        }
    }
    Ok(())
}

/// The error about a part of a model, with the names of the whole.
fn within(prefix: &str, error: LayoutError) -> LayoutError {
    match error {
        LayoutError::Missing { key, needed_by } => {
            LayoutError::Missing { key: format!("{prefix}{key}"), needed_by }
        }
        LayoutError::Shape { key, found, expected } => {
            LayoutError::Shape { key: format!("{prefix}{key}"), found, expected }
        }
        LayoutError::Unknown { .. } => LayoutError::Missing {
            key: format!("{prefix}…"),
            needed_by: "a tokenizer has an encoder and a decoder".to_string(),
        },
        other => other,
    }
}

/// An index buffer is the one that its table requires. `known` keeps it for the next block.
fn check_index<T: TensorSource>(
    key: &str,
    tensor: &T,
    summary: &ModelSummary,
    known: &mut Option<Vec<i64>>,
) -> Result<(), VerifyError> {
    let Some(grid) = summary.grid.filter(|_| summary.bias != RelativeBias::None) else {
        let needed_by = format!("`{key}` belongs to it");
        return Err(LayoutError::Missing { key: "a relative position bias table".into(), needed_by }.into());
    };
    let tokens = grid.saturating_mul(grid).saturating_add(1);
    let shape = tensor.shape();
    // Why before reading: only an index that the file really holds is worth computing.
    if shape != [tokens, tokens] {
        return Err(wrong_shape(key, shape, format!("[{tokens}, {tokens}]")).into());
    }
    let values = Tensor::new(tensor.dtype(), shape.to_vec(), tensor.data()?.into_owned());
    let Some(values) = values.and_then(|values| values.to_i64()) else {
        let expected = format!("{}, as it holds row numbers", DType::I64);
        return Err(LayoutError::Type { key: key.to_string(), found: tensor.dtype(), expected }.into());
    };
    if known.is_none() {
        let made = relative_position_index(grid);
        *known = Some(made.map_err(|error| LayoutError::Unsupported(error.to_string()))?);
    }
    if known.as_ref() != Some(&values) {
        return Err(LayoutError::Unsupported(format!(
            "tensor `{key}` does not hold the rows that belong to a grid of {grid}×{grid}"
        ))
        .into());
    }
    Ok(())
}
