//! Mean of 1 − cosine over rows ([`CosineLossOps`]).

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::loss::means;
use super::rows::{Cuda, Tensor, dims, outputs, takes};
use super::{Arg, Ptr, Queue, native, native_reusing};
use crate::cosine_loss::{CosineLossOps, composed};

/// Rows of a block.
const ROWS: usize = 8;

/// Loss and what the backward pass reads.
fn forward<BT: BoolElement>(a: Tensor, b: Tensor) -> [Tensor; 2] {
    let [rows, width] = dims(&a);
    let results = vec![(Shape::new([1]), DType::F32), (Shape::new([rows, 3]), DType::F32)];
    outputs(native::<BT>("cosine_loss", vec![a, b], results, rows * 4, move |queue, i, o, scratch| {
        let mut args = [i[0], i[1], scratch, o[1]].map(Arg::Ptr).to_vec();
        args.extend([Arg::U64(rows as u64), Arg::U32(width as u32)]);
        let grid = [rows.div_ceil(ROWS) as u32, 1, 1];
        queue.launch("cosine_loss_forward_f32", grid, [256, 1, 1], 0, &args);
        means(queue, [scratch], [o[0]], rows, rows);
    }))
}

impl<BT: BoolElement> CosineLossOps for Cuda<BT> {
    fn fuses_cosine_loss(a: &FloatTensor<Self>, b: &FloatTensor<Self>) -> bool {
        takes(&[a, b])
    }

    fn fused_cosine_loss(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        if !takes(&[&a, &b]) {
            return composed::cosine_loss::<Self>(a, b);
        }
        let [loss, _] = forward::<BT>(a, b);
        loss
    }

    fn fused_cosine_loss_train(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [loss, saved] = forward::<BT>(a, b);
        (loss, saved)
    }

    fn fused_cosine_loss_backward(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ([rows, width], results) = (dims(&a), vec![(a.shape.clone(), DType::F32)]);
        let inputs = vec![a, b, saved, upstream];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            let mut args = [i[0], i[1], i[2], i[3], o[0]].map(Arg::Ptr).to_vec();
            let share = Arg::F32((1.0 / rows as f64) as f32);
            args.extend([Arg::U64(rows as u64), Arg::U32(width as u32), share]);
            let grid = [rows.div_ceil(ROWS) as u32, 1, 1];
            queue.launch("cosine_loss_backward_f32", grid, [256, 1, 1], 0, &args);
        };
        let name = "cosine_loss_backward";
        let [grad] = outputs(native_reusing::<BT>(name, inputs, results, 0, &[(0, 0)], run));
        grad
    }
}
