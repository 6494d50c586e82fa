//! The codebook: the nearest code of each row, and what each code stands for.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;

use super::rows::{Cuda, Tensor, dims, outputs, takes};
use super::{Arg, Element, Ptr, Queue, is_native, native};
use crate::nearest_code::{NearestCodeOps, composed};

/// Rows and codes of a tile of `nearest_code_part`.
const TILE: usize = 128;
/// Blocks that keep a card busy to the end: parts of the codebook are searched side by side where rows are few.
const BLOCKS: usize = 1024;

/// Codes of one part, and parts.
fn parts(rows: usize, codes: usize) -> (usize, usize) {
    let wanted = (BLOCKS / rows.div_ceil(TILE)).clamp(1, 16);
    let part = codes.div_ceil(wanted).next_multiple_of(TILE);
    (part, codes.div_ceil(part))
}

/// Scratch memory of [`nearest`], bytes.
pub(crate) fn nearest_scratch(rows: usize, codes: usize) -> usize {
    parts(rows, codes).1 * rows * 8
}

/// The code with the largest product with each row, of equals the first: `z [rows, width]`, `codebook [codes, width]` in
/// f32 → `ids [rows]` in i32. Moves both in for each tile of 128 of the other; similarities stay in registers.
pub(crate) fn nearest(
    queue: &mut Queue<'_>,
    [z, codebook, ids]: [Ptr; 3],
    [rows, codes, width]: [usize; 3],
    scratch: Ptr,
) {
    let ([best, found], parts) = nearest_of_parts(queue, [z, codebook], [rows, codes, width], scratch);
    let size = |n: usize| Arg::U32(n as u32);
    let args = [Arg::Ptr(best), Arg::Ptr(found), Arg::Ptr(ids), size(rows), size(parts)];
    queue.launch("nearest_code_finish", [rows.div_ceil(256) as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// The first half of [`nearest`]: the largest product with each row and its code, `[parts, rows]` each in scratch memory, for each
/// part of the codebook in order; and the number of parts.
pub(super) fn nearest_of_parts(
    queue: &mut Queue<'_>,
    [z, codebook]: [Ptr; 2],
    [rows, codes, width]: [usize; 3],
    scratch: Ptr,
) -> ([Ptr; 2], usize) {
    let (part, parts) = parts(rows, codes);
    let found = scratch.offset(parts * rows, Element::F32);
    let args = [z, codebook, scratch, found].map(Arg::Ptr);
    let sizes = [rows, codes, width, part].map(|n| Arg::U32(n as u32));
    let args: Vec<Arg> = args.into_iter().chain(sizes).collect();
    let grid = [rows.div_ceil(TILE) as u32, parts as u32, 1];
    queue.launch("nearest_code_part", grid, [256, 1, 1], 0, &args);
    ([scratch, found], parts)
}

/// How many of `ids [count]` name each code and the sums of their rows of `z [count, width]`, in the order of rows:
/// `bins [codes]`, `sums [codes, width]`. With a width of 0 only the bins.
fn statistics(queue: &mut Queue<'_>, [z, ids, bins, sums]: [Ptr; 4], [count, codes, width]: [usize; 3]) {
    let args = [z, ids, bins, sums].map(Arg::Ptr);
    let sizes = [count, codes, width].map(|n| Arg::U32(n as u32));
    let args: Vec<Arg> = args.into_iter().chain(sizes).collect();
    queue.launch("sum_rows_by_id", [codes.div_ceil(64) as u32, 1, 1], [256, 1, 1], 0, &args);
}

/// Whether the kernels take these ids.
fn takes_ids(ids: &Tensor, codes: usize) -> bool {
    ids.dtype == DType::I32 && codes > 0 && is_native(ids.client.device())
}

impl<BT: BoolElement> NearestCodeOps for Cuda<BT> {
    fn fused_nearest_code(z: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        if !takes(&[&z, &codebook]) {
            return composed::nearest_code::<Self>(z, codebook);
        }
        let ([rows, width], codes) = (dims(&z), codebook.shape[0]);
        let (results, scratch) = (vec![(Shape::new([rows]), DType::I32)], nearest_scratch(rows, codes));
        let inputs = vec![z, codebook];
        let [ids] =
            outputs(native::<BT>("nearest_code", inputs, results, scratch, move |queue, i, o, scratch| {
                nearest(queue, [i[0], i[1], o[0]], [rows, codes, width], scratch);
            }));
        ids
    }

    fn fused_code_counts(ids: IntTensor<Self>, codes: usize, dtype: DType) -> FloatTensor<Self> {
        if dtype != DType::F32 || !takes_ids(&ids, codes) {
            return composed::code_counts::<Self>(ids, codes, dtype);
        }
        let (count, results) = (ids.shape.num_elements(), vec![(Shape::new([codes]), DType::F32)]);
        let [bins] = outputs(native::<BT>("code_counts", vec![ids], results, 0, move |queue, i, o, _| {
            statistics(queue, [Ptr(0), i[0], o[0], Ptr(0)], [count, codes, 0]);
        }));
        bins
    }

    fn fused_code_statistics(
        ids: IntTensor<Self>,
        z: FloatTensor<Self>,
        codes: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if !takes_ids(&ids, codes) || !takes(&[&z]) {
            return composed::code_statistics::<Self>(ids, z, codes);
        }
        let [count, width] = dims(&z);
        let results = vec![(Shape::new([codes]), DType::F32), (Shape::new([codes, width]), DType::F32)];
        let inputs = vec![ids, z];
        let [bins, sums] =
            outputs(native::<BT>("code_statistics", inputs, results, 0, move |queue, i, o, _| {
                statistics(queue, [i[1], i[0], o[0], o[1]], [count, codes, width]);
            }));
        (bins, sums)
    }
}
