//! Operations over rows on a CUDA device against f64 on the CPU.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Int, Shape, Tensor, TensorData};

use super::super::tests::{Results, compare, floats, on_cuda, run};
use super::casts::{self, Cast};
use super::columns;
use super::residual::{self, Branch};
use super::rows::{Tensor as Native, outputs};
use super::{Element, Ptr, Queue, native, norm};
use crate::tensor::{unwrap, wrap};
use crate::testing::random;
use crate::{AutodiffBackend, Backend, Precision};

type Cuda = burn::backend::Cuda<f32, i32>;
type B = Autodiff<Cuda>;
type Wide = Autodiff<Flex>;
type X<B> = Tensor<B, 1>;

/// An operation on a CUDA device in f32 and the same on the CPU in f64, with every gradient.
macro_rules! same {
    ($name:expr, $inputs:expr, $tolerance:expr, $f:expr) => {{
        let got: Results = run::<B>($inputs, DType::F32, $f);
        let want: Results = run::<Wide>($inputs, DType::F64, $f);
        compare(&$name, &got, &want, $tolerance);
    }};
}

/// Rows and widths: of one warp and several, of the model sizes, at the ends of what own kernels take, and beyond.
const ROWS: [(usize, usize); 9] =
    [(1, 8), (7, 48), (5, 33), (197, 64), (40, 264), (11, 768), (3, 1032), (2, 4096), (3, 4104)];

fn layer_norm<B: AutodiffBackend>(x: &[X<B>], [n, d]: [usize; 2]) -> X<B> {
    crate::layer_norm(x[0].clone().reshape([n, d]), x[1].clone(), x[2].clone(), 1e-3).reshape([n * d])
}

#[test]
fn layer_norms_on_cuda() {
    on_cuda(|_| {
        for (n, d) in ROWS {
            let inputs = [random(n * d, 1, 2.0), random(d, 2, 1.0), random(d, 3, 1.0)];
            same!(format!("layer_norm [{n}, {d}]"), &inputs, 1e-5, |x| layer_norm(x, [n, d]));
        }
    });
}

fn residual_scale<B: AutodiffBackend>(x: &[X<B>], [n, d]: [usize; 2]) -> X<B> {
    let [a, b] = [0, 1].map(|i| x[i].clone().reshape([n, d]));
    crate::residual_scale(a, b, x[2].clone()).reshape([n * d])
}

#[test]
fn residuals_on_cuda() {
    on_cuda(|_| {
        for (n, d) in ROWS {
            let inputs = [random(n * d, 1, 1.0), random(n * d, 2, 1.0), random(d, 3, 1.0)];
            same!(format!("residual_scale [{n}, {d}]"), &inputs, 3e-6, |x| residual_scale(x, [n, d]));
            let inputs = &inputs[..2];
            same!(format!("residual [{n}, {d}]"), inputs, 1e-6, |x| crate::residual(
                x[0].clone(),
                x[1].clone()
            ));
        }
    });
}

#[test]
fn gelus_on_cuda() {
    on_cuda(|_| {
        for (n, spread) in [(1, 1.0), (7, 3.0), (2048, 2.0), (5003, 6.0)] {
            let inputs = [random(n, 1, spread)];
            same!(format!("gelu [{n}]"), &inputs, 2e-6, |x| crate::gelu(x[0].clone()));
        }
    });
}

fn ids<B: Backend>(n: usize, classes: usize) -> Tensor<B, 1, Int> {
    let ids: Vec<i32> = (0..n).map(|i| (i * 31 % classes) as i32).collect();
    Tensor::from_data(TensorData::new(ids, [n]), &Default::default())
}

