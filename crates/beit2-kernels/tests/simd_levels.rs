//! Every instruction set that a kernel is compiled for gives the answer of the reference in f64, on
//! drawn numbers that are the same in every run. One test and one process, because the limit and the
//! generator are the process's.

use beit2_kernels::simd::{Level, level, limit};
use beit2_kernels::{self as fast, AttentionSpec, Precision, reference as slow};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData, bf16};

type B = Autodiff<Flex>;

/// Largest difference, relative to the largest value of `b`, the reference in f64.
fn distance<const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>) -> f64 {
    let values = |x: Tensor<B, D>| x.into_data().iter::<f64>().collect::<Vec<f64>>();
    let (a, b) = (values(a), values(b));
    let size = b.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

/// The same numbers in f64.
fn wide<const D: usize>(x: &Tensor<B, D>) -> Tensor<B, D> {
    x.clone().cast(DType::F64)
}

/// Differences of the operations on maps: loss and gradient.
fn maps(
    map: &Tensor<B, 4>,
    kernel: &Tensor<B, 4>,
    labels: &Tensor<B, 3, Int>,
    [scale, shift]: [&Tensor<B, 1>; 2],
) -> [f64; 2] {
    let run = |is_fast: bool| {
        let map = if is_fast { map.clone() } else { wide(map) }.require_grad();
        let labels = labels.clone();
        let (loss, _) = if is_fast {
            let (mean, var) = fast::channel_moments(map.clone());
            let y = fast::channel_norm(map.clone(), mean, scale.clone() * var, shift.clone(), true);
            fast::pixel_cross_entropy(fast::conv3x3(y, kernel.clone(), Precision::F32), labels)
        } else {
            let (mean, var) = slow::channel_moments(map.clone().reshape([60, 120]));
            let y = slow::channel_norm(map.clone(), mean, wide(scale) * var, wide(shift), true);
            slow::pixel_cross_entropy(slow::conv3x3(y, wide(kernel)), labels)
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
    B::seed(&device, 17);
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
        let run = |is_fast: bool| {
            let x = if is_fast { x.clone() } else { wide(&x) }.require_grad();
            let (y, q) = if is_fast {
                let y = fast::layer_norm(x.clone(), w.clone(), b.clone(), 1e-6);
                (fast::gelu(y.clone()), fast::attention_qkv(y, None, spec))
            } else {
                let y = slow::layer_norm(x.clone(), wide(&w), wide(&b), 1e-6);
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
        // f32 scores of size ten go through an exponential: 300 draws differed by at most 2.2e-6.
        assert!(distances.iter().all(|&d| d < 4e-6), "{wanted:?}: {distances:?}");
    }
    limit(Level::Avx512Bf16);
    matmuls_at_every_level(best);
    packed_weights_at_every_level(best);
    int8_at_every_level();
}

/// Packed weights give what the weights give, to the bit; only processors with AVX2 or more pack.
fn packed_weights_at_every_level(best: Level) {
    let device = Default::default();
    let random = |dims| Tensor::<Flex, 2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    // Widths of whole and of partial panels, with an odd inner axis, and more columns than one task takes.
    for [inner, out] in [[150, 77], [129, 32], [768, 1000], [1024, 24]] {
        let (w, b) = (random([out, inner]), random([1, out]).reshape([out]));
        for wanted in [Level::Baseline, Level::Avx2, Level::Avx512, Level::Avx512Bf16] {
            limit(wanted);
            if level() != wanted {
                println!("skipped {wanted:?}: this machine has {best:?}");
                continue;
            }
            for precision in [Precision::F32, Precision::Bf16] {
                let Some(packed) = fast::pack_weight(w.clone(), precision) else {
                    assert!(wanted < Level::Avx2, "{wanted:?} packs nothing");
                    continue;
                };
                assert!(wanted >= Level::Avx2 && packed.dims() == [out, inner]);
                for rows in [1, 12, 197, 1003] {
                    let x = random([rows, inner]);
                    for bias in [None, Some(b.clone())] {
                        let want = fast::linear(x.clone(), w.clone(), bias.clone(), precision);
                        let found = fast::linear_packed(x.clone(), &packed, bias);
                        assert!(
                            want.into_data() == found.into_data(),
                            "{wanted:?} {precision} {rows}×{inner}×{out}"
                        );
                    }
                }
            }
        }
    }
    limit(Level::Avx512Bf16);
    weights_outlive_a_limit();
    let recording = Tensor::<B, 2>::ones([40, 40], &device);
    assert!(fast::pack_weight(recording, Precision::F32).is_none(), "a recorded weight may change");
}

/// A packed weight keeps the instruction set that it was packed for, whatever the limit is when it is used.
fn weights_outlive_a_limit() {
    let device = Default::default();
    let random = |dims| Tensor::<Flex, 2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    let (x, w) = (random([203, 150]), random([77, 150]));
    let levels = [Level::Baseline, Level::Avx2, Level::Avx512, Level::Avx512Bf16];
    for packed_at in levels {
        limit(packed_at);
        let want = fast::linear(x.clone(), w.clone(), None, Precision::F32).into_data();
        let Some(packed) = fast::pack_weight(w.clone(), Precision::F32) else { continue };
        for used_at in levels {
            limit(used_at);
            let found = fast::linear_packed(x.clone(), &packed, None).into_data();
            assert!(want == found, "packed at {packed_at:?}, used at {used_at:?}");
        }
    }
    limit(Level::Avx512Bf16);
}

/// Values as a matmul sees them, rounded by `half`.
fn rounded(x: Tensor<B, 2>, precision: Precision) -> Tensor<B, 2> {
    if precision == Precision::F32 {
        return x;
    }
    let (dims, data) = (x.dims(), x.into_data());
    let values: Vec<f32> = data.iter::<f32>().map(|v| bf16::from_f32(v).to_f32()).collect();
    Tensor::from_data(TensorData::new(values, dims), &Default::default())
}

/// A matmul large enough for every path, with a bias, forward and backward.
fn matmuls_at_every_level(best: Level) {
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
            let reference = slow::linear(wide(&round(&x)), wide(&round(&w)), Some(wide(&b)));
            let slope = reference.clone().cast(DType::F32);
            let grads = (y.clone() * slope.clone()).sum().backward();
            let gradient =
                |t: &Tensor<B, 2>| t.grad(&grads).map(Tensor::from_inner).unwrap_or_else(|| t.zeros_like());
            let distances = [
                distance(y, reference),
                distance(gradient(&x), wide(&round(&slope)).matmul(wide(&round(&w)))),
                distance(gradient(&w), wide(&round(&slope)).transpose().matmul(wide(&round(&x)))),
            ];
            println!("{wanted:?} {precision}: {distances:?}");
            assert!(distances.iter().all(|&d| d < 2e-6), "{wanted:?} {precision}: {distances:?}");
        }
    }
    limit(Level::Avx512Bf16);
}

/// Weights in 8-bit integers give the same to the bit everywhere: their sums are exact.
fn int8_at_every_level() {
    let device = Default::default();
    let random = |dims| Tensor::<Flex, 2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    for [rows, inner, out] in [[1, 5, 3], [197, 150, 77], [30, 768, 1000]] {
        let (x, w, b) = (random([rows, inner]), random([out, inner]), random([1, out]).reshape([out]));
        let mut all = Vec::new();
        for wanted in [Level::Baseline, Level::Avx2, Level::Avx512, Level::Avx512Bf16] {
            limit(wanted);
            let packed = fast::pack_weight_int8(w.clone()).unwrap_or_else(|| panic!("CPUs have it"));
            all.push(fast::linear_packed(x.clone(), &packed, Some(b.clone())).into_data());
        }
        limit(Level::Avx512Bf16);
        assert!(all.iter().all(|one| *one == all[0]), "{rows} {inner} {out}");
    }
}
