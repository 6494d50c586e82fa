//! `x + γ⊙s⊙branch`: a residual branch with layer scale γ and a factor s per sample (drop path), alone and with the layer
//! norm that follows.
//!
//! Functions that put kernels on a queue come first, then the operation with f32 tensors.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::columns::{self, Partial};
use super::norm::{self, optional};
use super::rows::{Cuda, dims, outputs, takes};
use super::{Arg, Element, Ptr, Queue, native, native_reusing};
use crate::residual_scale::{ResidualScaleOps, composed};

/// What is added to a residual stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Branch {
    /// `[rows, width]` of `element`.
    pub at: Ptr,
    pub element: Element,
    /// `[width]`, f32.
    pub gamma: Option<Ptr>,
    /// A factor for each sample, `[rows / tokens]` in f32, and the tokens (rows) of a sample.
    pub factors: Option<(Ptr, usize)>,
}

impl Branch {
    /// Arguments of a kernel: γ, factors, tokens of a sample.
    fn factors(&self) -> [Arg; 3] {
        let tokens = self.factors.map_or(1, |(_, tokens)| tokens as u32);
        [optional(self.gamma), optional(self.factors.map(|(at, _)| at)), Arg::U32(tokens)]
    }
}

/// `sum = x + γ⊙s⊙branch`, f32 `[rows, width]`; `sum` may be `x`. Moves rows and branch in and the sum out.
pub(crate) fn forward(queue: &mut Queue<'_>, x: Ptr, branch: &Branch, sum: Ptr, [rows, width]: [usize; 2]) {
    let kernel = match branch.element {
        Element::F32 => "residual_forward_f32",
        Element::Bf16 => "residual_forward_bf16",
    };
    let mut args = vec![Arg::Ptr(x), Arg::Ptr(branch.at)];
    args.extend(branch.factors());
    args.extend([Arg::Ptr(sum), Arg::U64(rows as u64), Arg::U32(width as u32)]);
    queue.launch(kernel, [(rows * width).div_ceil(2048) as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// [`forward`] to `norm.x` and the norm of it, of a branch in bf16 without γ. `norm.x` may be `x`. Saves [`norm::forward`] a
/// pass over the rows.
///
/// # Panics
/// If branch or norm are not in bf16, or the branch has a γ.
pub(crate) fn forward_norm(queue: &mut Queue<'_>, x: Ptr, branch: &Branch, norm: &norm::Forward) {
    let narrow = (branch.element, norm.element) == (Element::Bf16, Element::Bf16);
    assert!(narrow && branch.gamma.is_none(), "forward_norm: a branch in bf16 without γ, normalised to bf16");
    let blocks = norm::blocks(columns::processors(queue), norm.rows, norm.width, norm::FORWARD_THREADS);
    let [_, factors, tokens] = branch.factors();
    let mut args = vec![Arg::Ptr(x), Arg::Ptr(branch.at), factors, tokens];
    args.extend([Arg::Ptr(norm.weight), Arg::Ptr(norm.bias), Arg::Ptr(norm.x), Arg::Ptr(norm.y)]);
    args.extend(norm.tail());
    let kernel = "residual_norm_forward_bf16";
    queue.launch(kernel, [blocks, 1, 1], [norm::block(norm.width).0, 1, 1], 0, &args);
}

impl<BT: BoolElement> ResidualScaleOps for Cuda<BT> {
    fn fused_sum(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        let count = x.shape.num_elements();
        if !count.is_multiple_of(8) || !takes(&[&x, &y]) {
            return composed::sum::<Self>(x, y);
        }
        let results = vec![(x.shape.clone(), DType::F32)];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            let branch = Branch { at: i[1], element: Element::F32, gamma: None, factors: None };
            forward(queue, i[0], &branch, o[0], [count / 8, 8]);
        };
        let [sum] = outputs(native_reusing::<BT>("sum", vec![x, y], results, 0, &[(0, 0)], run));
        sum
    }

    fn fused_residual_scale(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let dims = dims(&x);
        if !dims[1].is_multiple_of(8) || !takes(&[&x, &branch, &gamma]) {
            return composed::residual_scale::<Self>(x, branch, gamma);
        }
        let results = vec![(x.shape.clone(), DType::F32)];
        let inputs = vec![x, branch, gamma];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            let branch = Branch { at: i[1], element: Element::F32, gamma: Some(i[2]), factors: None };
            forward(queue, i[0], &branch, o[0], dims);
        };
        let [sum] = outputs(native_reusing::<BT>("residual_scale", inputs, results, 0, &[(0, 0)], run));
        sum
    }

    fn fused_residual_scale_backward(
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [rows, width] = dims(&grad);
        if !width.is_multiple_of(8) || !takes(&[&branch, &gamma, &grad]) {
            return composed::residual_scale_backward::<Self>(branch, gamma, grad);
        }
        let results = vec![(branch.shape.clone(), DType::F32), (Shape::new([width]), DType::F32)];
        let (inputs, scratch) = (vec![branch, gamma, grad], columns::scratch(rows, width));
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let grid = columns::grid(columns::processors(queue), rows, width);
            let mut args = [i[2], i[0], i[1], o[0], scratch].map(Arg::Ptr).to_vec();
            args.extend([Arg::U64(rows as u64), Arg::U32(width as u32)]);
            queue.launch("residual_backward_f32", grid, [256, 1, 1], 0, &args);
            let width = width as u32;
            columns::finish(queue, &[Partial { at: scratch, rows: grid[1], width, pitch: width, to: o[1] }]);
        };
        let [dbranch, dgamma] = outputs(native::<BT>("residual_backward", inputs, results, scratch, run));
        (dbranch, dgamma)
    }
}
