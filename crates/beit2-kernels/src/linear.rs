//! `x·Wᵀ + b` and its gradients.
//!
//! Contract: matrix products read their operands where they lie, transposed or not; the backward
//! pass keeps the input only if the weight needs a gradient, and the weight only if the input does.

use std::fmt;
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use crate::backend::Backend;
use crate::composed::{unwrap, wrap};
use crate::matrix::Packed;
use crate::precision::Precision;

/// `x·Wᵀ + b`: `x [.., in]`, `weight [out, in]`, `bias [out]` → `[.., out]`. `precision` is that of the
/// three products, forward and backward; the bias and its gradient are not rounded.
///
/// # Panics
/// If the last axis of `x` is not `in`, or `bias` is not `[out]`.
pub fn linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    precision: Precision,
) -> Tensor<B, D> {
    let (dims, [out, inner]) = (x.dims(), weight.dims());
    assert!(dims[D - 1] == inner, "linear: x {dims:?} does not fit weight [{out}, {inner}]");
    if let Some(bias) = &bias {
        let [b] = bias.dims();
        assert!(b == out, "linear: bias [{b}] does not fit weight [{out}, {inner}]");
    }
    wrap(B::fused_linear(unwrap(x), unwrap(weight), bias.map(unwrap), precision))
}

/// A weight in the order in which products read it: for models whose weights do not change any more.
///
/// Clones share their memory: as much as the weight itself in f32, half of it in bf16.
#[derive(Clone)]
pub struct PackedWeight(Arc<Packed>);

impl PackedWeight {
    /// The operand itself.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn right(&self) -> &crate::packed::Right {
        self.0.right()
    }

    /// `[out, in]`, as the weight's.
    pub fn dims(&self) -> [usize; 2] {
        let [inner, out] = self.0.dims();
        [out, inner]
    }
}

impl fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedWeight({:?})", self.dims())
    }
}

/// Packs a `weight [out, in]` for [`linear_packed`]; `None` where a backend or a processor has nothing better than the
/// weight itself. Recording backends have nothing: a packed weight gets no gradient, and passes none on.
pub fn pack_weight<B: Backend>(weight: Tensor<B, 2>, precision: Precision) -> Option<PackedWeight> {
    B::pack_weight(unwrap(weight), precision)
}

/// [`linear`](crate::linear) with a packed weight: the same to the bit.
///
/// # Panics
/// If the last axis of `x` is not `in`, `bias` is not `[out]`, or the weight was packed for another backend.
pub fn linear_packed<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: &PackedWeight,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let (dims, [out, inner]) = (x.dims(), weight.dims());
    assert!(dims[D - 1] == inner, "linear_packed: x {dims:?} does not fit weight [{out}, {inner}]");
    if let Some(bias) = &bias {
        let [b] = bias.dims();
        assert!(b == out, "linear_packed: bias [{b}] does not fit weight [{out}, {inner}]");
    }
    wrap(B::fused_linear_packed(unwrap(x), weight, bias.map(unwrap)))
}

/// [`linear`](crate::linear) composed from Burn's primitives.
pub fn reference<B: BurnBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let mut dims = x.dims();
    let [out, inner] = weight.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    dims[D - 1] = out;
    let y = x.reshape([rows, inner]).matmul(weight.transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
    .reshape(dims)
}

/// Backward of `N` = 2 (input, weight) or 3 (and bias) parents.
#[derive(Debug)]
struct LinearBackward(Precision);

/// The input if the weight needs a gradient, the weight if the input does.
type LinearState<B> = (Option<FloatTensor<B>>, Option<FloatTensor<B>>);

