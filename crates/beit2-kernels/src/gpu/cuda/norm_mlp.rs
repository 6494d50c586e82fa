//! A Transformer's MLP branch in bf16, for blocks that run on some of the tokens or otherwise not whole: operands, values before
//! and after GELU and the gradients between the matmuls are bf16, sums, statistics and the result f32.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::casts::{self, Cast};
use super::rows::{Cuda, Tensor, dims, outputs, takes};
use super::{Element, Epilogue, Gemm, Operand, Ptr, Queue, columns, gelu, native, norm};
use crate::linear::PackedWeight;
use crate::norm_mlp::{NormMlpOps, NormMlpSaved, NormMlpTensors, composed};
use crate::{LinearOps, Precision};

/// Sizes of a branch.
#[derive(Debug, Clone, Copy)]
struct Branch {
    rows: usize,
    width: usize,
    hidden: usize,
    eps: f32,
}

/// Scratch memory, handed out in pieces.
#[derive(Debug, Clone, Copy, Default)]
struct Pieces(usize);

impl Pieces {
    /// The place of the next `bytes` bytes.
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 += bytes.next_multiple_of(512);
        at
    }
}

/// What the forward pass reads and writes.
#[derive(Debug, Clone, Copy)]
struct Forward {
    x: Ptr,
    /// Scale and shift of the norm, f32.
    norm: [Ptr; 2],
    /// W₁, W₂ and b₁ in bf16.
    weights: [Ptr; 2],
    b1: Ptr,
    /// f32.
    b2: Ptr,
    /// Normalised rows, values before GELU and after it, bf16.
    values: [Ptr; 3],
    statistics: Option<[Ptr; 2]>,
    y: Ptr,
}

impl Branch {
    fn of(x: &Tensor, hidden: usize, eps: f64) -> Self {
        let [rows, width] = dims(x);
        Self { rows, width, hidden, eps: eps as f32 }
    }

    /// Numbers of each of the forward pass's values.
    fn values(&self) -> [usize; 3] {
        [self.width, self.hidden, self.hidden].map(|width| self.rows * width)
    }

    fn forward(&self, queue: &mut Queue<'_>, f: &Forward) {
        let Self { rows, width, hidden, eps } = *self;
        let [normed, before, after] = f.values;
        let norm = norm::Forward {
            x: f.x,
            weight: f.norm[0],
            bias: f.norm[1],
            eps,
            y: normed,
            element: Element::Bf16,
            statistics: f.statistics,
            rows,
            width,
        };
        norm::forward(queue, &norm);
        let linear = |x, weight, bias, y, [inputs, outputs]: [usize; 2], result| Gemm {
            m: rows,
            n: outputs,
            k: inputs,
            a: Operand { at: x, transposed: false, ld: inputs },
            b: Operand { at: weight, transposed: true, ld: inputs },
            d: y,
            ldd: outputs,
            operands: Element::Bf16,
            result,
            batch: None,
            epilogue: Epilogue::Bias(bias),
            accumulate: false,
        };
        let [w1, w2] = f.weights;
        queue.gemm(&linear(normed, w1, f.b1, before, [width, hidden], Element::Bf16));
        gelu::forward(queue, before, after, Element::Bf16, rows * hidden);
        queue.gemm(&linear(after, w2, f.b2, f.y, [hidden, width], Element::F32));
    }

    /// `dx [rows, inputs] = grad [rows, outputs]·W`, all bf16.
    fn input_gradient(&self, [grad, weight, dx]: [Ptr; 3], [outputs, inputs]: [usize; 2]) -> Gemm {
        Gemm {
            m: self.rows,
            n: inputs,
            k: outputs,
            a: Operand { at: grad, transposed: false, ld: outputs },
            b: Operand { at: weight, transposed: false, ld: inputs },
            d: dx,
            ldd: inputs,
            operands: Element::Bf16,
            result: Element::Bf16,
            batch: None,
            epilogue: Epilogue::None,
            accumulate: false,
        }
    }

