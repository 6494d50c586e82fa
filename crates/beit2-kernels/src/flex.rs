//! Access to the memory of Burn's CPU tensors, for the fast operations.
//!
//! Only 32-bit floats are fast; a tensor of another type takes the composed reference.

use burn::tensor::{DType, Shape};
use burn_flex::{FlexTensor, Layout};

use crate::memory::Buffer;
#[cfg(target_arch = "x86_64")]
use crate::memory::{Stored, Values};

/// Elements that one task of an element-wise operation handles: 64 KiB, so that a task is long
/// against its start and its operands stay in the second-level cache.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Whether every tensor holds 32-bit floats.
pub(crate) fn is_f32(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|t| t.dtype() == DType::F32)
}

/// The tensor with its elements in order and nothing around them; copied only if it is not so.
pub(crate) fn owned(x: FlexTensor) -> FlexTensor {
    let layout = x.layout();
    let bytes = layout.num_elements() * size_of::<f32>();
    if layout.is_contiguous() && layout.start_offset() == 0 && x.bytes().len() == bytes {
        return x;
    }
    x.to_contiguous()
}

/// The elements of a tensor made by [`owned`], for writing; copied first if someone else holds them.
pub(crate) fn values(x: &mut FlexTensor) -> &mut [f32] {
    x.storage_mut::<f32>()
}

/// The elements of a tensor made by [`owned`].
pub(crate) fn view(x: &FlexTensor) -> &[f32] {
    x.storage::<f32>()
}

/// A tensor of what was written to a buffer.
pub(crate) fn tensor(buffer: Buffer, shape: impl Into<Shape>) -> FlexTensor {
    let shape = shape.into();
    debug_assert_eq!(shape.num_elements(), buffer.len());
    FlexTensor::new(buffer.into_bytes(), Layout::contiguous(shape), DType::F32)
}

/// A tensor of stored activations, for a backward pass.
#[cfg(target_arch = "x86_64")]
pub(crate) fn stored<S: Stored>(values: Values<S>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(values.into_bytes(), Layout::contiguous(shape.into()), S::DTYPE)
}

/// The elements of an integer tensor of any width.
pub(crate) fn integers(x: &FlexTensor) -> Vec<i64> {
    x.clone().into_data().iter::<i64>().collect()
}

/// How `n` rows are cut for sums over rows: rows of a group and number of groups. A function of `n`
/// alone, so that sums do not depend on threads.
pub(crate) fn row_groups(n: usize) -> (usize, usize) {
    let rows = n.div_ceil(32).max(32);
    (rows, n.div_ceil(rows))
}
