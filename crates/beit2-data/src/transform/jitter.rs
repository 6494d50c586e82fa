//! Colour jitter with the arithmetic of torchvision on Pillow images: brightness, contrast,
//! saturation, hue 0.
//!
//! Each operation blends the image with a degenerate one (black; the mean grey; the grey image)
//! by its factor. Contrast looks at the whole image, so jittering a crop is not the same as
//! cropping a jittered image. [`JitterParams::prepare`] therefore takes the mean from the whole
//! image once and returns a function of single pixels that gives exactly the whole-image result
//! wherever it is applied.
//!
//! An image of other than three channels has no grey: contrast blends with the mean of all values, and saturation changes
//! nothing.

use crate::image::Image;
use crate::rng::{Rng, shuffle, uniform};
use crate::simd::{self, Level};
use crate::transform::pixel_steps::{Step, Steps};

/// One colour operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JitterOp {
    /// Blend with black.
    Brightness,
    /// Blend with the rounded mean of the grey image.
    Contrast,
    /// Blend with the grey image.
    Saturation,
}

/// The drawn operations, first to last, each with its factor (1 changes nothing).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JitterParams {
    /// Operations in order.
    pub ops: [(JitterOp, f64); 3],
}

impl JitterParams {
    /// Draws a factor from `U(max(0, 1 - strength), 1 + strength)` for each operation, and a
    /// uniformly random order.
    pub fn sample(rng: &mut impl Rng, strength: f64) -> Self {
        let mut ops = [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation]
            .map(|op| (op, uniform(rng, (1.0 - strength).max(0.0), 1.0 + strength)));
        shuffle(rng, &mut ops);
        Self { ops }
    }

    /// Jitters a whole image in place.
    pub fn apply(&self, image: &mut Image) {
        self.prepare(image).apply(&mut image.data);
    }

    /// Whether an operation looks at the whole image: contrast does, at its mean.
    #[must_use]
    pub fn looks_at_whole(&self) -> bool {
        self.ops.iter().any(|&(op, _)| op == JitterOp::Contrast)
    }

    /// Resolves the mean that contrast needs from the whole image, and returns the operations as
    /// per-pixel steps.
    #[must_use]
    pub fn prepare(&self, image: &Image) -> PixelJitter {
        match image.channels {
            3 => PixelJitter { steps: rgb_steps(simd::level(), &self.ops, image), blends: Vec::new() },
            _ => self.prepare_bands(image),
        }
    }

    fn prepare_bands(&self, image: &Image) -> PixelJitter {
        let mut jitter = PixelJitter { steps: Steps::new(Level::Baseline), blends: Vec::with_capacity(2) };
        for &(op, factor) in &self.ops {
            let degenerate = match op {
                JitterOp::Saturation => continue,
                JitterOp::Brightness => 0,
                JitterOp::Contrast => {
                    let sum = image.data.iter().map(|&value| u64::from(jitter.blended(value))).sum();
                    rounded_mean(sum, image.data.len())
                }
            };
            jitter.blends.push((degenerate, factor as f32));
        }
        jitter
    }
}

/// Jitter with all its parameters resolved, applicable to any of the image's pixels.
#[derive(Clone, Debug)]
pub struct PixelJitter {
    steps: Steps,
    /// Of an image without colours: what each value is blended with, and by how much.
    blends: Vec<(u8, f32)>,
}

impl PixelJitter {
    /// Jitters pixels in place; the length must be a multiple of the channels (a remainder of RGB is left alone).
    pub fn apply(&self, pixels: &mut [u8]) {
        if self.blends.is_empty() {
            self.steps.apply(pixels.as_chunks_mut::<3>().0);
        } else {
            pixels.iter_mut().for_each(|value| *value = self.blended(*value));
        }
    }

    fn blended(&self, value: u8) -> u8 {
        self.blends.iter().fold(value, |value, &(degenerate, factor)| blend(degenerate, value, factor))
    }
}

/// Applies one operation to a whole image with the arithmetic of Pillow's `ImageEnhance`.
pub fn apply_op(image: &mut Image, op: JitterOp, factor: f64) {
    if image.channels != 3 {
        let one =
            JitterParams { ops: [(op, factor), (JitterOp::Saturation, 1.0), (JitterOp::Saturation, 1.0)] };
        let jitter = one.prepare_bands(image);
        image.data.iter_mut().for_each(|value| *value = jitter.blended(*value));
        return;
    }
    let steps = rgb_steps(simd::level(), &[(op, factor)], image);
    steps.apply(image.data.as_chunks_mut::<3>().0);
}

