//! The quantizer around its codebook ([`QuantizeOps`]): a warp for each row or code.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::codes;
use super::loss::means;
use super::rows::{Cuda, Tensor, dims, outputs, takes};
use super::{Arg, Ptr, Queue, native, native_reusing};
use crate::quantize::{QuantizeOps, QuantizedRows, composed};

/// Rows of a block.
const ROWS: usize = 8;

/// A launch over `rows` of `width`, with their numbers after the pointers and `last` after them.
fn launch(
    queue: &mut Queue<'_>,
    kernel: &'static str,
    pointers: &[Ptr],
    [rows, width]: [usize; 2],
    last: &[f64],
) {
    let mut args: Vec<Arg> = pointers.iter().copied().map(Arg::Ptr).collect();
    args.extend([Arg::U64(rows as u64), Arg::U32(width as u32)]);
    args.extend(last.iter().map(|&x| Arg::F32(x as f32)));
    queue.launch(kernel, [rows.div_ceil(ROWS) as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// Unit rows and, if asked for, norms.
fn unit_rows<BT: BoolElement>(x: Tensor, norms: bool) -> std::vec::IntoIter<Tensor> {
    let dims = dims(&x);
    let mut results = vec![(x.shape.clone(), DType::F32)];
    results.extend(norms.then(|| (Shape::new([dims[0]]), DType::F32)));
    native_reusing::<BT>("unit_rows", vec![x], results, 0, &[(0, 0)], move |queue, i, o, _| {
        let norms = o.get(1).copied().unwrap_or(Ptr(0));
        launch(queue, "unit_rows_forward", &[i[0], o[0], norms], dims, &[]);
    })
}

impl<BT: BoolElement> QuantizeOps for Cuda<BT> {
    fn fuses_quantize(tensors: &[&FloatTensor<Self>]) -> bool {
        takes(tensors)
    }

    fn fused_unit_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if !takes(&[&x]) {
            return composed::unit_rows::<Self>(x);
        }
        let [y] = outputs(unit_rows::<BT>(x, false));
        y
    }

    fn fused_unit_rows_train(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [y, norms] = outputs(unit_rows::<BT>(x, true));
        (y, norms)
    }

    fn fused_unit_rows_backward(
        y: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (dims, results) = (dims(&y), vec![(y.shape.clone(), DType::F32)]);
        let inputs = vec![y, norms, grad];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            launch(queue, "unit_rows_backward", &[i[0], i[1], i[2], o[0]], dims, &[]);
        };
        let [dx] = outputs(native_reusing::<BT>("unit_rows_backward", inputs, results, 0, &[(0, 2)], run));
        dx
    }

    fn fused_quantize(
        z: FloatTensor<Self>,
        codebook: FloatTensor<Self>,
        commitment: f64,
    ) -> QuantizedRows<Self> {
        if !takes(&[&z, &codebook]) {
            return composed::quantize::<Self>(z, codebook, commitment);
        }
        let ([rows, width], codes) = (dims(&z), codebook.shape[0]);
        let results = vec![
            (Shape::new([rows]), DType::I32),
            (z.shape.clone(), DType::F32),
            (Shape::new([1]), DType::F32),
        ];
        let (inputs, scratch) = (vec![z, codebook], codes::nearest_scratch(rows, codes) + rows * 4);
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], scratch: Ptr| {
            let (of_parts, parts) =
                codes::nearest_of_parts(queue, [i[0], i[1]], [rows, codes, width], scratch);
            let losses = Ptr(scratch.0 + codes::nearest_scratch(rows, codes) as u64);
            let mut args = [i[0], i[1], of_parts[0], of_parts[1], o[0], o[1], losses].map(Arg::Ptr).to_vec();
            args.extend([Arg::U64(rows as u64), Arg::U32(width as u32), Arg::U32(parts as u32)]);
            args.push(Arg::F32((commitment / width as f64) as f32));
            let grid = [rows.div_ceil(ROWS) as u32, 1, 1];
            queue.launch("quantize_rows", grid, [256, 1, 1], 0, &args);
            means(queue, [losses], [o[2]], rows, rows);
        };
        let [ids, codes, loss] = outputs(native::<BT>("quantize", inputs, results, scratch, run));
        QuantizedRows { ids, codes, loss }
    }

    fn fused_commitment_backward(
        z: FloatTensor<Self>,
        codebook: FloatTensor<Self>,
        ids: IntTensor<Self>,
        commitment: f64,
        upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (dims, results) = (dims(&z), vec![(z.shape.clone(), DType::F32)]);
        let share = 2.0 * commitment / (dims[0] * dims[1]) as f64;
        let inputs = vec![z, codebook, ids, upstream];
        let [dz] = outputs(native::<BT>("commitment_backward", inputs, results, 0, move |queue, i, o, _| {
            launch(queue, "commitment_backward", &[i[0], i[1], i[2], i[3], o[0]], dims, &[share]);
        }));
        dz
    }

    fn fused_update_codes(
        codes: FloatTensor<Self>,
        usage: FloatTensor<Self>,
        bins: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        decay: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if !takes(&[&codes, &usage, &bins, &sums]) {
            return composed::update_codes::<Self>(codes, usage, bins, sums, decay);
        }
        let dims = dims(&codes);
        let results = vec![(codes.shape.clone(), DType::F32), (usage.shape.clone(), DType::F32)];
        let inputs = vec![codes, usage, bins, sums];
        let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
            let pointers = [i[0], i[1], i[2], i[3], o[0], o[1]];
            launch(queue, "update_codes", &pointers, dims, &[decay, 1.0 - decay]);
        };
        let reuse = [(0, 0), (1, 1)];
        let [codes, usage] = outputs(native_reusing::<BT>("update_codes", inputs, results, 0, &reuse, run));
        (codes, usage)
    }
}
