//! Norm, prediction head and cross entropy ([`crate::HeadLossOps`]): one matmul for the rows of all sets.
//!
//! In bf16 the norm's output, the weight and the gradient of the logits are bf16; logits, statistics and all other gradients
//! are f32.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaDevice;

use super::casts::{self, Cast};
use super::rows::{Cuda, Tensor, dims, takes};
use super::{
    Arg, Element, Epilogue, Gemm, Operand, Ptr, Queue, columns, is_native, loss, native, native_reusing, norm,
};
use crate::Precision;
use crate::head_loss::{HeadLossOps, HeadLosses, HeadSaved, HeadSpec, HeadTensors, MOST, composed};

/// The sizes of a call.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    sets: usize,
    /// Rows of a set.
    rows: usize,
    width: usize,
    classes: usize,
    eps: f32,
    /// The type of the matmuls' operands.
    operands: Element,
}

impl Sizes {
    fn of(inputs: &HeadTensors<Tensor>, spec: HeadSpec) -> Self {
        let ([rows, width], [classes, _]) = (dims(&inputs.sets[0]), dims(&inputs.weight));
        let operands = match spec.precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        Self { sets: inputs.sets.len(), rows, width, classes, eps: spec.eps as f32, operands }
    }

    /// Rows of all sets.
    fn all(&self) -> usize {
        self.sets * self.rows
    }

    /// The type of a tensor of operands.
    fn dtype(&self) -> DType {
        match self.operands {
            Element::F32 => DType::F32,
            Element::Bf16 => DType::BF16,
        }
    }

    /// One of the three matmuls.
    fn gemm(&self, dims: [usize; 3], [a, b]: [Operand; 2], d: Ptr, epilogue: Epilogue) -> Gemm {
        let [m, n, k] = dims;
        let (operands, result) = (self.operands, Element::F32);
        Gemm { m, n, k, a, b, d, ldd: n, operands, result, batch: None, epilogue, accumulate: false }
    }
}

fn operand(at: Ptr, ld: usize, transposed: bool) -> Operand {
    Operand { at, transposed, ld }
}

/// Whether the kernels take these tensors.
fn takes_all(inputs: &HeadTensors<Tensor>, targets: &Tensor) -> bool {
    let [classes, width] = dims(&inputs.weight);
    let HeadTensors { sets, norm: [scale, shift], weight, bias } = inputs;
    let tensors: Vec<&Tensor> = sets.iter().chain([scale, shift, weight, bias]).collect();
    targets.dtype == DType::I32 && fits(width, classes) && takes(&tensors)
}

fn fits(width: usize, classes: usize) -> bool {
    columns::fits(width) && classes > 0 && classes.is_multiple_of(8)
}

/// Addresses of [`HeadTensors`], in the order of [`list`].
struct Addresses<'a> {
    sets: &'a [Ptr],
    scale: Ptr,
    shift: Ptr,
    weight: Ptr,
    bias: Ptr,
}

impl<'a> Addresses<'a> {
    /// The first of `all`, and the rest.
    fn of(all: &'a [Ptr], sets: usize) -> (Self, &'a [Ptr]) {
        let (found, rest) = all.split_at(sets + 4);
        let (sets, vectors) = found.split_at(sets);
        let [scale, shift, weight, bias] = [0, 1, 2, 3].map(|i| vectors[i]);
        (Self { sets, scale, shift, weight, bias }, rest)
    }
}

fn list<T>(tensors: HeadTensors<T>) -> Vec<T> {
    let HeadTensors { mut sets, norm, weight, bias } = tensors;
    sets.extend(norm);
    sets.extend([weight, bias]);
    sets
}

/// `HeadTensors` from [`list`]'s order.
fn from_list<T>(mut tensors: impl Iterator<Item = T>, sets: usize) -> HeadTensors<T> {
    let sets = tensors.by_ref().take(sets).collect();
    let mut next = || tensors.next().unwrap_or_else(|| unreachable!("an operation gives what was recorded"));
    HeadTensors { sets, norm: [next(), next()], weight: next(), bias: next() }
}

