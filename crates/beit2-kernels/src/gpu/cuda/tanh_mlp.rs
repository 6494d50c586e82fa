//! Linear layer, tanh, linear layer ([`TanhMlpOps`]): three launches and matmuls forward and five backward, and in bf16 a cast
//! before each half.

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::BoolElement;

use super::super::portable::linear::with_last;
use super::casts::{self, Cast};
use super::rows::{Cuda, Tensor, dims, outputs, takes};
use super::{Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue, native};
use crate::Precision;
use crate::tanh_mlp::{TanhMlpOps, TanhMlpTensors, composed};

/// Elements of a block in passes over elements.
const BLOCK: usize = 2048;

#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    inputs: usize,
    hidden: usize,
    outputs: usize,
    /// Of the matmuls' operands, and of values between them.
    element: Element,
}

impl Sizes {
    fn new(x: &Tensor, w1: &Tensor, w2: &Tensor, precision: Precision) -> Self {
        let ([rows, inputs], hidden, outputs) = (dims(x), w1.shape[0], w2.shape[0]);
        let element = match precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        Self { rows, inputs, hidden, outputs, element }
    }

    fn dtype(&self) -> DType {
        if self.element == Element::Bf16 { DType::BF16 } else { DType::F32 }
    }
}

/// The next of several pieces of scratch memory.
fn piece(at: &mut Ptr, count: usize, element: Element) -> Ptr {
    let start = *at;
    at.0 += bytes(count, element) as u64;
    start
}

fn bytes(count: usize, element: Element) -> usize {
    (count * element.bytes()).next_multiple_of(512)
}

/// `d [m, n]` of what a layer multiplies; the operands' pitches are the widths of their rows in memory.
fn matmul(sizes: &Sizes, [m, n, k]: [usize; 3], a: (Ptr, bool), b: (Ptr, bool), d: (Ptr, Element)) -> Gemm {
    Gemm {
        m,
        n,
        k,
        a: Operand { at: a.0, transposed: a.1, ld: if a.1 { m } else { k } },
        b: Operand { at: b.0, transposed: b.1, ld: if b.1 { k } else { n } },
        d: d.0,
        ldd: n,
        operands: sizes.element,
        result: d.1,
        batch: None,
        epilogue: Epilogue::None,
        accumulate: false,
    }
}

