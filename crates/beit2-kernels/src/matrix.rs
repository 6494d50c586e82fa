//! Views of memory as matrices, and what a matmul adds to.
//!
//! Views are checked once against the slices they read, so the operations above need no unsafe code.

use burn_flex::FlexTensor;

use crate::flex::view;

/// A matrix inside a slice: element `(i, j)` at `i·row + j·col`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, E = f32> {
    pub(crate) data: &'a [E],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a, E> Matrix<'a, E> {
    /// Rows of `cols` elements, `row` apart.
    pub(crate) fn new(data: &'a [E], rows: usize, cols: usize, row: usize) -> Self {
        Self::strided(data, rows, cols, row, 1)
    }

    pub(crate) fn strided(data: &'a [E], rows: usize, cols: usize, row: usize, col: usize) -> Self {
        assert!(span(rows, cols, row, col) <= data.len());
        Self { data, rows, cols, row, col }
    }

    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row: self.col, col: self.row, ..self }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows `from..from + n`.
    pub(crate) fn some_rows(self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.rows);
        let data = &self.data[(from * self.row).min(self.data.len())..];
        Self::strided(data, n, self.cols, self.row, self.col)
    }

    /// Row `i` of a matrix whose rows are contiguous.
    pub(crate) fn row(&self, i: usize) -> &'a [E] {
        debug_assert_eq!(self.col, 1);
        &self.data[i * self.row..][..self.cols]
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The slice, and the distances of two neighbours in a column and in a row.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn layout(&self) -> (&'a [E], usize, usize) {
        (self.data, self.row, self.col)
    }
}

/// Elements from the first to the last of a matrix.
pub(crate) fn span(rows: usize, cols: usize, row: usize, col: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    (rows - 1) * row + (cols - 1) * col + 1
}

/// The matrix `[.., D]` → `[n, D]` of a tensor, if its memory allows such a view.
fn try_rows(x: &FlexTensor) -> Option<Matrix<'_>> {
    let (shape, strides) = (x.layout().shape(), x.layout().strides());
    // An expanded axis has stride 0; nothing here needs one, so it is copied.
    let axes = || shape.iter().zip(strides).filter(|(n, _)| **n != 1);
    if strides.iter().any(|&s| s < 0) || axes().any(|(_, &s)| s == 0) {
        return None;
    }
    let (&cols, leading) = shape.split_last()?;
    let col = strides[leading.len()] as usize;
    let mut row = 0;
    let mut next = 0; // stride the axis to the left must have
    for (&n, &stride) in leading.iter().zip(strides).rev() {
        let stride = stride as usize;
        if n == 1 {
            continue;
        }
        if row == 0 {
            row = stride;
        } else if stride != next {
            return None;
        }
        next = stride * n;
    }
    let rows = leading.iter().product();
    let col = if cols == 1 { 1 } else { col };
    let row = if row == 0 { cols.max(1) } else { row };
    let data = &x.storage::<f32>()[x.layout().start_offset()..];
    Some(Matrix::strided(data, rows, cols, row, col))
}

/// Runs `f` on the matrix `[.., D]` → `[n, D]` of a tensor, copied first if it has to be.
pub(crate) fn with_rows<R>(x: &FlexTensor, f: impl FnOnce(Matrix<'_>) -> R) -> R {
    if let Some(matrix) = try_rows(x) {
        return f(matrix);
    }
    let copy = x.to_contiguous();
    let cols = copy.layout().shape().last().copied().unwrap_or(1);
    let rows = copy.layout().num_elements() / cols.max(1);
    f(Matrix::new(view(&copy), rows, cols, cols))
}

/// What the sums of a matmul start from.
#[derive(Clone, Copy)]
pub(crate) enum Accumulate<'a> {
    /// Zero: the destination is overwritten.
    Zero,
    /// The same row everywhere, one value for each column: the destination is overwritten.
    Row(&'a [f32]),
    /// What the destination holds.
    There,
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 37 % 19) as f32 - 9.0).collect()
    }

    #[test]
    fn views_of_tensors() {
        let x = FlexTensor::from_data(TensorData::new(numbers(2 * 3 * 8), [2, 3, 8]));
        let narrow = x.narrow(2, 4, 4);
        let seen = try_rows(&narrow).map(|m| (m.rows, m.cols, m.row, m.col, m.data[0]));
        assert_eq!(seen, Some((6, 4, 8, 1, numbers(5)[4])));
        let fewer = x.narrow(1, 0, 2);
        assert!(try_rows(&fewer).is_none());
        with_rows(&fewer, |m| assert_eq!((m.rows, m.cols, m.row), (4, 8, 8)));
        let transposed = x.reshape([6, 8].into()).transpose(0, 1);
        let seen = try_rows(&transposed).map(|m| (m.rows, m.cols, m.row, m.col));
        assert_eq!(seen, Some((8, 6, 1, 8)));
    }
}
