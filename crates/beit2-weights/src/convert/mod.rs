//! A state dict in other names: official, timm, Hugging Face. Bits are never changed, only names, and the fused `qkv`
//! weight is joined or split along its rows.
//!
//! Everything goes through the canonical (official) names: [`to_canonical`] in, [`convert`] out.

mod facts;
mod huggingface;
pub(crate) mod spare;
mod timm;

use indexmap::IndexMap;

use crate::layout::tables::Table;
use crate::layout::{Account, Family, Fate, Kind, Layout, LayoutError, account, account_as, wrong_shape};
use crate::resize::{relative_position_index, table_grid};
use crate::tensor::{DType, Tensor};

pub use facts::{Facts, Filter, Preprocessing, SegmentationFacts};
pub use huggingface::{hf_config, hf_preprocessor};
pub use timm::timm_config;

/// Tensors by name, in memory.
pub type StateDict = IndexMap<String, Tensor>;

/// All index buffers of an official file together may take this many bytes (the largest published model needs 0.2 GB). Why:
/// an index is the fourth power of the grid, so a small hostile table would need a huge one.
const MAX_INDEX_BYTES: usize = 1 << 30;

pub(crate) const HF_SEGMENTATION: Layout = Layout { family: Family::HuggingFace, kind: Kind::Segmentation };

const TABLE: &str = "relative_position_bias_table";
const INDEX: &str = "relative_position_index";

/// What [`convert`] gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The tensors under their new names.
    pub tensors: StateDict,
    /// What they are now.
    pub layout: Layout,
    /// Names that are not in the new state dict, with the reason: those of the source that were not needed (under their
    /// old names), then those the new layout cannot hold (under their canonical names).
    pub left_out: Vec<(String, String)>,
}

/// Renames a state dict. `from` is detected when it is `None`.
///
/// Official files get their `relative_position_index` buffers, which strict loading requires; the others have none.
/// A pretraining state dict becomes a timm backbone without its head, as timm has no such model. A segmentation model gets one
/// block of zeros for Hugging Face, whose class cannot take a map after its last block; on the way back it goes again.
///
/// # Errors
/// [`LayoutError::Unsupported`] when the other side has no such model; else what [`account`] says about the names, or a
/// shape that cannot be joined or split.
pub fn convert(tensors: StateDict, from: Option<Layout>, to: Family) -> Result<Converted, LayoutError> {
    let (mut canonical, account) = to_canonical_as(tensors, from)?;
    let kind = kind_in(to, account.layout.kind, &canonical)?;
    let layout = Layout { family: to, kind };
    let table = layout.table().ok_or_else(|| no_model(to, kind))?;
    let trunk = if kind == Kind::Segmentation { "backbone." } else { "" };
    if to == Family::HuggingFace && !canonical.contains_key(&format!("{trunk}blocks.0.attn.q_bias")) {
        return Err(LayoutError::Unsupported(
            "Hugging Face's BEiT always has query and value biases; this model has none, so it cannot be written for it"
                .to_string(),
        ));
    }
    let mut left_out: Vec<(String, String)> = account
        .entries
        .into_iter()
        .filter_map(|entry| match entry.fate {
            Fate::Derived(why) | Fate::Ignored(why) => Some((entry.key, why.to_string())),
            Fate::Used { .. } | Fate::Joined { .. } => None,
        })
        .collect();
    if layout == HF_SEGMENTATION {
        spare::add(&mut canonical);
        for (name, tensor) in &mut canonical {
            if name.ends_with(".num_batches_tracked") {
                *tensor = counter(name, tensor)?;
            }
        }
    }
    let mut out = StateDict::with_capacity(canonical.len());
    let mut index_bytes = 0;
    for (name, tensor) in canonical {
        if let Some(why) = table.why_absent(&name) {
            left_out.push((name, why.to_string()));
            continue;
        }
        let index = match name.strip_suffix(TABLE) {
            Some(stem) if to == Family::Official => {
                Some((format!("{stem}{INDEX}"), index_of(&name, &tensor, &mut index_bytes)?))
            }
            _ => None,
        };
        write(table, layout, name, tensor, &mut out)?;
        out.extend(index);
    }
    if to == Family::Official {
        // They are there again, made from the tables.
        left_out.retain(|(name, _)| !name.ends_with(INDEX));
    }
    Ok(Converted { tensors: out, layout, left_out })
}

/// A state dict in canonical names with the account of its keys: wrappers off, q, k and v joined, derived and ignored keys
/// dropped.
///
/// # Errors
/// What [`account`] says about the names; parts of a `qkv` weight that do not fit together; a segmentation model of Hugging
/// Face's that was not written here.
pub fn to_canonical(tensors: StateDict) -> Result<(StateDict, Account), LayoutError> {
    to_canonical_as(tensors, None)
}

