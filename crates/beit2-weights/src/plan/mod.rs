//! Which tensors of a checkpoint go into a model for fine-tuning, and what becomes of the others (docs/method.md §4.2).
//!
//! A pure function: no file, no model. The caller loads [`Plan::tensors`] and keeps its own initialisation for
//! [`Plan::fresh`]. The pretrained `norm` is never put into `fc_norm` (docs/method.md §9, trap 1).

mod channels;
mod robust;
mod summary;
mod target;
mod whole;

use std::fmt;

use indexmap::IndexMap;

use crate::convert::StateDict;
use crate::inspect::RelativeBias;
use crate::layout::{LayoutError, wrong_shape};
use crate::resize::{TableResize, resize_bias_table, resize_pos_embed, table_grid};
use crate::tensor::{DType, Tensor};

pub use robust::{IMAGENET_A, IMAGENET_R};
pub use target::Target;
pub use whole::plan_whole;

const SHARED_TABLE: &str = "rel_pos_bias.relative_position_bias_table";
const TABLE: &str = "relative_position_bias_table";

/// Choices besides the target.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlanOptions<'a> {
    /// Rows of the checkpoint's head to take when its size differs from the target's: [`IMAGENET_A`] or [`IMAGENET_R`].
    pub head_rows: Option<&'a [usize]>,
    /// Take the encoder out of a tokenizer: only names that start with `encoder.`, without that start (the official
    /// `--model_filter_name`).
    pub tokenizer_encoder: bool,
    /// How relative position tables are resized.
    pub tables: TableResize,
}

/// Why a tensor of the checkpoint is not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unused {
    /// The target has no tensor of this name.
    NotInModel(&'static str),
    /// An index buffer; the target has its own.
    Recomputed,
    /// The head has another number of classes.
    OtherHead {
        /// Classes in the checkpoint.
        found: usize,
        /// Classes of the target.
        expected: usize,
    },
    /// It is not part of the tokenizer's encoder.
    Filtered,
    /// The target has it in another shape, and it means nothing there.
    OtherShape {
        /// Shape in the checkpoint.
        found: Vec<usize>,
        /// Shape in the target.
        expected: Vec<usize>,
    },
}

/// How a loaded tensor comes out of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// As it is.
    Same,
    /// The shared table, copied into this block.
    Shared,
    /// Resized between grids; `shared` as in [`Source::Shared`].
    Resized {
        /// Patches per side in the checkpoint.
        from: usize,
        /// Patches per side in the target.
        to: usize,
        /// Whether it is the shared table.
        shared: bool,
    },
    /// Selected rows of the head.
    HeadRows,
    /// Kernels of another number of channels.
    Channels {
        /// Channels in the checkpoint.
        from: usize,
        /// Channels of the target.
        to: usize,
    },
}

/// The kernels that make tokens of patches.
const PATCH_KERNELS: &str = "patch_embed.proj.weight";

/// What is loaded and what is not. `Display` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The tensors to load, by the target's names and in its order, in the checkpoint's types; resized ones are `F32` (`F64`
    /// stays).
    pub tensors: StateDict,
    /// How each of them came about.
    pub used: IndexMap<String, Source>,
    /// The target's tensors that the checkpoint does not have: they keep their initialisation.
    pub fresh: Vec<String>,
    /// The checkpoint's tensors that are not loaded.
    pub unused: Vec<(String, Unused)>,
}

