//! Layer norm.
//!
//! [`forward`] and [`backward`] put kernels on a queue, for operations that hold addresses; the operation itself, with f32
//! tensors, is below them.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::columns::{self, Partial};
use super::rows::{Cuda, dims, outputs, takes};
use super::{Arg, Element, Ptr, Queue, native};
use crate::layer_norm::{LayerNormOps, composed};

/// A layer norm of `x [rows, width]` in f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward {
    pub x: Ptr,
    /// `[width]` each, f32.
    pub weight: Ptr,
    pub bias: Ptr,
    pub eps: f32,
    /// `[rows, width]` of `element`.
    pub y: Ptr,
    pub element: Element,
    /// Mean and inverse deviation of each row, `[rows]` each, f32; `None`: not kept.
    pub statistics: Option<[Ptr; 2]>,
    pub rows: usize,
    pub width: usize,
}

/// The gradients of a layer norm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backward {
    /// What was normalised, `[rows, width]` in f32.
    pub x: Ptr,
    pub weight: Ptr,
    /// Mean and inverse deviation.
    pub statistics: [Ptr; 2],
    /// Of the result, of `element`.
    pub grad: Ptr,
    pub element: Element,
    /// Added to `dx`, f32: the gradient that goes around the branch.
    pub add: Option<Ptr>,
    /// `[rows, width]` in f32; may be `add`.
    pub dx: Ptr,
    /// `[width]` each, f32; written by [`columns::finish`].
    pub dweight: Ptr,
    pub dbias: Ptr,
    pub rows: usize,
    pub width: usize,
}

/// Threads of a block over rows of this width, and rows that it takes at a time.
pub(super) fn block(width: usize) -> (u32, usize) {
    let lanes = width.div_ceil(256) * 32;
    let slots = (256 / lanes).max(1);
    ((lanes * slots) as u32, slots)
}

/// Blocks for `rows` rows, with `threads` threads resident on a processor.
pub(super) fn blocks(processors: u32, rows: usize, width: usize, threads: u32) -> u32 {
    let (of_block, slots) = block(width);
    let most = processors * (threads / of_block).max(1);
    rows.div_ceil(slots).clamp(1, most as usize) as u32
}

/// Threads of a processor in the backward pass: by its registers, 73 to 80 a thread.
const BACKWARD_THREADS: u32 = 800;
/// In the forward pass: 54 to 64 registers a thread.
pub(super) const FORWARD_THREADS: u32 = 1024;

/// The pointer, or null.
pub(super) fn optional(at: Option<Ptr>) -> Arg {
    Arg::Ptr(at.unwrap_or(Ptr(0)))
}

/// The norm: moves the rows in and out once.
pub(crate) fn forward(queue: &mut Queue<'_>, norm: &Forward) {
    let kernel = match norm.element {
        Element::F32 => "norm_forward_f32",
        Element::Bf16 => "norm_forward_bf16",
    };
    let blocks = blocks(columns::processors(queue), norm.rows, norm.width, FORWARD_THREADS);
    let mut args = vec![Arg::Ptr(norm.x), Arg::Ptr(norm.weight), Arg::Ptr(norm.bias), Arg::Ptr(norm.y)];
    args.extend(norm.tail());
    queue.launch(kernel, [blocks, 1, 1], [block(norm.width).0, 1, 1], 0, &args);
}

impl Forward {
    /// The last arguments of a kernel: statistics, sizes, ε.
    pub(super) fn tail(&self) -> [Arg; 5] {
        let [mean, rstd] = [0, 1].map(|i| optional(self.statistics.map(|both| both[i])));
        [mean, rstd, Arg::U64(self.rows as u64), Arg::U32(self.width as u32), Arg::F32(self.eps)]
    }
}

/// Scratch memory of [`backward`], bytes.
pub(crate) fn backward_scratch(rows: usize, width: usize) -> usize {
    blocks(columns::MOST_PROCESSORS, rows, width, BACKWARD_THREADS) as usize * 2 * width * 4
}

