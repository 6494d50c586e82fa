//! Attention on a GPU: matmuls by Burn's tuned kernels, everything between them in one pass of ours.
//!
//! Unlike the CPU's, it does store scores `[B, H, Tq, T]`, in f32, for as long as one operation runs: at 197 tokens
//! matmuls of whole heads keep tensor cores busy, and the backward pass computes the scores again rather than keep them.

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeRuntime};
use cubecl::prelude::*;

use super::custom::{Recorded, custom};
use super::kernels::{self, BiasGradient, LANES, ROWS};
use super::matmul::{Side, multiply};
use super::{Gpu, operands};
use crate::AttentionSpec;
use crate::tensor::{unwrap, wrap};

/// Sizes of one attention.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    scale: f32,
    /// Of what is multiplied.
    operands: DType,
}

impl Sizes {
    /// `inputs` is `[qkv]` or `[q, k, v]`.
    fn of<R: CubeRuntime>(inputs: &[Recorded<R>], spec: AttentionSpec) -> Self {
        let first = &inputs[0].shape;
        let (keys, parts) = match inputs {
            [_] => (first[1], 3),
            _ => (inputs[1].shape[1], 1),
        };
        Self {
            batch: first[0],
            heads: spec.heads,
            queries: first[1],
            keys,
            depth: first[2] / parts / spec.heads,
            scale: spec.scale as f32,
            operands: operands(spec.precision),
        }
    }

    fn width(&self) -> usize {
        self.heads * self.depth
    }

    fn scores(&self) -> Shape {
        Shape::new([self.batch, self.heads, self.queries, self.keys])
    }

    fn rows(&self) -> Shape {
        Shape::new([self.batch, self.heads, self.queries])
    }

    /// Queries, keys and values by heads, ready to be multiplied.
    fn parts<R: CubeRuntime>(&self, inputs: &[CubeTensor<R>]) -> [CubeTensor<R>; 3] {
        [(0, self.queries), (1, self.keys), (2, self.keys)].map(|(part, tokens)| match inputs {
            [fused] => self.split(fused, part * self.width(), tokens),
            separate => self.split(&separate[part], 0, tokens),
        })
    }

    fn split<R: CubeRuntime>(&self, x: &CubeTensor<R>, start: usize, tokens: usize) -> CubeTensor<R> {
        let y = like(x, Shape::new([self.batch, self.heads, tokens, self.depth]), self.operands);
        let (count, dim) = cubes(self.width(), tokens, self.batch);
        kernels::split_heads::launch::<R>(
            &x.client,
            count,
            dim,
            address(&[x, &y]),
            x.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            start as u32,
            [x.dtype.into(), y.dtype.into()],
        );
        y
    }

    fn merge<R: CubeRuntime>(&self, x: &CubeTensor<R>, y: &CubeTensor<R>, start: usize, factor: f32) {
        let (count, dim) = cubes(self.width(), x.meta.shape()[2], self.batch);
        kernels::merge_heads::launch::<R>(
            &x.client,
            count,
            dim,
            address(&[x, y]),
            x.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            start as u32,
            factor,
        );
    }
}

/// `inputs` is `[qkv]` or `[q, k, v]`; gives the output and the log of each row's softmax sum.
pub(in super::super) fn forward<R: CubeRuntime, BT: BoolElement>(
    mut inputs: Vec<Recorded<R>>,
    bias: Option<Recorded<R>>,
    spec: AttentionSpec,
) -> (Recorded<R>, Recorded<R>) {
    let s = Sizes::of(&inputs, spec);
    let parts = inputs.len();
    inputs.extend(bias);
    let output = Shape::new([s.batch, s.queries, s.width()]);
    let outputs = vec![(output.clone(), DType::F32), (s.rows(), DType::F32)];
    let mut outputs = custom::<R, BT>("attention", inputs, outputs, move |inputs| {
        let (inputs, bias) = inputs.split_at(parts);
        let [q, k, v] = s.parts(inputs);
        let scores = multiply(q, k, Side::Right);
        let (weights, lse) = softmax(&scores, bias.first(), &s);
        let by_heads = multiply(weights, v, Side::Neither);
        let y = like(&by_heads, output.clone(), DType::F32);
        s.merge(&by_heads, &y, 0, 1.0);
        vec![y, lse]
    });
    let mut next = || outputs.next().unwrap_or_else(|| unreachable!("two outputs"));
    (next(), next())
}

fn softmax<R: CubeRuntime>(
    scores: &CubeTensor<R>,
    bias: Option<&CubeTensor<R>>,
    s: &Sizes,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (weights, lse) = (like(scores, s.scores(), s.operands), like(scores, s.rows(), DType::F32));
    let rows = (s.queries as u32).div_ceil(ROWS);
    kernels::softmax_rows::launch::<R>(
        &scores.client,
        CubeCount::Static(rows, s.heads as u32, s.batch as u32),
        CubeDim::new_2d(LANES, ROWS),
        address(&[scores, bias.unwrap_or(scores), &weights, &lse]),
        scores.clone().into_tensor_arg(),
        bias.unwrap_or(scores).clone().into_tensor_arg(),
        weights.clone().into_tensor_arg(),
        lse.clone().into_tensor_arg(),
        s.scale,
        bias.is_some(),
        s.operands.into(),
    );
    (weights, lse)
}

