//! Every instruction set that a kernel is compiled for gives the reference's answer. One test and one
//! process, because the limit is the process's.

use beit2_kernels::simd::{Level, level, limit};
use beit2_kernels::{self as fast, AttentionSpec, Precision, reference as slow};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Int, Tensor, TensorData, bf16};

type B = Autodiff<Flex>;

/// Largest difference, relative to the largest value.
fn distance<const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>) -> f32 {
    let size = b.clone().abs().max().into_scalar();
    (a - b).abs().max().into_scalar() / size
}

/// Differences of the operations on maps: loss and gradient.
fn maps(
    map: &Tensor<B, 4>,
    kernel: &Tensor<B, 4>,
    labels: &Tensor<B, 3, Int>,
    [scale, shift]: [&Tensor<B, 1>; 2],
) -> [f32; 2] {
    let map = map.clone().require_grad();
    let run = |is_fast: bool| {
        let (kernel, labels) = (kernel.clone(), labels.clone());
        let (loss, _) = if is_fast {
            let (mean, var) = fast::channel_moments(map.clone());
            let y = fast::channel_norm(map.clone(), mean, scale.clone() * var, shift.clone(), true);
            fast::pixel_cross_entropy(fast::conv3x3(y, kernel), labels)
        } else {
            let (mean, var) = slow::channel_moments(map.clone().reshape([60, 120]));
            let y = slow::channel_norm(map.clone(), mean, scale.clone() * var, shift.clone(), true);
            slow::pixel_cross_entropy(slow::conv3x3(y, kernel), labels)
        };
        let grads = loss.backward();
        let dx = map.grad(&grads).map(Tensor::from_inner);
        (loss, dx.unwrap_or_else(|| panic!("no gradient")))
    };
    let (a, b) = (run(true), run(false));
    [distance(a.0, b.0), distance(a.1, b.1)]
}

#[test]
fn every_level_matches_the_reference() {
    let device = Default::default();
    let random = |dims| Tensor::<B, 3>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    let x = random([2, 65, 3 * 40]);
    let vector = || random([1, 1, 120]).reshape([120]);
    let (w, b) = (vector(), vector());
    let spec = AttentionSpec { heads: 2, scale: 0.3, precision: Precision::F32 };
    let random = |dims| Tensor::<B, 4>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    let (map, kernel) = (random([2, 6, 5, 120]), random([37, 120, 3, 3]) * 0.1);
    let labels =
        Tensor::<B, 1, Int>::arange(0..2 * 24 * 20, &device).reshape([2, 24, 20]).remainder_scalar(37);
    let best = level();
    for wanted in [Level::Baseline, Level::Avx2, Level::Avx512, Level::Avx512Bf16] {
        limit(wanted);
        if level() != wanted {
            println!("skipped {wanted:?}: this machine has {best:?}");
            continue;
        }
        let distances = maps(&map, &kernel, &labels, [&w, &b]);
        println!("{wanted:?}, maps: {distances:?}");
        assert!(distances.iter().all(|&d| d < 1e-5), "{wanted:?}: {distances:?}");
        let x = x.clone().require_grad();
        let run = |is_fast: bool| {
            let (y, q) = if is_fast {
                let y = fast::layer_norm(x.clone(), w.clone(), b.clone(), 1e-6);
                (fast::gelu(y.clone()), fast::attention_qkv(y, None, spec))
            } else {
                let y = slow::layer_norm(x.clone(), w.clone(), b.clone(), 1e-6);
                let [q, k, v] = [0, 1, 2].map(|i| y.clone().narrow(2, i * 40, 40));
                (slow::gelu(y), slow::attention(q, k, v, None, 2, 0.3))
            };
            let loss = (y.clone() * y.clone()).sum() + (q.clone() * q.clone()).sum();
            let grads = loss.backward();
            let dx = x.grad(&grads).map(Tensor::from_inner);
            (y, q, dx.unwrap_or_else(|| panic!("no gradient")))
        };
        let (a, b) = (run(true), run(false));
        let distances = [distance(a.0, b.0), distance(a.1, b.1), distance(a.2, b.2)];
        println!("{wanted:?}: {distances:?}");
        assert!(distances.iter().all(|&d| d < 2e-6), "{wanted:?}: {distances:?}");
    }
    limit(Level::Avx512Bf16);
    products_at_every_level(best);
}

/// Values as a product sees them, rounded by `half`.
fn rounded(x: Tensor<B, 2>, precision: Precision) -> Tensor<B, 2> {
    if precision == Precision::F32 {
        return x;
    }
    let (dims, data) = (x.dims(), x.into_data());
    let values: Vec<f32> = data.iter::<f32>().map(|v| bf16::from_f32(v).to_f32()).collect();
    Tensor::from_data(TensorData::new(values, dims), &Default::default())
}

/// A product large enough for every path, with a bias, forward and backward.
fn products_at_every_level(best: Level) {
    let device = Default::default();
    let random = |dims| Tensor::<B, 2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    let (x, w, b) = (random([203, 150]), random([77, 150]), random([1, 77]).reshape([77]));
    for wanted in [Level::Baseline, Level::Avx2, Level::Avx512, Level::Avx512Bf16] {
        limit(wanted);
        if level() != wanted {
            println!("skipped {wanted:?}: this machine has {best:?}");
            continue;
        }
        for precision in [Precision::F32, Precision::Bf16] {
            // Without instructions for it, bf16 rounds nothing.
            let seen = if wanted == Level::Avx512Bf16 { precision } else { Precision::F32 };
            let round = |t: &Tensor<B, 2>| rounded(t.clone().detach(), seen);
            let (x, w) = (x.clone().require_grad(), w.clone().require_grad());
            let y = fast::linear(x.clone(), w.clone(), Some(b.clone()), precision);
            let reference = slow::linear(round(&x), round(&w), Some(b.clone()));
            let slope = reference.clone();
            let grads = (y.clone() * slope.clone()).sum().backward();
            let gradient =
                |t: &Tensor<B, 2>| t.grad(&grads).map(Tensor::from_inner).unwrap_or_else(|| t.zeros_like());
            let distances = [
                distance(y, reference),
                distance(gradient(&x), round(&slope).matmul(round(&w))),
                distance(gradient(&w), round(&slope).transpose().matmul(round(&x))),
            ];
            println!("{wanted:?} {precision}: {distances:?}");
            assert!(distances.iter().all(|&d| d < 2e-6), "{wanted:?} {precision}: {distances:?}");
        }
    }
    limit(Level::Avx512Bf16);
}
