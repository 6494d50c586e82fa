//! One step of AdamW on one tensor.
//!
//! Contract: one pass over parameter, gradient and both moments; results are written over the
//! inputs when nobody else holds them. Not for graphs: call it on the inner backend.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::flex::is_f32;
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// The numbers of one [`adamw`](crate::adamw) step of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct AdamwStep {
    /// Learning rate of this tensor in this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: the tensor is first multiplied by `1 − lr·weight_decay`.
    pub weight_decay: f64,
    /// Number of this step, from 1, for the bias correction.
    pub step: u64,
    /// Factor on the gradient (1, or what clipping asks for).
    pub grad_scale: f64,
}

impl AdamwStep {
    /// What the moments lack in the first steps: `1 − βᵗ` of both.
    pub(crate) fn corrections(&self) -> (f64, f64) {
        let t = i32::try_from(self.step).unwrap_or(i32::MAX);
        (1.0 - self.beta1.powi(t), 1.0 - self.beta2.powi(t))
    }
}

/// AdamW on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait AdamwOps: BurnBackend {
    /// Sum of the squares of all elements, `[1]`.
    fn fused_square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::square_sum::<Self>(x)
    }

    /// [`adamw`](crate::adamw).
    fn fused_adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::adamw::<Self>(param, grad, m, v, step)
    }
}

/// One decoupled-weight-decay Adam step (Loshchilov & Hutter 2019) → `(param, m, v)`, all of one
/// shape. In place where the tensors given are the only ones of their memory.
///
/// # Panics
/// If the shapes differ.
pub fn adamw<B: AdamwOps, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    m: Tensor<B, D>,
    v: Tensor<B, D>,
    s: AdamwStep,
) -> (Tensor<B, D>, Tensor<B, D>, Tensor<B, D>) {
    let dims = param.dims();
    for (name, other) in [("gradient", &grad), ("m", &m), ("v", &v)] {
        let other = other.dims();
        assert!(other == dims, "adamw: {name} {other:?} does not fit parameter {dims:?}");
    }
    let (param, m, v) = B::fused_adamw(unwrap(param), unwrap(grad), unwrap(m), unwrap(v), s);
    (wrap(param), wrap(m), wrap(v))
}

/// [`adamw`](crate::adamw) composed from Burn's primitives.
pub fn reference<B: BurnBackend, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    m: Tensor<B, D>,
    v: Tensor<B, D>,
    s: AdamwStep,
) -> (Tensor<B, D>, Tensor<B, D>, Tensor<B, D>) {
    let grad = if s.grad_scale == 1.0 { grad } else { grad.mul_scalar(s.grad_scale) };
    let m = m.mul_scalar(s.beta1) + grad.clone().mul_scalar(1.0 - s.beta1);
    let v = v.mul_scalar(s.beta2) + grad.powi_scalar(2).mul_scalar(1.0 - s.beta2);
    let (correction1, correction2) = s.corrections();
    let denominator = v.clone().sqrt().div_scalar(correction2.sqrt()).add_scalar(s.eps);
    let update = m.clone().mul_scalar(s.lr / correction1) / denominator;
    (param.mul_scalar(1.0 - s.lr * s.weight_decay) - update, m, v)
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn square_sum<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
        B::float_sum(B::float_mul(x.clone(), x))
    }

    pub(crate) fn adamw<B: BurnBackend>(
        param: FloatTensor<B>,
        grad: FloatTensor<B>,
        m: FloatTensor<B>,
        v: FloatTensor<B>,
        step: AdamwStep,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let shape = param.shape();
        let (param, m, v) = super::reference::<B, 2>(rows(param), rows(grad), rows(m), rows(v), step);
        (from_rows(shape.clone(), param), from_rows(shape.clone(), m), from_rows(shape, v))
    }
}

impl<B: AdamwOps, C: CheckpointStrategy> AdamwOps for Autodiff<B, C> {}