/// Plans the loading of a checkpoint in official names ([`crate::convert::to_canonical`] makes them of others) into `target`.
///
/// # Errors
/// [`LayoutError::Shape`] for a tensor that the target has in another shape and that cannot be resized or dropped, and
/// [`LayoutError::Unsupported`] when no tensor at all fits, which means that the wrong file was given.
pub fn plan(tensors: StateDict, target: &Target, options: &PlanOptions<'_>) -> Result<Plan, LayoutError> {
    let mut plan = Plan::default();
    let mut source = StateDict::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kept = if options.tokenizer_encoder { name.strip_prefix("encoder.") } else { Some(&*name) };
        match kept {
            None => plan.unused.push((name, Unused::Filtered)),
            Some(kept) if kept.ends_with("relative_position_index") => {
                plan.unused.push((name, Unused::Recomputed));
            }
            Some(kept) => {
                source.insert(kept.to_string(), tensor);
            }
        }
    }
    // Why taken out: it is copied into every block, so it is neither left over nor a name of the target.
    let mut shared = match target.bias {
        RelativeBias::PerBlock => source.shift_remove(SHARED_TABLE),
        _ => None,
    };
    // All blocks get the same resized table, so it is resized once.
    let mut shared_from = None;
    if let Some(table) = &mut shared {
        let (resized, from) = fit_table(SHARED_TABLE, table, (target.heads, target.grid), options.tables)?;
        (*table, shared_from) = (resized, from);
    }

    for (name, shape) in target.tensors() {
        let own = source.shift_remove(&name);
        let (tensor, how) = match own {
            Some(tensor) if name.starts_with("head.") && tensor.shape() != shape => match options.head_rows {
                Some(rows) => (select_rows(&name, &tensor, rows)?, Source::HeadRows),
                None => {
                    let found = tensor.shape().first().copied().unwrap_or(0);
                    plan.unused.push((name.clone(), Unused::OtherHead { found, expected: target.classes }));
                    plan.fresh.push(name);
                    continue;
                }
            },
            Some(tensor) if name == PATCH_KERNELS && tensor.shape() != shape => {
                let (tensor, from) = channels::fit(&tensor, target.channels)
                    .map_err(|expected| wrong_shape(&name, tensor.shape(), expected))?;
                (tensor, Source::Channels { from, to: target.channels })
            }
            Some(tensor) if name.ends_with(TABLE) => {
                let (tensor, from) = fit_table(&name, &tensor, (target.heads, target.grid), options.tables)?;
                (tensor, resized(from, target.grid, false))
            }
            Some(tensor) if name == "pos_embed" => {
                let (tensor, from) = fit_pos_embed(&name, &tensor, (target.width, target.grid))?;
                (tensor, resized(from, target.grid, false))
            }
            Some(tensor) => (tensor, Source::Same),
            None => match &shared {
                Some(table) if name.ends_with(TABLE) => {
                    (table.clone(), resized(shared_from, target.grid, true))
                }
                _ => {
                    plan.fresh.push(name);
                    continue;
                }
            },
        };
        if tensor.shape() != shape {
            return Err(wrong_shape(&name, tensor.shape(), format!("{shape:?}")));
        }
        plan.used.insert(name.clone(), how);
        plan.tensors.insert(name, tensor);
    }
    if plan.tensors.is_empty() {
        return Err(LayoutError::Unsupported(
            "no tensor of the checkpoint fits the model; is it in official names, and of this kind?"
                .to_string(),
        ));
    }
    plan.unused.extend(source.into_keys().map(|name| {
        let why = Unused::NotInModel(why_unused(&name, target));
        (name, why)
    }));
    Ok(plan)
}

/// How a table or embedding came about, from the grid it was resized from.
fn resized(from: Option<usize>, to: usize, shared: bool) -> Source {
    match from {
        Some(from) => Source::Resized { from, to, shared },
        None if shared => Source::Shared,
        None => Source::Same,
    }
}

/// What a name that the target does not have is for.
fn why_unused(name: &str, target: &Target) -> &'static str {
    if target.pooling.is_none() && (name.starts_with("norm.") || name.starts_with("fc_norm.")) {
        return "this model ends with its last block, without a norm";
    }
    const REASONS: [(&str, &str); 9] = [
        ("mask_token", "only pretraining masks patches"),
        ("lm_head.", "it predicts codes in pretraining"),
        ("cls_pt_", "the patch aggregation head is dropped after pretraining"),
        ("norm.", "mean pooling has its own fc_norm, which starts fresh"),
        ("fc_norm.", "this model pools the CLS token and has norm instead"),
        ("pos_embed", "this model has no absolute position embedding"),
        ("rel_pos_bias.", "this model has no shared relative position bias"),
        ("head.", "this model has no head"),
        ("blocks.", "this model has no such layer or field"),
    ];
    let reason = REASONS.iter().find(|(start, _)| name.starts_with(start));
    reason.map_or("this model has no tensor of this name", |(_, reason)| reason)
}

/// A table for as many heads and the target's grid, with the grid it was resized from.
fn fit_table(
    name: &str,
    table: &Tensor,
    (columns, grid): (usize, usize),
    method: TableResize,
) -> Result<(Tensor, Option<usize>), LayoutError> {
    let wrong = |expected: &str| wrong_shape(name, table.shape(), expected);
    let &[rows, heads] = table.shape() else { return Err(wrong("two dimensions")) };
    if heads != columns {
        return Err(wrong(&format!("{columns} columns, one per head")));
    }
    let from = table_grid(rows).ok_or_else(|| wrong("[(2·grid − 1)² + 3, heads] of a square grid"))?;
    if from == grid {
        return Ok((table.clone(), None));
    }
    let shape = |values: usize| vec![values / heads.max(1), heads];
    let tensor = match table.to_f64_if_double() {
        Some(values) => {
            let values = resize_bias_table(&values, heads, from, grid, method).map_err(impossible(name))?;
            from_f64(shape(values.len()), &values)
        }
        None => {
            let values =
                resize_bias_table(&table.to_f32(), heads, from, grid, method).map_err(impossible(name))?;
            Tensor::from_f32(shape(values.len()), &values)
        }
    };
    Ok((tensor.ok_or_else(|| wrong("at least one head"))?, Some(from)))
}

