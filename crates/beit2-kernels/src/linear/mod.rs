//! `x·Wᵀ + b` and its gradients.
//!
//! Contract: matmuls read their operands where they lie, transposed or not; the backward
//! pass keeps the input only if the weight needs a gradient, and the weight only if the input does.

pub(crate) mod fast;

use std::fmt;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::{accumulate, record};
use crate::int8::Int8Weight;
use crate::interrupt::tick;
use crate::matmul::Packed;
use crate::matrix::with_rows;
use crate::precision::Precision;
use crate::residual_scale::ResidualScaleOps;
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// `x·Wᵀ + b` on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait LinearOps: ResidualScaleOps {
    /// [`linear`](crate::linear) on `x [.., in]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::linear::<Self>(x, weight, bias, precision)
    }

    /// [`pack_weight`](crate::pack_weight).
    fn pack_weight(_weight: FloatTensor<Self>, _precision: Precision) -> Option<PackedWeight> {
        None
    }

    /// Whether [`pack_weight_int8`](crate::pack_weight_int8) packs.
    const HAS_INT8: bool = false;

    /// [`pack_weight_int8`](crate::pack_weight_int8).
    fn pack_weight_int8(_weight: FloatTensor<Self>) -> Option<PackedWeight> {
        None
    }

    /// [`linear_packed`](crate::linear_packed), for backends that pack.
    fn fused_linear_packed(
        _x: FloatTensor<Self>,
        _weight: &PackedWeight,
        _bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        panic!("linear_packed: this backend packs no weights; the layer was frozen on another one")
    }

    /// Gradient of [`linear`](crate::linear) with respect to its input: `grad·W`, `[.., in]`.
    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::linear_backward_input::<Self>(weight, grad, precision)
    }

    /// Gradient of [`linear`](crate::linear) with respect to its weight: `gradᵀ·x`, `[out, in]`.
    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::linear_backward_weight::<Self>(x, grad, precision)
    }

    /// Gradients of weight and bias together.
    fn fused_linear_backward_parameters(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> [FloatTensor<Self>; 2] {
        let dw = Self::fused_linear_backward_weight(x, grad.clone(), precision);
        [dw, Self::fused_sum_rows(grad)]
    }

    /// Gradient of a bias that was added to each row: the sum of the rows of `grad`, `[out]`.
    fn fused_sum_rows(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::sum_rows::<Self>(grad)
    }
}

/// `x·Wᵀ + b`: `x [.., in]`, `weight [out, in]`, `bias [out]` → `[.., out]`. `precision` is that of the
/// three matmuls, forward and backward; the bias is not rounded, nor is its gradient but on NVIDIA's GPUs, where the
/// matmul for the weight sums its operand for the bias too.
///
/// # Panics
/// If the last axis of `x` is not `in`, or `bias` is not `[out]`.
pub fn linear<B: LinearOps, const D: usize>(
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
    let y = wrap(B::fused_linear(unwrap(x), unwrap(weight), bias.map(unwrap), precision));
    tick(operations(dims.iter().product(), out));
    y
}

/// Operations of a matmul of `values` by a weight of `outputs` rows.
fn operations(values: usize, outputs: usize) -> usize {
    2 * values * outputs
}

/// A weight in the form in which matmuls read it: for models whose weights do not change any more.
///
/// Clones share their memory: as much as the weight itself in f32, half of it in bf16, a quarter in 8-bit integers.
#[derive(Clone)]
pub struct PackedWeight(Held);

#[derive(Clone)]
enum Held {
    /// In the order of the CPU's kernels.
    Cpu(Arc<Packed>),
    /// In 8-bit integers on the CPU.
    Int8(Arc<Int8Weight>),
    /// `[out, in]` in bf16 on a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(crate::gpu::Recorded),
}

impl PackedWeight {
    /// One of the CPU's.
    fn of_cpu(packed: Packed) -> Self {
        Self(Held::Cpu(Arc::new(packed)))
    }

