//! `x + γ⊙s⊙branch`: a residual branch with layer scale γ and a factor s per sample (drop path), alone and with the layer
//! norm that follows.
//!
//! Functions that put kernels on a queue come first, then the operation with f32 tensors.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::columns::{self, Partial};
use super::norm::{self, interleaved, optional};
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

/// Where the gradients of a branch go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BranchGradients {
    /// `[rows, width]` of the branch's element.
    pub branch: Ptr,
    /// `[width]`, f32. Of γ, and of the bias that the branch ends with (the column sums of `branch`); written by
    /// [`columns::finish`].
    pub gamma: Option<Ptr>,
    pub bias: Option<Ptr>,
}

impl Branch {
    /// Arguments of a kernel: γ, factors, tokens of a sample.
    fn factors(&self) -> [Arg; 3] {
        let tokens = self.factors.map_or(1, |(_, tokens)| tokens as u32);
        [optional(self.gamma), optional(self.factors.map(|(at, _)| at)), Arg::U32(tokens)]
    }
}

/// Threads of a processor in [`backward_norm`]: by its registers, 121 a thread.
const BACKWARD_THREADS: u32 = 512;
/// In the forward pass: 54 to 64 registers a thread.
const FORWARD_THREADS: u32 = 1024;

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

/// [`forward`] to `norm.x`, and the norm of it. `norm.x` may be `x`. Saves [`norm::forward`] a pass over the rows.
pub(crate) fn forward_norm(queue: &mut Queue<'_>, x: Ptr, branch: &Branch, norm: &norm::Forward) {
    let kernel = match (branch.element, norm.element) {
        (Element::F32, Element::F32) => "residual_norm_forward_f32_f32",
        (Element::F32, Element::Bf16) => "residual_norm_forward_f32_bf16",
        (Element::Bf16, Element::F32) => "residual_norm_forward_bf16_f32",
        (Element::Bf16, Element::Bf16) => "residual_norm_forward_bf16_bf16",
    };
    let blocks = norm::blocks(columns::processors(queue), norm.rows, norm.width, FORWARD_THREADS);
    let mut args = vec![Arg::Ptr(x), Arg::Ptr(branch.at)];
    args.extend(branch.factors());
    args.extend([Arg::Ptr(norm.weight), Arg::Ptr(norm.bias), Arg::Ptr(norm.x), Arg::Ptr(norm.y)]);
    args.extend(norm.tail());
    queue.launch(kernel, [blocks, 1, 1], [norm::block(norm.width).0, 1, 1], 0, &args);
}

/// Scratch memory of [`backward`], bytes.
pub(crate) fn backward_scratch(rows: usize, width: usize) -> usize {
    columns::scratch_of(rows, width, 2)
}

/// The gradients of a branch from that of the sum, `grad [rows, width]` in f32. Moves gradient and branch in and the
/// branch's gradient out. The sums returned are to be finished ([`columns::finish`]) before `scratch` is used again.
pub(crate) fn backward(
    queue: &mut Queue<'_>,
    grad: Ptr,
    branch: &Branch,
    to: &BranchGradients,
    [rows, width]: [usize; 2],
    scratch: Ptr,
) -> Vec<Partial> {
    let grid = columns::grid(columns::processors(queue), rows, width);
    let kernel = match branch.element {
        Element::F32 => "residual_backward_f32",
        Element::Bf16 => "residual_backward_bf16",
    };
    let mut args = vec![Arg::Ptr(grad), Arg::Ptr(branch.at)];
    args.extend(branch.factors());
    args.extend([Arg::Ptr(to.branch), Arg::Ptr(scratch), Arg::U64(rows as u64), Arg::U32(width as u32)]);
    queue.launch(kernel, grid, [256, 1, 1], 0, &args);
    interleaved(scratch, grid[1], width, &[to.gamma, to.bias])
}

/// Scratch memory of [`backward_norm`], bytes.
pub(crate) fn backward_norm_scratch(rows: usize, width: usize) -> usize {
    norm::blocks(columns::MOST_PROCESSORS, rows, width, BACKWARD_THREADS) as usize * 4 * width * 4
}

/// [`norm::backward`], then [`backward`] of the branch before that norm, from the gradient that the norm gives (`norm.dx`),
/// which is still written: the backward pass of [`forward_norm`]. Saves a pass over that gradient.
///
/// # Panics
/// If the element types of the norm's gradient and of the branch differ.
pub(crate) fn backward_norm(
    queue: &mut Queue<'_>,
    norm: &norm::Backward,
    branch: &Branch,
    to: &BranchGradients,
    scratch: Ptr,
) -> Vec<Partial> {
    assert_eq!(norm.element, branch.element, "backward_norm: one element type for gradient and branch");
    let kernel = match branch.element {
        Element::F32 => "residual_norm_backward_f32_f32",
        Element::Bf16 => "residual_norm_backward_bf16_bf16",
    };
    let blocks = norm::blocks(columns::processors(queue), norm.rows, norm.width, BACKWARD_THREADS);
    let mut args = norm.head().to_vec();
    args.push(Arg::Ptr(branch.at));
    args.extend(branch.factors());
    args.extend([
        Arg::Ptr(norm.dx),
        Arg::Ptr(to.branch),
        Arg::Ptr(scratch),
        Arg::U64(norm.rows as u64),
        Arg::U32(norm.width as u32),
    ]);
    queue.launch(kernel, [blocks, 1, 1], [norm::block(norm.width).0, 1, 1], 0, &args);
    let sums = [Some(norm.dweight), Some(norm.dbias), to.gamma, to.bias];
    interleaved(scratch, blocks, norm.width, &sums)
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
        let dims @ [rows, width] = dims(&grad);
        if !width.is_multiple_of(8) || !takes(&[&branch, &gamma, &grad]) {
            return composed::residual_scale_backward::<Self>(branch, gamma, grad);
        }
        let results = vec![(branch.shape.clone(), DType::F32), (Shape::new([width]), DType::F32)];
        let (inputs, scratch) = (vec![branch, gamma, grad], backward_scratch(rows, width));
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch| {
            let branch = Branch { at: i[0], element: Element::F32, gamma: Some(i[1]), factors: None };
            let to = BranchGradients { branch: o[0], gamma: Some(o[1]), bias: None };
            let sums = backward(queue, i[2], &branch, &to, dims, scratch);
            columns::finish(queue, &sums);
        };
        let [dbranch, dgamma] = outputs(native::<BT>("residual_backward", inputs, results, scratch, run));
        (dbranch, dgamma)
    }
}
