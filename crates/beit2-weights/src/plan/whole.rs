//! Which tensors of a checkpoint go into a model of the same kind, heads and codebook included: for going on with
//! pretraining.
//!
//! As in fine-tuning, every tensor is accounted for. Other than there the target is a list of names and shapes, because
//! it is a whole model with all of its parts.

use super::{
    PATCH_KERNELS, Plan, SHARED_TABLE, Source, TABLE, Unused, channels, fit_pos_embed, fit_table, resized,
};
use crate::convert::StateDict;
use crate::layout::{LayoutError, wrong_shape};
use crate::resize::{TableResize, table_grid};

/// Parts that follow the data and not the Transformer's sizes: the codes and what reads or writes them, the width of the
/// teacher's features. In another shape they start anew, whole: half a head would mean nothing.
const PARTS: [&str; 7] = [
    "lm_head.",
    "cls_pt_lm_head.",
    "quantize.",
    "encode_task_layer.2.",
    "decode_task_layer.2.",
    "decoder.patch_embed.",
    "head.",
];

/// Why a name is not in a model of pretraining.
const REASONS: [(&str, &str); 9] = [
    ("head.", "only a classifier has a head"),
    ("fc_norm.", "pretraining normalises tokens by norm, not their mean"),
    ("cls_pt_", "this model has no such part of a patch aggregation head"),
    ("lm_head.", "this model does not predict codes"),
    ("mask_token", "this model masks nothing"),
    ("pos_embed", "this model has no absolute position embedding"),
    ("rel_pos_bias.", "this model has no shared relative position bias"),
    ("blocks.", "this model has no such layer or field"),
    ("", "this model has no tensor of this name"),
];

/// Plans the loading of a checkpoint in official names into a model with these tensors, named with their shapes, in the
/// model's order. Relative position tables and position embeddings are resized to the model's grid, a shared table is
/// copied into the blocks of a model that has one in each, patch kernels are fitted to the model's channels. What the
/// checkpoint does not have is [`Plan::fresh`].
///
/// # Errors
/// [`LayoutError::Shape`] for a tensor that the model has in another shape, unless it belongs to a part that follows the
/// data (the prediction head, the codebook, the teacher's width), which then starts anew;
/// [`LayoutError::Unsupported`] when no tensor fits.
pub fn plan_whole(
    tensors: StateDict,
    wanted: &[(String, Vec<usize>)],
    tables: TableResize,
) -> Result<Plan, LayoutError> {
    let mut plan = Plan::default();
    let mut source = StateDict::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        match name.ends_with("relative_position_index") {
            true => plan.unused.push((name, Unused::Recomputed)),
            false => drop(source.insert(name, tensor)),
        }
    }
    let other_parts: Vec<&str> = PARTS.into_iter().filter(|part| !fits(&source, wanted, part)).collect();
    let has = |name: &str| wanted.iter().any(|(wanted, _)| wanted == name);
    let shared = match has(SHARED_TABLE) {
        true => None,
        false => source.get(SHARED_TABLE).cloned(),
    };
    let mut copied = false;

    for (name, shape) in wanted {
        let own = match source.shift_remove(name) {
            Some(tensor) if other_parts.iter().any(|part| name.starts_with(part)) => {
                let (found, expected) = (tensor.shape().to_vec(), shape.clone());
                let why = match found == expected {
                    true => Unused::NotInModel("the model has the rest of its part in another shape"),
                    false => Unused::OtherShape { found, expected },
                };
                plan.unused.push((name.clone(), why));
                None
            }
            own => own,
        };
        let (tensor, how) = match own {
            Some(tensor) if name.ends_with(TABLE) => {
                let size = table_size(name, shape)?;
                let (tensor, from) = fit_table(name, &tensor, size, tables)?;
                (tensor, resized(from, size.1, false))
            }
            Some(tensor) if name.ends_with("pos_embed") => {
                let size = embedding_size(name, shape)?;
                let (tensor, from) = fit_pos_embed(name, &tensor, size)?;
                (tensor, resized(from, size.1, false))
            }
            Some(tensor) if reads_pixels(name) && tensor.shape() != shape.as_slice() => {
                let to = shape.get(1).copied().unwrap_or(0);
                let (tensor, from) = channels::fit(&tensor, to)
                    .map_err(|expected| wrong_shape(name, tensor.shape(), expected))?;
                (tensor, Source::Channels { from, to })
            }
            Some(tensor) => (tensor, Source::Same),
            None => match &shared {
                // The blocks of an aggregation head read the trunk's table too where it is shared.
                Some(table) if name.ends_with(TABLE) => {
                    copied = true;
                    let size = table_size(name, shape)?;
                    let (tensor, from) = fit_table(name, table, size, tables)?;
                    (tensor, resized(from, size.1, true))
                }
                _ => {
                    plan.fresh.push(name.clone());
                    continue;
                }
            },
        };
        if tensor.shape() != shape.as_slice() {
            return Err(wrong_shape(name, tensor.shape(), format!("{shape:?}")));
        }
        plan.used.insert(name.clone(), how);
        plan.tensors.insert(name.clone(), tensor);
    }
    if plan.tensors.is_empty() {
        return Err(LayoutError::Unsupported(
            "no tensor of the checkpoint fits the model; is it in official names, and of this kind?"
                .to_string(),
        ));
    }
    if copied {
        source.shift_remove(SHARED_TABLE);
    }
    plan.unused.extend(source.into_keys().map(|name| {
        let reason = REASONS.iter().find(|(start, _)| name.starts_with(start));
        let why = reason.map_or("this model has no tensor of this name", |(_, why)| why);
        (name, Unused::NotInModel(why))
    }));
    Ok(plan)
}

