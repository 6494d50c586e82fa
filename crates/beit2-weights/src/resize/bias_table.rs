//! Relative position bias tables (docs/method.md §2.1, §4.3).

use super::{ResizeError, check_grid, check_len, linear, spline};

/// The rows at the end of a table: CLS to token, token to CLS, CLS to CLS.
const CLS_ROWS: usize = 3;

/// The number of rows of the table for `grid × grid` patches, `(2·grid − 1)² + 3`; 732 for 14. `None` on overflow or for 0.
pub fn table_rows(grid: usize) -> Option<usize> {
    let side = grid.checked_mul(2)?.checked_sub(1)?;
    side.checked_mul(side)?.checked_add(CLS_ROWS)
}

/// The grid side whose table has `rows` rows; `None` when there is none (the grid is not square, or it is no such table).
pub fn table_grid(rows: usize) -> Option<usize> {
    let grid = rows.checked_sub(CLS_ROWS)?.isqrt().div_ceil(2);
    (table_rows(grid) == Some(rows)).then_some(grid)
}

/// The buffer `relative_position_index` for `grid × grid` patches and CLS in front: which row of the table belongs to each
/// pair of tokens (docs/method.md §2.1, §10.2).
///
/// # Shapes
/// `[grid² + 1, grid² + 1]`, row-major.
///
/// # Errors
/// A grid of 0 or beyond [`super::MAX_GRID`] is refused.
pub fn relative_position_index(grid: usize) -> Result<Vec<i64>, ResizeError> {
    check_grid("source", grid, 1)?;
    let side = 2 * grid - 1;
    let rows = side * side + CLS_ROWS;
    let tokens = grid * grid + 1;
    let mut index = Vec::with_capacity(tokens * tokens);
    for a in 0..tokens {
        for b in 0..tokens {
            index.push(match (a, b) {
                (0, 0) => rows - 1,
                (0, _) => rows - 3,
                (_, 0) => rows - 2,
                _ => {
                    let ((row, col), (other_row, other_col)) =
                        (((a - 1) / grid, (a - 1) % grid), ((b - 1) / grid, (b - 1) % grid));
                    (row + grid - 1 - other_row) * side + (col + grid - 1 - other_col)
                }
            } as i64);
        }
    }
    Ok(index)
}

/// Where the source offsets `−(grid−1) … grid−1` lie among the target's integer offsets: 0, ±1, and from there in steps
/// that grow by a factor `q`, so that near offsets stay what they were and the farthest ones reach the target's edge
/// (docs/method.md §4.3, numbers in §10.5).
///
/// # Shapes
/// `2·source − 1` ascending coordinates.
pub fn geometric_positions(source: usize, target: usize) -> Vec<f64> {
    let steps = source.saturating_sub(1);
    let reach = target.saturating_sub(1) as f64;
    let (mut left, mut right) = (1.01_f64, 1.5);
    let mut q = right;
    // Why the last midpoint and not a fresh one: so does the reference, and the difference shows in the sixth digit.
    while right - left > 1e-6 {
        q = (left + right) / 2.0;
        let sum = (1.0 - q.powi(steps as i32)) / (1.0 - q);
        if sum > reach { right = q } else { left = q }
    }
    let mut distances = Vec::with_capacity(steps);
    let mut distance = 0.0;
    for k in 0..steps {
        distance += q.powi(k as i32);
        distances.push(distance);
    }
    let mirrored = distances.iter().rev().map(|distance| -distance);
    mirrored.chain([0.0]).chain(distances.iter().copied()).collect()
}

/// What lies between the entries of a table that is resized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TableResize {
    /// A cubic spline, as in the reference.
    #[default]
    Spline,
    /// Straight lines, as in timm (golden suite I), for its logits at other image sizes.
    Linear,
}

