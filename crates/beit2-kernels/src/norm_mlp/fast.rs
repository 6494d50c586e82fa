//! The branch on the CPU, block of rows by block of rows.

use std::ops::Range;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::NormMlpTensors;
use crate::flex::{owned, stored, tensor, view};
use crate::gelu::fast::{in_place, with_slope};
use crate::interrupt::Rest;
use crate::layer_norm::fast::{gradients, normalize};
use crate::matmul::{MatmulOptions, Operand, matmul_of};
use crate::matrix::{Accumulate, Matrix};
use crate::memory::{Buffer, Stored, Values};
use crate::packed::{self, COLS, FEW, PackedRhs, ROWS};
use crate::precision::Precision;
use crate::rows::Rows;
use crate::slices::add_rows;

type Parameters = NormMlpTensors<burn::backend::Flex>;

/// Most hidden columns of a block at a time: what 96 rows of them take stays in the second-level cache with the rows
/// themselves and their results.
const COLUMNS: usize = 512;

/// Blocks that a batch is cut into at least, if it has the rows: enough to share between threads, and a function of the
/// number of rows alone, because parameters' gradients are summed block by block.
const BLOCKS: usize = 32;

/// Rows below which the branch is better computed matmul by matmul: each block reads all weights.
pub(crate) const FEWEST: usize = 16 * ROWS;

/// The same for packed weights, whose matmuls cut few rows by columns only: each thread reads its part of a weight once.
pub(crate) const FEWEST_PACKED: usize = FEW + 1;

/// Most rows of a block, in tiles.
const TALL: usize = 8;

/// How rows are cut into blocks.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    blocks: usize,
    /// Rows of every block but the last; `None`: all are as equal as tiles allow.
    size: Option<usize>,
}

impl Cut {
    /// For sums over the rows of each block: a function of the number of rows alone. Blocks of one size, where one more keeps
    /// a thread waiting, cost a thirtieth of the time; so rows that make 3 to 7 tiles a block are cut into equal parts. With
    /// more rows it costs less. Fewer are cut as they always were: the sums of recorded runs (the quickstart's) depend on it.
    fn of(rows: usize) -> Self {
        let tiles = rows.div_ceil(ROWS);
        let size = (tiles / BLOCKS).clamp(1, TALL);
        match size {
            1 | 2 | TALL => Self { rows, blocks: tiles.div_ceil(size), size: Some(size * ROWS) },
            _ => Self { rows, blocks: BLOCKS, size: None },
        }
    }

    /// Where nothing is summed over rows: as few blocks as there may be, because each reads all weights.
    fn for_threads(rows: usize) -> Self {
        let tiles = rows.div_ceil(ROWS);
        let blocks = tiles.div_ceil(TALL).next_multiple_of(rayon::current_num_threads()).min(tiles);
        Self { rows, blocks, size: None }
    }

    fn block(self, at: usize) -> Range<usize> {
        let from = |at: usize| match self.size {
            Some(size) => at * size,
            None => at * self.rows.div_ceil(ROWS) / self.blocks * ROWS,
        };
        from(at)..from(at + 1).min(self.rows)
    }
}

/// Hidden columns of a block at a time, so that `second`, whose inner axis they are, adds the products of whole blocks.
fn columns_at_a_time(second: &PackedRhs) -> usize {
    let (summed, hidden) = (second.summed(), second.dims()[0]);
    let columns = COLUMNS / summed * summed;
    if columns > 0 && columns.is_multiple_of(COLS) { columns.min(hidden) } else { hidden }
}

/// The parameters in order, and the sizes D and H.
struct Weights {
    tensors: [FlexTensor; 6],
    width: usize,
    hidden: usize,
}

impl Weights {
    fn new(p: Parameters) -> Self {
        let tensors = p.tensors.map(owned);
        let shape = tensors[2].layout().shape();
        Self { width: shape[1], hidden: shape[0], tensors }
    }

    fn get(&self, i: usize) -> &[f32] {
        view(&self.tensors[i])
    }

    fn w1(&self) -> Matrix<'_> {
        Matrix::new(self.get(2), self.hidden, self.width, self.width)
    }

    fn w2(&self) -> Matrix<'_> {
        Matrix::new(self.get(4), self.width, self.hidden, self.hidden)
    }
}