/// A position embedding for the target's grid, with the grid it was resized from.
fn fit_pos_embed(
    name: &str,
    pos: &Tensor,
    (columns, grid): (usize, usize),
) -> Result<(Tensor, Option<usize>), LayoutError> {
    let wrong = |expected: &str| wrong_shape(name, pos.shape(), expected);
    let &[1, tokens, width] = pos.shape() else { return Err(wrong("[1, grid² + 1, width]")) };
    let from = tokens.saturating_sub(1).isqrt();
    if from * from + 1 != tokens || width != columns {
        return Err(wrong(&format!("[1, grid² + 1, {}]", columns)));
    }
    if from == grid {
        return Ok((pos.clone(), None));
    }
    let shape = |values: usize| vec![1, values / width.max(1), width];
    let tensor = match pos.to_f64_if_double() {
        Some(values) => {
            let values = resize_pos_embed(&values, width, 1, from, grid).map_err(impossible(name))?;
            from_f64(shape(values.len()), &values)
        }
        None => {
            let values = resize_pos_embed(&pos.to_f32(), width, 1, from, grid).map_err(impossible(name))?;
            Tensor::from_f32(shape(values.len()), &values)
        }
    };
    Ok((tensor.ok_or_else(|| wrong("at least one column"))?, Some(from)))
}

fn impossible(name: &str) -> impl Fn(crate::resize::ResizeError) -> LayoutError {
    move |error| LayoutError::Unsupported(format!("tensor `{name}` cannot be resized: {error}"))
}

fn from_f64(shape: Vec<usize>, values: &[f64]) -> Option<Tensor> {
    Tensor::new(DType::F64, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// Rows of the first dimension, in the given order.
fn select_rows(name: &str, tensor: &Tensor, rows: &[usize]) -> Result<Tensor, LayoutError> {
    let wrong = |expected: String| wrong_shape(name, tensor.shape(), expected);
    let Some((&count, rest)) = tensor.shape().split_first() else {
        return Err(wrong("at least one dimension".to_string()));
    };
    if let Some(row) = rows.iter().find(|row| **row >= count) {
        return Err(wrong(format!("a row {row}, which the list of classes needs")));
    }
    let len = tensor.bytes().len() / count.max(1);
    let bytes: Vec<u8> =
        rows.iter().flat_map(|row| &tensor.bytes()[row * len..(row + 1) * len]).copied().collect();
    let shape = [&[rows.len()], rest].concat();
    Tensor::new(tensor.dtype(), shape, bytes)
        .ok_or_else(|| wrong("a size that does not overflow".to_string()))
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unused::NotInModel(why) => f.write_str(why),
            Unused::Recomputed => f.write_str("the model computes it"),
            Unused::OtherHead { found, expected } => {
                write!(f, "it is for {found} classes, the model has {expected}")
            }
            Unused::Filtered => f.write_str("it is not part of the tokenizer's encoder"),
            Unused::OtherShape { found, expected } => {
                write!(f, "its shape is {found:?}, the model's {expected:?}")
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, fresh, unused) = (self.used.len(), self.fresh.len(), self.unused.len());
        writeln!(f, "{used} tensors loaded, {fresh} fresh, {unused} of the checkpoint not used")?;
        for (name, source) in &self.used {
            match source {
                Source::Same => {}
                Source::Shared => writeln!(f, "  copied   {name} from the shared table")?,
                Source::Resized { from, to, .. } => {
                    writeln!(f, "  resized  {name} from a grid of {from}×{from} to {to}×{to}")?;
                }
                Source::HeadRows => writeln!(f, "  selected {name} by rows")?,
                Source::Channels { from, to: 1 } => {
                    writeln!(f, "  summed   {name} over {from} channels, for grey images")?;
                }
                Source::Channels { from, to } => {
                    writeln!(f, "  repeated {name} from {from} channels to {to}, scaled by {from}/{to}")?;
                }
            }
        }
        for name in &self.fresh {
            writeln!(f, "  fresh    {name}")?;
        }
        for (name, why) in &self.unused {
            writeln!(f, "  not used {name}: {why}")?;
        }
        Ok(())
    }
}
