//! Exact GELU, `x·Φ(x)`, and what others put in its place.
//!
//! Contract: training keeps the derivative `Φ(x) + x·φ(x)` instead of the input, in the input's own
//! buffer when nobody else holds it; both come from one exponential. Burn's own `gelu_backward` is a
//! tanh approximation with rounded constants and is not used anywhere.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata, activation};

use crate::flex::is_f32;
use crate::graph::record;
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// Exact GELU on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait GeluOps: BurnBackend {
    /// [`gelu`](crate::gelu) without what a backward pass needs.
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu::<Self>(x)
    }

    /// [`gelu`](crate::gelu) and its derivative at `x`; the backward pass multiplies by it.
    fn fused_gelu_train(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::gelu_train::<Self>(x)
    }

    /// Elementwise product of two tensors of one shape: the backward pass of [`gelu`](crate::gelu).
    fn fused_mul(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::mul::<Self>(x, y)
    }
}

/// Exact GELU, `x·Φ(x)` by the error function. Shape is kept.
pub fn gelu<B: GeluOps, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    wrap(B::fused_gelu(unwrap(x)))
}

/// [`gelu`](crate::gelu) composed from Burn's primitives.
pub fn reference<B: BurnBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let cdf = cdf(x.clone());
    x * cdf
}

/// `x·σ(1.702 x)`, the approximation of OpenAI's CLIP, from Burn's primitives. Shape is kept.
pub fn quick_gelu<B: BurnBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    x.clone() * activation::sigmoid(x.mul_scalar(1.702))
}

/// GELU by tanh, the approximation of SigLIP, from Burn's primitives. Shape is kept.
pub fn gelu_tanh<B: BurnBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    // (1 + tanh z)/2 = σ(2z), with z = √(2/π)·(x + 0.044715 x³)
    let cubic = x.clone().powi_scalar(2).mul_scalar(0.044715).add_scalar(1.0) * x.clone();
    x * activation::sigmoid(cubic.mul_scalar(2.0 * (2.0 / std::f64::consts::PI).sqrt()))
}

fn cdf<B: BurnBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    x.mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5)
}

pub(crate) fn reference_train<B: BurnBackend>(x: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let cdf = cdf(x.clone());
    let density =
        x.clone().powi_scalar(2).mul_scalar(-0.5).exp().mul_scalar(1.0 / (2.0 * std::f64::consts::PI).sqrt());
    (x.clone() * cdf.clone(), cdf + x * density)
}

#[derive(Debug)]
struct GeluBackward;

impl<B: GeluOps> Backward<B, 1> for GeluBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let slope = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::fused_mul(grad, slope));
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn gelu<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
        from_rows(x.shape(), super::reference(rows::<B>(x)))
    }

    pub(crate) fn gelu_train<B: BurnBackend>(x: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
        let shape = x.shape();
        let (y, slope) = super::reference_train(rows::<B>(x));
        (from_rows(shape.clone(), y), from_rows(shape, slope))
    }

    pub(crate) fn mul<B: BurnBackend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
        B::float_mul(x, y)
    }
}

impl<B: GeluOps, C: CheckpointStrategy> GeluOps for Autodiff<B, C> {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        record!(B, C, GeluBackward, [x],
            tracked { B::fused_gelu_train(x.primitive) },
            untracked { B::fused_gelu(x.primitive) })
    }
}

impl GeluOps for Flex {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x]) { fast::forward(x) } else { composed::gelu::<Self>(x) }
    }

    fn fused_gelu_train(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x]) { fast::forward_train(x) } else { composed::gelu_train::<Self>(x) }
    }

    fn fused_mul(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x, &y]) { fast::mul(x, y) } else { composed::mul::<Self>(x, y) }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{GRAIN, owned, tensor, values, view};
    use crate::memory::Buffer;
    use crate::simd::{dispatch, normal};
    use crate::slices::times;

    pub(crate) fn forward(x: FlexTensor) -> FlexTensor {
        let mut x = owned(x);
        values(&mut x).par_chunks_mut(GRAIN).for_each(in_place);
        x
    }

    pub(crate) fn forward_train(x: FlexTensor) -> (FlexTensor, FlexTensor) {
        let mut x = owned(x);
        let mut y = Buffer::any(x.layout().num_elements());
        values(&mut x).par_chunks_mut(GRAIN).zip(y.par_chunks_mut(GRAIN)).for_each(|(x, y)| with_slope(x, y));
        (tensor(y, x.layout().shape().clone()), x)
    }

    /// `x·y`, over `x` when nobody else holds it.
    pub(crate) fn mul(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        let (mut x, y) = (owned(x), owned(y));
        values(&mut x).par_chunks_mut(GRAIN).zip(view(&y).par_chunks(GRAIN)).for_each(|(x, y)| times(x, y));
        x
    }

    dispatch!(pub(crate) fn in_place(x: &mut [f32]) => in_place_body);

    #[inline(always)]
    fn in_place_body<const FMA: bool>(x: &mut [f32]) {
        for x in x {
            *x *= normal::<FMA>(*x).0;
        }
    }

    dispatch!(
        /// `x` becomes the derivative.
        pub(crate) fn with_slope(x: &mut [f32], y: &mut [f32]) => with_slope_body
    );

    #[inline(always)]
    fn with_slope_body<const FMA: bool>(x: &mut [f32], y: &mut [f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            let (below, density) = normal::<FMA>(*x);
            *y = *x * below;
            // An infinite input has a zero density, not NaN.
            let product = if density == 0.0 { 0.0 } else { *x * density };
            *x = below + product;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, random};
    use burn::tensor::Tensor;

    #[test]
    fn matches_reference_and_differences() {
        for (n, spread) in [(1, 1.0), (3, 3.0), (197 * 7, 2.0), (40_000, 5.0)] {
            let inputs = [random(n, 1, spread)];
            check("gelu", &inputs, |x| super::gelu(x[0].clone()), |x| super::reference(x[0].clone()), 2e-6);
        }
    }

    #[test]
    fn keeps_the_input_of_others() {
        let device = Default::default();
        let x = Tensor::<burn::backend::Flex, 1>::from_floats([1.0, -2.0, 0.5], &device);
        let y = super::gelu(x.clone());
        assert_eq!(x.into_data().to_vec::<f32>().unwrap(), [1.0, -2.0, 0.5]);
        assert!((y.into_data().to_vec::<f32>().unwrap()[0] - 0.841_344_7).abs() < 1e-6);
    }
}
