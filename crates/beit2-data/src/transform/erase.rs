//! Random erasing (Zhong et al. 2017, arXiv 1708.04896) with timm's rules (docs/method.md §4.4): one
//! box of the normalised image is overwritten.
//!
//! The box and a seed are drawn beside the other augmentations; the values are made from the seed
//! when they are needed, so that the image itself can cross to the device as `u8`.

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::rng::{Key, Rng, RngStream, below, normal_pair, uniform, unit};
use crate::transform::crop::CropBox;

/// Boxes tried before the image is left alone.
const TRIES: usize = 10;

/// What an erased box is filled with, in normalised units (mean 0, deviation 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EraseFill {
    /// A standard normal number for every value. The paper's recipe.
    #[default]
    Pixel,
    /// One standard normal number per channel.
    Rand,
    /// Zero, the mean colour.
    Const,
}

/// How often and how much is erased. The defaults are the paper's fine-tuning recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EraseConfig {
    /// Probability that an image is erased at all. Default 0.25.
    pub prob: f64,
    /// Smallest share of the area. Default 0.02.
    pub min_area: f64,
    /// Largest share of the area. Default 1 / 3.
    pub max_area: f64,
    /// Smallest height / width; the largest is its inverse, in between log-uniform. Default 0.3.
    pub min_aspect: f64,
    /// What the box is filled with. Default [`EraseFill::Pixel`].
    pub fill: EraseFill,
}

impl Default for EraseConfig {
    fn default() -> Self {
        Self { prob: 0.25, min_area: 0.02, max_area: 1.0 / 3.0, min_aspect: 0.3, fill: EraseFill::Pixel }
    }
}

impl EraseConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: f64, expected| {
            Err(TransformError::Setting { name, value: value.to_string(), expected })
        };
        if !(0.0..=1.0).contains(&self.prob) {
            return bad("erase.prob", self.prob, "a probability from 0 to 1 (0.25 in the paper's recipe)");
        }
        if !(self.max_area > 0.0 && self.max_area <= 1.0) {
            return bad("erase.max_area", self.max_area, "above 0 and at most 1");
        }
        if !(self.min_area >= 0.0 && self.min_area <= self.max_area) {
            return bad("erase.min_area", self.min_area, "0 to erase.max_area");
        }
        if !(self.min_aspect > 0.0 && self.min_aspect <= 1.0) {
            return bad("erase.min_aspect", self.min_aspect, "above 0 and at most 1");
        }
        Ok(())
    }
}

/// One erased box; enough to erase it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EraseParams {
    /// The box, always smaller than the image in both directions.
    pub area: CropBox,
    /// What it is filled with.
    pub fill: EraseFill,
    /// Seed of the values.
    pub noise_seed: u64,
}

impl EraseParams {
    /// Draws for an image of `width` x `height` pixels from the sample's key (its stream is
    /// replaced by [`RngStream::Erase`]); `None` when nothing is erased.
    ///
    /// Area uniform, aspect log-uniform, position uniform; after ten boxes that are not smaller than
    /// the image, nothing is erased.
    #[must_use]
    pub fn draw(config: &EraseConfig, width: u32, height: u32, key: &Key) -> Option<Self> {
        let mut rng = Key { stream: RngStream::Erase, ..*key }.rng();
        if unit(&mut rng) >= config.prob {
            return None;
        }
        let image = f64::from(width) * f64::from(height);
        let log_aspect = config.min_aspect.ln();
        for _ in 0..TRIES {
            let area = image * uniform(&mut rng, config.min_area, config.max_area);
            let aspect = uniform(&mut rng, log_aspect, -log_aspect).exp();
            let h = (area * aspect).sqrt().round_ties_even() as u32;
            let w = (area / aspect).sqrt().round_ties_even() as u32;
            // Differs from upstream: a box that rounds to nothing is drawn again.
            if (1..height).contains(&h) && (1..width).contains(&w) {
                let top = below(&mut rng, u64::from(height - h) + 1) as u32;
                let left = below(&mut rng, u64::from(width - w) + 1) as u32;
                let area = CropBox { top, left, height: h, width: w };
                return Some(Self { area, fill: config.fill, noise_seed: rng.next_u64() });
            }
        }
        None
    }

    /// The values of the box. Shape `[channels, area.height, area.width]`, normalised units.
    #[must_use]
    pub fn values(&self, channels: usize) -> Vec<f32> {
        let pixels = self.area.width as usize * self.area.height as usize;
        let mut rng = Key { seed: self.noise_seed, epoch: 0, index: 0, stream: RngStream::Erase }.rng();
        let mut normal = |count: usize| -> Vec<f32> {
            let pairs = std::iter::repeat_with(|| normal_pair(&mut rng));
            pairs.flatten().map(|v| v as f32).take(count).collect()
        };
        match self.fill {
            EraseFill::Pixel => normal(channels * pixels),
            EraseFill::Rand => {
                normal(channels).into_iter().flat_map(|v| std::iter::repeat_n(v, pixels)).collect()
            }
            EraseFill::Const => vec![0.0; channels * pixels],
        }
    }

    /// Erases in a normalised image `[3, height, width]`.
    ///
    /// # Errors
    /// Data of another length, or a box that leaves the image.
    pub fn apply_chw(&self, data: &mut [f32], width: u32, height: u32) -> Result<(), TransformError> {
        paste_chw(data, (width, height), self.area, &self.values(3))
    }