/// Resizes a relative position bias table from a square grid to another one: per head a tensor-product spline (or straight
/// lines) over geometrically spaced source offsets, evaluated at the target's integer offsets; offsets beyond the source are
/// clamped to its border, and the three CLS rows stay as they are (docs/method.md §4.3). The same grid gives the same values.
///
/// `values` may be `f32` or `f64`; the calculation is in `f64` and rounded once at the end.
///
/// # Shapes
/// `values`: `[(2·source − 1)² + 3, heads]` row-major; the result: `[(2·target − 1)² + 3, heads]`.
///
/// # Errors
/// A wrong length, or a source grid below 3 (a cubic spline needs four points; the reference fails there too).
pub fn resize_bias_table<T: Copy + Into<f64> + Round>(
    values: &[T],
    heads: usize,
    source: usize,
    target: usize,
    method: TableResize,
) -> Result<Vec<T>, ResizeError> {
    let least = match (source == target, method) {
        (true, _) => 1,
        (false, TableResize::Spline) => 3,
        (false, TableResize::Linear) => 2,
    };
    check_grid("source", source, least)?;
    check_grid("target", target, 1)?;
    let (s, t) = (2 * source - 1, 2 * target - 1);
    check_len("the relative position bias table", values.len(), &[s * s + CLS_ROWS, heads])?;
    if source == target {
        return Ok(values.to_vec());
    }
    let reach = target as f64 - 1.0;
    let points: Vec<f64> = (0..t).map(|k| k as f64 - reach).collect();
    let knots = geometric_positions(source, target);
    let weights = match method {
        TableResize::Spline => spline::weights(&knots, &points),
        TableResize::Linear => linear::weights(&knots, &points),
    }; // [t, s]
    let mut out = Vec::with_capacity((t * t + CLS_ROWS) * heads);

    // Columns first: [s, s, heads] → [s, t, heads], then rows.
    let mut wide = vec![0.0; s * t * heads];
    for row in 0..s {
        for (to, w) in weights.chunks(s).enumerate() {
            let sums = &mut wide[(row * t + to) * heads..][..heads];
            for (from, w) in w.iter().enumerate() {
                let values = &values[(row * s + from) * heads..][..heads];
                sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += w * value.into());
            }
        }
    }
    let line = t * heads;
    let mut sums = vec![0.0; line];
    for w in weights.chunks(s) {
        sums.fill(0.0);
        for (from, w) in w.iter().enumerate() {
            sums.iter_mut().zip(&wide[from * line..][..line]).for_each(|(sum, value)| *sum += w * value);
        }
        out.extend(sums.iter().map(|&sum| T::round(sum)));
    }
    out.extend_from_slice(&values[s * s * heads..]);
    Ok(out)
}

/// The float types that tables have in memory.
pub trait Round {
    /// The nearest value of this type.
    fn round(value: f64) -> Self;
}

impl Round for f32 {
    fn round(value: f64) -> Self {
        value as f32
    }
}

