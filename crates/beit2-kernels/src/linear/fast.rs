//! The fast CPU version of [`linear`](crate::linear): matmuls on views of the operands.

use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::OTHER_BACKEND;
use super::{Held, PackedWeight};
use crate::flex::{owned, row_groups, tensor, view};
use crate::matmul::{MatmulOptions, Packed, matmul};
use crate::matrix::{Accumulate, with_rows};
use crate::memory::Buffer;
use crate::precision::Precision;
use crate::slices::add_rows;

pub(crate) fn forward(
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    precision: Precision,
) -> FlexTensor {
    let out = weight.layout().shape()[0];
    let shape = with_last(&x, out);
    let mut y = Buffer::any(shape.num_elements());
    let bias = bias.map(owned);
    let start = bias.as_ref().map_or(Accumulate::Zero, |bias| Accumulate::Row(view(bias)));
    with_rows(&x, |x| {
        with_rows(&weight, |w| {
            matmul(&mut y, out, start, 1.0, x, w.transposed(), MatmulOptions::parallel(precision));
        });
    });
    tensor(y, shape)
}

pub(crate) fn pack(weight: &FlexTensor, precision: Precision) -> Option<PackedWeight> {
    with_rows(weight, |w| Packed::new(w.transposed(), precision)).map(PackedWeight::of_cpu)
}

pub(crate) fn forward_packed(x: FlexTensor, weight: &PackedWeight, bias: Option<FlexTensor>) -> FlexTensor {
    let shape = with_last(&x, weight.dims()[0]);
    let mut y = Buffer::any(shape.num_elements());
    let bias = bias.map(owned);
    let bias = bias.as_ref().map(view);
    let start = bias.map_or(Accumulate::Zero, Accumulate::Row);
    with_rows(&x, |x| match &weight.0 {
        Held::Cpu(weight) => weight.matmul(&mut y, start, x),
        Held::Int8(weight) => weight.matmul(&mut y, bias, x),
        #[cfg(feature = "cuda")]
        Held::Cuda(_) => panic!("{OTHER_BACKEND}"),
    });
    tensor(y, shape)
}

pub(crate) fn backward_input(weight: FlexTensor, grad: FlexTensor, precision: Precision) -> FlexTensor {
    let inner = weight.layout().shape()[1];
    let shape = with_last(&grad, inner);
    let mut dx = Buffer::any(shape.num_elements());
    with_rows(&grad, |grad| {
        with_rows(&weight, |w| {
            matmul(&mut dx, inner, Accumulate::Zero, 1.0, grad, w, MatmulOptions::parallel(precision));
        });
    });
    tensor(dx, shape)
}

pub(crate) fn backward_weight(x: FlexTensor, grad: FlexTensor, precision: Precision) -> FlexTensor {
    with_rows(&grad, |grad| {
        with_rows(&x, |x| {
            let (out, inner) = (grad.cols(), x.cols());
            let mut dw = Buffer::any(out * inner);
            matmul(
                &mut dw,
                inner,
                Accumulate::Zero,
                1.0,
                grad.transposed(),
                x,
                MatmulOptions::parallel(precision),
            );
            tensor(dw, [out, inner])
        })
    })
}

pub(crate) fn sum_rows(x: FlexTensor) -> FlexTensor {
    let width = x.layout().shape().last().copied().unwrap_or(1);
    let x = owned(x);
    let (rows, groups) = row_groups(view(&x).len() / width.max(1));
    let mut partial = Buffer::zeros(groups * width);
    partial
        .par_chunks_mut(width.max(1))
        .zip(view(&x).par_chunks((rows * width).max(1)))
        .for_each(|(partial, x)| add_rows(x, partial));
    let mut total = Buffer::zeros(width);
    add_rows(&partial, &mut total);
    tensor(total, [width])
}

fn with_last(x: &FlexTensor, width: usize) -> Shape {
    let mut shape = x.layout().shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = width;
    shape
}