    /// The operand itself; `None` of a weight in 8-bit integers.
    ///
    /// # Panics
    /// If the weight was packed for another backend.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rhs(&self) -> Option<&crate::packed::PackedRhs> {
        match &self.0 {
            Held::Cpu(packed) => Some(packed.rhs()),
            Held::Int8(_) => None,
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => panic!("{OTHER_BACKEND}"),
        }
    }

    /// A weight `[out, in]` of a CUDA device, in bf16.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_cuda(weight: crate::gpu::Recorded) -> Self {
        Self(Held::Cuda(weight))
    }

    /// The weight `[out, in]`, in bf16.
    ///
    /// # Panics
    /// If the weight was packed for another backend.
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(&self) -> crate::gpu::Recorded {
        match &self.0 {
            Held::Cuda(weight) => weight.clone(),
            Held::Cpu(_) | Held::Int8(_) => panic!("{OTHER_BACKEND}"),
        }
    }

    /// `[out, in]`, as the weight's.
    pub fn dims(&self) -> [usize; 2] {
        match &self.0 {
            Held::Cpu(packed) => {
                let [inner, out] = packed.dims();
                [out, inner]
            }
            Held::Int8(weight) => weight.dims(),
            #[cfg(feature = "cuda")]
            Held::Cuda(weight) => [weight.shape[0], weight.shape[1]],
        }
    }
}

/// What is said where a packed weight is used on a backend that did not pack it.
#[cfg(feature = "cuda")]
const OTHER_BACKEND: &str = "linear_packed: the layer was frozen on another backend";

impl fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedWeight({:?})", self.dims())
    }
}

/// Packs a `weight [out, in]` for [`linear_packed`]; `None` where a backend or a processor has nothing better than the
/// weight itself. Recording backends have nothing: a packed weight gets no gradient, and passes none on.
pub fn pack_weight<B: LinearOps>(weight: Tensor<B, 2>, precision: Precision) -> Option<PackedWeight> {
    B::pack_weight(unwrap(weight), precision)
}

/// Rounds a `weight [out, in]` to 8-bit integers for [`linear_packed`], with a scale for each output; the rows that it meets
/// are rounded likewise, with a scale each. `None` where a backend does not have it ([`LinearOps::HAS_INT8`]).
pub fn pack_weight_int8<B: LinearOps>(weight: Tensor<B, 2>) -> Option<PackedWeight> {
    B::pack_weight_int8(unwrap(weight))
}

/// [`linear`](crate::linear) with a packed weight: the same to the bit, but for weights in 8-bit integers.
///
/// # Panics
/// If the last axis of `x` is not `in`, `bias` is not `[out]`, or the weight was packed for another backend.
pub fn linear_packed<B: LinearOps, const D: usize>(
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
    let y = wrap(B::fused_linear_packed(unwrap(x), weight, bias.map(unwrap)));
    tick(operations(dims.iter().product(), out));
    y
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

impl<B: LinearOps, const N: usize> Backward<B, N> for LinearBackward {
    type State = LinearState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let parent = |i: usize| ops.parents.get(i).and_then(|parent| parent.as_ref());
        let values = grad.shape().num_elements();
        let last = |x: &FloatTensor<B>| x.shape().last().copied().unwrap_or(1);
        match (parent(1).zip(x), parent(2)) {
            (Some((weight, x)), Some(bias)) => {
                let inner = last(&x);
                let [dw, db] = B::fused_linear_backward_parameters(x, grad.clone(), self.0);
                grads.register::<B>(weight.id, dw);
                grads.register::<B>(bias.id, db);
                tick(operations(values, inner));
            }
            (Some((weight, x)), None) => {
                let inner = last(&x);
                let dw = B::fused_linear_backward_weight(x, grad.clone(), self.0);
                grads.register::<B>(weight.id, dw);
                tick(operations(values, inner));
            }
            (None, Some(bias)) => grads.register::<B>(bias.id, B::fused_sum_rows(grad.clone())),
            (None, None) => {}
        }
        if let (Some(node), Some(weight)) = (parent(0), weight) {
            let inner = weight.shape()[1];
            let dx = B::fused_linear_backward_input(weight, grad, self.0);
            accumulate!(B, grads, node, dx);
            tick(operations(values, inner));
        }
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn linear<B: BurnBackend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: Option<FloatTensor<B>>,
        precision: Precision,
    ) -> FloatTensor<B> {
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        shape[last] = weight.shape()[0];
        let (x, weight) = (precision.round(rows(x)), precision.round(wrap(weight)));
        from_rows(shape, super::reference::<B, 2>(x, weight, bias.map(wrap)))
    }

    pub(crate) fn linear_backward_input<B: BurnBackend>(
        weight: FloatTensor<B>,
        grad: FloatTensor<B>,
        precision: Precision,
    ) -> FloatTensor<B> {
        let mut shape = grad.shape();
        let last = shape.num_dims() - 1;
        shape[last] = weight.shape()[1];
        let weight = precision.round(wrap::<B, 2>(weight));
        from_rows(shape, precision.round(rows::<B>(grad)).matmul(weight))
    }

    pub(crate) fn linear_backward_weight<B: BurnBackend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        precision: Precision,
    ) -> FloatTensor<B> {
        let [grad, x] = [grad, x].map(|x| precision.round(rows::<B>(x)));
        unwrap(grad.transpose().matmul(x))
    }

    pub(crate) fn sum_rows<B: BurnBackend>(grad: FloatTensor<B>) -> FloatTensor<B> {
        unwrap(rows::<B>(grad).sum_dim(0).squeeze_dim::<1>(0))
    }
}