/// Packs a weight.
fn pack(w: Matrix<'_>, precision: Precision) -> PackedRhs {
    PackedRhs::new(w, precision, true)
}

/// What training keeps: normalised rows, mean and inverse deviation of each, activations, derivatives.
type Saved = [FlexTensor; 5];

/// → result, and what a backward pass needs.
pub(crate) fn forward_train(x: FlexTensor, p: Parameters) -> (FlexTensor, Saved) {
    let precision = offered(&p);
    match precision {
        Precision::F32 => forward::<f32>(x, p, precision, true),
        Precision::Bf16 => forward::<burn::tensor::bf16>(x, p, precision, true),
    }
}

/// The result alone.
pub(crate) fn forward_only(x: FlexTensor, p: Parameters) -> FlexTensor {
    let precision = offered(&p);
    match precision {
        Precision::F32 => forward::<f32>(x, p, precision, false).0,
        Precision::Bf16 => forward::<burn::tensor::bf16>(x, p, precision, false).0,
    }
}

/// The result of packed weights; scale and shift of the norm, b₁, b₂.
pub(crate) fn forward_packed(
    x: FlexTensor,
    vectors: [FlexTensor; 4],
    eps: f64,
    weights: [&PackedRhs; 2],
) -> FlexTensor {
    let vectors = vectors.map(owned);
    let vectors = [0, 1, 2, 3].map(|i| view(&vectors[i]));
    match weights[0].precision() {
        Precision::F32 => blocks::<f32>(x, vectors, eps, weights, false).0,
        Precision::Bf16 => blocks::<burn::tensor::bf16>(x, vectors, eps, weights, false).0,
    }
}

/// The precision of matmuls here: bf16 becomes f32 on a CPU without bf16 matmuls.
fn offered(p: &Parameters) -> Precision {
    // Without matmuls of either, `fuses_norm_mlp` says no.
    packed::offered(p.precision).unwrap_or(Precision::F32)
}

fn forward<S: Stored + Operand>(
    x: FlexTensor,
    p: Parameters,
    precision: Precision,
    train: bool,
) -> (FlexTensor, Saved) {
    let eps = p.eps;
    let weights = Weights::new(p);
    let (first, second) =
        (pack(weights.w1().transposed(), precision), pack(weights.w2().transposed(), precision));
    let vectors = [0, 1, 3, 5].map(|i| weights.get(i));
    blocks::<S>(x, vectors, eps, [&first, &second], train)
}

fn blocks<S: Stored + Operand>(
    x: FlexTensor,
    [scale, shift, b1, b2]: [&[f32]; 4],
    eps: f64,
    [first, second]: [&PackedRhs; 2],
    train: bool,
) -> (FlexTensor, Saved) {
    let (x, eps) = (owned(x), eps as f32);
    let shape = x.layout().shape().clone();
    let [width, hidden] = first.dims();
    let n = shape.num_elements() / width.max(1);
    let kept = if train { n } else { 0 };
    let mut y = Buffer::any(n * width);
    let (mut mean, mut rstd) = (Buffer::any(n), Buffer::any(n));
    let mut normed = Values::<S>::any(kept * width);
    let (mut active, mut slope) = (Values::<S>::any(kept * hidden), Values::<S>::any(kept * hidden));
    {
        let out = Rows::new(&mut y, width);
        let stats = [Rows::new(&mut mean, 1), Rows::new(&mut rstd, 1)];
        let saved =
            [Rows::new(&mut normed, width), Rows::new(&mut active, hidden), Rows::new(&mut slope, hidden)];
        let cut = if train { Cut::of(n) } else { Cut::for_threads(n) };
        let at_a_time = columns_at_a_time(second);
        let x = view(&x);
        let rest = Rest::here();
        (0..cut.blocks).into_par_iter().for_each(|block| {
            if rest.is_left_out() {
                return;
            }
            let rows = cut.block(block);
            let count = rows.len();
            let mut own = Scratch::<S>::new(if train { 0 } else { count }, width, at_a_time);
            let mut wide = Buffer::any(count * width.max(2 * at_a_time));
            // SAFETY: rows of this block only, in results that live as long as this loop.
            unsafe {
                let (normed, active, slope) = match train {
                    true => (saved[0].some(&rows), saved[1].some(&rows), saved[2].some(&rows)),
                    false => (&mut *own.normed, &mut *own.active, &mut [][..]),
                };
                let (mean, rstd) = (stats[0].some(&rows), stats[1].some(&rows));
                let input = &x[rows.start * width..rows.end * width];
                let normal = &mut wide[..count * width];
                normalize(input, scale, shift, eps, normal, mean, rstd);
                S::save(normal, normed);
                let normed = Matrix::new(normed, count, width, width);
                let place = out.some(&rows).as_mut_ptr();
                let (sums, values) = wide.split_at_mut(count * at_a_time);
                for from in (0..hidden).step_by(at_a_time) {
                    let columns = from..(from + at_a_time).min(hidden);
                    let part = columns.len();
                    let (sums, values) = (&mut sums[..count * part], &mut values[..count * part]);
                    let start = Accumulate::Row(b1);
                    first.part(sums.as_mut_ptr(), part, start, normed, columns.clone(), 0..width);
                    let active = if train {
                        with_slope(sums, values);
                        save_columns(sums, slope, hidden, &columns);
                        save_columns(values, active, hidden, &columns);
                        Matrix::new(&active[from..], count, part, hidden)
                    } else {
                        in_place(sums);
                        S::save(sums, &mut active[..count * part]);
                        Matrix::new(&*active, count, part, part)
                    };
                    let start = if from == 0 { Accumulate::Row(b2) } else { Accumulate::There };
                    second.part(place, width, start, active, 0..width, columns);
                }
            }
        });
    }
    let saved = [
        stored(normed, [kept, width]),
        tensor(mean, [n]),
        tensor(rstd, [n]),
        stored(active, [kept, hidden]),
        stored(slope, [kept, hidden]),
    ];
    (tensor(y, shape), saved)
}

