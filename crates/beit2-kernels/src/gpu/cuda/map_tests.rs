//! Operations on maps on a CUDA device against f64 on the CPU.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Int, Tensor};

use super::super::tests::{Results, compare, floats, on_cuda, run};
use crate::testing::random;
use crate::{AutodiffBackend, Backend, ChannelAffine, Precision, RunningMoments};

type B = Autodiff<burn::backend::Cuda<f32, i32>>;
type Wide = Autodiff<Flex>;
type X<B> = Tensor<B, 1>;

/// An operation on a CUDA device in f32 and another on the CPU in f64, with every gradient.
macro_rules! same {
    ($name:expr, $inputs:expr, $tolerance:expr, $f:expr, $reference:expr) => {{
        let got: Results = run::<B>($inputs, DType::F32, $f);
        let want: Results = run::<Wide>($inputs, DType::F64, $reference);
        compare(&$name, &got, &want, $tolerance);
    }};
    ($name:expr, $inputs:expr, $tolerance:expr, $f:expr) => {
        same!($name, $inputs, $tolerance, $f, $f)
    };
}

fn count(dims: [usize; 4]) -> usize {
    dims.iter().product()
}

fn conv<B: AutodiffBackend>(x: &[X<B>], map: [usize; 4], outputs: usize, precision: Precision) -> X<B> {
    let (x, weight) = (x[0].clone().reshape(map), x[1].clone().reshape([outputs, map[3], 3, 3]));
    // In f64 operands are rounded here: a reference's convolution leaves them as they are.
    let round = |x: Tensor<B, 4>| if x.dtype() == DType::F64 { precision.round(x) } else { x };
    crate::conv3x3(round(x), round(weight), precision).flatten(0, 3)
}

/// Gradients of the reference aren't rounded before they are multiplied, so in bf16 they are off by that.
#[test]
fn convolutions_on_cuda() {
    on_cuda(|_| {
        for (map, outputs) in [
            ([1, 1, 1, 1], 1),
            ([2, 3, 5, 8], 16),
            ([1, 6, 4, 5], 3),
            ([2, 7, 6, 24], 40),
            ([3, 2, 9, 16], 8),
        ] {
            let weights = outputs * map[3] * 9;
            let inputs = [random(count(map), 1, 1.0), random(weights, 2, 0.5)];
            for (precision, tolerance) in [(Precision::F32, 3e-6), (Precision::Bf16, 6e-3)] {
                let name = format!("conv3x3 {map:?} to {outputs} in {precision}");
                same!(name, &inputs, tolerance, |x| conv(x, map, outputs, precision));
            }
        }
    });
}

fn deconv<B: AutodiffBackend>(x: &[X<B>], map: [usize; 4], outputs: usize, precision: Precision) -> X<B> {
    let (x, weight, bias) =
        (x[0].clone().reshape(map), x[1].clone().reshape([map[3], outputs, 2, 2]), x[2].clone());
    crate::deconv2x2(x, weight, bias, precision).flatten(0, 3)
}

#[test]
fn transposed_convolutions_on_cuda() {
    on_cuda(|_| {
        for (map, outputs) in [([1, 1, 1, 1], 1), ([2, 3, 5, 8], 16), ([1, 4, 3, 5], 7), ([2, 5, 3, 40], 24)]
        {
            let weights = outputs * map[3] * 4;
            let inputs = [random(count(map), 1, 1.0), random(weights, 2, 0.5), random(outputs, 3, 1.0)];
            for precision in [Precision::F32, Precision::Bf16] {
                let name = format!("deconv2x2 {map:?} to {outputs} in {precision}");
                same!(name, &inputs, 3e-6, |x| deconv(x, map, outputs, precision));
            }
        }
    });
}

/// Widths that the kernels take, and one that they don't.
const ROWS: [(usize, usize); 5] = [(3, 8), (5, 48), (300, 40), (33, 264), (7, 9)];

fn batch_norm<B: AutodiffBackend>(x: &[X<B>], [n, c]: [usize; 2], relu: bool) -> X<B> {
    let (x, weight, bias) = (x[0].clone().reshape([n, c]), x[1].clone(), x[2].clone());
    if crate::fuses_batch_norm(&x) {
        let (y, _) = crate::batch_norm(x, ChannelAffine { weight, bias, eps: 1e-3, relu });
        return y.flatten(0, 1);
    }
    let (mean, var) = crate::channel_moments(x.clone());
    let scale = weight * var.add_scalar(1e-3).sqrt().recip();
    crate::channel_norm(x, mean, scale, bias, relu).flatten(0, 1)
}

fn channel_norm<B: AutodiffBackend>(x: &[X<B>], [n, c]: [usize; 2], relu: bool) -> X<B> {
    let [mean, scale, shift] = [1, 2, 3].map(|i| x[i].clone());
    crate::channel_norm(x[0].clone().reshape([n, c]), mean, scale, shift, relu).flatten(0, 1)
}

fn channel_moments<B: AutodiffBackend>(x: &[X<B>], [n, c]: [usize; 2]) -> X<B> {
    let (mean, var) = crate::channel_moments(x[0].clone().reshape([1, n, c]));
    Tensor::cat(vec![mean, var], 0)
}

