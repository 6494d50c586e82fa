//! On the devices that are there: against f64 on the CPU, on awkward shapes. Devices that are missing are skipped with
//! a printed line.

#[cfg(feature = "cuda")]
mod native_attention;

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Tensor, TensorData};
use burn_cubecl::{BoolElement, CubeRuntime};

use super::Gpu;
use super::portable::matmul::{Side, matmul};
use crate::AutodiffBackend;
use crate::tensor::{unwrap, wrap};
use crate::testing::{distance, random};
use crate::{AttentionSpec, Precision};

/// Values first, then the gradient of every input.
pub(super) type Results = Vec<Vec<f64>>;

/// Values and gradients of `Σ weights·f(inputs)`.
pub(super) fn run<B: AutodiffBackend>(
    inputs: &[Vec<f64>],
    dtype: DType,
    f: impl Fn(&[Tensor<B, 1>]) -> Tensor<B, 1>,
) -> Results {
    let device = Default::default();
    let tensor =
        |x: &[f64]| Tensor::<B, 1>::from_data(TensorData::new(x.to_vec(), [x.len()]), (&device, dtype));
    let inputs: Vec<_> = inputs.iter().map(|x| tensor(x).require_grad()).collect();
    let y = f(&inputs);
    let mut results = vec![floats(y.to_data())];
    let weights = tensor(&random(results[0].len(), 99, 1.0));
    let grads = (y * weights).sum().backward();
    results.extend(inputs.iter().map(|x| floats(x.grad(&grads).unwrap().into_data())));
    results
}

pub(super) fn floats(data: TensorData) -> Vec<f64> {
    data.convert::<f64>().into_vec().unwrap()
}

/// What a result is measured by at least.
const FLOOR: f64 = 1e-3;

pub(super) fn compare(name: &str, got: &Results, want: &Results, tolerance: f64) {
    compare_from(|_| FLOOR, name, got, want, tolerance);
}

fn compare_from(floor: impl Fn(usize) -> f64, name: &str, got: &Results, want: &Results, tolerance: f64) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let d = distance(got, want, floor(i));
        println!("{name} result {i}: {d:.1e}, allowed {tolerance:.0e}");
        // Not `d > tolerance`: a NaN must fail.
        assert!(d <= tolerance, "{name} result {i}: {d:e} > {tolerance:e}");
    }
}

/// Batch, queries, keys, heads, width of a head, leading length of the bias (0: no bias); queries = keys and a bias of
/// at most one length are also run as one projection.
const ATTENTIONS: [(usize, usize, usize, usize, usize, usize); 8] = [
    (1, 1, 1, 1, 1, 0),
    (2, 3, 3, 2, 5, 1),
    (2, 3, 7, 2, 5, 2),
    (3, 1, 65, 3, 16, 0),
    (2, 75, 197, 2, 64, 1),
    (2, 65, 65, 3, 64, 2),
    (2, 197, 197, 2, 64, 1),
    (1, 33, 300, 1, 24, 1),
];

fn attention<B: AutodiffBackend>(
    x: &[Tensor<B, 1>],
    (b, tq, t, h, d, lead): (usize, usize, usize, usize, usize, usize),
    f: impl Fn([Tensor<B, 3>; 3], Option<Tensor<B, 4>>) -> Tensor<B, 3>,
) -> Tensor<B, 1> {
    let [q, k, v] = [(0, tq), (1, t), (2, t)].map(|(i, t)| x[i].clone().reshape([b, t, h * d]));
    let bias = x.get(3).map(|x| x.clone().reshape([lead, h, tq, t]));
    f([q, k, v], bias).reshape([b * tq * h * d])
}

fn attentions<B: AutodiffBackend>(precision: Precision, tolerance: f64) {
    for case @ (b, tq, t, h, d, lead) in ATTENTIONS {
        let mut inputs: Vec<_> =
            [tq, t, t].iter().zip(1..).map(|(t, seed)| random(b * t * h * d, seed, 1.0)).collect();
        if lead > 0 {
            inputs.push(random(lead * h * tq * t, 4, 1.0));
        }
        let scale = 1.0 / (d as f64).sqrt();
        let spec = AttentionSpec { heads: h, scale, precision };
        let want = run::<Autodiff<Flex>>(&inputs, DType::F64, |x| {
            attention(x, case, |[q, k, v], bias| crate::reference::attention(q, k, v, bias, h, scale))
        });
        let got = run::<B>(&inputs, DType::F32, |x| {
            attention(x, case, |[q, k, v], bias| crate::attention(q, k, v, bias, spec))
        });
        // With one key its weight is 1, and the gradients of query and key are 0: the difference of two products that are
        // equal but for the rounding of their operands. Its error is measured by the size of these products.
        let size = |x: &[f64]| x.iter().fold(0.0f64, |size, x| size.max(x.abs()));
        let products =
            scale * size(&random(want[0].len(), 99, 1.0)) * inputs.iter().map(|x| size(x)).product::<f64>();
        let floor = |i: usize| match i {
            1 | 2 if t == 1 => products / size(&inputs[i - 1]),
            _ => FLOOR,
        };
        let check = |name: &str, got: &Results| {
            compare_from(floor, &format!("{name} {case:?}"), got, &want, tolerance)
        };
        check("attention", &got);
        if tq == t {
            let got = run::<B>(&inputs, DType::F32, |x| {
                attention(x, case, |qkv, bias| crate::attention_qkv(Tensor::cat(qkv.into(), 2), bias, spec))
            });
            check("attention_qkv", &got);
        }
    }
}

