//! Exact GELU.
//!
//! Functions that put kernels on a queue come first, then the operation with f32 tensors.

use super::columns::{self, Partial};
use super::{Arg, Element, Ptr, Queue};

/// Elements of a block in passes over elements.
const BLOCK: usize = 2048;

/// `y = gelu(x)` of `count` elements of one type. Moves them in and out.
pub(crate) fn forward(queue: &mut Queue<'_>, x: Ptr, y: Ptr, element: Element, count: usize) {
    let kernel = match element {
        Element::F32 => "gelu_forward_f32",
        Element::Bf16 => "gelu_forward_bf16",
    };
    let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::U64(count as u64)];
    queue.launch(kernel, [count.div_ceil(BLOCK) as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// Scratch memory of [`backward`], bytes.
pub(crate) fn backward_scratch(rows: usize, width: usize) -> usize {
    columns::scratch(rows, width)
}

/// `before = grad⊙gelu′(x)`, `[rows, width]` of one type; `before` may be `grad`. The width is a multiple of 8 of any
/// size. Moves both in and the result out.
///
/// The sum returned is that of the columns of `before` into `dbias` (f32): the bias gradient of the linear layer that gave `x`. It
/// is to be finished ([`columns::finish`]) before `scratch` is used again.
pub(crate) fn backward(
    queue: &mut Queue<'_>,
    [x, grad, before]: [Ptr; 3],
    element: Element,
    [rows, width]: [usize; 2],
    dbias: Ptr,
    scratch: Ptr,
) -> Partial {
    let grid = columns::grid(columns::processors(queue), rows, width);
    let kernel = match element {
        Element::F32 => "gelu_backward_f32",
        Element::Bf16 => "gelu_backward_bf16",
    };
    let args = [
        Arg::Ptr(x),
        Arg::Ptr(grad),
        Arg::Ptr(before),
        Arg::Ptr(scratch),
        Arg::U64(rows as u64),
        Arg::U32(width as u32),
    ];
    queue.launch(kernel, grid, [256, 1, 1], 0, &args);
    Partial { at: scratch, rows: grid[1], width: width as u32, pitch: width as u32, to: dbias }
}
