//! Mean cross entropy, against class ids and against soft targets.
//!
//! Functions that put kernels on a queue come first, then the operations with f32 tensors.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::rows::{Cuda, Tensor, dims, outputs, takes};
use super::{Arg, Element, Ptr, Queue, native, native_reusing};
use crate::cross_entropy::{CrossEntropyOps, CrossEntropySaved, composed};
use crate::soft_cross_entropy::{SoftCrossEntropyOps, composed as soft};

/// Scratch memory of [`forward`] and [`soft_forward`], bytes: losses and hits of rows.
pub(crate) fn scratch(rows: usize) -> usize {
    rows * 8
}

/// Mean loss and accuracy (one f32 each) of `logits [rows, classes]` in f32 against ids `targets [rows]` in i32. `saved`
/// `[rows, 2]` is for [`backward`]. Moves the logits in. A target that is not a class makes the loss NaN.
pub(crate) fn forward(
    queue: &mut Queue<'_>,
    [logits, targets]: [Ptr; 2],
    [loss, accuracy, saved]: [Ptr; 3],
    [rows, classes]: [usize; 2],
    scratch: Ptr,
) {
    let hits = scratch.offset(rows, Element::F32);
    let args = [logits, targets, scratch, hits, saved].map(Arg::Ptr);
    let args: Vec<Arg> = args.into_iter().chain([classes, rows].map(|n| Arg::U32(n as u32))).collect();
    queue.launch("cross_entropy_forward_f32", [rows as u32, 1, 1], [256, 1, 1], 0, &args);
    means(queue, [scratch, hits], [loss, accuracy], rows, rows);
}

