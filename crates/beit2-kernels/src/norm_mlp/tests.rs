use burn::tensor::Tensor;

use super::{NormMlp, norm_mlp};
use crate::precision::Precision;
use crate::reference;
use crate::testing::{Checked, check, check_rounded, random};

type X = Tensor<Checked, 1>;

/// Rows, D and H; from 192 rows on the fused form computes.
const SHAPES: [[usize; 3]; 5] = [[1, 1, 1], [3, 5, 7], [197, 24, 96], [192, 33, 49], [400, 48, 400]];

fn inputs([n, d, h]: [usize; 3]) -> [Vec<f64>; 7] {
    [
        random(n * d, 1, 1.0),
        random(d, 2, 1.0),
        random(d, 3, 0.5),
        random(h * d, 4, 0.3),
        random(h, 5, 0.5),
        random(d * h, 6, 0.3),
        random(d, 7, 0.5),
    ]
}

fn fused(x: &[X], [n, d, h]: [usize; 3], precision: Precision) -> X {
    let parameters = NormMlp {
        norm: [x[1].clone(), x[2].clone()],
        eps: 1e-3,
        fc1: (x[3].clone().reshape([h, d]), x[4].clone()),
        fc2: (x[5].clone().reshape([d, h]), x[6].clone()),
        precision,
    };
    norm_mlp(x[0].clone().reshape([1, n, d]), parameters).reshape([n * d])
}

#[test]
fn matches_reference_and_differences() {
    for shape in SHAPES {
        let [n, d, h] = shape;
        let slow = |x: &[X]| {
            let y = reference::layer_norm(x[0].clone().reshape([n, d]), x[1].clone(), x[2].clone(), 1e-3);
            let y = reference::linear(y, x[3].clone().reshape([h, d]), Some(x[4].clone()));
            let y = reference::linear(reference::gelu(y), x[5].clone().reshape([d, h]), Some(x[6].clone()));
            y.reshape([n * d])
        };
        check("norm_mlp", &inputs(shape), |x| fused(x, shape, Precision::F32), slow, 2e-5);
    }
}

#[test]
fn packed_weights_give_the_same_bits_for_few_rows_and_many() {
    use burn::backend::Flex;
    use burn::tensor::TensorData;
    for (rows, precision) in
        [(9, Precision::F32), (197, Precision::F32), (197, Precision::Bf16), (400, Precision::Bf16)]
    {
        let [n, d, h] = [rows, 48, 400];
        let tensor = |x: &Vec<f64>| {
            Tensor::<Flex, 1>::from_data(
                TensorData::new(x.clone(), [x.len()]).convert::<f32>(),
                &Default::default(),
            )
        };
        let [x, scale, shift, w1, b1, w2, b2] = inputs([n, d, h]).each_ref().map(tensor);
        let (x, w1, w2) = (x.reshape([n, d]), w1.reshape([h, d]), w2.reshape([d, h]));
        let norm = [scale, shift];
        let [Some(p1), Some(p2)] = [&w1, &w2].map(|w| crate::pack_weight(w.clone(), precision)) else {
            println!("skipped: this CPU has nothing to pack for");
            return;
        };
        let packed =
            super::norm_mlp_packed(x.clone(), norm.clone(), 1e-3, (&p1, b1.clone()), (&p2, b2.clone()));
        let plain = norm_mlp(x, NormMlp { norm, eps: 1e-3, fc1: (w1, b1), fc2: (w2, b2), precision });
        packed.into_data().assert_eq(&plain.into_data(), true);
    }
}

#[test]
fn bf16_rounds_operands_and_the_derivative() {
    for shape in SHAPES {
        // The derivative of GELU is kept in bf16, an error of up to 2⁻⁹ in each term of sums over the hidden layer.
        check_rounded("norm_mlp", &inputs(shape), |x, precision| fused(x, shape, precision), 8e-3);
    }
}
