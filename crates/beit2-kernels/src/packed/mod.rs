//! Matrix products in bf16 with f32 sums, on CPUs with AVX-512-BF16.
//!
//! Both operands are copied into panels that tiles read in order; rounding to bf16 and turning of
//! transposed operands happen in that copy. An element of the result is summed over the inner axis in
//! blocks that depend on its length alone, never split between threads, so results do not depend on
//! threads. The instructions take subnormal numbers for 0.

mod pack;
#[cfg(test)]
mod tests;
mod tile;

use rayon::prelude::*;

use crate::matrix::{Matrix, Start};
use crate::memory::Buffer;
use crate::simd::{Level, level};
pub(crate) use pack::Element;
use pack::{PER_WORD, Panels, Side, pack};
use tile::{Block, COLS, ROWS, compute};

/// Row panels of a task: their words and results stay in the second-level cache.
const PANELS: usize = 8;

/// Column panels that one task packs: rows of a transposed operand are read in runs as long as they are wide.
const GROUP: usize = 4;

/// Most words of a block: both panels of a tile stay close to the first-level cache.
const WORDS: usize = 256;

/// Whether this CPU has the instructions.
pub(crate) fn is_available() -> bool {
    level() >= Level::Avx512Bf16
}

/// A result that tasks write different parts of.
#[derive(Clone, Copy)]
struct Target(*mut f32);

// SAFETY: tasks write to tiles of their own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    /// The place lies in the result's allocation.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// `dst = start + factor·a·b`, with rows of `dst` `row` apart, on all threads if `parallel`. The inner axis
/// must not be empty.
///
/// # Safety
/// All elements of the destination, `a.rows()` rows of `b.cols()` elements `row` apart, lie in one
/// allocation, and nobody else touches them during the call. [`is_available`] said yes.
pub(crate) unsafe fn product<A: Element, B: Element>(
    dst: *mut f32,
    row: usize,
    start: Start<'_>,
    factor: f32,
    a: Matrix<'_, A>,
    b: Matrix<'_, B>,
    parallel: bool,
) {
    debug_assert!(a.cols() > 0);
    let (rows, depth, cols) = (a.rows(), a.cols(), b.cols());
    let words = depth.div_ceil(PER_WORD);
    // Blocks of the same size, so that none is a short rest.
    let block = words.div_ceil(words.div_ceil(WORDS));
    let (left, right) = (rows_of(a), columns_of(b));
    let (row_panels, col_panels) = (rows.div_ceil(ROWS), cols.div_ceil(COLS));

    let panels = Panels::new(COLS, words);
    let mut packed = Buffer::any(col_panels * panels.stride);
    let fill = |(j, part): (usize, &mut [f32])| {
        // SAFETY: the caller says that the CPU has the instructions.
        unsafe { pack(right.some(j * GROUP * COLS, GROUP * COLS), panels, 0..words, part) }
    };
    if parallel {
        packed.par_chunks_mut(GROUP * panels.stride).enumerate().for_each(fill);
    } else {
        packed.chunks_mut(GROUP * panels.stride).enumerate().for_each(fill);
    }
    let packed: &[f32] = &packed;

    // A grid of tasks; only the time depends on how it is cut.
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let row_tasks = row_panels.div_ceil(PANELS).next_multiple_of(threads).min(row_panels);
    let col_tasks = match row_tasks < 2 * threads && threads > 1 {
        true => (2 * threads).div_ceil(row_tasks).min(col_panels),
        false => 1,
    };
    let target = Target(dst);
    let task = |task: usize| {
        let (i, j) = (task / col_tasks, task % col_tasks);
        let part = |at: usize, parts: usize, panels: usize, size: usize, end: usize| {
            (at * panels / parts * size)..((at + 1) * panels / parts * size).min(end)
        };
        let (rows, cols) =
            (part(i, row_tasks, row_panels, ROWS, rows), part(j, col_tasks, col_panels, COLS, cols));
        let height = rows.len().div_ceil(ROWS);
        let side = left.some(rows.start, rows.len());
        let mut lefts = Buffer::any(height * Panels::new(ROWS, block).stride);
        for from in (0..words).step_by(block) {
            let n = block.min(words - from);
            let places = Panels::new(ROWS, n);
            // SAFETY: the caller says that the CPU has the instructions.
            unsafe { pack(side, places, from..from + n, &mut lefts) }
            let start = match (from, start) {
                (1.., _) => Start::There,
                (0, Start::Row(values)) => Start::Row(&values[cols.clone()]),
                (0, start) => start,
            };
            // SAFETY: the block lies in the destination, and no other task has it.
            unsafe {
                let dst = target.at(rows.start * row + cols.start);
                let b = &packed[cols.start / COLS * panels.stride + from * COLS..];
                let (a, a_stride, b_stride) = (&*lefts, places.stride, panels.stride);
                let (rows, cols) = (rows.len(), cols.len());
                compute(&Block { a, b, a_stride, b_stride, words: n, rows, cols, dst, row, start, factor });
            }
        }
    };
    if parallel {
        (0..row_tasks * col_tasks).into_par_iter().for_each(task);
    } else {
        (0..row_tasks * col_tasks).for_each(task);
    }
}

fn rows_of<E: Element>(a: Matrix<'_, E>) -> Side<'_, E> {
    let (data, lane, depth) = a.layout();
    Side { data, lane, depth, lanes: a.rows(), len: a.cols() }
}

fn columns_of<E: Element>(b: Matrix<'_, E>) -> Side<'_, E> {
    rows_of(b.transposed())
}
