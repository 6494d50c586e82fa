//! Tensors one after the other along an axis, ranges of an axis, and the biases of queries, keys and values in one vector.
//!
//! Contract: values are copied, never computed; a part of zeros has no gradient and needs no memory of its own.

use std::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Slice, Tensor, TensorMetadata};

use crate::graph::{record, register};
use crate::tensor::{unwrap, wrap};

/// Most parts of one call.
pub(crate) const MOST: usize = 8;

/// One part of a concatenation.
#[derive(Debug, Clone)]
pub enum Part<T> {
    /// A tensor.
    Tensor(T),
    /// Zeros, so long along the axis.
    Zeros(usize),
}

impl<T> Part<T> {
    /// The tensor, if it is one.
    pub(crate) fn tensor(&self) -> Option<&T> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Zeros(_) => None,
        }
    }
}

impl<T: TensorMetadata> Part<T> {
    /// Length along `axis`.
    pub(crate) fn length(&self, axis: usize) -> usize {
        match self {
            Self::Tensor(tensor) => tensor.shape()[axis],
            Self::Zeros(length) => *length,
        }
    }
}

/// Concatenation on a backend's own tensors.
pub trait ConcatOps: BurnBackend {
    /// Parts one after the other along `axis`; at least one is a tensor.
    fn fused_concat(parts: Vec<Part<FloatTensor<Self>>>, axis: usize) -> FloatTensor<Self> {
        composed::concat::<Self>(parts, axis)
    }

    /// The other way round: pieces of `x` of these lengths along `axis`, of which only those with `true` are wanted.
    fn fused_split(x: FloatTensor<Self>, axis: usize, pieces: &[(usize, bool)]) -> Vec<FloatTensor<Self>> {
        composed::split::<Self>(x, axis, pieces)
    }

    /// [`narrow`](crate::narrow).
    fn fused_narrow(x: FloatTensor<Self>, axis: usize, range: Range<usize>) -> FloatTensor<Self> {
        composed::narrow::<Self>(x, axis, range)
    }
}

/// A range of `x` along `axis`. Its gradient is written once, with zeros around it.
///
/// # Panics
/// If the range does not lie within the axis.
pub fn narrow<B: ConcatOps, const D: usize>(
    x: Tensor<B, D>,
    axis: usize,
    range: Range<usize>,
) -> Tensor<B, D> {
    let dims = x.dims();
    assert!(
        axis < D && range.start < range.end && range.end <= dims[axis],
        "narrow: {range:?} is no range of axis {axis} of {dims:?}"
    );
    wrap(B::fused_narrow(unwrap(x), axis, range))
}

/// Tensors one after the other along `axis`: one to eight, equal along all other axes.
///
/// # Panics
/// If there are none or more than eight, or a shape does not fit.
pub fn concat<B: ConcatOps, const D: usize>(tensors: Vec<Tensor<B, D>>, axis: usize) -> Tensor<B, D> {
    let dims: Vec<_> = tensors.iter().map(Tensor::dims).collect();
    let equal = |a: &[usize; D], b: &[usize; D]| (0..D).all(|at| at == axis || a[at] == b[at]);
    assert!(
        (1..=MOST).contains(&dims.len()) && axis < D && dims.iter().all(|of| equal(of, &dims[0])),
        "concat: {dims:?} do not fit along axis {axis}"
    );
    wrap(B::fused_concat(tensors.into_iter().map(|x| Part::Tensor(unwrap(x))).collect(), axis))
}

/// The bias `[3D]` of queries, keys and values: keys have none in BEiT, because it would cancel in the softmax.
///
/// # Panics
/// If `q` and `v` differ in length.
pub fn qkv_bias<B: ConcatOps>(q: Tensor<B, 1>, v: Tensor<B, 1>) -> Tensor<B, 1> {
    assert!(q.dims() == v.dims(), "qkv_bias: q {:?} and v {:?} differ", q.dims(), v.dims());
    wrap(with_zero_keys::<B>([unwrap(q), unwrap(v)]))
}