fn to_canonical_as(tensors: StateDict, from: Option<Layout>) -> Result<(StateDict, Account), LayoutError> {
    let names = tensors.keys().map(String::as_str);
    let account = match from {
        Some(layout) => account_as(layout, names)?,
        None => account(names)?,
    };
    let mut out = StateDict::with_capacity(tensors.len());
    let mut parts: IndexMap<&str, [Option<(String, Tensor)>; 3]> = IndexMap::new();
    for (entry, (key, tensor)) in account.entries.iter().zip(tensors) {
        match &entry.fate {
            Fate::Used { canonical, .. } => {
                out.insert(canonical.clone(), tensor);
            }
            Fate::Joined { canonical, part } => {
                let thirds = parts.entry(canonical).or_default();
                thirds[*part] = Some((key, tensor));
                if thirds.iter().all(Option::is_some)
                    && let Some([Some(q), Some(k), Some(v)]) = parts.shift_remove(canonical.as_str())
                {
                    out.insert(canonical.clone(), join([q, k, v])?);
                }
            }
            Fate::Derived(_) | Fate::Ignored(_) => {}
        }
    }
    match parts.keys().next() {
        Some(canonical) => Err(LayoutError::Missing {
            key: "a query, key or value weight".to_string(),
            needed_by: format!("`{canonical}` is made of the three"),
        }),
        None if account.layout == HF_SEGMENTATION => {
            spare::remove(&mut out)?;
            Ok((out, account))
        }
        None => Ok((out, account)),
    }
}

/// Which model of another family holds this one.
fn kind_in(to: Family, kind: Kind, canonical: &StateDict) -> Result<Kind, LayoutError> {
    match (to, kind) {
        (Family::Official, kind) => Ok(kind),
        (_, Kind::Tokenizer) | (Family::Timm, Kind::Segmentation) => Err(no_model(to, kind)),
        (Family::Timm, Kind::Pretraining) => Ok(Kind::Backbone),
        (Family::HuggingFace, Kind::Pretraining) if !canonical.contains_key("lm_head.weight") => {
            Ok(Kind::Backbone)
        }
        (_, kind) => Ok(kind),
    }
}

fn no_model(to: Family, kind: Kind) -> LayoutError {
    LayoutError::Unsupported(format!("{to} has no {kind} model; keep it in the official layout"))
}

/// Puts one tensor under its name or, for Hugging Face's query, key and value, its three names.
fn write(
    table: &Table,
    layout: Layout,
    name: String,
    tensor: Tensor,
    out: &mut StateDict,
) -> Result<(), LayoutError> {
    let names = table.names_of(&name);
    match <[String; 3]>::try_from(names) {
        Ok(names) => out.extend(names.into_iter().zip(split(&name, tensor)?)),
        Err(mut names) => match names.pop() {
            Some(new) => {
                out.insert(new, tensor);
            }
            None => {
                return Err(LayoutError::Unsupported(format!("tensor `{name}` has no place in {layout}")));
            }
        },
    }
    Ok(())
}

/// How many batches a batch norm has seen, as PyTorch has it: one number without dimensions.
fn counter(name: &str, tensor: &Tensor) -> Result<Tensor, LayoutError> {
    let wrong = || wrong_shape(name, tensor.shape(), "one number");
    match tensor.to_i64().as_deref() {
        Some([count]) => Tensor::from_i64(Vec::new(), &[*count]).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// `[rows, columns]` three times to `[3·rows, columns]`.
fn join(parts: [(String, Tensor); 3]) -> Result<Tensor, LayoutError> {
    let (dtype, shape) = (parts[0].1.dtype(), parts[0].1.shape().to_vec());
    let &[rows, columns] = shape.as_slice() else {
        return Err(wrong_shape(&parts[0].0, &shape, "two dimensions"));
    };
    let mut bytes = Vec::with_capacity(parts.iter().map(|(_, part)| part.bytes().len()).sum());
    for (key, part) in &parts {
        if part.shape() != shape {
            return Err(wrong_shape(key, part.shape(), format!("{shape:?} like its siblings")));
        }
        if part.dtype() != dtype {
            let expected = format!("{dtype} like its siblings");
            return Err(LayoutError::Type { key: key.clone(), found: part.dtype(), expected });
        }
        bytes.extend_from_slice(part.bytes());
    }
    Tensor::new(dtype, vec![rows.saturating_mul(3), columns], bytes)
        .ok_or_else(|| wrong_shape(&parts[0].0, &shape, "a size that does not overflow"))
}

/// The inverse of [`join`].
fn split(key: &str, tensor: Tensor) -> Result<[Tensor; 3], LayoutError> {
    let wrong = || wrong_shape(key, tensor.shape(), "[3·width, width]");
    let &[rows, columns] = tensor.shape() else { return Err(wrong()) };
    if !rows.is_multiple_of(3) {
        return Err(wrong());
    }
    let third = tensor.bytes().len() / 3;
    let part = |i: usize| {
        let bytes = tensor.bytes()[i * third..(i + 1) * third].to_vec();
        Tensor::new(tensor.dtype(), vec![rows / 3, columns], bytes).ok_or_else(wrong)
    };
    Ok([part(0)?, part(1)?, part(2)?])
}

/// The index buffer that belongs to a table.
fn index_of(key: &str, table: &Tensor, total: &mut usize) -> Result<Tensor, LayoutError> {
    let wrong = || wrong_shape(key, table.shape(), "[(2·grid − 1)² + 3, heads] of a square grid");
    let &[rows, _] = table.shape() else { return Err(wrong()) };
    let grid = table_grid(rows).ok_or_else(wrong)?;
    let tokens = grid.saturating_mul(grid).saturating_add(1);
    *total = tokens.saturating_mul(tokens).saturating_mul(DType::I64.size()).saturating_add(*total);
    if *total > MAX_INDEX_BYTES {
        return Err(LayoutError::Unsupported(format!(
            "the {INDEX} buffers of the official layout would take more than {MAX_INDEX_BYTES} bytes for a grid of {grid}"
        )));
    }
    let index = relative_position_index(grid).map_err(|error| LayoutError::Unsupported(error.to_string()))?;
    Tensor::from_i64(vec![tokens, tokens], &index).ok_or_else(wrong)
}