/// Loss and accuracy in one vector, so that both are compared; only the loss has a gradient.
fn cross_entropy<B: AutodiffBackend>(x: &[X<B>], [n, k]: [usize; 2]) -> X<B> {
    let (loss, accuracy) = crate::cross_entropy_with_accuracy(x[0].clone().reshape([n, k]), ids(n, k));
    // The share is f32 whatever the logits are.
    let accuracy = accuracy.cast(loss.dtype());
    Tensor::cat(vec![loss, accuracy], 0)
}

fn soft_cross_entropy<B: AutodiffBackend>(x: &[X<B>], [n, k]: [usize; 2]) -> X<B> {
    let targets = TensorData::new(random(n * k, 5, 0.5), [n, k]);
    let targets = Tensor::from_data(targets, (&Default::default(), x[0].dtype())) + 0.5;
    crate::soft_cross_entropy(x[0].clone().reshape([n, k]), targets)
}

#[test]
fn losses_on_cuda() {
    on_cuda(|_| {
        for (n, k, spread) in [(1, 1, 1.0), (3, 33, 4.0), (75, 512, 4.0), (20, 1000, 30.0), (4, 8192, 8.0)] {
            let inputs = [random(n * k, 4, spread)];
            same!(format!("cross_entropy [{n}, {k}]"), &inputs, 2e-6, |x| cross_entropy(x, [n, k]));
            same!(format!("soft_cross_entropy [{n}, {k}]"), &inputs, 3e-6, |x| soft_cross_entropy(x, [n, k]));
        }
    });
}

fn pixel_cross_entropy<B: AutodiffBackend>(x: &[X<B>], map: [usize; 4], to: [usize; 3]) -> X<B> {
    let label = |at: usize| if at % 5 == 2 { 255 } else { (at * 31 % map[3]) as i32 };
    let labels: Vec<i32> = (0..to.iter().product()).map(label).collect();
    let labels =
        Tensor::<B, 3, Int>::from_data(TensorData::new(labels, to), (&Default::default(), DType::I32));
    let (loss, share) = crate::pixel_cross_entropy(x[0].clone().reshape(map), labels);
    Tensor::cat(vec![loss, share], 0)
}

#[test]
fn pixel_losses_on_cuda() {
    on_cuda(|_| {
        let cases = [
            ([1, 1, 1, 2], [1, 3, 2]),
            ([2, 3, 4, 5], [2, 12, 16]),
            ([1, 5, 3, 33], [1, 17, 40]),
            ([1, 7, 6, 3], [1, 3, 4]),
            ([2, 8, 8, 150], [2, 32, 32]),
        ];
        for (map, to) in cases {
            let inputs = [random(map.iter().product(), 4, 4.0)];
            let name = format!("pixel_cross_entropy {map:?} to {to:?}");
            same!(name, &inputs, 2e-6, |x| pixel_cross_entropy(x, map, to));
        }
    });
}

#[test]
fn a_target_that_is_no_class_gives_a_loss_of_nan_on_cuda() {
    on_cuda(|device| {
        let logits = Tensor::<Cuda, 2>::zeros([2, 16], device);
        let targets = Tensor::<Cuda, 1, Int>::from_ints([3, 16], device);
        assert!(floats(crate::cross_entropy(logits, targets).into_data())[0].is_nan());
    });
}

/// Unit rows; the second half of the codes repeats the first, so that the lower number must win.
fn codebook<B: Backend>(n: usize, codes: usize, width: usize) -> [Tensor<B, 2>; 2] {
    let tensor = |values: Vec<f64>, rows| {
        let x = TensorData::new(values, [rows, width]);
        Tensor::<B, 2>::from_data(x, (&Default::default(), DType::F32))
    };
    let half = tensor(random(codes / 2 * width, 2, 1.0), codes / 2);
    let z = tensor(random(n * width, 1, 1.0), n);
    [z, Tensor::cat(vec![half.clone(), half], 0)]
}