/// Outputs: total; loss and accuracy of each set; then what the backward pass reads ([`Saved`]).
fn forward(queue: &mut Queue<'_>, s: &Sizes, inputs: &[Ptr], outputs: &[Ptr], scratch: Ptr) {
    let (x, rest) = Addresses::of(inputs, s.sets);
    let targets = rest[0];
    let (scores, saved) = outputs.split_at(1 + 2 * s.sets);
    let kept = Saved::of(s, saved, x.weight);
    for (set, &at) in x.sets.iter().enumerate() {
        let row = set * s.rows;
        let [mean, rstd] = kept.statistics.map(|vector| vector.offset(row, Element::F32));
        let (y, element) = (kept.normed.offset(row * s.width, s.operands), s.operands);
        let statistics = Some([mean, rstd]);
        let (weight, bias, eps) = (x.scale, x.shift, s.eps);
        let of_set =
            norm::Forward { x: at, weight, bias, eps, y, element, statistics, rows: s.rows, width: s.width };
        norm::forward(queue, &of_set);
    }
    if s.operands == Element::Bf16 {
        casts::many(queue, &[Cast::to_bf16(x.weight, kept.weight, s.classes * s.width)]);
    }
    let operands = [operand(kept.normed, s.width, false), operand(kept.weight, s.width, true)];
    queue.gemm(&s.gemm([s.all(), s.classes, s.width], operands, kept.logits, Epilogue::Bias(x.bias)));

    let [losses, hits] = [0, s.all()].map(|at| scratch.offset(at, Element::F32));
    let mut args = [kept.logits, targets, losses, hits, kept.softmax].map(Arg::Ptr).to_vec();
    args.extend([s.classes, s.rows].map(|n| Arg::U32(n as u32)));
    queue.launch("cross_entropy_forward_f32", [s.all() as u32, 1, 1], [256, 1, 1], 0, &args);

    let of_set = |i: usize| (0..MOST).map(move |set| scores.get(1 + 2 * set + i).map_or(0, |at| at.0));
    let to = of_set(0).chain(of_set(1)).flat_map(u64::to_le_bytes).collect();
    let mut args = vec![Arg::Ptr(losses), Arg::Ptr(hits), Arg::Ptr(scores[0]), Arg::Bytes(to)];
    args.extend([s.sets, s.rows].map(|n| Arg::U32(n as u32)));
    queue.launch("head_means_f32", [1, 1, 1], [1024, 1, 1], 0, &args);
}

/// What the forward pass keeps.
struct Saved {
    /// The norm's output, `[all, width]`.
    normed: Ptr,
    /// `[all, classes]`, f32.
    logits: Ptr,
    /// Mean and inverse deviation, `[all]` each.
    statistics: [Ptr; 2],
    /// Largest logit and 1 / sum, `[all, 2]`.
    softmax: Ptr,
    /// As the matmuls read it.
    weight: Ptr,
}

impl Saved {
    /// From its tensors; in f32 the weight is the input itself.
    fn of(s: &Sizes, tensors: &[Ptr], weight: Ptr) -> Self {
        let [normed, logits, mean, rstd, softmax] = [0, 1, 2, 3, 4].map(|i| tensors[i]);
        let weight = if s.operands == Element::Bf16 { tensors[5] } else { weight };
        Self { normed, logits, statistics: [mean, rstd], softmax, weight }
    }

    fn shapes(s: &Sizes) -> Vec<(Shape, DType)> {
        let all = s.all();
        let vector = (Shape::new([all]), DType::F32);
        let mut shapes = vec![
            (Shape::new([all, s.width]), s.dtype()),
            (Shape::new([all, s.classes]), DType::F32),
            vector.clone(),
            vector,
            (Shape::new([all, 2]), DType::F32),
        ];
        if s.operands == Element::Bf16 {
            shapes.push((Shape::new([s.classes, s.width]), DType::BF16));
        }
        shapes
    }
}