impl<B: Backend, const N: usize> Backward<B, N> for LinearBackward {
    type State = LinearState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let parent = |i: usize| ops.parents.get(i).and_then(|parent| parent.as_ref());
        if let (Some(node), Some(x)) = (parent(1), x) {
            let dw = B::fused_linear_backward_weight(x, grad.clone(), self.0);
            grads.register::<B>(node.id, dw);
        }
        if let Some(node) = parent(2) {
            grads.register::<B>(node.id, B::fused_sum_rows(grad.clone()));
        }
        if let (Some(node), Some(weight)) = (parent(0), weight) {
            let dx = B::fused_linear_backward_input(weight, grad, self.0);
            grads.register::<B>(node.id, dx);
        }
    }
}

type Primitive<B, C> = FloatTensor<Autodiff<B, C>>;

pub(crate) fn autodiff<B: Backend, C: CheckpointStrategy>(
    x: Primitive<B, C>,
    weight: Primitive<B, C>,
    bias: Option<Primitive<B, C>>,
    precision: Precision,
) -> Primitive<B, C> {
    let state =
        (weight.is_tracked().then(|| x.primitive.clone()), x.is_tracked().then(|| weight.primitive.clone()));
    // The number of parents is part of the type, hence the two arms.
    match bias {
        None => {
            let nodes = [x.node, weight.node];
            let prep = Backward::<B, 2>::prepare::<C>(LinearBackward(precision), nodes);
            let y = B::fused_linear(x.primitive, weight.primitive, None, precision);
            match prep.compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(state, y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }
        Some(bias) => {
            let nodes = [x.node, weight.node, bias.node];
            let prep = Backward::<B, 3>::prepare::<C>(LinearBackward(precision), nodes);
            let y = B::fused_linear(x.primitive, weight.primitive, Some(bias.primitive), precision);
            match prep.compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(state, y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }
    }
}

pub(crate) mod fast {
    use std::sync::Arc;

    use burn::tensor::Shape;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use super::PackedWeight;
    use crate::flex::{owned, row_groups, tensor, view};
    use crate::matrix::{Accumulate, MatmulOptions, Packed, product, with_rows};
    use crate::memory::Buffer;
    use crate::precision::Precision;

    pub(crate) fn forward(
        x: FlexTensor,
        weight: FlexTensor,
        bias: Option<FlexTensor>,
        precision: Precision,
    ) -> FlexTensor {
        let out = weight.layout().shape()[0];
        let shape = with_last(&x, out);
        let mut y = Buffer::any(shape.num_elements());
        let bias = bias.map(owned);
        let start = bias.as_ref().map_or(Accumulate::Zero, |bias| Accumulate::Row(view(bias)));
        with_rows(&x, |x| {
            with_rows(&weight, |w| {
                product(&mut y, out, start, 1.0, x, w.transposed(), MatmulOptions::parallel(precision));
            });
        });
        tensor(y, shape)
    }

    pub(crate) fn pack(weight: &FlexTensor, precision: Precision) -> Option<PackedWeight> {
        with_rows(weight, |w| Packed::new(w.transposed(), precision))
            .map(|packed| PackedWeight(Arc::new(packed)))
    }

    pub(crate) fn forward_packed(
        x: FlexTensor,
        weight: &PackedWeight,
        bias: Option<FlexTensor>,
    ) -> FlexTensor {
        let shape = with_last(&x, weight.dims()[0]);
        let mut y = Buffer::any(shape.num_elements());
        let bias = bias.map(owned);
        let start = bias.as_ref().map_or(Accumulate::Zero, |bias| Accumulate::Row(view(bias)));
        with_rows(&x, |x| weight.0.product(&mut y, start, x));
        tensor(y, shape)
    }

    pub(crate) fn backward_input(weight: FlexTensor, grad: FlexTensor, precision: Precision) -> FlexTensor {
        let inner = weight.layout().shape()[1];
        let shape = with_last(&grad, inner);
        let mut dx = Buffer::any(shape.num_elements());
        with_rows(&grad, |grad| {
            with_rows(&weight, |w| {
                product(&mut dx, inner, Accumulate::Zero, 1.0, grad, w, MatmulOptions::parallel(precision));
            });
        });
        tensor(dx, shape)
    }

    pub(crate) fn backward_weight(x: FlexTensor, grad: FlexTensor, precision: Precision) -> FlexTensor {
        with_rows(&grad, |grad| {
            with_rows(&x, |x| {
                let (out, inner) = (grad.cols(), x.cols());
                let mut dw = Buffer::any(out * inner);
                product(
                    &mut dw,
                    inner,
                    Accumulate::Zero,
                    1.0,
                    grad.transposed(),
                    x,
                    MatmulOptions::parallel(precision),
                );
                tensor(dw, [out, inner])
            })
        })
    }

    pub(crate) fn sum_rows(x: FlexTensor) -> FlexTensor {
        let width = x.layout().shape().last().copied().unwrap_or(1);
        let x = owned(x);
        let (rows, groups) = row_groups(view(&x).len() / width.max(1));
        let mut partial = Buffer::zeros(groups * width);
        partial
            .par_chunks_mut(width.max(1))
            .zip(view(&x).par_chunks((rows * width).max(1)))
            .for_each(|(partial, x)| add_rows(x, partial));
        let mut total = Buffer::zeros(width);
        add_rows(&partial, &mut total);
        tensor(total, [width])
    }

    crate::simd::dispatch!(
        /// Adds rows as long as `total` to it, in order.
        pub(crate) fn add_rows(x: &[f32], total: &mut [f32]) => add_rows_body
    );

    #[inline(always)]
    fn add_rows_body<const FMA: bool>(x: &[f32], total: &mut [f32]) {
        for row in x.chunks_exact(total.len().max(1)) {
            for (t, x) in total.iter_mut().zip(row) {
                *t += x;
            }
        }
    }

    fn with_last(x: &FlexTensor, width: usize) -> Shape {
        let mut shape = x.layout().shape().clone();
        let last = shape.num_dims() - 1;
        shape[last] = width;
        shape
    }
}

#[cfg(test)]
mod tests {
    use crate::precision::Precision;
    use crate::testing::{Checked, check, check_rounded, random};
    use burn::tensor::Tensor;

    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 1, 1), (3, 5, 7), (197, 48, 33), (130, 192, 64), (1, 64, 10), (70, 33, 49)];

    fn inputs((n, inner, out): (usize, usize, usize)) -> [Vec<f64>; 3] {
        [random(n * inner, 1, 1.0), random(out * inner, 2, 0.3), random(out, 3, 1.0)]
    }

    /// x, weight and bias in their shapes.
    #[allow(clippy::type_complexity)]
    fn shaped(
        x: &[Tensor<Checked, 1>],
        (n, inner, out): (usize, usize, usize),
    ) -> (Tensor<Checked, 3>, Tensor<Checked, 2>, Option<Tensor<Checked, 1>>) {
        (x[0].clone().reshape([1, n, inner]), x[1].clone().reshape([out, inner]), x.get(2).cloned())
    }

    #[test]
    fn matches_reference_and_differences() {
        for shape in SHAPES {
            let inputs = inputs(shape);
            for with_bias in [true, false] {
                let inputs = &inputs[..if with_bias { 3 } else { 2 }];
                let values = shape.0 * shape.2;
                check(
                    "linear",
                    inputs,
                    |x| {
                        let (x, w, b) = shaped(x, shape);
                        super::linear(x, w, b, Precision::F32).reshape([values])
                    },
                    |x| {
                        let (x, w, b) = shaped(x, shape);
                        super::reference(x, w, b).reshape([values])
                    },
                    3e-6,
                );
            }
        }
    }

    #[test]
    fn bf16_rounds_the_operands_of_every_product_and_nothing_else() {
        for shape in SHAPES {
            let f = |x: &[Tensor<Checked, 1>], precision| {
                let (x, w, b) = shaped(x, shape);
                super::linear(x, w, b, precision).reshape([shape.0 * shape.2])
            };
            check_rounded("linear", &inputs(shape), f, 3e-6);
        }
    }
}
