//! Every instruction set that a kernel is compiled for gives the reference's answer. One test and one
//! process, because the limit is the process's.

use beit2_kernels::simd::{Level, level, limit};
use beit2_kernels::{self as fast, reference as slow};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Tensor};

type B = Autodiff<Flex>;

/// Largest difference, relative to the largest value.
fn distance<const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>) -> f32 {
    let size = b.clone().abs().max().into_scalar();
    (a - b).abs().max().into_scalar() / size
}

#[test]
fn every_level_matches_the_reference() {
    let device = Default::default();
    let random = |dims| Tensor::<B, 3>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    let x = random([2, 65, 3 * 40]);
    let vector = || random([1, 1, 120]).reshape([120]);
    let (w, b) = (vector(), vector());
    let best = level();
    for wanted in [Level::Baseline, Level::Avx2, Level::Avx512] {
        limit(wanted);
        if level() != wanted {
            println!("skipped {wanted:?}: this machine has {best:?}");
            continue;
        }
        let x = x.clone().require_grad();
        let run = |is_fast: bool| {
            let (y, q) = if is_fast {
                let y = fast::layer_norm(x.clone(), w.clone(), b.clone(), 1e-6);
                (fast::gelu(y.clone()), fast::attention_qkv(y, None, 2, 0.3))
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
    limit(Level::Avx512);
}
