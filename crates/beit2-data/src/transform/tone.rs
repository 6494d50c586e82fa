//! Tone operations of RandAugment on 8-bit RGB images, in place, with Pillow's arithmetic.
//!
//! All but [`sharpen`] are tables: a new value for each of the 256 old ones, per channel.

use crate::image::Image;
#[cfg(target_arch = "x86_64")]
use crate::simd::{self, Level};
use crate::transform::pixel_steps;

/// New value for each old value, per channel.
type Tables = [[u8; 256]; 3];

/// Stretches each channel so that its smallest value becomes 0 and its largest 255; a channel of
/// one value stays as it is.
pub fn autocontrast(image: &mut Image) {
    let tables = histograms(image).map(|counts| {
        let used = |value: &usize| counts[*value] > 0;
        let low = (0..256).find(used).unwrap_or(0);
        let high = (0..256).rfind(used).unwrap_or(0);
        if high <= low {
            return table(|value| value);
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // The cast clips on both sides and cuts the fraction off, as Pillow does.
        table(|value| (f64::from(value) * scale + offset) as u8)
    });
    look_up(image, &tables);
}

/// Evens out the histogram of each channel.
///
/// A step is the number of pixels per output level, not counting the brightest used value; a value
/// maps to the number of steps below it. With fewer than two values, or fewer pixels than levels,
/// a channel stays as it is.
pub fn equalize(image: &mut Image) {
    let tables = histograms(image).map(|counts| {
        let total: u64 = counts.iter().sum();
        let brightest = counts.iter().rfind(|&&count| count > 0).copied().unwrap_or(0);
        let step = (total - brightest) / 255;
        if step == 0 {
            return table(|value| value);
        }
        let mut below = step / 2;
        counts.map(|count| {
            let level = (below / step).min(255) as u8;
            below += count;
            level
        })
    });
    look_up(image, &tables);
}

/// Negative: `255 - value`.
pub fn invert(image: &mut Image) {
    solarize(image, 0);
}

/// Keeps the highest `bits` bits of each value; 8 or more change nothing.
///
/// 0 bits give a black image, which is what keeping no bit means and what the reference trained
/// on: `rand-m9-mstd0.5-inc1` draws it in one of 44 posterizations.
/// Differs from upstream: Pillow 13 refuses 0 bits with an error (docs/method.md §9, trap 31).
pub fn posterize(image: &mut Image, bits: u8) {
    let mask = 0xFF_u8.checked_shl(8_u32.saturating_sub(bits.into())).unwrap_or(0);
    image.data.iter_mut().for_each(|value| *value &= mask);
}

/// Inverts the values from `threshold` on; 256 changes nothing.
pub fn solarize(image: &mut Image, threshold: u16) {
    // Why without branches: values on both sides of the threshold alternate.
    let Ok(threshold) = u8::try_from(threshold) else { return };
    for value in &mut image.data {
        *value = if *value >= threshold { 255 - *value } else { *value };
    }
}

/// Adds `add` to the values below 128, up to 255.
pub fn solarize_add(image: &mut Image, add: u8) {
    for value in &mut image.data {
        *value = value.saturating_add(if *value < 128 { add } else { 0 });
    }
}

/// Blends with a smoothed image: factor 0 gives the smoothed one, 1 changes nothing, more
/// sharpens.
///
/// Smoothing is a 3 x 3 mean in which the centre counts five times; the outermost pixels are not
/// smoothed.
pub fn sharpen(image: &mut Image, factor: f64) {
    let (stride, height) = (image.width as usize * 3, image.height as usize);
    if image.width < 3 || height < 3 || image.check().is_err() {
        return;
    }
    let source = image.data.clone();
    for y in 1..height - 1 {
        let row = |y: usize| &source[y * stride..(y + 1) * stride];
        let out = &mut image.data[y * stride + 3..(y + 1) * stride - 3];
        sharpen_row([row(y - 1), row(y), row(y + 1)], out, factor as f32);
    }
}

/// One row without its first and last pixel, from the rows above, here and below.
fn sharpen_row(rows: [&[u8]; 3], out: &mut [u8], factor: f32) {
    #[cfg(target_arch = "x86_64")]
    if simd::level() >= Level::Avx2 {
        // SAFETY: the level says that there is AVX2.
        return unsafe { sharpen_row_avx2(rows, out, factor) };
    }
    sharpen_row_plain(rows, out, factor);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sharpen_row_avx2(rows: [&[u8]; 3], out: &mut [u8], factor: f32) {
    sharpen_row_plain(rows, out, factor);
}

#[inline(always)]
fn sharpen_row_plain([above, here, below]: [&[u8]; 3], out: &mut [u8], factor: f32) {
    let length = out.len();
    // The same length everywhere, so that the loop is vectorised.
    let (a0, a1, a2) = (&above[..length], &above[3..3 + length], &above[6..6 + length]);
    let (h0, h1, h2) = (&here[..length], &here[3..3 + length], &here[6..6 + length]);
    let (b0, b1, b2) = (&below[..length], &below[3..3 + length], &below[6..6 + length]);
    for x in 0..length {
        let triple = |a: u8, b: u8, c: u8| u32::from(a) + u32::from(b) + u32::from(c);
        let sum = triple(a0[x], a1[x], a2[x]) + triple(h0[x], h1[x], h2[x]) + triple(b0[x], b1[x], b2[x]);
        // The weights sum to 13, which is odd, so that rounding to the nearest is never a tie.
        let smooth = (2 * (sum + 4 * u32::from(h1[x])) + 13) / 26;
        out[x] = pixel_steps::blend(smooth as f32, h1[x], factor);
    }
}

fn table(value: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|old| value(old as u8))
}

fn look_up(image: &mut Image, tables: &Tables) {
    for pixel in image.data.as_chunks_mut::<3>().0 {
        for (value, table) in pixel.iter_mut().zip(tables) {
            *value = table[usize::from(*value)];
        }
    }
}

/// How many pixels have each value, per channel.
fn histograms(image: &Image) -> [[u64; 256]; 3] {
    // Why two: neighbours are often equal, and the second would wait for the first's count.
    let mut counts = [[[0u64; 256]; 3]; 2];
    let (pairs, rest) = image.data.as_chunks::<6>();
    for pair in pairs {
        for (at, value) in pair.iter().enumerate() {
            counts[at / 3][at % 3][usize::from(*value)] += 1;
        }
    }
    for (value, counts) in rest.iter().zip(&mut counts[0]) {
        counts[usize::from(*value)] += 1;
    }
    let [mut counts, second] = counts;
    for (count, more) in counts.as_flattened_mut().iter_mut().zip(second.as_flattened()) {
        *count += more;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::jitter::blend;

    fn gray(width: u32, values: &[u8]) -> Image {
        let data: Vec<u8> = values.iter().flat_map(|&v| [v; 3]).collect();
        Image::new(width, values.len() as u32 / width, data).unwrap()
    }

    fn first_channel(image: &Image) -> Vec<u8> {
        image.data.iter().step_by(3).copied().collect()
    }

    fn check(operation: impl Fn(&mut Image), before: &[u8], after: &[u8]) {
        let mut image = gray(before.len() as u32, before);
        operation(&mut image);
        assert_eq!(first_channel(&image), after);
    }

    #[test]
    fn tables_by_hand() {
        check(autocontrast, &[50, 100, 150], &[0, 127, 255]);
        check(autocontrast, &[7, 7], &[7, 7]);
        check(invert, &[0, 1, 255], &[255, 254, 0]);
        check(|image| solarize(image, 128), &[127, 128, 255], &[127, 127, 0]);
        check(|image| solarize(image, 256), &[0, 255], &[0, 255]);
        check(|image| solarize_add(image, 110), &[0, 127, 128], &[110, 237, 128]);
        check(|image| posterize(image, 1), &[127, 128, 255], &[0, 128, 128]);
        check(|image| posterize(image, 0), &[1, 128, 255], &[0, 0, 0]);
        check(|image| posterize(image, 8), &[1, 128, 255], &[1, 128, 255]);
        check(|image| posterize(image, 9), &[1, 128, 255], &[1, 128, 255]);
    }

    #[test]
    fn equalizing_needs_enough_pixels() {
        check(equalize, &[3, 9, 200], &[3, 9, 200]);
        // 510 dark pixels make a step of 2; a value with 510 pixels below it reaches 255.
        let mut before = vec![10; 510];
        before.push(20);
        let mut after = vec![0; 510];
        after.push(255);
        check(equalize, &before, &after);
    }

    #[test]
    fn sharpening_is_the_blend_with_a_rounded_mean() {
        let data: Vec<u8> =
            (0..41 * 9 * 3u32).map(|i| (i + 1).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let image = Image::new(41, 9, data).unwrap();
        for factor in [0.0, 0.19, 1.0, 1.81] {
            let mut sharp = image.clone();
            sharpen(&mut sharp, factor);
            for (at, &found) in sharp.data.iter().enumerate() {
                let (x, y) = (at / 3 % 41, at / 123);
                let mut expected = image.data[at];
                if (1..40).contains(&x) && (1..8).contains(&y) {
                    let near =
                        [at - 126, at - 123, at - 120, at - 3, at, at + 3, at + 120, at + 123, at + 126];
                    let sum: u32 = near.iter().map(|&near| u32::from(image.data[near])).sum();
                    let smooth = f64::from(sum + 4 * u32::from(image.data[at])) / 13.0;
                    expected = blend(smooth.round() as u8, image.data[at], factor as f32);
                }
                assert_eq!(found, expected, "{x} {y} {factor}");
            }
        }
    }

    #[test]
    fn the_border_is_not_sharpened() {
        let mut image = gray(3, &[0, 0, 0, 0, 130, 0, 0, 0, 0]);
        sharpen(&mut image, 0.0);
        assert_eq!(first_channel(&image), [0, 0, 0, 0, 50, 0, 0, 0, 0]);
        let mut small = gray(2, &[0, 255]);
        sharpen(&mut small, 3.0);
        assert_eq!(first_channel(&small), [0, 255]);
    }
}
