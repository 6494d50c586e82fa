//! Exact GELU, and the approximations of other models' blocks.
//!
//! Functions that put kernels on a queue come first, then the operation with f32 tensors.

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::BoolElement;

use super::rows::{Cuda, outputs, takes};
use super::{Arg, Ptr, Queue, native, native_reusing};
use crate::BlockActivation;
use crate::gelu::{GeluOps, composed};

/// Elements of a block in passes over elements.
const BLOCK: usize = 2048;

/// `y` is `activation` of `x`, both `count` elements in bf16. Moves them in and out.
pub(crate) fn activate(queue: &mut Queue<'_>, activation: BlockActivation, [x, y]: [Ptr; 2], count: usize) {
    let kernel = match activation {
        BlockActivation::Gelu => "gelu_forward_bf16",
        BlockActivation::QuickGelu => "quick_gelu_forward_bf16",
        BlockActivation::GeluTanh => "gelu_tanh_forward_bf16",
    };
    let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::U64(count as u64)];
    queue.launch(kernel, [count.div_ceil(BLOCK) as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// A pass over `count` elements of the tensors at `at`.
fn pass(queue: &mut Queue<'_>, kernel: &'static str, at: [Ptr; 3], count: usize) {
    let [a, b, c] = at.map(Arg::Ptr);
    let args = [a, b, c, Arg::U64(count as u64)];
    queue.launch(kernel, [count.div_ceil(BLOCK) as u32, 1, 1], [256, 1, 1], 0, &args);
}

impl<BT: BoolElement> GeluOps for Cuda<BT> {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if !takes(&[&x]) {
            return composed::gelu::<Self>(x);
        }
        let (count, results) = (x.shape.num_elements(), vec![(x.shape.clone(), DType::F32)]);
        let [y] = outputs(native::<BT>("gelu", vec![x], results, 0, move |queue, i, o, _| {
            let args = [Arg::Ptr(i[0]), Arg::Ptr(o[0]), Arg::U64(count as u64)];
            queue.launch("gelu_forward_f32", [count.div_ceil(BLOCK) as u32, 1, 1], [256, 1, 1], 0, &args);
        }));
        y
    }

    fn fused_gelu_train(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if !takes(&[&x]) {
            return composed::gelu_train::<Self>(x);
        }
        let (count, result) = (x.shape.num_elements(), (x.shape.clone(), DType::F32));
        let results = vec![result.clone(), result];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            pass(queue, "gelu_train_f32", [i[0], o[0], o[1]], count);
        };
        let [y, slope] = outputs(native_reusing::<BT>("gelu_train", vec![x], results, 0, &[(1, 0)], run));
        (y, slope)
    }

    fn fused_mul(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        if x.shape != y.shape || !takes(&[&x, &y]) {
            return composed::mul::<Self>(x, y);
        }
        let (count, results) = (x.shape.num_elements(), vec![(x.shape.clone(), DType::F32)]);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            pass(queue, "multiply_f32", [i[0], i[1], o[0]], count);
        };
        let [product] = outputs(native_reusing::<BT>("multiply", vec![x, y], results, 0, &[(0, 0)], run));
        product
    }
}