    /// `dW [outputs, inputs] = gradᵀ·x` in f32.
    fn weight_gradient(&self, [grad, x, dweight]: [Ptr; 3], [outputs, inputs]: [usize; 2]) -> Gemm {
        Gemm {
            m: outputs,
            n: inputs,
            k: self.rows,
            a: Operand { at: grad, transposed: true, ld: outputs },
            d: dweight,
            result: Element::F32,
            ..self.input_gradient([grad, x, dweight], [outputs, inputs])
        }
    }
}

/// The branch of f32 parameters in the order of [`NormMlpTensors`]; with what the backward pass needs if `keep`.
fn run<BT: BoolElement>(x: Tensor, p: NormMlpTensors<Cuda<BT>>, keep: bool) -> Vec<Tensor> {
    let branch = Branch::of(&x, p.tensors[3].shape[0], p.eps);
    let Branch { rows, width, hidden, .. } = branch;
    let weights = width * hidden;
    let mut results = vec![(x.shape.clone(), DType::F32)];
    let mut pieces = Pieces::default();
    let [w1, w2, b1] = [weights, weights, hidden].map(|count| pieces.take(2 * count));
    let mut values = [0; 3];
    if keep {
        results.extend(branch.values().map(|count| (Shape::new([count]), DType::BF16)));
        results.push((Shape::new([2, rows]), DType::F32));
    } else {
        values = branch.values().map(|count| pieces.take(2 * count));
    }
    let inputs: Vec<Tensor> = std::iter::once(x).chain(p.tensors).collect();
    native::<BT>("norm_mlp", inputs, results, pieces.0, move |queue, i, o, scratch| {
        let at = |piece: usize| Ptr(scratch.0 + piece as u64);
        let casts = [(i[3], w1, weights), (i[5], w2, weights), (i[4], b1, hidden)];
        casts::many(queue, &casts.map(|(from, to, count)| Cast::to_bf16(from, at(to), count)));
        let forward = Forward {
            x: i[0],
            norm: [i[1], i[2]],
            weights: [at(w1), at(w2)],
            b1: at(b1),
            b2: i[6],
            values: if keep { [o[1], o[2], o[3]] } else { values.map(at) },
            statistics: keep.then(|| [o[4], o[4].offset(rows, Element::F32)]),
            y: o[0],
        };
        branch.forward(queue, &forward);
    })
    .collect()
}

/// Whether kernels and matmuls take the sizes: rows of whole accesses of 16 bytes.
fn fits(width: usize, hidden: usize) -> bool {
    columns::fits(width) && hidden > 0 && hidden.is_multiple_of(8)
}

impl<BT: BoolElement> NormMlpOps for Cuda<BT> {
    fn fuses_norm_mlp(x: &FloatTensor<Self>, p: &NormMlpTensors<Self>) -> bool {
        let [scale, shift, w1, b1, w2, b2] = &p.tensors;
        p.precision == Precision::Bf16
            && fits(dims(x)[1], b1.shape[0])
            && takes(&[x, scale, shift, w1, b1, w2, b2])
    }

    fn fused_norm_mlp(x: FloatTensor<Self>, p: NormMlpTensors<Self>) -> FloatTensor<Self> {
        if !Self::fuses_norm_mlp(&x, &p) {
            return composed::norm_mlp::<Self>(x, p);
        }
        let [y] = outputs(run::<BT>(x, p, false).into_iter());
        y
    }