/// A block's normalised rows and activations where nothing is kept.
struct Scratch<S> {
    normed: Values<S>,
    active: Values<S>,
}

impl<S: Stored> Scratch<S> {
    fn new(rows: usize, width: usize, hidden: usize) -> Self {
        Self { normed: Values::any(rows * width), active: Values::any(rows * hidden) }
    }
}

/// Writes rows of a block's columns to their place in rows of `width`.
fn save_columns<S: Stored>(from: &[f32], to: &mut [S], width: usize, columns: &Range<usize>) {
    for (from, to) in from.chunks_exact(columns.len()).zip(to.chunks_exact_mut(width)) {
        S::save(from, &mut to[columns.clone()]);
    }
}

/// → gradients of x and of the parameters in their order.
pub(crate) fn backward(
    x: FlexTensor,
    p: Parameters,
    saved: Saved,
    grad: FlexTensor,
) -> (FlexTensor, [FlexTensor; 6]) {
    let precision = offered(&p);
    match precision {
        Precision::F32 => gradients_of::<f32>(x, p, precision, saved, grad),
        Precision::Bf16 => gradients_of::<burn::tensor::bf16>(x, p, precision, saved, grad),
    }
}

fn gradients_of<S: Stored + Operand>(
    x: FlexTensor,
    p: Parameters,
    precision: Precision,
    saved: Saved,
    grad: FlexTensor,
) -> (FlexTensor, [FlexTensor; 6]) {
    let (x, grad) = (owned(x), owned(grad));
    let shape = x.layout().shape().clone();
    let weights = Weights::new(p);
    let (width, hidden) = (weights.width, weights.hidden);
    let n = shape.num_elements() / width.max(1);
    let (first, second) = (pack(weights.w1(), precision), pack(weights.w2(), precision));
    let [normed, mean, rstd, active, slope] = &saved;
    let cut = Cut::of(n);
    let at_a_time = columns_at_a_time(&first);
    let mut dx = Buffer::any(n * width);
    let mut dhidden = Values::<S>::any(n * hidden);
    // Sums over a block's rows: of the norm's scale and shift, b₁, b₂.
    let sums = 3 * width + hidden;
    let mut partial = Buffer::zeros(cut.blocks * sums);
    {
        let (out, inner, partial) =
            (Rows::new(&mut dx, width), Rows::new(&mut dhidden, hidden), Rows::new(&mut partial, sums));
        let (x, grad) = (view(&x), view(&grad));
        let rest = Rest::here();
        (0..cut.blocks).into_par_iter().for_each(|block| {
            if rest.is_left_out() {
                return;
            }
            let rows = cut.block(block);
            let count = rows.len();
            let (mut wide, mut narrow) = (Buffer::any(count * at_a_time), Values::<S>::any(count * width));
            // SAFETY: rows of this block only, in results that live as long as this loop.
            unsafe {
                let (out, inner) = (out.some(&rows), inner.some(&rows));
                let sums = partial.some(&(block..block + 1));
                let (dscale, rest) = sums.split_at_mut(width);
                let (dshift, rest) = rest.split_at_mut(width);
                let (db2, db1) = rest.split_at_mut(width);
                let grad = &grad[rows.start * width..rows.end * width];
                add_rows(grad, db2);
                S::save(grad, &mut narrow);
                let grad = Matrix::new(&narrow, count, width, width);
                let slope = &slope.storage::<S>()[rows.start * hidden..rows.end * hidden];
                for from in (0..hidden).step_by(at_a_time) {
                    let columns = from..(from + at_a_time).min(hidden);
                    let part = columns.len();
                    let wide = &mut wide[..count * part];
                    let start = Accumulate::Zero;
                    second.part(wide.as_mut_ptr(), part, start, grad, columns.clone(), 0..width);
                    for (row, slope) in wide.chunks_exact_mut(part).zip(slope.chunks_exact(hidden)) {
                        S::scale(row, &slope[columns.clone()]);
                    }
                    add_rows(wide, &mut db1[columns.clone()]);
                    save_columns(wide, inner, hidden, &columns);
                    let inner = Matrix::new(&inner[from..], count, part, hidden);
                    let start = if from == 0 { Accumulate::Zero } else { Accumulate::There };
                    first.part(out.as_mut_ptr(), width, start, inner, 0..width, columns);
                }
                let input = &x[rows.start * width..rows.end * width];
                let (mean, rstd) = (&view(mean)[rows.clone()], &view(rstd)[rows.clone()]);
                gradients(input, weights.get(0), mean, rstd, out, dscale, dshift);
            }
        });
    }
    let mut total = Buffer::zeros(sums);
    add_rows(&partial, &mut total);
    let how = MatmulOptions::parallel(precision);
    let rows_of = |data, width| Matrix::new(data, n, width, width);
    let (normed, active) =
        (rows_of(normed.storage::<S>(), width), Matrix::new(active.storage::<S>(), n, hidden, hidden));
    let (mut dw1, mut dw2) = (Buffer::any(hidden * width), Buffer::any(width * hidden));
    matmul_of(&mut dw1, width, rows_of(&dhidden, hidden).transposed(), normed, how);
    let grad = Matrix::new(view(&grad), n, width, width).transposed();
    matmul_of(&mut dw2, hidden, grad, active, how);
    let vector = |range: Range<usize>| {
        let mut values = Buffer::any(range.len());
        values.copy_from_slice(&total[range.clone()]);
        tensor(values, [range.len()])
    };
    let vectors = [0..width, width..2 * width, 3 * width..sums, 2 * width..3 * width].map(vector);
    let [dscale, dshift, db1, db2] = vectors;
    let dw1 = tensor(dw1, [hidden, width]);
    let dw2 = tensor(dw2, [width, hidden]);
    (tensor(dx, shape), [dscale, dshift, dw1, db1, dw2, db2])
}

#[cfg(test)]
mod tests {
    use super::{BLOCKS, Cut, ROWS, TALL};

    #[test]
    fn blocks_hold_every_row_once_and_are_about_equal() {
        for rows in (0..5_000).step_by(7).chain([192, 197, 1576, 3071, 3072, 3073]) {
            for cut in [Cut::of(rows), Cut::for_threads(rows)] {
                let blocks: Vec<_> = (0..cut.blocks).map(|at| cut.block(at)).collect();
                let ends: Vec<usize> = blocks.iter().map(|block| block.end).collect();
                assert!(
                    blocks
                        .iter()
                        .map(|block| block.start)
                        .eq(std::iter::once(0).chain(ends).take(cut.blocks))
                );
                assert_eq!(blocks.last().map_or(0, |block| block.end), rows);
                let tall = (TALL + 1) * ROWS;
                assert!(
                    blocks.iter().all(|block| !block.is_empty() && block.len() <= tall),
                    "{rows}: {blocks:?}"
                );
            }
            assert!(rows < BLOCKS * ROWS || Cut::of(rows).blocks >= BLOCKS);
        }
    }
}