/// [`qkv_bias`] of a backend's own tensors.
pub(crate) fn with_zero_keys<B: ConcatOps>([q, v]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
    let keys = Part::Zeros(q.shape()[0]);
    B::fused_concat(vec![Part::Tensor(q), keys, Part::Tensor(v)], 0)
}

/// From Burn's primitives.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn concat<B: BurnBackend>(parts: Vec<Part<FloatTensor<B>>>, axis: usize) -> FloatTensor<B> {
        let first = parts.iter().find_map(Part::tensor).unwrap_or_else(|| unreachable!("one is a tensor"));
        let (shape, dtype, device) = (first.shape(), first.dtype().into(), B::float_device(first));
        let filled = |part| match part {
            Part::Tensor(tensor) => tensor,
            Part::Zeros(length) => {
                let mut shape = shape.clone();
                shape[axis] = length;
                B::float_zeros(shape, &device, dtype)
            }
        };
        B::float_cat(parts.into_iter().map(filled).collect(), axis)
    }

    pub(crate) fn split<B: BurnBackend>(
        x: FloatTensor<B>,
        axis: usize,
        pieces: &[(usize, bool)],
    ) -> Vec<FloatTensor<B>> {
        let mut at = 0;
        let piece = |&(length, wanted): &(usize, bool)| {
            let range = at..at + length;
            at = range.end;
            wanted.then(|| narrow::<B>(x.clone(), axis, range))
        };
        pieces.iter().filter_map(piece).collect()
    }

    pub(crate) fn narrow<B: BurnBackend>(
        x: FloatTensor<B>,
        axis: usize,
        range: Range<usize>,
    ) -> FloatTensor<B> {
        let mut slices: Vec<Slice> = x.shape().iter().map(|&size| (0..size).into()).collect();
        slices[axis] = range.into();
        B::float_slice(x, &slices)
    }
}

/// Parents: the tensors; the first stands for those that are not there and gets nothing there.
#[derive(Debug)]
struct ConcatBackward;

impl<B: ConcatOps> Backward<B, MOST> for ConcatBackward {
    /// The axis, and of each part its length and whether it is a tensor.
    type State = (usize, Vec<(usize, bool)>);

    fn backward(self, ops: Ops<Self::State, MOST>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (axis, mut pieces) = ops.state;
        // Only what a parent asks for is copied.
        let mut wanted = ops.parents.iter().map(Option::is_some);
        for (_, tensor) in &mut pieces {
            *tensor = *tensor && wanted.next().unwrap_or(false);
        }
        let parents: Vec<_> = ops.parents.into_iter().flatten().collect();
        let found = B::fused_split(grad, axis, &pieces);
        register!(B, grads, parents.into_iter().map(Some), found.into_iter().map(Some));
    }
}

#[derive(Debug)]
struct NarrowBackward;

impl<B: ConcatOps> Backward<B, 1> for NarrowBackward {
    /// The axis, and how much lies before and behind the range.
    type State = (usize, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (axis, [before, behind]) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            let around = [Part::Zeros(before), Part::Tensor(grad), Part::Zeros(behind)];
            let there = around.into_iter().filter(|part| !matches!(part, Part::Zeros(0)));
            B::fused_concat(there.collect(), axis)
        });
    }
}

