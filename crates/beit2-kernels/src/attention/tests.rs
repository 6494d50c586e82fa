use super::AttentionSpec;
use crate::precision::Precision;
use crate::testing::{Checked, check, check_rounded, random};
use burn::tensor::Tensor;

type X = Tensor<Checked, 1>;

/// Batch, queries, keys, heads, width of a head, leading length of the bias (0: no bias).
type Case = (usize, usize, usize, usize, usize, usize);

#[test]
fn separate_inputs_match_reference_and_differences() {
    let cases: [Case; 9] = [
        // More than one block of queries.
        (1, 150, 700, 1, 8, 1),
        (40, 9, 9, 1, 4, 1),
        (1, 1, 1, 1, 1, 0),
        (2, 3, 3, 2, 5, 1),
        (2, 3, 7, 2, 5, 2),
        (3, 1, 65, 3, 16, 0),
        (2, 75, 197, 2, 64, 1),
        (2, 65, 65, 3, 64, 2),
        (1, 197, 197, 2, 24, 1),
    ];
    for (b, tq, t, h, d, lead) in cases {
        let mut inputs = vec![
            random(b * tq * h * d, 1, 1.0),
            random(b * t * h * d, 2, 1.0),
            random(b * t * h * d, 3, 1.0),
        ];
        if lead > 0 {
            inputs.push(random(lead * h * tq * t, 4, 1.0));
        }
        let scale = 1.0 / (d as f64).sqrt();
        let spec = AttentionSpec { heads: h, scale, precision: Precision::F32 };
        let parts = |x: &[X]| {
            let q = x[0].clone().reshape([b, tq, h * d]);
            let [k, v] = [1, 2].map(|i| x[i].clone().reshape([b, t, h * d]));
            let bias = x.get(3).map(|x| x.clone().reshape([lead, h, tq, t]));
            (q, k, v, bias)
        };
        check(
            &format!("attention {:?}", (b, tq, t, h, d, lead)),
            &inputs,
            |x| {
                let (q, k, v, bias) = parts(x);
                super::attention(q, k, v, bias, spec).reshape([b * tq * h * d])
            },
            |x| {
                let (q, k, v, bias) = parts(x);
                super::reference(q, k, v, bias, h, scale).reshape([b * tq * h * d])
            },
            1e-5,
        );
    }
}

#[test]
fn fused_inputs_match_reference_and_differences() {
    for (b, t, h, d, lead) in
        [(1, 1, 1, 1, 1), (2, 3, 2, 5, 0), (3, 65, 3, 64, 1), (5, 17, 4, 32, 5), (2, 197, 2, 64, 1)]
    {
        let mut inputs = vec![random(b * t * 3 * h * d, 1, 1.0)];
        if lead > 0 {
            inputs.push(random(lead * h * t * t, 4, 1.0));
        }
        let scale = 1.0 / (d as f64).sqrt();
        let spec = AttentionSpec { heads: h, scale, precision: Precision::F32 };
        let parts = |x: &[X]| {
            let qkv = x[0].clone().reshape([b, t, 3 * h * d]);
            (qkv, x.get(1).map(|x| x.clone().reshape([lead, h, t, t])))
        };
        check(
            &format!("attention_qkv {:?}", (b, t, h, d, lead)),
            &inputs,
            |x| {
                let (qkv, bias) = parts(x);
                super::attention_qkv(qkv, bias, spec).reshape([b * t * h * d])
            },
            |x| {
                let (qkv, bias) = parts(x);
                let [q, k, v] = super::reference::split_qkv(qkv);
                super::reference(q, k, v, bias, h, scale).reshape([b * t * h * d])
            },
            1e-5,
        );
    }
}

#[test]
fn bf16_rounds_the_operands_of_every_matmul() {
    // A softmax weight or a slope that lies within f32's rounding of a tie is rounded the other way in f64:
    // by 2⁻⁸ of itself, one of many terms. With a few keys none does.
    for ((b, tq, t, h, d, lead), tolerance) in
        [((2, 3, 3, 2, 5, 1), 1e-6), ((1, 150, 700, 1, 8, 1), 1e-3), ((2, 75, 197, 2, 64, 1), 1e-3)]
    {
        let inputs = [
            random(b * tq * h * d, 1, 1.0),
            random(b * t * h * d, 2, 1.0),
            random(b * t * h * d, 3, 1.0),
            random(lead * h * tq * t, 4, 1.0),
        ];
        let f = |x: &[X], precision| {
            let q = x[0].clone().reshape([b, tq, h * d]);
            let [k, v] = [1, 2].map(|i| x[i].clone().reshape([b, t, h * d]));
            let bias = Some(x[3].clone().reshape([lead, h, tq, t]));
            let spec = AttentionSpec { heads: h, scale: 1.0 / (d as f64).sqrt(), precision };
            super::attention(q, k, v, bias, spec).reshape([b * tq * h * d])
        };
        check_rounded("attention", &inputs, f, tolerance);
    }
}

#[test]
fn narrow_views_of_one_buffer_are_read_in_place() {
    let device = Default::default();
    let flat: Vec<f32> = random(2 * 9 * 3 * 8, 7, 1.0).iter().map(|&x| x as f32).collect();
    let qkv = Tensor::<burn::backend::Flex, 1>::from_floats(flat.as_slice(), &device).reshape([2, 9, 24]);
    let spec = AttentionSpec { heads: 2, scale: 0.5, precision: Precision::F32 };
    let fused = super::attention_qkv(qkv.clone(), None, spec);
    let [q, k, v] = super::reference::split_qkv(qkv);
    let split = super::attention(q, k, v, None, spec);
    fused.into_data().assert_eq(&split.into_data(), true);
}
