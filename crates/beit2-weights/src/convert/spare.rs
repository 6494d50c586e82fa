//! The block that a segmentation model gets for Hugging Face, and loses on the way back.
//!
//! `BeitForSemanticSegmentation` cannot take a map after its last block. A model written for it has one block more, all of
//! whose tensors are zero: it adds zero to its input, and its output is not read.

use super::StateDict;
use crate::layout::LayoutError;
use crate::tensor::Tensor;
use crate::write::TensorSource;

const BLOCKS: &str = "backbone.blocks.";

/// The number of blocks in canonical names.
fn depth<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let number = |name: &str| name.strip_prefix(BLOCKS)?.split('.').next()?.parse::<usize>().ok();
    names.filter_map(number).max().map_or(0, |last| last + 1)
}

/// The prefix of the last block in canonical names.
pub(crate) fn last_block<'a>(names: impl Iterator<Item = &'a str>) -> String {
    format!("{BLOCKS}{}.", depth(names).saturating_sub(1))
}

/// Adds the block.
pub(super) fn add(canonical: &mut StateDict) {
    let depth = depth(canonical.keys().map(String::as_str));
    let first = format!("{BLOCKS}0.");
    let zeros =
        |tensor: &Tensor| Tensor::new(tensor.dtype(), tensor.shape().to_vec(), vec![0; tensor.bytes().len()]);
    let added: Vec<(String, Tensor)> = canonical
        .iter()
        .filter_map(|(name, tensor)| {
            Some((format!("{BLOCKS}{depth}.{}", name.strip_prefix(&first)?), zeros(tensor)?))
        })
        .collect();
    canonical.extend(added);
}

/// Takes the block away; gives the names that are gone.
///
/// # Errors
/// There is none: the model was not written here, and nothing tells after which blocks it takes its maps.
pub(super) fn remove(canonical: &mut StateDict) -> Result<Vec<String>, LayoutError> {
    let prefix = last_block(canonical.keys().map(String::as_str));
    let (spare, rest): (StateDict, StateDict) =
        std::mem::take(canonical).into_iter().partition(|(name, _)| name.starts_with(&prefix));
    *canonical = rest;
    match !spare.is_empty() && spare.values().all(is_zero) {
        true => Ok(spare.into_keys().collect()),
        false => Err(foreign()),
    }
}

pub(crate) fn foreign() -> LayoutError {
    LayoutError::Unsupported(
        "a Hugging Face segmentation model that beit2 has not written cannot be read, as its maps are taken after other \
         blocks than in training; use the official file (beitv2_…_ftade20k.pth)"
            .to_string(),
    )
}

/// Whether all values are zero.
pub(crate) fn is_zero<T: TensorSource>(tensor: &T) -> bool {
    tensor.data().is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0))
}