/// Whether all tensors of a part are there, in the model's shapes. A part that the model does not have fits.
fn fits(source: &StateDict, wanted: &[(String, Vec<usize>)], part: &str) -> bool {
    let mut of_part = wanted.iter().filter(|(name, _)| name.starts_with(part));
    of_part.all(|(name, shape)| source.get(name).is_some_and(|tensor| tensor.shape() == shape.as_slice()))
}

/// Whether a tensor holds the patch kernels of a model of images; a tokenizer's decoder reads codes instead.
fn reads_pixels(name: &str) -> bool {
    name == PATCH_KERNELS || name.strip_prefix("encoder.") == Some(PATCH_KERNELS)
}

/// Heads and grid of a table of this shape.
fn table_size(name: &str, shape: &[usize]) -> Result<(usize, usize), LayoutError> {
    let size = match *shape {
        [rows, heads] => table_grid(rows).map(|grid| (heads, grid)),
        _ => None,
    };
    size.ok_or_else(|| wrong_shape(name, shape, "[(2·grid − 1)² + 3, heads] of a square grid"))
}

/// Width and grid of a position embedding of this shape.
fn embedding_size(name: &str, shape: &[usize]) -> Result<(usize, usize), LayoutError> {
    match *shape {
        [1, tokens, width] if tokens.saturating_sub(1).isqrt().pow(2) + 1 == tokens => {
            Ok((width, (tokens - 1).isqrt()))
        }
        _ => Err(wrong_shape(name, shape, "[1, grid² + 1, width]")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn wanted(list: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        list.iter().map(|(name, shape)| ((*name).to_string(), shape.to_vec())).collect()
    }

    /// Tensors whose values count from 0.
    fn state(list: &[(&str, &[usize])]) -> StateDict {
        let tensor = |shape: &[usize]| {
            let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|at| at as f32).collect();
            Tensor::from_f32(shape.to_vec(), &values).unwrap()
        };
        list.iter().map(|(name, shape)| ((*name).to_string(), tensor(shape))).collect()
    }

    fn whole(source: &[(&str, &[usize])], target: &[(&str, &[usize])]) -> Result<Plan, LayoutError> {
        plan_whole(state(source), &wanted(target), TableResize::default())
    }

    #[test]
    fn every_tensor_is_accounted_for() {
        let plan = whole(
            &[
                ("cls_token", &[1, 1, 4]),
                ("patch_embed.proj.weight", &[4, 3, 2, 2]),
                ("rel_pos_bias.relative_position_bias_table", &[28, 2]),
                ("rel_pos_bias.relative_position_index", &[10, 10]),
                ("lm_head.weight", &[6, 4]),
                ("lm_head.bias", &[6]),
                ("head.weight", &[5, 4]),
            ],
            &[
                ("cls_token", &[1, 1, 4]),
                ("patch_embed.proj.weight", &[4, 5, 2, 2]),
                ("rel_pos_bias.relative_position_bias_table", &[52, 2]),
                ("mask_token", &[1, 1, 4]),
                ("lm_head.weight", &[8, 4]),
                ("lm_head.bias", &[8]),
            ],
        )
        .unwrap();
        assert_eq!(plan.used["cls_token"], Source::Same);
        assert_eq!(plan.used["patch_embed.proj.weight"], Source::Channels { from: 3, to: 5 });
        let table = &plan.used["rel_pos_bias.relative_position_bias_table"];
        assert_eq!(*table, Source::Resized { from: 3, to: 4, shared: false });
        assert_eq!(plan.fresh, ["mask_token", "lm_head.weight", "lm_head.bias"]);
        let unused: Vec<String> = plan.unused.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        assert_eq!(
            unused,
            [
                "rel_pos_bias.relative_position_index: the model computes it",
                "lm_head.weight: its shape is [6, 4], the model's [8, 4]",
                "lm_head.bias: its shape is [6], the model's [8]",
                "head.weight: only a classifier has a head",
            ]
        );
        assert_eq!(
            plan.summary(),
            "3 tensors taken, of them 1 for 5 channels instead of 3, 1 resized from 3×3 patches to 4×4; \
             new: mask_token, lm_head (2 tensors); not used: lm_head (2 tensors), head.weight"
        );
    }

    #[test]
    fn half_a_codebook_is_none() {
        let plan = whole(
            &[
                ("encoder.cls_token", &[1, 1, 4]),
                ("quantize.embedding.weight", &[6, 2]),
                ("quantize.cluster_size", &[6]),
                ("decoder.patch_embed.proj.weight", &[4, 2, 1, 1]),
            ],
            &[
                ("encoder.cls_token", &[1, 1, 4]),
                ("quantize.cluster_size", &[6]),
                ("quantize.embedding.weight", &[6, 3]),
                ("decoder.patch_embed.proj.weight", &[4, 3, 1, 1]),
            ],
        )
        .unwrap();
        assert_eq!(plan.used.len(), 1);
        assert_eq!(plan.fresh.len(), 3, "the counts belong to codes of another width: {:?}", plan.fresh);
        assert_eq!(plan.unused.len(), 3);
    }

    #[test]
    fn a_shared_table_goes_into_every_block() {
        let table = "blocks.0.attn.relative_position_bias_table";
        let plan = whole(
            &[("cls_token", &[1, 1, 4]), ("rel_pos_bias.relative_position_bias_table", &[28, 2])],
            &[("cls_token", &[1, 1, 4]), (table, &[28, 2])],
        )
        .unwrap();
        assert_eq!(plan.used[table], Source::Shared);
        assert!(plan.unused.is_empty(), "{:?}", plan.unused);
    }

    #[test]
    fn other_widths_are_errors() {
        let error = whole(&[("cls_token", &[1, 1, 4])], &[("cls_token", &[1, 1, 8])]).unwrap_err();
        assert!(error.to_string().contains("cls_token"), "{error}");
        assert!(whole(&[("other", &[1])], &[("cls_token", &[1, 1, 8])]).is_err());
        let grids = [("encoder.pos_embed", &[1usize, 10, 4][..])];
        assert!(whole(&grids, &[("encoder.pos_embed", &[1, 17, 8])]).is_err());
        let plan = whole(&grids, &[("encoder.pos_embed", &[1, 17, 4])]).unwrap();
        assert_eq!(plan.tensors["encoder.pos_embed"].shape(), [1, 17, 4]);
    }
}