/// The operations on an RGB image, with the means that contrast blends with.
fn rgb_steps(level: Level, ops: &[(JitterOp, f64)], image: &Image) -> Steps {
    let mut steps = Steps::new(level);
    for &(op, factor) in ops {
        let factor = factor as f32;
        steps.push(match op {
            JitterOp::Brightness => Step::Blend { degenerate: 0, factor },
            JitterOp::Contrast => {
                let pixels = image.data.as_chunks::<3>().0;
                Step::Blend { degenerate: rounded_mean(steps.luma_sum(pixels), pixels.len()), factor }
            }
            JitterOp::Saturation => Step::Saturation { factor },
        });
    }
    steps
}

/// Pillow's grey: ITU-R 601 weights in 16-bit fixed point, rounded.
#[inline(always)]
pub(crate) fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// Pillow's `Image.blend` of one value: in single precision, truncated, clipped outside `[0, 1]`.
///
/// Inside `[0, 1]` the result cannot leave 0..=255, and the cast of a float to `u8` clips, so one
/// expression does for both.
pub(super) fn blend(degenerate: u8, value: u8, factor: f32) -> u8 {
    let difference = i16::from(value) - i16::from(degenerate);
    (f32::from(degenerate) + factor * f32::from(difference)) as u8
}

/// Mean of the grey values, rounded as Pillow's contrast does.
fn rounded_mean(sum: u64, pixels: usize) -> u8 {
    if pixels == 0 { 0 } else { (sum as f64 / pixels as f64 + 0.5) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, RngStream};
    use proptest::prelude::*;

    /// The plain form: one operation after the other on the whole image, value by value.
    fn plain(image: &mut Image, op: JitterOp, factor: f64) {
        let pixels = image.data.as_chunks_mut::<3>().0;
        let mean = rounded_mean(pixels.iter().map(|&pixel| u64::from(luma(pixel))).sum(), pixels.len());
        for pixel in pixels {
            let degenerate = match op {
                JitterOp::Brightness => 0,
                JitterOp::Contrast => mean,
                JitterOp::Saturation => luma(*pixel),
            };
            *pixel = pixel.map(|value| blend(degenerate, value, factor as f32));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        // The proof that every fast form is the plain form, for any order, factors beyond [0, 1]
        // included.
        #[test]
        fn per_pixel_form_is_bit_identical(seed: u64, strength in 0.0f64..1.5, width in 1u32..70, height in 1u32..70) {
            let mut rng = Key { seed, epoch: 0, index: 0, stream: RngStream::Augment }.rng();
            let data = (0..width * height * 3).map(|_| rng.next_u32() as u8).collect();
            let image = Image::new(width, height, data).unwrap();
            let params = JitterParams::sample(&mut rng, strength);
            let mut expected = image.clone();
            for (op, factor) in params.ops {
                plain(&mut expected, op, factor);
            }
            for level in Level::ALL.into_iter().filter(|&level| level <= simd::level()) {
                let mut found = image.clone();
                rgb_steps(level, &params.ops, &image).apply(found.data.as_chunks_mut::<3>().0);
                prop_assert!(found == expected, "{:?}", level);
            }
            for op in [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation] {
                let [mut found, mut expected] = [image.clone(), image.clone()];
                apply_op(&mut found, op, strength - 0.2);
                plain(&mut expected, op, strength - 0.2);
                prop_assert_eq!(&found, &expected);
            }
        }
    }

    #[test]
    fn extreme_factors_are_the_same_at_every_level() {
        let data = (0..75 * 9 * 3u32).map(|i| (i + 1).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let image = Image::new(75, 9, data).unwrap();
        let factors =
            [0.0, -0.0, 1.0, 0.5, 2.0, 255.0, 1e30, 1e-30, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        for op in [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation] {
            for factor in factors {
                let mut expected = image.clone();
                plain(&mut expected, op, factor);
                for level in Level::ALL.into_iter().filter(|&level| level <= simd::level()) {
                    let mut found = image.clone();
                    rgb_steps(level, &[(op, factor)], &image).apply(found.data.as_chunks_mut::<3>().0);
                    assert!(found == expected, "{level:?} {op:?} {factor}");
                }
            }
        }
    }

    #[test]
    fn factors_and_orders_are_uniform() {
        let mut rng = Key { seed: 5, epoch: 0, index: 0, stream: RngStream::Augment }.rng();
        let mut first = [0u32; 3];
        for _ in 0..3000 {
            let params = JitterParams::sample(&mut rng, 0.4);
            assert!(params.ops.iter().all(|(_, f)| (0.6..1.4).contains(f)));
            first[params.ops[0].0 as usize] += 1;
        }
        // Binomial(3000, 1/3): mean 1000, standard deviation 26; five of those.
        assert!(first.iter().all(|&n| (870..=1130).contains(&n)), "{first:?}");
    }

    #[test]
    fn factor_one_changes_nothing() {
        let data: Vec<u8> = (0..=255).flat_map(|v: u8| [v, v ^ 0x55, 255 - v]).collect();
        let mut image = Image::new(16, 16, data.clone()).unwrap();
        for op in [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation] {
            apply_op(&mut image, op, 1.0);
        }
        assert_eq!(image.data, data);
    }
}