impl Round for f64 {
    fn round(value: f64) -> Self {
        value
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn index_has_the_sums_of_method_10_2() {
        let two = [11, 9, 9, 9, 9, 10, 4, 3, 1, 0, 10, 5, 4, 2, 1, 10, 7, 6, 4, 3, 10, 8, 7, 5, 4];
        assert_eq!(relative_position_index(2).unwrap(), two);
        for (grid, rows, sum, check) in [
            (12, 532, 5_627_331i64, 2_812_464_722i64),
            (14, 732, 14_270_119, 7_115_547_150),
            (16, 964, 31_950_531, 15_999_541_055),
            (24, 2212, 368_828_259, 185_826_279_646),
            (32, 3972, 2_088_508_291, 1_051_629_806_968),
        ] {
            assert_eq!((table_rows(grid), table_grid(rows)), (Some(rows), Some(grid)));
            let index = relative_position_index(grid).unwrap();
            assert_eq!(index.iter().sum::<i64>(), sum, "{grid}");
            assert_eq!(index.iter().enumerate().map(|(i, v)| v * (i as i64 % 1009)).sum::<i64>(), check);
        }
    }

    #[test]
    fn rows_that_are_no_square_table_have_no_grid() {
        for rows in [0, 1, 2, 3, 5, 18, 731, 733, usize::MAX] {
            assert_eq!(table_grid(rows), None, "{rows}");
        }
        assert_eq!(table_grid(4), Some(1));
        assert_eq!((table_rows(0), table_rows(usize::MAX)), (None, None));
    }

    #[test]
    fn positions_reach_the_edges_of_method_10_5() {
        for (source, target, q, outermost) in [
            (14, 24, 1.0903074455, 22.99993),
            (14, 32, 1.1349178123, 31.00018),
            (14, 16, 1.0234928322, 14.99996),
            (12, 14, 1.0328930473, 12.99994),
            (14, 12, 1.0100009346, 13.80941),
        ] {
            let positions = geometric_positions(source, target);
            assert_eq!(positions.len(), 2 * source - 1);
            assert!((positions[source + 1] - 1.0 - q).abs() < 1e-10, "{source} to {target}");
            assert!((positions.last().unwrap() - outermost).abs() < 1e-5, "{source} to {target}");
        }
        let known = [1.0, 2.09031, 3.27908, 4.5752, 5.98838, 7.52917, 9.20911, 11.04076, 13.03783];
        let positions = geometric_positions(14, 24);
        known.iter().zip(&positions[14..]).for_each(|(a, b)| assert!((a - b).abs() < 1e-5));
    }

    #[test]
    fn tables_have_the_values_of_method_10_5() {
        let table: Vec<f32> =
            (0..732 * 2).map(|i| (0.05 * (i / 2) as f64 + (i % 2) as f64).sin() as f32).collect();
        // Target grid; (row, head 0, head 1); the sums over all patch rows.
        type Case = (usize, &'static [(usize, f64, f64)], [f64; 2]);
        let cases: [Case; 2] = [
            (
                24,
                &[
                    (0, 0.0, 0.841471),
                    (46, 0.963558, 0.745705),
                    (146, 0.989181, 0.565356),
                    (490, -0.340656, 0.606769),
                    (1104, -0.604833, 0.343315),
                    (1105, -0.564276, 0.389827),
                    (1151, 0.644557, 0.991607),
                    (2208, -0.963320, -0.294672),
                    (2209, -0.948704, -0.246543),
                    (2210, -0.931717, -0.197799),
                    (2211, -0.912401, -0.148560),
                ],
                [103.75579, -58.893814],
            ),
            (
                32,
                &[
                    (0, 0.000072, 0.841526),
                    (62, 0.963595, 0.745674),
                    (194, 0.859564, 1.007554),
                    (650, -0.353036, -0.963347),
                    (1984, -0.604833, 0.343315),
                    (1985, -0.564276, 0.389827),
                    (2047, 0.644557, 0.991607),
                    (3968, -0.963358, -0.294746),
                ],
                [231.746591, -131.543894],
            ),
        ];
        for (target, rows, sums) in cases {
            let out = resize_bias_table(&table, 2, 14, target, TableResize::Spline).unwrap();
            assert_eq!(out.len(), table_rows(target).unwrap() * 2);
            for &(row, a, b) in rows {
                for (head, expected) in [a, b].into_iter().enumerate() {
                    let found = f64::from(out[row * 2 + head]);
                    assert!((found - expected).abs() < 1e-6, "{target}: row {row}: {found} {expected}");
                }
            }
            for (head, expected) in sums.into_iter().enumerate() {
                let patches = out[..out.len() - 6].iter().skip(head).step_by(2);
                let found: f64 = patches.map(|&value| f64::from(value)).sum();
                assert!((found - expected).abs() < 1e-4, "{target}: sum {found} {expected}");
            }
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let table = vec![0.5f64; 52 * 2];
        assert_eq!(resize_bias_table(&table, 2, 4, 4, TableResize::Spline).unwrap(), table);
        assert!(resize_bias_table(&table, 3, 4, 6, TableResize::Spline).is_err());
        assert!(resize_bias_table(&table, usize::MAX, 4, 6, TableResize::Spline).is_err());
        assert!(resize_bias_table(&table, 2, 4, 0, TableResize::Spline).is_err());
        assert!(resize_bias_table(&table, 2, usize::MAX, 4, TableResize::Spline).is_err());
        let error = resize_bias_table(&[0f64; 12], 1, 2, 4, TableResize::Spline).unwrap_err();
        assert!(error.to_string().contains("2 patches per side"), "{error}");
        assert!(relative_position_index(0).is_err());
        assert!(relative_position_index(1 << 40).is_err());
    }
}