    fn fused_norm_mlp_packed(
        x: FloatTensor<Self>,
        norm: [FloatTensor<Self>; 2],
        eps: f64,
        (w1, b1): (&PackedWeight, FloatTensor<Self>),
        (w2, b2): (&PackedWeight, FloatTensor<Self>),
    ) -> FloatTensor<Self> {
        let [scale, shift] = norm;
        let hidden = b1.shape[0];
        if !fits(dims(&x)[1], hidden) || !takes(&[&x, &scale, &shift, &b1, &b2]) {
            return composed::norm_mlp_packed::<Self>(x, [scale, shift], eps, (w1, b1), (w2, b2));
        }
        let branch = Branch::of(&x, hidden, eps);
        let results = vec![(x.shape.clone(), DType::F32)];
        let mut pieces = Pieces::default();
        let b1_at = pieces.take(2 * hidden);
        let values = branch.values().map(|count| pieces.take(2 * count));
        let inputs = vec![x, scale, shift, w1.cuda(), b1, w2.cuda(), b2];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let at = |piece: usize| Ptr(scratch.0 + piece as u64);
            casts::many(queue, &[Cast::to_bf16(i[4], at(b1_at), hidden)]);
            let forward = Forward {
                x: i[0],
                norm: [i[1], i[2]],
                weights: [i[3], i[5]],
                b1: at(b1_at),
                b2: i[6],
                values: values.map(at),
                statistics: None,
                y: o[0],
            };
            branch.forward(queue, &forward);
        };
        let [y] = outputs(native::<BT>("norm_mlp_packed", inputs, results, pieces.0, run));
        y
    }

    fn fused_norm_mlp_train(
        x: FloatTensor<Self>,
        p: NormMlpTensors<Self>,
    ) -> (FloatTensor<Self>, NormMlpSaved<Self>) {
        let mut results = run::<BT>(x, p, true);
        let saved = results.split_off(1);
        let [y] = outputs(results.into_iter());
        (y, saved)
    }

    fn fused_norm_mlp_backward(
        x: FloatTensor<Self>,
        p: NormMlpTensors<Self>,
        saved: NormMlpSaved<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 6]) {
        let branch = Branch::of(&x, p.tensors[3].shape[0], p.eps);
        let Branch { rows, width, hidden, .. } = branch;
        let [scale, _, w1, _, w2, _] = p.tensors;
        let (count, weights) = (rows * width, width * hidden);
        let shapes = [&[width][..], &[width], &[hidden, width], &[hidden], &[width, hidden], &[width]];
        let mut results = vec![(x.shape.clone(), DType::F32)];
        results.extend(shapes.map(|shape| (Shape::from(shape.to_vec()), DType::F32)));
        let mut pieces = Pieces::default();
        let weights_at = [weights, weights].map(|count| pieces.take(2 * count));
        let [grad_at, wide_at, narrow_at] = [count, rows * hidden, count].map(|count| pieces.take(2 * count));
        let sums = [
            columns::scratch(rows, width),
            columns::scratch(rows, hidden),
            norm::backward_scratch(rows, width),
        ];
        let sums = sums.map(|bytes| pieces.take(bytes));
        let inputs: Vec<Tensor> = [x, grad, scale, w1, w2].into_iter().chain(saved).collect();
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let at = |piece: usize| Ptr(scratch.0 + piece as u64);
            let [w1, w2] = weights_at.map(at);
            let [grad, wide, narrow] = [grad_at, wide_at, narrow_at].map(at);
            let [for_grad, for_gelu, for_norm] = sums.map(at);
            let [normed, before, after, statistics] = [i[5], i[6], i[7], i[8]];
            let casts = [(i[3], w1, weights), (i[4], w2, weights), (i[1], grad, count)];
            casts::many(queue, &casts.map(|(from, to, count)| Cast::to_bf16(from, to, count)));
            let mut partials =
                vec![columns::partials(queue, (i[1], Element::F32), [rows, width, width], o[6], for_grad)];
            queue.gemm(&branch.weight_gradient([grad, after, o[5]], [width, hidden]));
            queue.gemm(&branch.input_gradient([grad, w2, wide], [width, hidden]));
            let dims = [rows, hidden];
            partials.push(gelu::backward(queue, [before, wide, wide], dims, o[4], for_gelu));
            queue.gemm(&branch.weight_gradient([wide, normed, o[3]], [hidden, width]));
            queue.gemm(&branch.input_gradient([wide, w1, narrow], [hidden, width]));
            let backward = norm::Backward {
                x: i[0],
                weight: i[2],
                statistics: [statistics, statistics.offset(rows, Element::F32)],
                grad: narrow,
                element: Element::Bf16,
                add: None,
                dx: o[0],
                dweight: o[1],
                dbias: o[2],
                rows,
                width,
            };
            partials.extend(norm::backward(queue, &backward, for_norm));
            columns::finish(queue, &partials);
        };
        let results = native::<BT>("norm_mlp_backward", inputs, results, pieces.0, run);
        let [dx, dscale, dshift, dw1, db1, dw2, db2] = outputs(results);
        (dx, [dscale, dshift, dw1, db1, dw2, db2])
    }
}