/// Inputs: those of the operation, targets, the gradient of the total, what was kept. Outputs: the gradient of the logits, which
/// is only memory, then those of the inputs.
fn backward(queue: &mut Queue<'_>, s: &Sizes, inputs: &[Ptr], outputs: &[Ptr], scratch: Ptr) {
    let (x, rest) = Addresses::of(inputs, s.sets);
    let (targets, upstream, kept) = (rest[0], rest[1], Saved::of(s, &rest[2..], x.weight));
    let (grad, d) = (outputs[0], Addresses::of(&outputs[1..], s.sets).0);
    let all = s.all();

    let mut args = [kept.logits, targets, kept.softmax, upstream, grad].map(Arg::Ptr).to_vec();
    args.extend([s.classes, s.rows].map(|n| Arg::U32(n as u32)));
    args.push(Arg::F32((1.0 / s.rows as f64) as f32));
    let kernel = match s.operands {
        Element::F32 => "cross_entropy_backward_f32",
        Element::Bf16 => "cross_entropy_backward_bf16",
    };
    queue.launch(kernel, [all as u32, 1, 1], [256, 1, 1], 0, &args);

    let operands = [operand(grad, s.classes, true), operand(kept.normed, s.width, false)];
    queue.gemm(&s.gemm([s.classes, s.width, all], operands, d.weight, Epilogue::BiasGradient(d.bias)));
    let operands = [operand(grad, s.classes, false), operand(kept.weight, s.width, false)];
    queue.gemm(&s.gemm([all, s.width, s.classes], operands, scratch, Epilogue::None));

    // The sets' partial sums lie one after the other, so one sum takes them all.
    let mut sums = scratch.offset(all * s.width, Element::F32);
    let mut partials = Vec::new();
    for (set, (&at, &dx)) in x.sets.iter().zip(d.sets).enumerate() {
        let row = set * s.rows;
        let of_set = norm::Backward {
            x: at,
            weight: x.scale,
            statistics: kept.statistics.map(|vector| vector.offset(row, Element::F32)),
            grad: scratch.offset(row * s.width, Element::F32),
            element: Element::F32,
            add: None,
            dx,
            dweight: d.scale,
            dbias: d.shift,
            rows: s.rows,
            width: s.width,
        };
        let found = norm::backward(queue, &of_set, sums);
        sums = sums.offset((found[0].rows * found[0].pitch) as usize, Element::F32);
        match partials.is_empty() {
            true => partials.extend(found),
            false => partials.iter_mut().zip(found).for_each(|(all, part)| all.rows += part.rows),
        }
    }
    columns::finish(queue, &partials);
}

impl<BT: BoolElement> HeadLossOps for Cuda<BT> {
    fn fuses_head_loss(device: &CudaDevice, width: usize, classes: usize) -> bool {
        is_native(device) && fits(width, classes)
    }

    fn fused_head_loss(
        inputs: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        spec: HeadSpec,
    ) -> (HeadLosses<FloatTensor<Self>>, HeadSaved<Self>) {
        if !takes_all(&inputs, &targets) {
            return composed::head_loss::<Self>(inputs, targets, spec);
        }
        let s = Sizes::of(&inputs, spec);
        let mut results = vec![(Shape::new([1]), DType::F32); 1 + 2 * s.sets];
        results.extend(Saved::shapes(&s));
        let inputs = list(inputs).into_iter().chain([targets]).collect();
        let run =
            move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch| forward(queue, &s, i, o, scratch);
        let mut found = native::<BT>("head_loss", inputs, results, loss::scratch(s.all()), run);
        let mut next =
            || found.next().unwrap_or_else(|| unreachable!("an operation gives what was recorded"));
        let total = next();
        let scores: Vec<[Tensor; 2]> = (0..s.sets).map(|_| [next(), next()]).collect();
        let (losses, accuracies) = scores.into_iter().map(|[loss, accuracy]| (loss, accuracy)).unzip();
        let saved = HeadSaved { floats: found.collect(), losses: Vec::new() };
        (HeadLosses { total, losses, accuracies }, saved)
    }