#[test]
fn codes_and_what_they_stand_for_on_cuda() {
    on_cuda(|_| {
        for (n, codes, width) in [(1, 2, 3), (130, 300, 17), (500, 1000, 32), (70, 8192, 32)] {
            let [z, book] = codebook::<Cuda>(n, codes, width);
            let found = crate::nearest_code(z.clone(), book.clone());
            let (counts, sums) = crate::code_statistics(found.clone(), z, codes);
            let alone = crate::code_counts(found.clone(), codes, DType::F32);
            let [z, book] = codebook::<Flex>(n, codes, width);
            let (found, want) = (found.into_data(), crate::nearest_code(z.clone(), book));
            found.assert_eq(&want.clone().into_data(), true);
            let (want_counts, want_sums) = crate::code_statistics(want, z, codes);
            counts.into_data().assert_eq(&want_counts.into_data(), true);
            alone
                .into_data()
                .assert_eq(&crate::code_counts(ids_of(found), codes, DType::F32).into_data(), true);
            let [got, want] = [floats(sums.into_data()), floats(want_sums.into_data())];
            compare("sums", &vec![got], &vec![want], 1e-6);
        }
    });
}

/// Codes, loss and ids in one vector, so that both gradients are compared.
fn quantized<B: AutodiffBackend>(x: &[X<B>], [n, codes, width]: [usize; 3]) -> X<B> {
    let options = (&x[0].device(), x[0].dtype());
    let book = TensorData::new(random(codes * width, 7, 1.0), [codes, width]);
    let z = crate::unit_rows(x[0].clone().reshape([n, width]));
    let (ids, found, loss) = crate::quantize(z, Tensor::from_data(book, options), 0.7);
    let ids = ids.float().cast(found.dtype());
    Tensor::cat(vec![found.reshape([-1]), loss.mul_scalar(3.0), ids], 0)
}

#[test]
fn quantizers_on_cuda() {
    on_cuda(|_| {
        for (n, codes, width) in [(1, 1, 3), (5, 7, 8), (197, 300, 32), (70, 20, 45), (40, 2500, 32)] {
            let inputs = [random(n * width, 1, 2.0)];
            same!(format!("unit_rows [{n}, {width}]"), &inputs, 2e-6, |x| crate::unit_rows(
                x[0].clone().reshape([n, width])
            )
            .reshape([-1]));
            same!(format!("quantize [{n}, {codes}, {width}]"), &inputs, 3e-6, |x| quantized(
                x,
                [n, codes, width]
            ));
        }
    });
}

/// Codes and usage after an update in which every third code stands for nothing.
fn updated<B: Backend>(dtype: DType, [codes, width]: [usize; 2]) -> Results {
    let device = Default::default();
    let tensor = |values: Vec<f64>| {
        let data = TensorData::new(values, [codes * width]);
        Tensor::<B, 1>::from_data(data, (&device, dtype)).reshape([codes, width])
    };
    let vector = |values: Vec<f64>| Tensor::from_data(TensorData::new(values, [codes]), (&device, dtype));
    let bins: Vec<f64> = (0..codes).map(|code| (code % 3) as f64 * 2.0).collect();
    let sums = random(codes * width, 2, 3.0);
    let sums = sums.iter().enumerate().map(|(at, &x)| if bins[at / width] > 0.0 { x } else { 0.0 }).collect();
    let book = crate::unit_rows(tensor(random(codes * width, 1, 1.0)));
    let usage = vector((0..codes).map(|code| code as f64).collect());
    let (book, usage) = crate::update_codes(book, usage, vector(bins), tensor(sums), 0.9);
    vec![floats(book.into_data()), floats(usage.into_data())]
}

#[test]
fn codes_move_on_cuda() {
    on_cuda(|_| {
        for dims in [[1, 3], [20, 8], [301, 32], [65, 50]] {
            let want = updated::<Flex>(DType::F64, dims);
            compare(&format!("update_codes {dims:?}"), &updated::<Cuda>(DType::F32, dims), &want, 2e-6);
            let recorded = updated::<B>(DType::F32, dims);
            assert!(
                recorded == updated::<Cuda>(DType::F32, dims),
                "{dims:?}: other values where gradients are recorded"
            );
        }
    });
}

