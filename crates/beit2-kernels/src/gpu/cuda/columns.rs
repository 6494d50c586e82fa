//! Sums over the rows of a matrix, in two stages.
//!
//! A first stage leaves rows of partial sums: [`partials`] here, and passes that sum columns on the way (layer norm, GELU,
//! residual branches). [`finish`] adds those up, for many sums in one launch: the backward pass of a run of Transformer
//! blocks needs it once. Every order is fixed, so results are the same bits in every run on one card.

use super::{Arg, Element, Ptr, Queue};

/// Processors that scratch memory is reckoned for; a larger card leaves some idle.
pub(super) const MOST_PROCESSORS: u32 = 256;
/// Columns of a block of a first stage, and rows that its warps read at a time.
const COLUMNS: usize = 256;
const WARPS: usize = 8;
/// Blocks of a first stage on one processor: by registers of the passes, 64 a thread at most.
const BLOCKS: u32 = 4;
/// Sums of one launch of the second stage: `ColumnSums` in `columns.cu`.
const SUMS: usize = 96;

/// A sum whose first stage was put on the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partial {
    /// `[rows, width]` in f32, `pitch` from row to row.
    pub at: Ptr,
    pub rows: u32,
    pub width: u32,
    pub pitch: u32,
    /// `[width]` in f32.
    pub to: Ptr,
}

/// Whether kernels over rows of this width take it: whole accesses of 16 bytes, at most 4,096 columns.
pub(crate) fn fits(width: usize) -> bool {
    width > 0 && width.is_multiple_of(8) && width <= 4096
}

/// Processors of the device, as far as scratch memory is reckoned for them.
pub(super) fn processors(queue: &Queue<'_>) -> u32 {
    queue.processors().clamp(1, MOST_PROCESSORS)
}

/// The grid of a pass that sums columns: blocks over the columns, and over the rows.
pub(super) fn grid(processors: u32, rows: usize, width: usize) -> [u32; 3] {
    let across = width.div_ceil(COLUMNS) as u32;
    let most = (processors * BLOCKS).div_ceil(across) as usize;
    [across, rows.div_ceil(WARPS).clamp(1, most) as u32, 1]
}

/// Scratch memory of [`partials`] and [`sums`], and of other passes over [`grid`], bytes.
pub(crate) fn scratch(rows: usize, width: usize) -> usize {
    grid(MOST_PROCESSORS, rows, width)[1] as usize * width * 4
}

/// The first stage of `to[j] = Σᵢ x[i, j]` for `x [rows, width]` with `pitch` elements from row to row. Width and pitch are
/// multiples of 8.
///
/// Moves the matrix once.
pub(crate) fn partials(
    queue: &mut Queue<'_>,
    (x, element): (Ptr, Element),
    [rows, width, pitch]: [usize; 3],
    to: Ptr,
    scratch: Ptr,
) -> Partial {
    let grid = grid(processors(queue), rows, width);
    let kernel = match element {
        Element::F32 => "columns_f32",
        Element::Bf16 => "columns_bf16",
    };
    let args = [
        Arg::Ptr(x),
        Arg::Ptr(scratch),
        Arg::U64(rows as u64),
        Arg::U32(width as u32),
        Arg::U32(pitch as u32),
    ];
    queue.launch(kernel, grid, [256, 1, 1], 0, &args);
    Partial { at: scratch, rows: grid[1], width: width as u32, pitch: width as u32, to }
}

/// Columns of a block of `columns_any_f32`, and rows that it has at least.
const ANY_COLUMNS: usize = 32;
const ANY_ROWS: usize = 64;

/// The grid of [`sums_of_any`].
fn grid_of_any(processors: u32, rows: usize, width: usize) -> [u32; 3] {
    let across = width.div_ceil(ANY_COLUMNS) as u32;
    let most = (processors * BLOCKS).div_ceil(across) as usize;
    [across, rows.div_ceil(ANY_ROWS).clamp(1, most) as u32, 1]
}

/// Scratch memory of [`sums_of_any`], bytes.
pub(crate) fn scratch_of_any(rows: usize, width: usize) -> usize {
    grid_of_any(MOST_PROCESSORS, rows, width)[1] as usize * width * 4
}

/// `to[j] = Σᵢ x[i, j]` for `x [rows, width]` in f32 of any width, such as a number of classes.
pub(crate) fn sums_of_any(queue: &mut Queue<'_>, x: Ptr, [rows, width]: [usize; 2], to: Ptr, scratch: Ptr) {
    let grid = grid_of_any(processors(queue), rows, width);
    let args = [Arg::Ptr(x), Arg::Ptr(scratch), Arg::U64(rows as u64), Arg::U32(width as u32)];
    queue.launch("columns_any_f32", grid, [256, 1, 1], 0, &args);
    let width = width as u32;
    finish(queue, &[Partial { at: scratch, rows: grid[1], width, pitch: width, to }]);
}

/// The second stage of all of `sums`, in as few launches as they fit.
pub(crate) fn finish(queue: &mut Queue<'_>, sums: &[Partial]) {
    for sums in sums.chunks(SUMS) {
        let mut table = Vec::with_capacity(8 + SUMS * 32);
        table.extend((sums.len() as u64).to_le_bytes());
        let mut blocks = 0;
        for sum in sums {
            table.extend(sum.at.0.to_le_bytes());
            table.extend(sum.to.0.to_le_bytes());
            for number in [sum.rows, sum.width, sum.pitch, blocks] {
                table.extend(number.to_le_bytes());
            }
            blocks += sum.width.div_ceil(32);
        }
        table.resize(8 + SUMS * 32, 0);
        queue.launch("columns_finish", [blocks, 1, 1], [512, 1, 1], 0, &[Arg::Bytes(table)]);
    }
}

/// Both stages of one sum.
pub(crate) fn sums(queue: &mut Queue<'_>, x: (Ptr, Element), dims: [usize; 3], to: Ptr, scratch: Ptr) {
    let partial = partials(queue, x, dims, to, scratch);
    finish(queue, &[partial]);
}