impl<B: ConcatOps, C: CheckpointStrategy> ConcatOps for Autodiff<B, C> {
    fn fused_concat(parts: Vec<Part<FloatTensor<Self>>>, axis: usize) -> FloatTensor<Self> {
        let pieces = parts.iter().map(|part| (part.length(axis), part.tensor().is_some())).collect();
        let mut nodes = parts.iter().filter_map(Part::tensor).map(|tensor| tensor.node.clone());
        let first = nodes.next().unwrap_or_else(|| unreachable!("one is a tensor"));
        let rest: Vec<_> = nodes.collect();
        let at = |i: usize| if i == 0 { None } else { rest.get(i - 1).cloned() };
        let nodes: [_; MOST] = std::array::from_fn(|i| at(i).unwrap_or_else(|| first.clone()));
        let inner = parts.into_iter().map(|part| match part {
            Part::Tensor(tensor) => Part::Tensor(tensor.primitive),
            Part::Zeros(length) => Part::Zeros(length),
        });
        let y = B::fused_concat(inner.collect(), axis);
        match Backward::<B, MOST>::prepare::<C>(ConcatBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((axis, pieces), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }

    fn fused_split(x: FloatTensor<Self>, axis: usize, pieces: &[(usize, bool)]) -> Vec<FloatTensor<Self>> {
        composed::split::<Self>(x, axis, pieces)
    }

    fn fused_narrow(x: FloatTensor<Self>, axis: usize, range: Range<usize>) -> FloatTensor<Self> {
        let state = (axis, [range.start, x.shape()[axis] - range.end]);
        record!(B, C, NarrowBackward, [x],
            tracked { (B::fused_narrow(x.primitive, axis, range), state) },
            untracked { B::fused_narrow(x.primitive, axis, range) })
    }
}

impl ConcatOps for Flex {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Backend;
    use crate::testing::{Checked, check, random};

    /// Three tensors side by side along the middle axis of three, the last twice, or a bias.
    pub(crate) fn run<B: Backend>(x: &[Tensor<B, 1>], dims: [usize; 3], axis: usize) -> Tensor<B, 1> {
        let parts: Vec<_> =
            x.iter().enumerate().map(|(i, x)| x.clone().reshape(shape(dims, axis, i))).collect();
        let twice = parts[2].clone();
        concat(parts.into_iter().chain([twice]).collect(), axis).reshape([-1])
    }

    fn shape(dims: [usize; 3], axis: usize, part: usize) -> [usize; 3] {
        let mut shape = dims;
        shape[axis] += part;
        shape
    }

    pub(crate) fn inputs(dims: [usize; 3], axis: usize) -> Vec<Vec<f64>> {
        (0..3).map(|i| random(shape(dims, axis, i).iter().product(), i as u64, 1.0)).collect()
    }

    #[test]
    fn puts_parts_side_by_side_and_takes_gradients_apart() {
        for axis in 0..3 {
            let dims = [2, 3, 5];
            let by_burn = |x: &[Tensor<Checked, 1>]| {
                let parts = (0..4).map(|i| i.min(2)).map(|i| x[i].clone().reshape(shape(dims, axis, i)));
                Tensor::cat(parts.collect(), axis).reshape([-1])
            };
            check("concat", &inputs(dims, axis), |x| run(x, dims, axis), by_burn, 1e-6);
        }
        for (axis, range) in [(0, 1..2), (1, 0..2), (2, 1..4), (2, 0..5)] {
            let (dims, length) = ([2, 3, 5], range.len());
            let input = [random(30, 1, 1.0)];
            let ours = |x: &[Tensor<Checked, 1>]| narrow(x[0].clone().reshape(dims), axis, range.clone());
            let by_burn =
                |x: &[Tensor<Checked, 1>]| x[0].clone().reshape(dims).narrow(axis, range.start, length);
            check("narrow", &input, |x| ours(x).reshape([-1]), |x| by_burn(x).reshape([-1]), 1e-6);
        }
        let by_burn =
            |x: &[Tensor<Checked, 1>]| Tensor::cat(vec![x[0].clone(), x[0].clone() * 0.0, x[1].clone()], 0);
        let inputs = [random(7, 1, 1.0), random(7, 2, 1.0)];
        check("qkv_bias", &inputs, |x| qkv_bias(x[0].clone(), x[1].clone()), by_burn, 1e-6);
    }

    #[test]
    #[should_panic(expected = "concat: [[2, 3], [3, 3]] do not fit along axis 1")]
    fn names_the_shapes_that_do_not_fit() {
        let zeros = |dims| Tensor::<Flex, 2>::zeros(dims, &Default::default());
        let _ = concat(vec![zeros([2, 3]), zeros([3, 3])], 1);
    }
}
