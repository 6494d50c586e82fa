//! Resizing with OpenCV's arithmetic, which the reference's segmentation pipeline uses: images
//! with `INTER_LINEAR` on 8-bit values, masks with `INTER_NEAREST`.
//!
//! This is not Pillow's bilinear filter (`transform/resize.rs`): it looks at two pixels per axis
//! also when it shrinks, and its weights have 11 bits.

use crate::error::TransformError;
use crate::image::Image;
use crate::transform::crop::CropBox;
use crate::transform::resize::MAX_TARGET_SIDE;

/// One in the fixed-point weights.
const ONE: f32 = 2048.0;

/// Resizes to `width` x `height` pixels, bilinear as OpenCV does it on 8-bit images.
///
/// Equal to `cv2.resize(image, (width, height))` to the bit; see [`resize_linear_crop`] for the
/// arithmetic.
///
/// # Errors
/// Sides outside 1 to [`MAX_TARGET_SIDE`] ([`TransformError::TargetSize`]); an empty image.
pub fn resize_linear(image: &Image, width: u32, height: u32) -> Result<Image, TransformError> {
    if (image.width, image.height) == (width, height) {
        image.check()?;
        return Ok(image.clone());
    }
    resize_linear_crop(image, (width, height), CropBox::whole(width, height))
}

/// The box `area` of [`resize_linear`] to `target` (width, height), without computing the rest.
///
/// Output pixel x lies at `(x + 0.5) * source / target - 0.5` in the source. Its two neighbours are
/// weighed in steps of 1/2048, first along the row (kept with 7 more bits), then along the column, where
/// each product loses its 16 low bits before the sum is rounded to 8 bits.
///
/// # Errors
/// As [`resize_linear`]; a box outside the target ([`TransformError::CropOutside`]).
pub fn resize_linear_crop(image: &Image, target: (u32, u32), area: CropBox) -> Result<Image, TransformError> {
    if image.channels != 3 {
        return image.by_threes(|rgb| resize_linear_crop(rgb, target, area));
    }
    image.check()?;
    check_target(target.0, target.1)?;
    area.check(target.0, target.1)?;
    CropBox::whole(image.width, image.height).check(image.width, image.height)?; // not empty
    let columns = taps(image.width, target.0, area.left, area.width, true);
    let rows = taps(image.height, target.1, area.top, area.height, false);
    let row_bytes = area.width as usize * 3;
    let mut out = vec![0; row_bytes * area.height as usize];
    // Why two buffers with the numbers of their rows: neighbouring output rows share source rows, all of
    // them when an image is enlarged.
    let mut buffers = [vec![0; row_bytes], vec![0; row_bytes]];
    let mut held = [usize::MAX; 2];
    for (tap, out) in rows.iter().zip(out.chunks_exact_mut(row_bytes)) {
        if held[0] != tap.low && held[1] == tap.low {
            buffers.swap(0, 1);
            held.swap(0, 1);
        }
        for ((held, buffer), row) in held.iter_mut().zip(&mut buffers).zip([tap.low, tap.high]) {
            if *held != row {
                along_row(image, row, &columns, buffer);
                *held = row;
            }
        }
        let [low, high] = &buffers;
        along_column(low, high, tap.weights, out);
    }
    Image::new(area.width, area.height, out)
}

/// Where output column x of `count` columns from `start` on is taken from: `floor(x * source /
/// target)`.
pub(super) fn nearest_positions(source: u32, target: u32, start: u32, count: u32) -> Vec<usize> {
    let step = step(source, target);
    let last = (source as usize).saturating_sub(1);
    (start..start.saturating_add(count)).map(|x| ((f64::from(x) * step) as usize).min(last)).collect()
}

/// Sides that a result may have.
pub(super) fn check_target(width: u32, height: u32) -> Result<(), TransformError> {
    if !(1..=MAX_TARGET_SIDE).contains(&width) || !(1..=MAX_TARGET_SIDE).contains(&height) {
        return Err(TransformError::TargetSize { width, height, max: MAX_TARGET_SIDE });
    }
    Ok(())
}

/// Source pixels per output pixel, rounded as OpenCV does: the inverse of the inverse.
fn step(source: u32, target: u32) -> f64 {
    1.0 / (f64::from(target) / f64::from(source))
}

/// Two neighbours in the source and their weights, which sum to 2048.
#[derive(Clone, Copy)]
struct Tap {
    low: usize,
    high: usize,
    weights: [i16; 2],
}

