//! Tone operations of RandAugment on 8-bit RGB images, in place, with Pillow's arithmetic.
//!
//! All but [`sharpen`] are tables: a new value for each of the 256 old ones, per channel.

use crate::image::Image;
use crate::transform::jitter::blend;

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
    for value in image.data.iter_mut().filter(|value| u16::from(**value) >= threshold) {
        *value = 255 - *value;
    }
}

/// Adds `add` to the values below 128, up to 255.
pub fn solarize_add(image: &mut Image, add: u8) {
    for value in image.data.iter_mut().filter(|value| **value < 128) {
        *value = value.saturating_add(add);
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
        let (above, here, below) = (row(y - 1), row(y), row(y + 1));
        let out = &mut image.data[y * stride..(y + 1) * stride];
        for x in 3..stride - 3 {
            let triple = |row: &[u8]| u32::from(row[x - 3]) + u32::from(row[x]) + u32::from(row[x + 3]);
            let sum = triple(above) + triple(here) + triple(below) + 4 * u32::from(here[x]);
            // The weights sum to 13, which is odd, so that rounding to the nearest is never a tie.
            let smooth = (2 * sum + 13) / 26;
            out[x] = blend(smooth as u8, here[x], factor as f32);
        }
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
    let mut counts = [[0; 256]; 3];
    for pixel in image.data.as_chunks::<3>().0 {
        for (value, counts) in pixel.iter().zip(&mut counts) {
            counts[usize::from(*value)] += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_border_is_not_sharpened() {
        let mut image = gray(3, &[0, 0, 0, 0, 130, 0, 0, 0, 0]);
        sharpen(&mut image, 0.0);
        assert_eq!(first_channel(&image), [0, 0, 0, 0, 50, 0, 0, 0, 0]);
        let mut small = gray(2, &[0, 255]);
        sharpen(&mut small, 3.0);
        assert_eq!(first_channel(&small), [0, 255]);
    }
}
