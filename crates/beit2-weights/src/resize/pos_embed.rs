//! Absolute position embeddings (docs/method.md §4.2 step 5).

use super::bias_table::Round;
use super::{ResizeError, check_grid, check_len};

/// PyTorch's constant of the cubic convolution kernel.
const A: f64 = -0.75;

/// Resizes absolute position embeddings from one square grid to another: bicubic with half-pixel centres
/// (`align_corners=false`), a = −0.75 and clamped borders; the `prefix` tokens in front (CLS) stay as they are.
///
/// # Shapes
/// `values`: `[prefix + source², width]` row-major; the result: `[prefix + target², width]`.
///
/// # Errors
/// A wrong length, an empty grid or one beyond [`super::MAX_GRID`].
pub fn resize_pos_embed<T: Copy + Into<f64> + Round>(
    values: &[T],
    width: usize,
    prefix: usize,
    source: usize,
    target: usize,
) -> Result<Vec<T>, ResizeError> {
    check_grid("source", source, 1)?;
    check_grid("target", target, 1)?;
    let tokens = prefix.saturating_add(source * source);
    check_len("the position embedding", values.len(), &[tokens, width])?;
    if source == target {
        return Ok(values.to_vec());
    }
    let taps: Vec<[(usize, f64); 4]> = (0..target).map(|to| taps(to, source, target)).collect();
    let (head, grid) = values.split_at(prefix * width);

    // Columns first: [source, source, width] → [source, target, width], then rows.
    let mut wide = vec![0.0; source * target * width];
    for row in 0..source {
        for (to, taps) in taps.iter().enumerate() {
            let sums = &mut wide[(row * target + to) * width..][..width];
            for &(from, weight) in taps {
                let values = &grid[(row * source + from) * width..][..width];
                sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += weight * value.into());
            }
        }
    }
    let line = target * width;
    let mut out = Vec::with_capacity(head.len() + target * line);
    out.extend_from_slice(head);
    let mut sums = vec![0.0; line];
    for taps in &taps {
        sums.fill(0.0);
        for &(from, weight) in taps {
            let values = &wide[from * line..][..line];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
        out.extend(sums.iter().map(|&sum| T::round(sum)));
    }
    Ok(out)
}

/// The four source positions that a target position is made of, with their weights.
fn taps(to: usize, source: usize, target: usize) -> [(usize, f64); 4] {
    let at = (to as f64 + 0.5) * source as f64 / target as f64 - 0.5;
    let (base, f) = (at.floor(), at - at.floor());
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0; // within one position
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A; // between one and two
    let place = |offset: f64| (base + offset).clamp(0.0, source as f64 - 1.0) as usize;
    [
        (place(-1.0), far(f + 1.0)),
        (place(0.0), near(f)),
        (place(1.0), near(1.0 - f)),
        (place(2.0), far(2.0 - f)),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_prefixes_stay() {
        let values: Vec<f32> = [9.0, 8.0].into_iter().chain(vec![0.25; 16 * 2]).collect();
        let out = resize_pos_embed(&values, 2, 1, 4, 7).unwrap();
        assert_eq!(out.len(), 50 * 2);
        assert_eq!(out[..2], [9.0, 8.0]);
        assert!(out[2..].iter().all(|value| (value - 0.25).abs() < 1e-7));
        assert_eq!(resize_pos_embed(&values, 2, 1, 4, 4).unwrap(), values);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(resize_pos_embed(&[0.0f32; 34], 2, 1, 4, 0).is_err());
        assert!(resize_pos_embed(&[0.0f32; 33], 2, 1, 4, 6).is_err());
        assert!(resize_pos_embed(&[0.0f32; 34], 2, usize::MAX, 4, 6).is_err());
        assert!(resize_pos_embed(&[0.0f32; 34], usize::MAX, 1, 4, 6).is_err());
    }
}
