//! The operations inside Burn's graph: recomputing strategies give the same gradients, and second
//! derivatives are right or refused.

use beit2_kernels::{self as fast, AttentionSpec, AutodiffBackend, Backend, Precision, reference as slow};
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Tensor, TensorData};

fn input<B: Backend>(n: usize) -> Tensor<B, 1> {
    let values: Vec<f32> = (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [n]), &Default::default())
}

/// Gradient of a chain of cheap Burn operations around ours.
fn gradient<B: AutodiffBackend>() -> Vec<f32> {
    let x = input::<B>(3 * 24).require_grad();
    let w = input::<B>(8).require_grad();
    let y = (x.clone() * 1.5 + 0.25).reshape([3, 3, 8]);
    let y = fast::layer_norm(y.clone() * y, w.clone().exp(), w.clone(), 1e-6).tanh();
    let qkv = Tensor::cat(vec![y.clone(), y.clone() * 2.0, fast::gelu(y.clone())], 2);
    let spec = AttentionSpec { heads: 2, scale: 0.5, precision: Precision::F32 };
    let y = fast::residual_scale(y, fast::attention_qkv(qkv, None, spec) * 3.0, w.clone());
    let map = (y.clone() * 0.5).reshape([1, 3, 3, 8]);
    let (mean, var) = fast::channel_moments(map.clone());
    let map = fast::channel_norm(map.tanh(), mean, var.exp(), w.clone(), true);
    let kernel = w.clone().expand([8, 8]).reshape([8, 8, 1, 1]).expand([8, 8, 3, 3]);
    let labels = Tensor::zeros([1, 6, 6], &Default::default());
    let (loss, _) = fast::pixel_cross_entropy(fast::conv3x3(map * 0.5, kernel, Precision::F32), labels);
    let grads = ((y.clone() * y).sum() + loss).backward();
    [x.grad(&grads), w.grad(&grads)]
        .into_iter()
        .flat_map(|g| g.map(|g| g.into_data().to_vec::<f32>()))
        .flat_map(|g| g.unwrap_or_default())
        .collect()
}

#[test]
fn checkpointing_gives_the_same_gradients() {
    let plain = gradient::<Autodiff<Flex>>();
    assert_eq!(plain.len(), 3 * 24 + 8);
    assert_eq!(plain, gradient::<Autodiff<Flex, BalancedCheckpointing>>());
}

type Twice = Autodiff<Autodiff<Flex>>;

/// Gradient of the squared gradient of `Σ f(x)²`.
fn second(n: usize, f: impl Fn(Tensor<Twice, 1>) -> Tensor<Twice, 1>) -> Vec<f32> {
    let x = input::<Autodiff<Flex>>(n).require_grad();
    let outer = Tensor::<Twice, 1>::from_inner(x.clone()).require_grad();
    let y = f(outer.clone());
    let grads = (y.clone() * y).sum().backward();
    let Some(slope) = outer.grad(&grads) else { panic!("no first derivative") };
    let grads = (slope.clone() * slope).sum().backward();
    let Some(curvature) = x.grad(&grads) else { panic!("no second derivative") };
    curvature.into_data().to_vec().unwrap_or_default()
}

#[test]
fn second_derivatives_of_composed_backward_passes() {
    let square = |x: Tensor<Twice, 1>| x.reshape([6, 6]);
    let map = |x: Tensor<Twice, 1>| x.narrow(0, 0, 4).reshape([1, 2, 2, 1]);
    let kernel = |x: Tensor<Twice, 1>| x.narrow(0, 4, 9).reshape([1, 1, 3, 3]);
    let moments = |(mean, var): (Tensor<Twice, 1>, Tensor<Twice, 1>)| Tensor::cat(vec![mean, var], 0);
    let pairs = [
        (second(36, fast::gelu), second(36, slow::gelu)),
        (
            second(36, |x| fast::linear(square(x.clone()), square(x), None, Precision::F32).reshape([36])),
            second(36, |x| slow::linear(square(x.clone()), square(x), None).reshape([36])),
        ),
        (
            second(36, |x| fast::conv3x3(map(x.clone()), kernel(x), Precision::F32).reshape([4])),
            second(36, |x| slow::conv3x3(map(x.clone()), kernel(x)).reshape([4])),
        ),
        (
            second(36, |x| moments(fast::channel_moments(square(x)))),
            second(36, |x| moments(slow::channel_moments(square(x)))),
        ),
    ];
    for (a, b) in pairs {
        let size = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(size > 0.0 && a.len() == b.len());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5 * size));
    }
}

#[test]
#[should_panic(expected = "layer_norm: second derivatives are not implemented")]
fn second_derivatives_of_layer_norm_are_refused() {
    let ones = || Tensor::ones([6], &Default::default());
    second(36, |x| fast::layer_norm(x.reshape([6, 6]), ones(), ones(), 1e-6).reshape([36]));
}