/// Gradients of the `N` inputs and, on request, of the bias.
pub(in super::super) fn backward<R: CubeRuntime, BT: BoolElement, const N: usize>(
    mut inputs: Vec<Recorded<R>>,
    bias: Option<Recorded<R>>,
    (output, lse): (Recorded<R>, Recorded<R>),
    grad: Recorded<R>,
    spec: AttentionSpec,
    bias_grad: bool,
) -> ([Recorded<R>; N], Option<Recorded<R>>) {
    let s = Sizes::of(&inputs, spec);
    // Each row's Σ weight·dweight, which is the sum of output·gradient.
    let product = wrap::<Gpu<R, BT>, 3>(output) * wrap(grad.clone());
    let along = product.reshape([s.batch, s.queries, s.heads, s.depth]).sum_dim(3);
    let along = along.swap_dims(1, 2).reshape([s.batch, s.heads, s.queries]);

    let gradient = match &bias {
        Some(bias) if bias_grad && bias.shape[0] == 1 => BiasGradient::Summed,
        Some(_) if bias_grad => BiasGradient::Each,
        _ => BiasGradient::No,
    };
    let mut outputs: Vec<_> = inputs.iter().map(|x| (x.shape.clone(), DType::F32)).collect();
    let shapes: Vec<Shape> = inputs.iter().map(|x| x.shape.clone()).collect();
    if let (Some(bias), true) = (&bias, gradient != BiasGradient::No) {
        outputs.push((bias.shape.clone(), DType::F32));
    }
    inputs.extend([lse, unwrap(along), grad]);
    inputs.extend(bias);
    let mut outputs = custom::<R, BT>("attention_backward", inputs, outputs, move |inputs| {
        let (inputs, rest) = inputs.split_at(N);
        let (saved, bias) = rest.split_at(3);
        run_backward(inputs, [&saved[0], &saved[1], &saved[2]], bias.first(), &shapes, gradient, &s)
    });
    let mut next = || outputs.next();
    let gradients = std::array::from_fn(|_| next().unwrap_or_else(|| unreachable!("{N} outputs")));
    (gradients, next())
}

fn run_backward<R: CubeRuntime>(
    inputs: &[CubeTensor<R>],
    [lse, along, grad]: [&CubeTensor<R>; 3],
    bias: Option<&CubeTensor<R>>,
    shapes: &[Shape],
    gradient: BiasGradient,
    s: &Sizes,
) -> Vec<CubeTensor<R>> {
    let [q, k, v] = s.parts(inputs);
    let grad = s.split(grad, 0, s.queries);
    let scores = multiply(q.clone(), k.clone(), Side::Right);
    let dweights = multiply(grad.clone(), v, Side::Right);
    let [weights, slopes] = [(); 2].map(|()| like(&scores, s.scores(), s.operands));
    let dbias = match (gradient, bias) {
        (BiasGradient::Summed | BiasGradient::Each, Some(bias)) => {
            like(&scores, bias.meta.shape().clone(), DType::F32)
        }
        _ => like(&scores, Shape::new([1, 1, 1, 1]), DType::F32),
    };
    kernels::softmax_slopes::launch::<R>(
        &scores.client,
        CubeCount::Static((s.keys as u32).div_ceil(LANES), s.queries as u32, s.heads as u32),
        CubeDim::new_1d(LANES),
        address(&[&scores, bias.unwrap_or(&scores), &dweights, lse, along, &weights, &slopes, &dbias]),
        scores.clone().into_tensor_arg(),
        bias.unwrap_or(&scores).clone().into_tensor_arg(),
        dweights.into_tensor_arg(),
        lse.clone().into_tensor_arg(),
        along.clone().into_tensor_arg(),
        weights.clone().into_tensor_arg(),
        slopes.clone().into_tensor_arg(),
        dbias.clone().into_tensor_arg(),
        s.scale,
        bias.is_some(),
        gradient,
        s.operands.into(),
    );
    let parts = [
        (multiply(slopes.clone(), k, Side::Neither), s.scale),
        (multiply(slopes, q, Side::Left), s.scale),
        (multiply(weights, grad, Side::Left), 1.0),
    ];
    let mut outputs: Vec<_> = shapes.iter().map(|shape| like(lse, shape.clone(), DType::F32)).collect();
    for (at, (part, factor)) in parts.iter().enumerate() {
        match outputs.as_slice() {
            [fused] => s.merge(part, fused, at * s.width(), *factor),
            separate => s.merge(part, &separate[at], 0, *factor),
        }
    }
    if gradient != BiasGradient::No {
        outputs.push(dbias);
    }
    outputs
}

/// Memory for a tensor on the device of `x`.
fn like<R: CubeRuntime>(x: &CubeTensor<R>, shape: Shape, dtype: DType) -> CubeTensor<R> {
    empty_device_dtype(x.client.clone(), x.device.clone(), shape, dtype)
}

/// Cubes of one unit per column and token of each sample.
fn cubes(width: usize, tokens: usize, batch: usize) -> (CubeCount, CubeDim) {
    let count = ((width as u32).div_ceil(LANES), (tokens as u32).div_ceil(ROWS), batch as u32);
    (CubeCount::Static(count.0, count.1, count.2), CubeDim::new_2d(LANES, ROWS))
}

/// How wide indices must be.
fn address<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> AddressType {
    tensors.iter().map(|x| x.required_address_type()).max().unwrap_or_default()
}