/// The second operand is a constant.
fn cosine_loss<B: AutodiffBackend>(x: &[X<B>], dims: [usize; 3]) -> X<B> {
    let b = TensorData::new(random(dims.iter().product(), 6, 2.0), dims);
    let b = Tensor::from_data(b, (&x[0].device(), x[0].dtype()));
    crate::cosine_loss(x[0].clone().reshape(dims), b)
}

#[test]
fn cosine_losses_on_cuda() {
    on_cuda(|_| {
        for dims in [[1, 1, 3], [2, 5, 33], [3, 7, 512], [1, 20, 768]] {
            let inputs = [random(dims.iter().product(), 1, 2.0)];
            same!(format!("cosine_loss {dims:?}"), &inputs, 2e-6, |x| cosine_loss(x, dims));
        }
    });
}

fn tanh_mlp<B: AutodiffBackend>(x: &[X<B>], [n, inputs, hidden, out]: [usize; 4], how: Precision) -> X<B> {
    let matrix = |at: usize, rows, width| x[at].clone().reshape([rows, width]);
    let (first, second) = ((matrix(1, hidden, inputs), x[2].clone()), (matrix(3, out, hidden), x[4].clone()));
    crate::tanh_mlp(x[0].clone().reshape([1, n, inputs]), first, second, how).reshape([n * out])
}

#[test]
fn layers_around_tanh_on_cuda() {
    on_cuda(|_| {
        for dims @ [n, inputs, hidden, out] in
            [[1, 8, 8, 8], [7, 24, 40, 16], [130, 64, 64, 32], [5, 7, 9, 3]]
        {
            let weights = |count, seed, inner: usize| random(count, seed, 1.0 / (inner as f64).sqrt());
            let inputs = [
                random(n * inputs, 1, 1.5),
                weights(hidden * inputs, 2, inputs),
                random(hidden, 3, 0.3),
                weights(out * hidden, 4, hidden),
                random(out, 5, 0.3),
            ]
            .map(narrow);
            let want: Results = run::<Wide>(&inputs, DType::F64, |x| tanh_mlp(x, dims, Precision::F32));
            for (how, tolerance) in [(Precision::F32, 5e-6), (Precision::Bf16, 1.5e-2)] {
                let got: Results = run::<B>(&inputs, DType::F32, |x| tanh_mlp(x, dims, how));
                compare(&format!("tanh_mlp {dims:?} {how}"), &got, &want, tolerance);
            }
        }
    });
}

fn ids_of(data: TensorData) -> Tensor<Flex, 1, Int> {
    Tensor::from_data(data, &Default::default())
}

/// Values that bf16 holds exactly.
fn narrow(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|x| f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000))).collect()
}

const SAMPLES: usize = 3;
const EPS: f64 = 1e-5;

/// x, branch, factors of samples, weight, bias, gradient of the normalised rows, gradient that goes around.
fn stream([rows, width]: [usize; 2]) -> [Vec<f64>; 7] {
    let count = rows * width;
    let of = |n, seed| random(n, seed, 1.0);
    let (branch, grad) = (narrow(of(count, 2)), narrow(of(count, 6)));
    [of(count, 1), branch, vec![1.25, 0.0, 1.25], of(width, 4), of(width, 5), grad, of(count, 7)]
}

