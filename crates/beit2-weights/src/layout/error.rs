//! What can be wrong with the names and shapes of a state dict, one sentence each.

use crate::layout::Layout;
use crate::tensor::DType;

/// An error about the meaning of tensors. Unlike [`crate::WeightsError`] it knows no file: whoever read one puts its name in
/// front.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// None of the known layouts.
    #[error(
        "these {count} tensors are not a BEiT model ({found}); expected a tokenizer (`quantize.…`), a Vision Transformer (`patch_embed.proj.weight`, `blocks.0.…`), a segmentation model (`backbone.…`) or a Hugging Face BEiT (`embeddings.…`)"
    )]
    Unknown {
        /// How many tensors there are.
        count: usize,
        /// A short description: the first name, or what they look like.
        found: String,
    },
    /// A name that the layout does not have.
    #[error("tensor `{key}` is not part of the layout {layout}; the nearest known name is `{nearest}`")]
    UnknownKey {
        /// The tensor.
        key: String,
        /// The layout that the other tensors point to.
        layout: Layout,
        /// The known name with the fewest differing characters.
        nearest: String,
    },
    /// Two tensors that mean the same parameter.
    #[error("tensors `{first}` and `{second}` are both `{canonical}`")]
    Twice {
        /// The one that comes first.
        first: String,
        /// The other.
        second: String,
        /// Their meaning.
        canonical: String,
    },
    /// A tensor without which the others are useless.
    #[error("tensor `{key}` is missing ({needed_by})")]
    Missing {
        /// The tensor.
        key: String,
        /// What needs it.
        needed_by: String,
    },
    /// A tensor of the wrong shape.
    #[error("tensor `{key}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// What would be right.
        expected: String,
    },
    /// A tensor of the wrong type.
    #[error("tensor `{key}` has type {found}, expected {expected}")]
    Type {
        /// The tensor.
        key: String,
        /// Its type.
        found: DType,
        /// What would be right.
        expected: String,
    },
    /// A conversion or a loading that makes no sense; the sentence says why.
    #[error("{0}")]
    Unsupported(String),
}

/// A [`LayoutError::Shape`].
pub(crate) fn wrong_shape(key: &str, found: &[usize], expected: impl Into<String>) -> LayoutError {
    LayoutError::Shape { key: key.to_string(), found: found.to_vec(), expected: expected.into() }
}
