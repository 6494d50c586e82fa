//! Colour jitter with the arithmetic of torchvision on Pillow images: brightness, contrast, saturation, hue 0.
//!
//! Each operation blends the picture with a degenerate one (black; the mean grey; the grey picture) by its factor.
//! Contrast looks at the whole picture, so jittering a crop is not the same as cropping a jittered picture.
//! [`JitterParams::prepare`] therefore takes the mean from the whole picture once and returns a function of single pixels that
//! gives exactly the whole-picture result wherever it is applied.

use crate::image::Image;
use crate::rng::{Rng, shuffle, uniform};

/// One colour operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JitterOp {
    /// Blend with black.
    Brightness,
    /// Blend with the rounded mean of the grey picture.
    Contrast,
    /// Blend with the grey picture.
    Saturation,
}

/// The drawn operations, first to last, each with its factor (1 changes nothing).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JitterParams {
    /// Operations in order.
    pub ops: [(JitterOp, f64); 3],
}

impl JitterParams {
    /// Draws a factor from `U(max(0, 1 - strength), 1 + strength)` for each operation, and a uniformly random order.
    pub fn sample(rng: &mut impl Rng, strength: f64) -> Self {
        let mut ops = [
            JitterOp::Brightness,
            JitterOp::Contrast,
            JitterOp::Saturation,
        ]
        .map(|op| (op, uniform(rng, (1.0 - strength).max(0.0), 1.0 + strength)));
        shuffle(rng, &mut ops);
        Self { ops }
    }

    /// Jitters a whole picture in place. The plain form, one pass per operation, that [`Self::prepare`] is tested against.
    pub fn apply(&self, image: &mut Image) {
        for &(op, factor) in &self.ops {
            apply_op(image, op, factor);
        }
    }

    /// Resolves the mean that contrast needs from the whole picture, and returns the operations as per-pixel steps.
    #[must_use]
    pub fn prepare(&self, image: &Image) -> PixelJitter {
        let mut steps: Vec<Step> = Vec::with_capacity(3);
        for &(op, factor) in &self.ops {
            steps.push(match op {
                JitterOp::Brightness => Step::Table(blend_table(0, factor)),
                JitterOp::Contrast => Step::Table(blend_table(mean_luma(image, &steps), factor)),
                JitterOp::Saturation => Step::Saturation(factor as f32),
            });
        }
        PixelJitter { steps }
    }
}

/// Jitter with all its parameters resolved, applicable to any of the picture's pixels.
#[derive(Clone, Debug)]
pub struct PixelJitter {
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The same function of every channel.
    Table(Box<[u8; 256]>),
    /// Blend with the pixel's own grey.
    Saturation(f32),
}

impl PixelJitter {
    /// Jitters RGB pixels in place; the length must be a multiple of 3 (a remainder is left alone).
    pub fn apply(&self, rgb: &mut [u8]) {
        let (pixels, _) = rgb.as_chunks_mut::<3>();
        for step in &self.steps {
            step.apply(pixels);
        }
    }
}

impl Step {
    fn apply(&self, pixels: &mut [[u8; 3]]) {
        match self {
            Self::Table(table) => {
                for value in pixels.as_flattened_mut() {
                    *value = table[usize::from(*value)];
                }
            }
            Self::Saturation(factor) => saturate(pixels, *factor),
        }
    }
}

/// Applies one operation to a whole picture with the arithmetic of Pillow's `ImageEnhance`.
pub fn apply_op(image: &mut Image, op: JitterOp, factor: f64) {
    let (pixels, _) = image.data.as_chunks_mut::<3>();
    match op {
        JitterOp::Brightness => {
            for value in pixels.as_flattened_mut() {
                *value = blend(0, *value, factor as f32);
            }
        }
        JitterOp::Contrast => {
            let mean = mean_luma(image, &[]);
            for value in &mut image.data {
                *value = blend(mean, *value, factor as f32);
            }
        }
        JitterOp::Saturation => saturate(pixels, factor as f32),
    }
}