    /// Erases in a normalised image `[height, width, 3]`, with the same values at the same places
    /// as [`Self::apply_chw`].
    ///
    /// # Errors
    /// As [`Self::apply_chw`].
    pub fn apply_hwc(&self, data: &mut [f32], width: u32, height: u32) -> Result<(), TransformError> {
        check(data, (width, height), self.area)?;
        let values = self.values(3);
        let (w, h) = (self.area.width as usize, self.area.height as usize);
        let (pixels, _) = data.as_chunks_mut::<3>();
        for y in 0..h {
            let start = (self.area.top as usize + y) * width as usize + self.area.left as usize;
            for (x, pixel) in pixels[start..start + w].iter_mut().enumerate() {
                *pixel = std::array::from_fn(|channel| values[(channel * h + y) * w + x]);
            }
        }
        Ok(())
    }
}

/// Overwrites a box of an image `[3, height, width]` with values `[3, area.height, area.width]`;
/// `size` is (width, height).
///
/// # Errors
/// Data or values of another length, or a box that leaves the image.
pub fn paste_chw(
    data: &mut [f32],
    size: (u32, u32),
    area: CropBox,
    values: &[f32],
) -> Result<(), TransformError> {
    check(data, size, area)?;
    check(values, (area.width, area.height), CropBox::whole(area.width, area.height))?;
    let (w, h) = (area.width as usize, area.height as usize);
    for (number, row) in values.chunks_exact(w).enumerate() {
        let (channel, y) = (number / h, number % h);
        let start =
            (channel * size.1 as usize + area.top as usize + y) * size.0 as usize + area.left as usize;
        data[start..start + w].copy_from_slice(row);
    }
    Ok(())
}

fn check(data: &[f32], (width, height): (u32, u32), area: CropBox) -> Result<(), TransformError> {
    let (expected, found) = (3 * u64::from(width) * u64::from(height), data.len() as u64);
    if expected != found {
        return Err(TransformError::ValueCount { width, height, expected, found });
    }
    area.check(width, height)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(seed: u64) -> Key {
        Key { seed, epoch: 2, index: 3, stream: RngStream::Augment }
    }

    const ALWAYS: EraseConfig =
        EraseConfig { prob: 1.0, min_area: 0.02, max_area: 0.33, min_aspect: 0.3, fill: EraseFill::Pixel };

    proptest! {
        #[test]
        fn boxes_lie_inside_and_both_layouts_agree(seed: u64, width in 1u32..40, height in 1u32..40, fill in 0usize..3) {
            let fill = [EraseFill::Pixel, EraseFill::Rand, EraseFill::Const][fill];
            let Some(params) = EraseParams::draw(&EraseConfig { fill, ..ALWAYS }, width, height, &key(seed)) else {
                return Ok(());
            };
            prop_assert!(params.area.check(width, height).is_ok());
            let pixels = (width * height) as usize;
            let mut chw = vec![9.0; 3 * pixels];
            params.apply_chw(&mut chw, width, height).unwrap();
            let mut hwc = vec![9.0; 3 * pixels];
            params.apply_hwc(&mut hwc, width, height).unwrap();
            for (position, value) in chw.iter().enumerate() {
                prop_assert_eq!(*value, hwc[position % pixels * 3 + position / pixels]);
            }
            let erased = chw.iter().filter(|&&v| v != 9.0).count();
            prop_assert_eq!(erased, 3 * (params.area.width * params.area.height) as usize);
        }
    }

    #[test]
    fn fills_are_what_they_say() {
        let drawn = EraseParams::draw(&ALWAYS, 64, 64, &key(1)).unwrap();
        let area = CropBox { top: 0, left: 0, height: 50, width: 60 };
        let values = |fill| EraseParams { fill, area, ..drawn }.values(3);
        let noise = values(EraseFill::Pixel);
        let mean = noise.iter().map(|&v| f64::from(v)).sum::<f64>() / 9000.0;
        let square = noise.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 9000.0;
        assert!(mean.abs() < 0.05 && (square - 1.0).abs() < 0.08, "{mean} {square}");
        let color = values(EraseFill::Rand);
        assert!(color[..3000].iter().all(|&v| v == color[0]) && color[0] != color[3000]);
        assert_eq!(values(EraseFill::Const), [0.0; 9000]);
        assert_eq!(noise, values(EraseFill::Pixel));
    }

    #[test]
    fn parameters_depend_on_the_sample_not_on_the_stream() {
        let draw = |key| EraseParams::draw(&ALWAYS, 64, 64, &key);
        assert_eq!(draw(key(1)), draw(Key { stream: RngStream::Order, ..key(1) }));
        assert_ne!(draw(key(1)), draw(Key { index: 4, ..key(1) }));
        let never = EraseConfig { prob: 0.0, ..ALWAYS };
        assert!(EraseParams::draw(&never, 64, 64, &key(1)).is_none());
        assert!(EraseParams::draw(&ALWAYS, 1, 1, &key(1)).is_none());
    }

    #[test]
    fn wrong_lengths_and_settings_are_errors() {
        let params = EraseParams::draw(&ALWAYS, 64, 64, &key(1)).unwrap();
        let sentence = params.apply_chw(&mut [0.0; 5], 64, 64).unwrap_err().to_string();
        assert_eq!(sentence, "an image of 3 x 64 x 64 needs 12288 values, found 5");
        assert!(params.apply_hwc(&mut [0.0; 3], 1, 1).is_err());
        assert!(EraseConfig::default().validate().is_ok());
        assert!(EraseConfig { min_area: 0.5, ..ALWAYS }.validate().is_err());
        assert!(EraseConfig { prob: f64::NAN, ..ALWAYS }.validate().is_err());
    }
}