#[test]
fn batch_norms_on_cuda() {
    on_cuda(|_| {
        for (n, c) in ROWS {
            let x = random(n * c, 1, 2.0);
            let vectors = [2, 3, 4].map(|seed| random(c, seed, 1.0));
            let [a, b, m] = vectors.clone();
            let name = |what: &str| format!("{what} [{n}, {c}]");
            let inputs = [x.clone()];
            same!(name("channel_moments"), &inputs, 3e-6, |x| channel_moments(x, [n, c]));
            for relu in [false, true] {
                let inputs = [x.clone(), a.clone(), b.clone()];
                same!(name("batch_norm"), &inputs, 2e-5, |x| batch_norm(x, [n, c], relu));
                let inputs = [x.clone(), m.clone(), a.clone(), b.clone()];
                same!(name("channel_norm"), &inputs, 3e-6, |x| channel_norm(x, [n, c], relu));
            }
        }
    });
}

#[test]
fn moments_of_a_batch_and_what_they_become_on_cuda() {
    fn recorded<B: Backend>(dtype: DType) -> Results {
        let d = Default::default();
        let tensor = |seed| {
            let data = burn::tensor::TensorData::new(random(40, seed, 1.0), [40]);
            Tensor::<B, 1>::from_data(data, (&d, dtype))
        };
        let norm = |seed| RunningMoments {
            running: [tensor(seed), tensor(seed + 1)],
            batches: Tensor::<B, 1, Int>::from_ints([seed as i32], &d),
            seen: [tensor(seed + 2), tensor(seed + 3)],
            unbiased: 1.25,
        };
        let norms = crate::record_moments((0..50).map(|at| norm(4 * at + 1)).collect(), 0.1);
        let mut results = Results::new();
        for ([mean, var], batches) in norms {
            results.extend([mean, var].map(|x| floats(x.into_data())));
            results.push(floats(batches.into_data()));
        }
        results
    }
    on_cuda(|_| {
        let got = recorded::<burn::backend::Cuda<f32, i32>>(DType::F32);
        compare("record_moments", &got, &recorded::<Flex>(DType::F64), 1e-6);
    });
}

fn resize_concat<B: AutodiffBackend>(x: &[X<B>], maps: &[[usize; 4]], size: [usize; 2]) -> X<B> {
    let maps = x.iter().zip(maps).map(|(x, map)| x.clone().reshape(*map)).collect();
    crate::resize_concat(maps, size[0], size[1]).flatten(0, 3)
}

#[test]
fn resized_maps_on_cuda() {
    on_cuda(|_| {
        let cases: [(&[[usize; 4]], [usize; 2]); 4] = [
            (&[[1, 1, 1, 1]], [3, 2]),
            (&[[2, 8, 8, 8], [2, 4, 4, 12], [2, 2, 3, 4]], [8, 8]),
            (&[[1, 4, 5, 3], [1, 1, 1, 8]], [6, 7]),
            (&[[1, 9, 7, 4]], [4, 3]),
        ];
        for (maps, size) in cases {
            let inputs: Vec<_> = (1..).zip(maps).map(|(seed, map)| random(count(*map), seed, 1.0)).collect();
            let name = format!("resize_concat {maps:?} to {size:?}");
            same!(name, &inputs, 2e-6, |x| resize_concat(x, maps, size));
        }
        // What both gradients of a map meet in is one more sum.
        let inputs = [random(2 * 6 * 4 * 8, 1, 1.0), random(2 * 3 * 2 * 8, 2, 1.0)];
        fn twice<B: AutodiffBackend>(x: &[X<B>]) -> X<B> {
            let (x, small) = (x[0].clone().reshape([2, 6, 4, 8]), x[1].clone().reshape([2, 3, 2, 8]));
            let sum = crate::resize_add(x.clone(), small.clone());
            crate::resize_concat(vec![sum.clone(), small, x, sum], 6, 4).flatten(0, 3)
        }
        same!("resize_add", &inputs, 2e-6, twice);
    });
}

#[test]
fn pools_and_factors_on_cuda() {
    on_cuda(|_| {
        for (map, side) in [([1, 2, 2, 1], 1), ([2, 5, 7, 8], 3), ([1, 16, 16, 40], 6), ([2, 4, 3, 33], 2)] {
            let inputs = [random(count(map), 1, 1.0)];
            same!(format!("cell_means {map:?} {side}"), &inputs, 2e-6, |x| crate::cell_means(
                x[0].clone().reshape(map),
                side
            )
            .flatten(0, 3));
            same!(format!("max_pool {map:?} {side}"), &inputs, 0.0, |x| {
                let side = side.min(map[1].min(map[2]));
                crate::max_pool(x[0].clone().reshape(map), side).flatten(0, 3)
            });
            // The factors are constants.
            let inputs = [random(count(map), 1, 1.0)];
            fn scaled<B: AutodiffBackend>(x: &[X<B>], map: [usize; 4]) -> X<B> {
                let data =
                    burn::tensor::TensorData::new(random(map[0] * map[3], 2, 1.0), [map[0], 1, 1, map[3]]);
                let factors = Tensor::from_data(data, (&Default::default(), x[0].dtype()));
                crate::scale_channels(x[0].clone().reshape(map), factors).flatten(0, 3)
            }
            same!(format!("scale_channels {map:?}"), &inputs, 1e-6, |x| scaled(x, map));
        }
        let inputs = [random(1, 1, 2.0), random(1, 2, 2.0)];
        same!("loss_sum", &inputs, 1e-6, |x| crate::loss_sum(x[0].clone(), x[1].clone(), 0.4));
    });
}