fn saturate(pixels: &mut [[u8; 3]], factor: f32) {
    for pixel in pixels {
        let gray = luma(*pixel);
        *pixel = pixel.map(|value| blend(gray, value, factor));
    }
}

/// Pillow's grey: ITU-R 601 weights in 16-bit fixed point, rounded.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// Pillow's `Image.blend` of one value: in single precision, truncated, clipped outside `[0, 1]`.
///
/// Inside `[0, 1]` the result cannot leave 0..=255, and the cast of a float to `u8` clips, so one expression does for both.
#[inline]
fn blend(degenerate: u8, value: u8, factor: f32) -> u8 {
    let difference = i16::from(value) - i16::from(degenerate);
    (f32::from(degenerate) + factor * f32::from(difference)) as u8
}

fn blend_table(degenerate: u8, factor: f64) -> Box<[u8; 256]> {
    Box::new(std::array::from_fn(|value| {
        blend(degenerate, value as u8, factor as f32)
    }))
}

/// Rounded mean of the grey picture after `steps`, computed in small pieces so that no second picture is stored.
fn mean_luma(image: &Image, steps: &[Step]) -> u8 {
    const PIECE: usize = 1024;
    let (pixels, _) = image.data.as_chunks::<3>();
    let mut buffer = [[0u8; 3]; PIECE];
    let mut sum = 0u64;
    for piece in pixels.chunks(PIECE) {
        let work = &mut buffer[..piece.len()];
        work.copy_from_slice(piece);
        for step in steps {
            step.apply(work);
        }
        sum += work
            .iter()
            .map(|&pixel| u64::from(luma(pixel)))
            .sum::<u64>();
    }
    if pixels.is_empty() {
        0
    } else {
        (sum as f64 / pixels.len() as f64 + 0.5) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, Purpose};
    use proptest::prelude::*;

    proptest! {
        // The proof that the cheap form is the plain form, for any order, factors beyond [0, 1] included.
        #[test]
        fn per_pixel_form_is_bit_identical(seed: u64, strength in 0.0f64..1.5, width in 1u32..70, height in 1u32..70) {
            let mut rng = Key { seed, epoch: 0, index: 0, purpose: Purpose::Augment }.rng();
            let data = (0..width * height * 3).map(|_| rng.next_u32() as u8).collect();
            let image = Image::new(width, height, data).unwrap();
            let params = JitterParams::sample(&mut rng, strength);
            let mut plain = image.clone();
            params.apply(&mut plain);
            let mut fused = image.clone();
            params.prepare(&image).apply(&mut fused.data);
            prop_assert_eq!(plain.data, fused.data);
        }
    }

    #[test]
    fn factors_and_orders_are_uniform() {
        let mut rng = Key {
            seed: 5,
            epoch: 0,
            index: 0,
            purpose: Purpose::Augment,
        }
        .rng();
        let mut first = [0u32; 3];
        for _ in 0..3000 {
            let params = JitterParams::sample(&mut rng, 0.4);
            assert!(params.ops.iter().all(|(_, f)| (0.6..1.4).contains(f)));
            first[params.ops[0].0 as usize] += 1;
        }
        // Binomial(3000, 1/3): mean 1000, standard deviation 26; five of those.
        assert!(
            first.iter().all(|&n| (870..=1130).contains(&n)),
            "{first:?}"
        );
    }

    #[test]
    fn factor_one_changes_nothing() {
        let data: Vec<u8> = (0..=255).flat_map(|v: u8| [v, v ^ 0x55, 255 - v]).collect();
        let mut image = Image::new(16, 16, data.clone()).unwrap();
        for op in [
            JitterOp::Brightness,
            JitterOp::Contrast,
            JitterOp::Saturation,
        ] {
            apply_op(&mut image, op, 1.0);
        }
        assert_eq!(image.data, data);
    }
}