impl AdamwOps for Flex {
    fn fused_square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x]) { fast::square_sum(x) } else { composed::square_sum::<Self>(x) }
    }

    fn fused_adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&param, &grad, &m, &v]) {
            fast::step(param, grad, m, v, step)
        } else {
            composed::adamw::<Self>(param, grad, m, v, step)
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use super::AdamwStep;
    use crate::flex::{GRAIN, owned, tensor, values, view};
    use crate::memory::Buffer;
    use crate::simd::{LANES, dispatch, madd, reduce};

    pub(crate) fn step(
        param: FlexTensor,
        grad: FlexTensor,
        m: FlexTensor,
        v: FlexTensor,
        s: AdamwStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (mut param, grad, mut m, mut v) = (owned(param), owned(grad), owned(m), owned(v));
        let numbers = Numbers::of(&s);
        values(&mut param)
            .par_chunks_mut(GRAIN)
            .zip(view(&grad).par_chunks(GRAIN))
            .zip(values(&mut m).par_chunks_mut(GRAIN))
            .zip(values(&mut v).par_chunks_mut(GRAIN))
            .for_each(|(((param, grad), m), v)| update(param, grad, m, v, numbers));
        (param, m, v)
    }

    /// Sums of fixed pieces, added in order, so that threads do not matter.
    pub(crate) fn square_sum(x: FlexTensor) -> FlexTensor {
        let x = owned(x);
        let parts: Vec<f32> = view(&x).par_chunks(GRAIN).map(squares).collect();
        let mut total = Buffer::zeros(1);
        total[0] = parts.iter().sum();
        tensor(total, [1])
    }

    dispatch!(fn squares(x: &[f32]) -> f32 => squares_body);

    #[inline(always)]
    fn squares_body<const FMA: bool>(x: &[f32]) -> f32 {
        let (chunks, tail) = x.as_chunks::<LANES>();
        let mut acc = [0.0; LANES];
        for c in chunks {
            for i in 0..LANES {
                acc[i] = madd::<FMA>(c[i], c[i], acc[i]);
            }
        }
        for (a, x) in acc.iter_mut().zip(tail) {
            *a = madd::<FMA>(*x, *x, *a);
        }
        reduce(acc)
    }

    /// The step's numbers, computed once in f64.
    #[derive(Clone, Copy)]
    struct Numbers {
        grad_scale: f32,
        beta1: f32,
        rest1: f32,
        beta2: f32,
        rest2: f32,
        rate: f32,
        root: f32,
        eps: f32,
        keep: f32,
    }

    impl Numbers {
        fn of(s: &AdamwStep) -> Self {
            let (correction1, correction2) = s.corrections();
            Self {
                grad_scale: s.grad_scale as f32,
                beta1: s.beta1 as f32,
                rest1: (1.0 - s.beta1) as f32,
                beta2: s.beta2 as f32,
                rest2: (1.0 - s.beta2) as f32,
                rate: (s.lr / correction1) as f32,
                root: correction2.sqrt() as f32,
                eps: s.eps as f32,
                keep: (1.0 - s.lr * s.weight_decay) as f32,
            }
        }
    }

    dispatch!(
        fn update(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], s: Numbers)
            => update_body
    );

    #[inline(always)]
    fn update_body<const FMA: bool>(
        param: &mut [f32],
        grad: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        s: Numbers,
    ) {
        let inverse_root = 1.0 / s.root;
        for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g * s.grad_scale;
            *m = madd::<FMA>(*m, s.beta1, g * s.rest1);
            *v = madd::<FMA>(*v, s.beta2, g * g * s.rest2);
            let denominator = madd::<FMA>(v.sqrt(), inverse_root, s.eps);
            *p = madd::<FMA>(*p, s.keep, -(s.rate * *m / denominator));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AdamwOps, AdamwStep};
    use crate::tensor::{unwrap, wrap};
    use crate::testing::random;
    use burn::backend::Flex;
    use burn::tensor::{DType, Tensor, TensorData};

    type X = Tensor<Flex, 1>;

    fn tensor(n: usize, seed: u64, dtype: DType) -> X {
        let x = TensorData::new(random(n, seed, 1.0), [n]);
        X::from_data(x, (&Default::default(), dtype))
    }

    fn step(step: u64, grad_scale: f64) -> AdamwStep {
        AdamwStep { lr: 1.5e-3, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.05, step, grad_scale }
    }

    #[test]
    fn follows_the_reference_in_f64() {
        for n in [1, 3, 197, 40_001] {
            let start = |dtype| {
                let p = tensor(n, 1, dtype);
                (p.clone(), p.zeros_like(), p.zeros_like())
            };
            let (mut fast, mut wide) = (start(DType::F32), start(DType::F64));
            for t in 1..=5 {
                let s = step(t, if t == 3 { 0.25 } else { 1.0 });
                let (p, m, v) = fast;
                fast = super::adamw(p, tensor(n, t + 10, DType::F32), m, v, s);
                let (p, m, v) = wide;
                wide = super::reference(p, tensor(n, t + 10, DType::F64), m, v, s);
            }
            let pairs = [(fast.0, wide.0), (fast.1, wide.1), (fast.2, wide.2)];
            for (fast, wide) in pairs {
                let error = (fast.cast(DType::F64) - wide).abs().max().into_scalar();
                assert!(error < 5e-7, "{n}: {error:e}");
            }
        }
    }

    #[test]
    fn square_sums() {
        for n in [1, 33, 40_001] {
            let [fast, wide] = [DType::F32, DType::F64].map(|dtype| {
                let x = Flex::fused_square_sum(unwrap(tensor(n, 3, dtype)));
                wrap::<Flex, 1>(x).into_data().iter::<f64>().next().unwrap()
            });
            assert!((fast - wide).abs() < 1e-6 * wide, "{n}: {fast}, not {wide}");
        }
    }

    #[test]
    fn keeps_tensors_that_others_hold() {
        let (p, g) = (tensor(9, 1, DType::F32), tensor(9, 2, DType::F32));
        let before = p.to_data();
        let (after, m, _) = super::adamw(p.clone(), g, p.zeros_like(), p.zeros_like(), step(1, 1.0));
        p.into_data().assert_eq(&before, true);
        assert!(after.to_data() != before && m.into_data().to_vec::<f32>().unwrap()[0] != 0.0);
    }
}
