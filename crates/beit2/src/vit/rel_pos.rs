//! Relative position bias over a patch grid with a CLS token (docs/method.md §2.1).

use beit2_kernels::{self as kernels, Backend, PositionGrid};
use beit2_weights::resize::{TableResize, resize_bias_table};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};

use crate::error::{Error, config_error};

/// Most tokens of which a frozen model keeps the biases of all pairs: they take up to 4 MB in a block of 16 heads.
const MOST_SPREAD: usize = 16 * 16 + 1;

/// Rows of a bias table for a `rows × cols` grid: every offset, and three for CLS.
pub fn relative_table_len(rows: usize, cols: usize) -> usize {
    (2 * rows - 1) * (2 * cols - 1) + 3
}

/// For every (query, key) pair the table row of its bias, `[(N+1)·(N+1)]` row-major, CLS first.
pub fn relative_position_index(rows: usize, cols: usize) -> Vec<i64> {
    index_into(rows, cols, (rows, cols))
}

/// The same into a table that was made for another, not smaller grid.
fn index_into(rows: usize, cols: usize, table: (usize, usize)) -> Vec<i64> {
    let tokens = rows * cols + 1;
    let len = relative_table_len(table.0, table.1) as i64;
    let mut index = vec![0; tokens * tokens];
    for a in 0..rows * cols {
        for b in 0..rows * cols {
            let down = (a / cols) as i64 - (b / cols) as i64 + table.0 as i64 - 1;
            let right = (a % cols) as i64 - (b % cols) as i64 + table.1 as i64 - 1;
            index[(a + 1) * tokens + b + 1] = down * (2 * table.1 as i64 - 1) + right;
        }
    }
    index[..tokens].fill(len - 3); // CLS to token
    index.iter_mut().step_by(tokens).for_each(|entry| *entry = len - 2); // token to CLS
    index[0] = len - 1;
    index
}

/// A table of biases and the index that spreads it over token pairs.
#[derive(Module, Debug)]
pub struct RelPosBias<B: burn::tensor::backend::Backend> {
    /// `[T, H]`; starts at 0.
    pub relative_position_bias_table: Param<Tensor<B, 2>>,
    index: Tensor<B, 1, Int>,
    /// What [`RelPosBias::forward`] gives, of a frozen model.
    spread: Option<Tensor<B, 4>>,
    rows: usize,
    cols: usize,
    table: (usize, usize),
}

impl<B: Backend> RelPosBias<B> {
    /// A zero table for a `rows × cols` grid.
    pub fn new(rows: usize, cols: usize, heads: usize, device: &B::Device) -> Self {
        let len = relative_table_len(rows, cols);
        Self {
            relative_position_bias_table: Param::from_tensor(Tensor::zeros([len, heads], device)),
            index: to_device(relative_position_index(rows, cols), device),
            spread: None,
            rows,
            cols,
            table: (rows, cols),
        }
    }

    /// Uses the index of another table over the same grid. Why: an index is the fourth power of the grid's side (8 MB at 512
    /// pixels), and all blocks have the same one.
    pub(crate) fn share_index(&mut self, other: &Self) {
        if (self.grid(), self.table) == (other.grid(), other.table) {
            self.index = other.index.clone();
        }
    }

    /// The same biases over another grid, for inference: distances that the table has keep their values, and a larger grid
    /// gets the table resized as a checkpoint's is (docs/method.md §4.3).
    ///
    /// # Errors
    /// A table of a grid that is not square, or too small a one, for a larger grid.
    pub fn on_grid(mut self, rows: usize, cols: usize) -> Result<Self, Error> {
        if self.grid() == (rows, cols) {
            return Ok(self);
        }
        let table = self.relative_position_bias_table.val();
        let (device, heads) = (table.device(), table.dims()[1]);
        if rows > self.table.0 || cols > self.table.1 {
            if self.table.0 != self.table.1 {
                let (rows, cols) = self.table;
                return config_error(format!("a position table of {rows}×{cols} patches cannot be resized"));
            }
            let (from, to) = (self.table.0, rows.max(cols));
            let dtype = table.dtype();
            let values = table.into_data().convert::<f64>().into_vec::<f64>().unwrap_or_default();
            let values = resize_bias_table(&values, heads, from, to, TableResize::Spline)
                .map_err(|error| Error::Config(error.to_string()))?;
            let data = TensorData::new(values, [relative_table_len(to, to), heads]);
            self.relative_position_bias_table = Param::from_tensor(Tensor::from_data(data, (&device, dtype)));
            self.table = (to, to);
        }
        self.index = to_device(index_into(rows, cols, self.table), &device);
        (self.rows, self.cols) = (rows, cols);
        Ok(self)
    }

    /// Keeps the biases of all pairs of tokens in place of the table, unless they are many. For good: the model cannot be
    /// saved, loaded into or put on another grid any more.
    pub(crate) fn freeze(&mut self) {
        if self.spread.is_none() && self.rows * self.cols < MOST_SPREAD {
            let spread = self.forward();
            self.relative_position_bias_table = Param::from_tensor(Tensor::empty([0, 0], &spread.device()));
            self.spread = Some(spread);
        }
    }

    /// The grid that the biases are for, (rows, columns).
    pub fn grid(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The additive bias `[1, H, N+1, N+1]`.
    pub fn forward(&self) -> Tensor<B, 4> {
        if let Some(spread) = &self.spread {
            return spread.clone();
        }
        let grid = PositionGrid { rows: self.rows, cols: self.cols, table: self.table };
        kernels::position_bias(self.relative_position_bias_table.val(), self.index.clone(), grid)
    }
}

fn to_device<B: Backend>(index: Vec<i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let count = index.len();
    Tensor::from_data(TensorData::new(index, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_grids_by_hand() {
        let square = [11, 9, 9, 9, 9, 10, 4, 3, 1, 0, 10, 5, 4, 2, 1, 10, 7, 6, 4, 3, 10, 8, 7, 5, 4];
        assert_eq!(relative_position_index(2, 2), square);
        let wide = relative_position_index(2, 3);
        assert_eq!(wide[..7], [17, 15, 15, 15, 15, 15, 15]);
        assert_eq!(wide[7..14], [16, 7, 6, 5, 2, 1, 0]);
        assert_eq!(wide[42..], [16, 14, 13, 12, 9, 8, 7]);
    }

    #[test]
    fn a_part_of_a_grid_has_the_biases_of_its_distances() {
        let whole = relative_position_index(4, 5);
        let at = |row: usize, col: usize| 1 + row * 5 + col;
        let part = index_into(2, 3, (4, 5));
        for a in 0..6 {
            for b in 0..6 {
                let (a_whole, b_whole) = (at(a / 3, a % 3), at(b / 3, b % 3));
                assert_eq!(part[(a + 1) * 7 + b + 1], whole[a_whole * 21 + b_whole]);
            }
        }
        assert_eq!([part[0], part[1], part[7]], [whole[0], whole[1], whole[21]]);
    }

    #[test]
    fn large_grids_by_checksum() {
        for (side, sum, weighted) in [
            (12, 5_627_331, 2_812_464_722),
            (14, 14_270_119, 7_115_547_150),
            (16, 31_950_531, 15_999_541_055),
            (24, 368_828_259, 185_826_279_646),
            (32, 2_088_508_291_i64, 1_051_629_806_968_i64),
        ] {
            let index = relative_position_index(side, side);
            assert_eq!(index.iter().sum::<i64>(), sum);
            let checked: i64 = index.iter().enumerate().map(|(at, v)| v * (at as i64 % 1009)).sum();
            assert_eq!(checked, weighted);
        }
    }
}