impl<B: LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let state = (
            weight.is_tracked().then(|| x.primitive.clone()),
            x.is_tracked().then(|| weight.primitive.clone()),
        );
        let backward = LinearBackward(precision);
        // The number of parents is part of the type, hence the two arms.
        match bias {
            None => record!(B, C, backward, [x, weight],
                tracked { (B::fused_linear(x.primitive, weight.primitive, None, precision), state) },
                untracked { B::fused_linear(x.primitive, weight.primitive, None, precision) }),
            Some(bias) => record!(B, C, backward, [x, weight, bias],
                tracked { (B::fused_linear(x.primitive, weight.primitive, Some(bias.primitive), precision), state) },
                untracked { B::fused_linear(x.primitive, weight.primitive, Some(bias.primitive), precision) }),
        }
    }
}

impl LinearOps for Flex {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &weight]) && bias.as_ref().is_none_or(|b| is_f32(&[b])) {
            fast::forward(x, weight, bias, precision)
        } else {
            composed::linear::<Self>(x, weight, bias, precision)
        }
    }

    fn pack_weight(weight: FloatTensor<Self>, precision: Precision) -> Option<PackedWeight> {
        if is_f32(&[&weight]) { fast::pack(&weight, precision) } else { None }
    }

    const HAS_INT8: bool = true;

    fn pack_weight_int8(weight: FloatTensor<Self>) -> Option<PackedWeight> {
        let fits = is_f32(&[&weight]) && weight.layout().num_elements() > 0;
        fits.then(|| PackedWeight(Held::Int8(Arc::new(with_rows(&weight, Int8Weight::new)))))
    }

    fn fused_linear_packed(
        x: FloatTensor<Self>,
        weight: &PackedWeight,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let plain = bias.as_ref().is_none_or(|b| is_f32(&[b]));
        assert!(plain && is_f32(&[&x]), "linear_packed: expected f32, found {:?}", x.dtype());
        fast::forward_packed(x, weight, bias)
    }

    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&weight, &grad]) {
            fast::backward_input(weight, grad, precision)
        } else {
            composed::linear_backward_input::<Self>(weight, grad, precision)
        }
    }

    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &grad]) {
            fast::backward_weight(x, grad, precision)
        } else {
            composed::linear_backward_weight::<Self>(x, grad, precision)
        }
    }

    fn fused_sum_rows(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&grad]) { fast::sum_rows(grad) } else { composed::sum_rows::<Self>(grad) }
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
    fn bf16_rounds_the_operands_of_every_matmul_and_nothing_else() {
        for shape in SHAPES {
            let f = |x: &[Tensor<Checked, 1>], precision| {
                let (x, w, b) = shaped(x, shape);
                super::linear(x, w, b, precision).reshape([shape.0 * shape.2])
            };
            check_rounded("linear", &inputs(shape), f, 3e-6);
        }
    }
}