/// The gradient of the logits, `(softmax − onehot)·upstream/rows` in f32, from the gradient `upstream` of the mean loss.
/// `grad` may be `logits`. Moves the logits in and the gradient out.
pub(crate) fn backward(
    queue: &mut Queue<'_>,
    [logits, targets, saved, upstream]: [Ptr; 4],
    grad: Ptr,
    [rows, classes]: [usize; 2],
) {
    let mut args = [logits, targets, saved, upstream, grad].map(Arg::Ptr).to_vec();
    args.extend([classes, rows].map(|n| Arg::U32(n as u32)));
    args.push(Arg::F32((1.0 / rows as f64) as f32));
    queue.launch("cross_entropy_backward_f32", [rows as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// The sums of `count` values of one or two vectors over `divisor`.
pub(super) fn means<const N: usize>(
    queue: &mut Queue<'_>,
    of: [Ptr; N],
    to: [Ptr; N],
    count: usize,
    divisor: usize,
) {
    let two = |list: [Ptr; N]| [list[0], list.get(1).copied().unwrap_or(Ptr(0))];
    let ([a, b], [mean_a, mean_b]) = (two(of), two(to));
    let mut args = [a, b, mean_a, mean_b].map(Arg::Ptr).to_vec();
    args.extend([Arg::U32(count as u32), Arg::F32(divisor as f32)]);
    queue.launch("means_f32", [1, 1, 1], [1024, 1, 1], 0, &args);
}

/// Whether the kernels take these logits `[n, K]` and ids.
fn takes_ids(logits: &Tensor, targets: &Tensor) -> bool {
    targets.dtype == DType::I32 && takes(&[logits])
}

/// Loss, accuracy and what the backward pass reads.
fn scored<BT: BoolElement>(logits: Tensor, targets: Tensor) -> [Tensor; 3] {
    let dims = dims(&logits);
    let one = (Shape::new([1]), DType::F32);
    let results = vec![one.clone(), one, (Shape::new([dims[0], 2]), DType::F32)];
    let (inputs, scratch) = (vec![logits, targets], scratch(dims[0]));
    outputs(native::<BT>("cross_entropy", inputs, results, scratch, move |queue, i, o, scratch| {
        forward(queue, [i[0], i[1]], [o[0], o[1], o[2]], dims, scratch);
    }))
}

impl<BT: BoolElement> CrossEntropyOps for Cuda<BT> {
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        accuracy: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        if !takes_ids(&logits, &targets) {
            return composed::cross_entropy::<Self>(logits, targets, accuracy);
        }
        let [loss, hits, _] = scored::<BT>(logits, targets);
        (loss, accuracy.then_some(hits))
    }

    fn fused_cross_entropy_train(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        accuracy: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>, CrossEntropySaved<Self>) {
        if !takes_ids(&logits, &targets) {
            return composed::cross_entropy_train::<Self>(logits, targets, accuracy);
        }
        let [loss, hits, saved] = scored::<BT>(logits.clone(), targets.clone());
        let saved = CrossEntropySaved { floats: vec![logits, saved], targets: Some(targets) };
        (loss, accuracy.then_some(hits), saved)
    }

    fn fused_cross_entropy_backward(
        saved: CrossEntropySaved<Self>,
        upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let CrossEntropySaved { floats, targets: Some(targets) } = saved else {
            return composed::cross_entropy_backward::<Self>(saved, upstream);
        };
        let [logits, saved] = outputs(floats.into_iter());
        let (dims, results) = (dims(&logits), vec![(logits.shape.clone(), DType::F32)]);
        let inputs = vec![logits, targets, saved, upstream];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            backward(queue, [i[0], i[1], i[2], i[3]], o[0], dims);
        };
        let name = "cross_entropy_backward";
        let [grad] = outputs(native_reusing::<BT>(name, inputs, results, 0, &[(0, 0)], run));
        grad
    }
}

/// Loss and what the backward pass reads.
fn softly<BT: BoolElement>(logits: Tensor, targets: Tensor) -> [Tensor; 2] {
    let [rows, classes] = dims(&logits);
    let results = vec![(Shape::new([1]), DType::F32), (Shape::new([rows, 3]), DType::F32)];
    let (inputs, scratch) = (vec![logits, targets], scratch(rows));
    outputs(native::<BT>("soft_cross_entropy", inputs, results, scratch, move |queue, i, o, scratch| {
        let args = [i[0], i[1], scratch, o[1]].map(Arg::Ptr);
        let args: Vec<Arg> = args.into_iter().chain([Arg::U32(classes as u32)]).collect();
        queue.launch("soft_cross_entropy_forward_f32", [rows as u32, 1, 1], [256, 1, 1], 0, &args);
        means(queue, [scratch], [o[0]], rows, rows);
    }))
}

impl<BT: BoolElement> SoftCrossEntropyOps for Cuda<BT> {
    fn fuses_soft_cross_entropy(logits: &FloatTensor<Self>, targets: &FloatTensor<Self>) -> bool {
        takes(&[logits, targets])
    }

    fn fused_soft_cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        if !takes(&[&logits, &targets]) {
            return soft::soft_cross_entropy::<Self>(logits, targets);
        }
        let [loss, _] = softly::<BT>(logits, targets);
        loss
    }

    fn fused_soft_cross_entropy_train(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [loss, saved] = softly::<BT>(logits, targets);
        (loss, saved)
    }

    fn fused_soft_cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ([rows, classes], results) = (dims(&logits), vec![(logits.shape.clone(), DType::F32)]);
        let inputs = vec![logits, targets, saved, upstream];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            let args = [i[0], i[1], i[2], i[3], o[0]].map(Arg::Ptr);
            let sizes = [Arg::U32(classes as u32), Arg::F32((1.0 / rows as f64) as f32)];
            let args: Vec<Arg> = args.into_iter().chain(sizes).collect();
            queue.launch("soft_cross_entropy_backward_f32", [rows as u32, 1, 1], [256, 1, 1], 0, &args);
        };
        let name = "soft_cross_entropy_backward";
        let [grad] = outputs(native_reusing::<BT>(name, inputs, results, 0, &[(0, 0)], run));
        grad
    }
}
