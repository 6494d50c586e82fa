//! The native attention of CUDA: sizes around its tiles, subsets of tokens, the same bits in every run.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{answers, attention, compare, run};
use crate::gpu::cuda::is_native;
use crate::testing::random;
use crate::{AttentionSpec, AutodiffBackend, Precision, TokenChoice};

type Cuda = burn::backend::Cuda<f32, i32>;
type B = Autodiff<Cuda>;

/// Whether there is a device whose operations are native; with a printed line if not.
fn native() -> bool {
    answers::<B>("CUDA") && {
        let native = is_native(&Default::default());
        if !native {
            println!("skipped: the CUDA device takes the portable path");
        }
        native
    }
}

/// Rounded to bf16 as the kernels round operands, so that what is left is the error of sums and of rounded weights.
fn rounded(x: Vec<f64>) -> Vec<f64> {
    x.into_iter().map(|x| f64::from(f32::from_bits(((x as f32).to_bits() + 0x8000) & 0xffff_0000))).collect()
}

/// Batch, queries, keys, heads, width of a head, leading length of the bias (0: no bias).
const CASES: [(usize, usize, usize, usize, usize, usize); 8] = [
    (1, 1, 1, 1, 64, 0),
    (1, 16, 64, 1, 64, 1),
    (2, 17, 65, 2, 64, 2),
    (1, 128, 129, 1, 64, 1),
    (18, 33, 31, 2, 64, 1),
    (1, 577, 577, 1, 64, 1),
    (1, 2, 1025, 1, 64, 1),
    (1, 40, 33, 2, 128, 1),
];

fn matches_reference(precision: Precision, tolerance: f64) {
    for case @ (b, tq, t, h, d, lead) in CASES {
        let sizes = [(tq, 1), (t, 2), (t, 3)];
        let mut inputs: Vec<_> =
            sizes.iter().map(|&(t, seed)| rounded(random(b * t * h * d, seed, 1.0))).collect();
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
        compare(&format!("attention {case:?} {precision}"), &got, &want, tolerance);
    }
}

#[test]
fn attention_f32_on_cuda() {
    if native() {
        matches_reference(Precision::F32, 1e-5);
    }
}

/// Weights and slopes are rounded to 8 bits, and so is the output's gradient.
#[test]
fn attention_bf16_on_cuda() {
    if native() {
        matches_reference(Precision::Bf16, 8e-3);
    }
}

/// Values and gradients of a subset's attention, from q, kv and the bias side by side.
fn subset<B: AutodiffBackend>(
    x: &[Tensor<B, 1>],
    [b, r, t, h, d]: [usize; 5],
    precision: Precision,
) -> Tensor<B, 1> {
    // Different tokens of a sample, in no order.
    let rows: Vec<i32> = (0..b * r).map(|at| ((at / r * 5 + at % r * 3) % t) as i32).collect();
    let device = x[0].device();
    let tokens =
        |x: Vec<i32>| Tensor::<B, 1, Int>::from_data(TensorData::new(x, [b * r]), &device).into_primitive();
    let choice = TokenChoice { local: tokens(rows), per_sample: r };
    let spec = AttentionSpec { heads: h, scale: 1.0 / (d as f64).sqrt(), precision };
    let (q, kv) = (x[0].clone().reshape([b, r, h * d]), x[1].clone().reshape([b, t, 2 * h * d]));
    let bias = x.get(2).map(|bias| bias.clone().reshape([1, h, t, t]));
    crate::attention_subset(q, kv, bias, choice, spec).reshape([b * r * h * d])
}

#[test]
fn attention_of_subsets_on_cuda() {
    if !native() {
        return;
    }
    for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 8e-3)] {
        // The last is not the kernels' in bf16: rows of the bias are gathered.
        for (sizes, biased) in [
            ([3, 1, 65, 2, 64], true),
            ([2, 75, 197, 2, 64], true),
            ([2, 9, 64, 1, 64], false),
            ([2, 3, 7, 2, 8], true),
        ] {
            let [b, r, t, h, d] = sizes;
            let mut inputs =
                vec![rounded(random(b * r * h * d, 1, 1.0)), rounded(random(b * t * 2 * h * d, 2, 1.0))];
            if biased {
                inputs.push(random(h * t * t, 3, 1.0));
            }
            let want = run::<Autodiff<Flex>>(&inputs, DType::F64, |x| subset(x, sizes, Precision::F32));
            let got = run::<B>(&inputs, DType::F32, |x| subset(x, sizes, precision));
            compare(&format!("attention_subset {sizes:?} {precision}"), &got, &want, tolerance);
            if precision == Precision::Bf16 {
                let again = run::<B>(&inputs, DType::F32, |x| subset(x, sizes, precision));
                assert!(got == again, "attention_subset {sizes:?}: two runs differ");
            }
        }
    }
}