/// What [`joined`] gives, by the graph of the composed operations in f64.
fn stream_reference(inputs: &[Vec<f64>; 7], [rows, width]: [usize; 2]) -> Results {
    let tensor = |x: &Vec<f64>| {
        let x = TensorData::new(x.clone(), [x.len()]);
        X::<Wide>::from_data(x, (&Default::default(), DType::F64))
    };
    let [x, branch, factors, weight, bias, grad, around] = inputs.each_ref().map(tensor);
    let [x, weight, bias] = [x, weight, bias].map(Tensor::require_grad);
    let of_row = factors.unsqueeze_dim::<2>(1).repeat_dim(1, rows / SAMPLES).reshape([rows, 1]);
    let sum = x.clone().reshape([rows, width]) + branch.reshape([rows, width]) * of_row;
    let y = crate::reference::layer_norm(sum.clone(), weight.clone(), bias.clone(), EPS);
    let mut results = vec![floats(sum.to_data()), floats(y.to_data())];
    let loss = (y.reshape([-1]) * grad).sum() + (sum.reshape([-1]) * around).sum();
    let grads = loss.backward();
    results.extend([&x, &weight, &bias].map(|x| floats(x.grad(&grads).unwrap().into_data())));
    results
}

/// Sum and normalised rows, gradients of x, weight and bias by the kernels that a block uses in bf16, with sum and norm in one
/// pass or in two.
fn joined(inputs: &[Vec<f64>; 7], dims @ [rows, width]: [usize; 2], one_pass: bool) -> Results {
    let tensors: Vec<Native> = inputs.iter().map(|x| upload(x)).collect();
    let count = rows * width;
    let results = [count, count, count, width, width].map(|n| (Shape::new([n]), DType::F32));
    // Scratch: branch, y and gradient in bf16, statistics, partial sums.
    let part = (count * 2).next_multiple_of(512);
    let sums_at = 3 * part + (rows * 8).next_multiple_of(512);
    let scratch = sums_at + norm::backward_scratch(rows, width);
    let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
        let at = |number: usize| Ptr(scratch.0 + (number * part) as u64);
        let (branch, y, grad, statistics) = (at(0), at(1), at(2), [at(3), at(3).offset(rows, Element::F32)]);
        casts::many(queue, &[Cast::to_bf16(i[1], branch, count), Cast::to_bf16(i[5], grad, count)]);
        let element = Element::Bf16;
        let branch = Branch { at: branch, element, gamma: None, factors: Some((i[2], rows / SAMPLES)) };
        let forward = norm::Forward {
            x: o[0],
            weight: i[3],
            bias: i[4],
            eps: EPS as f32,
            y,
            element,
            statistics: Some(statistics),
            rows,
            width,
        };
        if one_pass {
            residual::forward_norm(queue, i[0], &branch, &forward);
        } else {
            residual::forward(queue, i[0], &branch, o[0], dims);
            norm::forward(queue, &forward);
        }
        let backward = norm::Backward {
            x: o[0],
            weight: i[3],
            statistics,
            grad,
            element,
            add: Some(i[6]),
            dx: o[2],
            dweight: o[3],
            dbias: o[4],
            rows,
            width,
        };
        let partials = norm::backward(queue, &backward, Ptr(scratch.0 + sums_at as u64));
        columns::finish(queue, &partials);
        casts::many(queue, &[Cast { from: Some(y), to: o[1], element: Element::F32, count }]);
    };
    let results: [Native; 5] = outputs(native::<u8>("rows", tensors, results.to_vec(), scratch, run));
    results.into_iter().map(|x| floats(wrap::<Cuda, 1>(x).into_data())).collect()
}

fn upload(x: &[f64]) -> Native {
    let x = TensorData::new(x.to_vec(), [x.len()]);
    unwrap(Tensor::<Cuda, 1>::from_data(x, (&Default::default(), DType::F32)))
}

#[test]
fn residual_stream_of_a_block_on_cuda() {
    on_cuda(|device| {
        if !super::is_native(device) {
            println!("skipped: this device takes the portable path");
            return;
        }
        for dims in [[3, 8], [21, 48], [66, 264], [9, 768], [6, 2056]] {
            let inputs = stream(dims);
            let want = stream_reference(&inputs, dims);
            for one_pass in [true, false] {
                let got = joined(&inputs, dims, one_pass);
                for (at, (got, want)) in got.into_iter().zip(want.clone()).enumerate() {
                    // The normalised rows are rounded to 8 bits.
                    let tolerance = if at == 1 { 4e-3 } else { 5e-6 };
                    let name = format!("stream {dims:?} in one pass {one_pass}, {at}");
                    compare(&name, &vec![got], &vec![want], tolerance);
                }
            }
        }
    });
}

