//! Interpolating cubic splines as matrices.

/// The weights with which a cubic spline through values at `knots` (ascending, at least 4) gives its values at `points`:
/// row-major `[points, knots]`. The ends are not-a-knot; points outside are moved to the border first.
///
/// Why a matrix: a tensor-product spline is then two small matmuls, and every head and row shares the work. It is the same
/// spline as FITPACK's interpolating bicubic one, to rounding (docs/method.md §4.3: 9e-16).
pub(super) fn weights(knots: &[f64], points: &[f64]) -> Vec<f64> {
    let n = knots.len();
    let mut matrix = vec![0.0; points.len() * n];
    let mut unit = vec![0.0; n];
    for knot in 0..n {
        unit[knot] = 1.0;
        let curvature = second_derivatives(knots, &unit);
        for (row, &point) in points.iter().enumerate() {
            matrix[row * n + knot] = evaluate(knots, &unit, &curvature, point);
        }
        unit[knot] = 0.0;
    }
    matrix
}

/// The second derivatives at the knots: continuity of the slope at the inner ones, and one cubic over the first and over the
/// last two intervals. The two end conditions are put into the first and last row, which leaves a tridiagonal system.
fn second_derivatives(x: &[f64], y: &[f64]) -> Vec<f64> {
    let n = x.len();
    let h = |i: usize| x[i + 1] - x[i];
    let slope = |i: usize| (y[i + 1] - y[i]) / h(i);
    let inner = n - 2;
    let mut diagonal: Vec<f64> = (1..=inner).map(|i| 2.0 * (h(i - 1) + h(i))).collect();
    let mut below: Vec<f64> = (1..=inner).map(|i| h(i - 1)).collect();
    let mut above: Vec<f64> = (1..=inner).map(h).collect();
    let mut right: Vec<f64> = (1..=inner).map(|i| 6.0 * (slope(i) - slope(i - 1))).collect();
    let (first, last) = (h(0) / h(1), h(n - 2) / h(n - 3));
    // m[0] = m[1] (1 + first) − m[2] first, and the mirror image of it.
    diagonal[0] += h(0) * (1.0 + first);
    above[0] -= h(0) * first;
    diagonal[inner - 1] += h(n - 2) * (1.0 + last);
    below[inner - 1] -= h(n - 2) * last;

    for i in 1..inner {
        let factor = below[i] / diagonal[i - 1];
        diagonal[i] -= factor * above[i - 1];
        right[i] -= factor * right[i - 1];
    }
    let mut m = vec![0.0; n];
    for i in (0..inner).rev() {
        let next = if i + 1 < inner { above[i] * m[i + 2] } else { 0.0 };
        m[i + 1] = (right[i] - next) / diagonal[i];
    }
    m[0] = m[1] * (1.0 + first) - m[2] * first;
    m[n - 1] = m[n - 2] * (1.0 + last) - m[n - 3] * last;
    m
}

fn evaluate(x: &[f64], y: &[f64], m: &[f64], at: f64) -> f64 {
    let at = at.clamp(x[0], x[x.len() - 1]);
    let i = x.partition_point(|&knot| knot <= at).clamp(1, x.len() - 1) - 1;
    let h = x[i + 1] - x[i];
    let (a, b) = ((x[i + 1] - at) / h, (at - x[i]) / h);
    a * y[i] + b * y[i + 1] + ((a * a * a - a) * m[i] + (b * b * b - b) * m[i + 1]) * h * h / 6.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cubic is its own not-a-knot spline; outside, the border value holds.
    #[test]
    fn cubics_are_exact() {
        let f = |x: f64| 0.3 * x * x * x - x * x + 2.0 * x - 5.0;
        for knots in [vec![-2.0, -1.0, 0.5, 3.0], vec![-4.0, -2.5, -1.0, 0.0, 1.0, 2.5, 4.0]] {
            let (low, high) = (knots[0], knots[knots.len() - 1]);
            let points = [low, -0.9, 0.0, 0.77, 2.0, high, high + 3.0, low - 3.0];
            let matrix = weights(&knots, &points);
            for (row, point) in matrix.chunks(knots.len()).zip(points) {
                let value: f64 = row.iter().zip(&knots).map(|(w, &x)| w * f(x)).sum();
                assert!((value - f(point.clamp(low, high))).abs() < 1e-12, "{point}: {value}");
            }
        }
    }
}