/// A pass of `kernel` over `count` elements.
fn pass(queue: &mut Queue<'_>, kernel: [&'static str; 2], element: Element, at: &[Ptr], count: usize) {
    let [f32, bf16] = kernel;
    let kernel = if element == Element::Bf16 { bf16 } else { f32 };
    let args: Vec<Arg> = at.iter().copied().map(Arg::Ptr).chain([Arg::U64(count as u64)]).collect();
    queue.launch(kernel, [count.div_ceil(BLOCK) as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// The result and, with `keep`, what the backward pass reads: x, the hidden values after tanh and both weights, as matmuls read
/// them.
fn forward<BT: BoolElement>(
    x: Tensor,
    layers: TanhMlpTensors<Tensor>,
    precision: Precision,
    keep: bool,
) -> (Tensor, Vec<Tensor>) {
    let [w1, b1, w2, b2] = layers;
    let sizes = Sizes::new(&x, &w1, &w2, precision);
    let Sizes { rows, inputs, hidden, outputs: width, element } = sizes;
    let narrow = element == Element::Bf16;
    let counts = [rows * inputs, hidden * inputs, width * hidden];
    let kept_hidden = (with_last(&x.shape, hidden), sizes.dtype());
    let mut results = vec![(with_last(&x.shape, width), DType::F32)];
    let mut scratch = if narrow { bytes(hidden, element) } else { 0 };
    match (keep, narrow) {
        (true, true) => {
            results.push(kept_hidden);
            results.extend([&x, &w1, &w2].map(|tensor| (tensor.shape.clone(), DType::BF16)));
        }
        (true, false) => results.push(kept_hidden),
        (false, _) => {
            scratch += bytes(rows * hidden, element);
            scratch += if narrow { counts.iter().map(|&count| bytes(count, element)).sum() } else { 0 };
        }
    }
    let kept = if keep && !narrow { vec![x.clone(), w1.clone(), w2.clone()] } else { Vec::new() };
    let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], mut scratch: Ptr| {
        let (y, mut saved) = (o[0], o[1..].iter().copied());
        let mut place = |count| saved.next().unwrap_or_else(|| piece(&mut scratch, count, element));
        let between = place(rows * hidden);
        let ([mut x, mut w1, mut w2], mut b1) = ([i[0], i[1], i[3]], i[2]);
        if narrow {
            let mut table = Vec::with_capacity(4);
            for (at, count) in [&mut x, &mut w1, &mut w2].into_iter().zip(counts) {
                let to = place(count);
                table.push(Cast::to_bf16(*at, to, count));
                *at = to;
            }
            let to = place(hidden);
            table.push(Cast::to_bf16(b1, to, hidden));
            b1 = to;
            casts::many(queue, &table);
        }
        let first = [rows, hidden, inputs];
        let first = matmul(&sizes, first, (x, false), (w1, true), (between, element));
        queue.gemm(&Gemm { epilogue: Epilogue::Bias(b1), ..first });
        let tanh = ["tanh_forward_f32", "tanh_forward_bf16"];
        pass(queue, tanh, element, &[between, between], rows * hidden);
        let second = [rows, width, hidden];
        let second = matmul(&sizes, second, (between, false), (w2, true), (y, Element::F32));
        queue.gemm(&Gemm { epilogue: Epilogue::Bias(i[4]), ..second });
    };
    let mut found = native::<BT>("tanh_mlp", vec![x, w1, b1, w2, b2], results, scratch, run);
    let y = found.next().unwrap_or_else(|| unreachable!("there is a result"));
    (y, found.chain(kept).collect())
}

impl<BT: BoolElement> TanhMlpOps for Cuda<BT> {
    fn fuses_tanh_mlp(
        x: &FloatTensor<Self>,
        layers: &TanhMlpTensors<FloatTensor<Self>>,
        _precision: Precision,
    ) -> bool {
        let [w1, b1, w2, b2] = layers;
        // Kernels and matmuls load 16 bytes at once.
        takes(&[x, w1, b1, w2, b2])
            && [w1.shape[0], w1.shape[1], w2.shape[0]].iter().all(|size| size.is_multiple_of(8))
    }

    fn fused_tanh_mlp(
        x: FloatTensor<Self>,
        layers: TanhMlpTensors<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        match Self::fuses_tanh_mlp(&x, &layers, precision) {
            true => forward::<BT>(x, layers, precision, false).0,
            false => composed::tanh_mlp::<Self>(x, layers, precision),
        }
    }

    fn fused_tanh_mlp_train(
        x: FloatTensor<Self>,
        layers: TanhMlpTensors<FloatTensor<Self>>,
        precision: Precision,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        forward::<BT>(x, layers, precision, true)
    }

    fn fused_tanh_mlp_backward(
        saved: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> (FloatTensor<Self>, TanhMlpTensors<FloatTensor<Self>>) {
        let [between, x, w1, w2] = outputs(saved.into_iter());
        let sizes = Sizes::new(&x, &w1, &w2, precision);
        let Sizes { rows, inputs, hidden, outputs: width, element } = sizes;
        let narrow = element == Element::Bf16;
        let vector = |count| burn::tensor::Shape::new([count]);
        let shapes = [x.shape.clone(), w1.shape.clone(), vector(hidden), w2.shape.clone(), vector(width)];
        let results = shapes.map(|shape| (shape, DType::F32)).to_vec();
        let of_grad = if narrow { bytes(rows * width, element) } else { 0 };
        let scratch = of_grad + bytes(rows * hidden, element);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], mut scratch: Ptr| {
            let [between, x, w1, w2] = [i[0], i[1], i[2], i[3]];
            let [dx, dw1, db1, dw2, db2] = [o[0], o[1], o[2], o[3], o[4]];
            let mut grad = i[4];
            if narrow {
                let to = piece(&mut scratch, rows * width, element);
                casts::many(queue, &[Cast::to_bf16(grad, to, rows * width)]);
                grad = to;
            }
            let dbetween = piece(&mut scratch, rows * hidden, element);
            let of_weights = |grad, x, dw, db, [outputs, inputs]: [usize; 2]| {
                let gemm =
                    matmul(&sizes, [outputs, inputs, rows], (grad, true), (x, false), (dw, Element::F32));
                Gemm { epilogue: Epilogue::BiasGradient(db), ..gemm }
            };
            queue.gemm(&of_weights(grad, between, dw2, db2, [width, hidden]));
            let back = [rows, hidden, width];
            queue.gemm(&matmul(&sizes, back, (grad, false), (w2, false), (dbetween, element)));
            let tanh = ["tanh_backward_f32", "tanh_backward_bf16"];
            pass(queue, tanh, element, &[between, dbetween, dbetween], rows * hidden);
            queue.gemm(&of_weights(dbetween, x, dw1, db1, [hidden, inputs]));
            let back = [rows, inputs, hidden];
            queue.gemm(&matmul(&sizes, back, (dbetween, false), (w1, false), (dx, Element::F32)));
        };
        let all = vec![between, x, w1, w2, grad];
        let [dx, dw1, db1, dw2, db2] = outputs(native::<BT>("tanh_mlp_backward", all, results, scratch, run));
        (dx, [dw1, db1, dw2, db2])
    }
}