/// The gradients: moves rows, gradients and what is added in, and the sum out, once each. The sums returned are to be
/// finished ([`columns::finish`]) before `scratch` is used again.
pub(crate) fn backward(queue: &mut Queue<'_>, norm: &Backward, scratch: Ptr) -> [Partial; 2] {
    let kernel = match norm.element {
        Element::F32 => "norm_backward_f32",
        Element::Bf16 => "norm_backward_bf16",
    };
    let blocks = blocks(columns::processors(queue), norm.rows, norm.width, BACKWARD_THREADS);
    let mut args = norm.head().to_vec();
    args.extend([
        Arg::Ptr(norm.dx),
        Arg::Ptr(scratch),
        Arg::U64(norm.rows as u64),
        Arg::U32(norm.width as u32),
    ]);
    queue.launch(kernel, [blocks, 1, 1], [block(norm.width).0, 1, 1], 0, &args);
    let partials = interleaved(scratch, blocks, norm.width, &[Some(norm.dweight), Some(norm.dbias)]);
    [partials[0], partials[1]]
}

impl Backward {
    /// The first arguments of a kernel.
    pub(super) fn head(&self) -> [Arg; 6] {
        let [mean, rstd] = self.statistics;
        [
            Arg::Ptr(self.x),
            Arg::Ptr(self.weight),
            Arg::Ptr(mean),
            Arg::Ptr(rstd),
            Arg::Ptr(self.grad),
            optional(self.add),
        ]
    }
}

/// The sums of a first stage that left those of several vectors side by side in each row; without those not wanted.
pub(super) fn interleaved(at: Ptr, rows: u32, width: usize, to: &[Option<Ptr>]) -> Vec<Partial> {
    let pitch = (to.len() * width) as u32;
    let vector = |(i, to): (usize, &Option<Ptr>)| {
        let at = at.offset(i * width, Element::F32);
        to.map(|to| Partial { at, rows, width: width as u32, pitch, to })
    };
    to.iter().enumerate().filter_map(vector).collect()
}

impl<BT: BoolElement> LayerNormOps for Cuda<BT> {
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [rows, width] = dims(&x);
        if !columns::fits(width) || !takes(&[&x, &weight, &bias]) {
            return composed::layer_norm::<Self>(x, weight, bias, eps);
        }
        let statistics = (Shape::new([rows]), DType::F32);
        let results = vec![(x.shape.clone(), DType::F32), statistics.clone(), statistics];
        let inputs = vec![x, weight, bias];
        let [y, mean, rstd] =
            outputs(native::<BT>("layer_norm", inputs, results, 0, move |queue, i, o, _| {
                let norm = Forward {
                    x: i[0],
                    weight: i[1],
                    bias: i[2],
                    eps: eps as f32,
                    y: o[0],
                    element: Element::F32,
                    statistics: Some([o[1], o[2]]),
                    rows,
                    width,
                };
                forward(queue, &norm);
            }));
        (y, mean, rstd)
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [rows, width] = dims(&x);
        if !columns::fits(width) || !takes(&[&x, &weight, &mean, &rstd, &grad]) {
            return composed::layer_norm_backward::<Self>(x, weight, mean, rstd, grad);
        }
        let vector = (Shape::new([width]), DType::F32);
        let results = vec![(x.shape.clone(), DType::F32), vector.clone(), vector];
        let (inputs, scratch) = (vec![x, weight, mean, rstd, grad], backward_scratch(rows, width));
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch| {
            let norm = Backward {
                x: i[0],
                weight: i[1],
                statistics: [i[2], i[3]],
                grad: i[4],
                element: Element::F32,
                add: None,
                dx: o[0],
                dweight: o[1],
                dbias: o[2],
                rows,
                width,
            };
            let sums = backward(queue, &norm, scratch);
            columns::finish(queue, &sums);
        };
        let [dx, dw, db] = outputs(native::<BT>("layer_norm_backward", inputs, results, scratch, run));
        (dx, dw, db)
    }
}