#[test]
fn bias_gradients_of_any_width_on_cuda() {
    on_cuda(|_| {
        for [rows, inner, out] in [[1, 3, 1], [70, 5, 7], [1000, 4, 150], [3, 2, 4104]] {
            let inputs = [random(rows * inner, 1, 1.0), random(out * inner, 2, 1.0), random(out, 3, 1.0)];
            fn biased<B: AutodiffBackend>(x: &[X<B>], [rows, inner, out]: [usize; 3]) -> X<B> {
                let weight = x[1].clone().reshape([out, inner]);
                let (map, bias) = (x[0].clone().reshape([rows, inner]), Some(x[2].clone()));
                crate::linear(map, weight, bias, crate::Precision::F32).reshape([rows * out])
            }
            let sizes = [rows, inner, out];
            same!(format!("linear {sizes:?}"), &inputs, 3e-6, |x| biased(x, sizes));
        }
    });
}

/// GELU's gradient with the bias gradient, and column sums alone, from bf16; zeros between biases.
#[test]
fn columns_and_casts_on_cuda() {
    on_cuda(|device| {
        if !super::is_native(device) {
            println!("skipped: this device takes the portable path");
            return;
        }
        for [rows, width] in [[1, 8], [50, 48], [77, 264], [9, 3072], [5000, 16]] {
            let count = rows * width;
            let values = [narrow(random(count, 1, 3.0)), narrow(random(count, 2, 1.0))];
            let inputs: Vec<Native> = values.iter().map(|x| upload(x)).collect();
            let shapes = [count, width, 3 * width];
            let results = shapes.map(|n| (Shape::new([n]), DType::F32)).to_vec();
            let part = (count * 2).next_multiple_of(512);
            let joint = (6 * width).next_multiple_of(512);
            let scratch = 2 * part + joint + columns::scratch(rows, width);
            let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
                let at = |bytes: usize| Ptr(scratch.0 + bytes as u64);
                let (x, grad, bias) = (at(0), at(part), at(2 * part));
                casts::many(queue, &[Cast::to_bf16(i[0], x, count), Cast::to_bf16(i[1], grad, count)]);
                let sums = at(2 * part + joint);
                columns::sums(queue, (x, Element::Bf16), [rows, width, width], o[1], sums);
                let third = |n: usize| bias.offset(n * width, Element::Bf16);
                casts::many(
                    queue,
                    &[
                        Cast::to_bf16(i[0], third(0), width),
                        Cast { from: None, to: third(1), element: Element::Bf16, count: width },
                        Cast::to_bf16(i[1], third(2), width),
                    ],
                );
                let back = |from, to, count| Cast { from: Some(from), to, element: Element::F32, count };
                casts::many(queue, &[back(grad, o[0], count), back(bias, o[2], 3 * width)]);
            };
            let got: [Native; 3] = outputs(native::<u8>("columns", inputs, results, scratch, run));
            let got: Results = got.into_iter().map(|x| floats(wrap::<Cuda, 1>(x).into_data())).collect();
            let [x, grad] = &values;
            let column = |x: &[f64]| -> Vec<f64> {
                (0..width).map(|j| x.iter().skip(j).step_by(width).sum()).collect()
            };
            let joint = [&x[..width], &vec![0.0; width], &grad[..width]].concat();
            compare("columns", &vec![got[1].clone()], &vec![column(x)], 5e-6);
            assert_eq!(got[0], *grad);
            assert_eq!(got[2], joint);
        }
    });
}