/// `linear` against itself in f64 on rounded operands: what is left is the error of its sums, so a sum or a result in
/// fewer bits than f32 fails. The gradient of the bias may be a sum of rounded numbers: `of_bias`.
fn linears<B: AutodiffBackend>(precision: Precision, tolerance: f64, of_bias: f64) {
    for (rows, inner, out) in [(1, 1, 1), (3, 5, 7), (197, 48, 33), (130, 192, 64), (257, 320, 96)] {
        let inputs = [random(rows * inner, 1, 1.0), random(out * inner, 2, 0.3), random(out, 3, 1.0)];
        fn f<B: AutodiffBackend>(
            x: &[Tensor<B, 1>],
            [rows, inner, out]: [usize; 3],
            precision: Precision,
        ) -> Tensor<B, 1> {
            let (x, w, b) = (x[0].clone().reshape([1, rows, inner]), x[1].clone(), x[2].clone());
            crate::linear(x, w.reshape([out, inner]), Some(b), precision).reshape([rows * out])
        }
        let sizes = [rows, inner, out];
        let mut want = run::<Autodiff<Flex>>(&inputs, DType::F64, |x| f(x, sizes, precision));
        let mut got = run::<B>(&inputs, DType::F32, |x| f(x, sizes, precision));
        let bias = [&mut got, &mut want].map(|results| results.split_off(3));
        compare(&format!("linear {sizes:?} {precision}"), &got, &want, tolerance);
        compare(&format!("linear {sizes:?} {precision}, bias"), &bias[0], &bias[1], of_bias);
    }
}

/// Matmuls of a narrow type whose sums and results are f32, in all three layouts.
fn matmuls<R: CubeRuntime, BT: BoolElement>(dtype: DType) {
    let (rows, inner, cols) = (70, 197, 33);
    for side in [Side::Neither, Side::Left, Side::Right] {
        let lhs_dims = if side == Side::Left { [inner, rows] } else { [rows, inner] };
        let rhs_dims = if side == Side::Right { [cols, inner] } else { [inner, cols] };
        let data = |dims: [usize; 2], seed| TensorData::new(random(dims[0] * dims[1], seed, 1.0), dims);
        let gpu = |data: TensorData| {
            let x = Tensor::<Gpu<R, BT>, 2>::from_data(data, (&Default::default(), DType::F32));
            unwrap(x.cast(dtype))
        };
        let cpu = |data: TensorData| {
            let x = Tensor::<Flex, 2>::from_data(data, (&Default::default(), DType::F32));
            x.cast(dtype).cast(DType::F64)
        };
        let y = matmul::<R, BT>(gpu(data(lhs_dims, 1)), gpu(data(rhs_dims, 2)), side);
        let y: Tensor<Gpu<R, BT>, 2> = wrap(y);
        assert_eq!(y.dtype(), DType::F32);
        let (mut lhs, mut rhs) = (cpu(data(lhs_dims, 1)), cpu(data(rhs_dims, 2)));
        match side {
            Side::Neither => {}
            Side::Left => lhs = lhs.transpose(),
            Side::Right => rhs = rhs.transpose(),
        }
        let want = floats(lhs.matmul(rhs).into_data());
        compare(&format!("matmul {dtype:?} {side:?}"), &vec![floats(y.into_data())], &vec![want], 1e-5);
    }
}

/// Whether the device is there and computes. Drivers panic where there is none.
fn answers<B: AutodiffBackend>(name: &str) -> bool {
    let sum = || floats(Tensor::<B, 1>::ones([8], &Default::default()).sum().into_data());
    let sum = std::panic::catch_unwind(sum);
    if sum.is_err() {
        println!("skipped: no {name} device here");
    }
    sum.is_ok_and(|sum| sum == [8.0])
}

#[cfg(feature = "vulkan")]
mod vulkan {
    use super::*;

    type Vulkan = burn::backend::Vulkan;
    type B = Autodiff<Vulkan>;

    #[test]
    fn operations_on_vulkan() {
        if answers::<B>("Vulkan") {
            attentions::<B>(Precision::F32, 1e-5);
            linears::<B>(Precision::F32, 1e-5, 1e-5);
        }
    }

    /// The path of bf16 on a device without it: every GPU has the other 16-bit float.
    #[test]
    fn narrow_matmuls_on_vulkan() {
        use burn::tensor::backend::Backend as _;
        if answers::<B>("Vulkan") && Vulkan::supports_dtype(&Default::default(), DType::F16) {
            matmuls::<burn_cubecl::cubecl::wgpu::WgpuRuntime, u8>(DType::F16);
        }
    }
}

/// Runs `test` on the CUDA device, if there is one.
#[cfg(feature = "cuda")]
pub(crate) fn on_cuda(test: impl FnOnce(&burn::backend::cuda::CudaDevice)) {
    if answers::<Autodiff<burn::backend::Cuda>>("CUDA") {
        test(&Default::default());
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;

    type B = Autodiff<burn::backend::Cuda<f32, i32>>;

    /// Matmuls may be TF32, which reads 11 bits of an operand: each is off by 2⁻¹² of itself at most, and logits, weights and
    /// slopes follow one from the other.
    #[test]
    fn operations_on_cuda() {
        if answers::<B>("CUDA") {
            attentions::<B>(Precision::F32, 3e-3);
            linears::<B>(Precision::F32, 3e-3, 3e-3);
        }
    }

    #[test]
    fn bf16_on_cuda() {
        if answers::<B>("CUDA") {
            matmuls::<burn_cubecl::cubecl::cuda::CudaRuntime, u8>(DType::BF16);
            // The matmul for the weight sums its operand for the bias: each number is off by 2⁻⁹ of itself at most, and the
            // largest sum may be one number.
            linears::<B>(Precision::Bf16, 1e-5, 4e-3);
            // Eight times the above, for operands of 8 bits.
            attentions::<B>(Precision::Bf16, 2.4e-2);
        }
    }
}
