//! Weights that depend on the image size, for another image size: relative position bias tables and absolute position
//! embeddings. Plain functions on slices, `f64` inside.

mod bias_table;
mod linear;
mod pos_embed;
mod spline;

pub use bias_table::{
    TableResize, geometric_positions, relative_position_index, resize_bias_table, table_grid, table_rows,
};
pub use pos_embed::resize_pos_embed;

/// Grids larger than this per side are refused: they would need tables of gigabytes (224 px with patch 16 is 14).
pub const MAX_GRID: usize = 512;

/// Why a resize is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// The values do not fit the sizes they come with.
    #[error("{what} has {found} values, expected {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// How many values it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// A grid that is empty, too small for a cubic spline, or beyond [`MAX_GRID`].
    #[error("a {what} grid of {found} patches per side cannot be resized; {min} to {max} can")]
    Grid {
        /// `source` or `target`.
        what: &'static str,
        /// Patches per side.
        found: usize,
        /// The smallest that works.
        min: usize,
        /// The largest that is accepted.
        max: usize,
    },
}

/// Checks one side of a grid.
fn check_grid(what: &'static str, found: usize, min: usize) -> Result<(), ResizeError> {
    if (min..=MAX_GRID).contains(&found) {
        Ok(())
    } else {
        Err(ResizeError::Grid { what, found, min, max: MAX_GRID })
    }
}

/// Checks a length that is a product of sizes.
fn check_len(what: &'static str, found: usize, sizes: &[usize]) -> Result<(), ResizeError> {
    let expected = sizes.iter().try_fold(1usize, |all, &size| all.checked_mul(size)).unwrap_or(usize::MAX);
    if found == expected { Ok(()) } else { Err(ResizeError::Length { what, found, expected }) }
}