    fn fused_head_loss_backward(
        inputs: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        spec: HeadSpec,
        saved: HeadSaved<Self>,
        upstream: FloatTensor<Self>,
    ) -> HeadTensors<FloatTensor<Self>> {
        if !saved.losses.is_empty() {
            return composed::head_loss_backward::<Self>(inputs, spec, saved, upstream);
        }
        let s = Sizes::of(&inputs, spec);
        let (all, shapes) =
            (s.all(), list(inputs.clone()).into_iter().map(|x| (x.shape.clone(), DType::F32)));
        let results = [(Shape::new([all, s.classes]), s.dtype())].into_iter().chain(shapes).collect();
        let inputs: Vec<Tensor> =
            list(inputs).into_iter().chain([targets, upstream]).chain(saved.floats).collect();
        // The gradient of the logits goes over them where it is as large.
        let logits = s.sets + 4 + 2 + 1;
        let reuse: &[_] = if s.operands == Element::F32 { &[(0, logits)] } else { &[] };
        let sums = s.sets * norm::backward_scratch(s.rows, s.width);
        let scratch = (all * s.width * 4).next_multiple_of(16) + sums;
        let run =
            move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch| backward(queue, &s, i, o, scratch);
        let mut found = native_reusing::<BT>("head_loss_backward", inputs, results, scratch, reuse, run);
        let _memory = found.next();
        from_list(found, s.sets)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Cuda, Flex};
    use burn::tensor::{DType, Tensor};

    use crate::gpu::tests::{compare, floats, on_cuda, run};
    use crate::head_loss::tests as of;
    use crate::{Backend, Precision};

    type Recording = Autodiff<Cuda<f32, i32>>;
    type Wide = Autodiff<Flex>;

    /// Sets, and rows, width and classes: taken by the kernels, and the last two composed.
    const CASES: [(usize, [usize; 3]); 7] = [
        (1, [1, 8, 8]),
        (2, [1, 64, 16]),
        (2, [77, 48, 264]),
        (1, [20, 768, 1000]),
        (2, [9, 192, 8192]),
        (2, [5, 33, 16]),
        (1, [6, 16, 33]),
    ];

    fn on<B: Backend>(inputs: &[Vec<f64>], dtype: DType) -> Vec<Tensor<B, 1>> {
        inputs.iter().map(|x| Tensor::from_data(&x[..], (&Default::default(), dtype))).collect()
    }

    #[test]
    fn head_losses_on_cuda() {
        on_cuda(|_| {
            for ((sets, dims), precision) in
                CASES.into_iter().flat_map(|case| [(case, Precision::F32), (case, Precision::Bf16)])
            {
                let inputs = of::inputs(sets, dims);
                let name = format!("head_loss {sets} sets {dims:?} {precision}");
                let got = run::<Recording>(&inputs, DType::F32, |x| of::run(x, dims, precision, false));
                let want = run::<Wide>(&inputs, DType::F64, |x| of::run(x, dims, precision, false));
                // In bf16 the gradient of the logits is rounded before it is summed for the bias too.
                compare(&name, &got, &want, if precision == Precision::F32 { 1e-5 } else { 1e-2 });
                let x = on::<Cuda<f32, i32>>(&inputs, DType::F32);
                let found = floats(of::run(&x, dims, precision, true).into_data());
                let x = on::<Flex>(&inputs, DType::F64);
                let wanted = floats(of::run(&x, dims, precision, true).into_data());
                compare(&format!("{name}, losses and shares"), &vec![found], &vec![wanted], 1e-5);
            }
        });
    }
}