/// Taps of `count` output positions from `start` on.
///
/// `clamp`: beyond the first and last pixel, columns give all weight to that pixel; rows keep their
/// weights and meet the same pixel twice, which rounds otherwise.
fn taps(source: u32, target: u32, start: u32, count: u32, clamp: bool) -> Vec<Tap> {
    let step = step(source, target);
    let last = i64::from(source) - 1;
    let tap = |x: u32| {
        let place = ((f64::from(x) + 0.5) * step - 0.5) as f32;
        let floor = place.floor();
        let (low, fraction) = match floor as i64 {
            low if clamp && low < 0 => (0, 0.0),
            low if clamp && low >= last => (last, 0.0),
            low => (low, place - floor),
        };
        let weights = [1.0 - fraction, fraction].map(|weight| (weight * ONE).round_ties_even() as i16);
        let inside = |row: i64| row.clamp(0, last) as usize;
        Tap { low: inside(low), high: inside(low + 1), weights }
    };
    (start..start + count).map(tap).collect()
}

/// Mixes neighbouring pixels of one row; values are 128 times those of pixels.
fn along_row(image: &Image, row: usize, columns: &[Tap], out: &mut [i16]) {
    let pixels = image.data.as_chunks::<3>().0;
    let pixels = &pixels[row * image.width as usize..][..image.width as usize];
    for (tap, out) in columns.iter().zip(out.as_chunks_mut::<3>().0) {
        let [low, high] = [pixels[tap.low], pixels[tap.high]];
        let [a, b] = tap.weights.map(i32::from);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            // At most 255 * 2048 / 16 = 32640.
            *out = ((i32::from(low) * a + i32::from(high) * b) >> 4) as i16;
        }
    }
}

/// Mixes two rows of [`along_row`].
fn along_column(low: &[i16], high: &[i16], weights: [i16; 2], out: &mut [u8]) {
    let scaled = |value: i16, weight: i16| ((i32::from(value) * i32::from(weight)) >> 16) as i16;
    for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
        *out = ((scaled(low, weights[0]) + scaled(high, weights[1]) + 2) >> 2) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> Image {
        let value = |x: u32, y: u32, c: u32| (x * 7 + y * 13 + c * 50 + x * y) as u8;
        let pixels =
            (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| value(x, y, c))));
        Image::new(width, height, pixels.collect()).unwrap()
    }

    #[test]
    fn a_crop_of_the_resized_image_is_the_resized_crop() {
        let image = gradient(31, 23);
        for target in [(62, 46), (17, 40), (31, 9), (1, 1), (100, 3)] {
            let whole = resize_linear(&image, target.0, target.1).unwrap();
            for (top, left) in [(0, 0), (target.1 / 3, target.0 / 2), (target.1 - 1, target.0 - 1)] {
                let area = CropBox { top, left, height: target.1 - top, width: target.0 - left };
                let part = resize_linear_crop(&image, target, area).unwrap();
                assert_eq!(part, crate::transform::crop(&whole, area).unwrap());
            }
        }
    }

    #[test]
    fn halving_is_the_mean_of_four() {
        // OpenCV switches to an area filter there, which is the same for 8-bit values.
        let image = gradient(12, 10);
        let half = resize_linear(&image, 6, 5).unwrap();
        let at = |x: usize, y: usize, c: usize| u32::from(image.data[(y * 12 + x) * 3 + c]);
        for (i, &value) in half.data.iter().enumerate() {
            let (c, x, y) = (i % 3, i / 3 % 6 * 2, i / 18 * 2);
            let sum = at(x, y, c) + at(x + 1, y, c) + at(x, y + 1, c) + at(x + 1, y + 1, c);
            assert_eq!(u32::from(value), (sum + 2) / 4);
        }
    }

    #[test]
    fn flat_stays_flat_and_absurd_sizes_are_refused() {
        let image = Image::new(3, 2, [9, 255, 0].repeat(6)).unwrap();
        assert_eq!(resize_linear(&image, 7, 9).unwrap().data, [9, 255, 0].repeat(63));
        assert_eq!(resize_linear(&image, 3, 2).unwrap(), image);
        assert!(resize_linear(&image, 0, 2).is_err() && resize_linear(&image, 1 << 20, 2).is_err());
        let empty = Image { width: 0, height: 0, channels: 3, data: vec![] };
        assert!(resize_linear(&empty, 2, 2).is_err());
        let broken = Image { width: 2, height: 2, channels: 3, data: vec![0; 5] };
        assert!(resize_linear(&broken, 2, 2).is_err());
    }
}
