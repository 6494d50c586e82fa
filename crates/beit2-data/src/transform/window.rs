//! A crop that may hang over the edges of the image; the part outside is one colour.

use crate::error::TransformError;
use crate::image::Image;
use crate::transform::resize::MAX_TARGET_SIDE;

/// Cuts `width` x `height` pixels out, starting at row `top` and column `left`, both of which may be
/// negative. The colour is repeated for further channels.
///
/// # Errors
/// Sizes outside 1 to [`MAX_TARGET_SIDE`] ([`TransformError::TargetSize`]).
pub fn window(
    image: &Image,
    (top, left): (i64, i64),
    (width, height): (u32, u32),
    fill: [u8; 3],
) -> Result<Image, TransformError> {
    image.check()?;
    if !(1..=MAX_TARGET_SIDE).contains(&width) || !(1..=MAX_TARGET_SIDE).contains(&height) {
        return Err(TransformError::TargetSize { width, height, max: MAX_TARGET_SIDE });
    }
    if image.channels != 3 {
        return image.by_threes(|rgb| window(rgb, (top, left), (width, height), fill));
    }
    let (pixels, _) = image.data.as_chunks::<3>();
    let mut out = vec![fill; width as usize * height as usize];
    // The columns of the window that the image covers, and where they start in the image.
    let (from, length) = overlap(left, width, image.width);
    let offset = (from as i64).saturating_add(left).max(0) as usize;
    let (first_row, rows) = overlap(top, height, image.height);
    let rows = if length == 0 { 0 } else { rows };
    for row in first_row..first_row + rows {
        let source = (row as i64 + top).max(0) as usize * image.width as usize + offset;
        let target = row * width as usize + from;
        out[target..target + length].copy_from_slice(&pixels[source..source + length]);
    }
    Image::new(width, height, out.into_flattened())
}

/// Which part of a stretch of `wanted` that begins at `start` lies in `0..available`: its first
/// position within the stretch and its length.
fn overlap(start: i64, wanted: u32, available: u32) -> (usize, usize) {
    let first = start.saturating_neg().clamp(0, wanted.into());
    let end = i64::from(available).saturating_sub(start).clamp(first, wanted.into());
    (first as usize, (end - first) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(start: (i64, i64), size: (u32, u32)) -> Vec<u8> {
        let image = Image::new(3, 2, (1..=6).flat_map(|v| [v; 3]).collect()).unwrap();
        window(&image, start, size, [9; 3]).unwrap().data.into_iter().step_by(3).collect()
    }

    #[test]
    fn windows_inside_across_and_outside() {
        assert_eq!(cut((0, 1), (2, 2)), [2, 3, 5, 6]);
        assert_eq!(cut((-1, -1), (3, 2)), [9, 9, 9, 9, 1, 2]);
        assert_eq!(cut((1, 2), (2, 2)), [6, 9, 9, 9]);
        assert_eq!(cut((-1, -1), (5, 4)), [9, 9, 9, 9, 9, 9, 1, 2, 3, 9, 9, 4, 5, 6, 9, 9, 9, 9, 9, 9]);
        for far in [i64::MIN, -5, 5, i64::MAX] {
            assert_eq!(cut((far, 0), (2, 1)), [9, 9]);
            assert_eq!(cut((0, far), (2, 1)), [9, 9]);
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let image = Image::new(1, 1, vec![0; 3]).unwrap();
        assert!(window(&image, (0, 0), (0, 1), [0; 3]).is_err());
        assert!(window(&image, (0, 0), (1, 1 << 20), [0; 3]).is_err());
    }
}
