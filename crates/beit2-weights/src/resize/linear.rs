//! Straight lines between knots as matrices.

/// The weights with which values at `knots` (ascending, at least 2) give those between them at `points`: row-major
/// `[points, knots]`. Points outside are moved to the border first.
pub(super) fn weights(knots: &[f64], points: &[f64]) -> Vec<f64> {
    let last = knots.len() - 1;
    let mut matrix = vec![0.0; points.len() * knots.len()];
    for (row, &point) in matrix.chunks_mut(knots.len()).zip(points) {
        let point = point.clamp(knots[0], knots[last]);
        let right = knots.partition_point(|knot| *knot <= point).clamp(1, last);
        let share = (point - knots[right - 1]) / (knots[right] - knots[right - 1]);
        (row[right - 1], row[right]) = (1.0 - share, share);
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knots_are_met_and_borders_kept() {
        let found = weights(&[-2.0, 0.0, 1.0], &[-5.0, -2.0, -0.5, 0.0, 1.0, 9.0]);
        let expected = [
            [1.0, 0.0, 0.0],
            [1.0, 0.0, 0.0],
            [0.25, 0.75, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0],
            [0.0, 0.0, 1.0],
        ];
        assert_eq!(found, expected.concat());
    }
}
