//! The transform of supervised training (docs/method.md §4.4): random crop, flip, RandAugment or
//! colour jitter; and beside the `u8` image, the box to erase after normalisation.

use serde::{Deserialize, Serialize};

use crate::encoded::EncodedImage;
use crate::error::{SampleError, TransformError};
use crate::image::Image;
use crate::rng::{Key, Rng, below, unit};
use crate::transform::crop::{CropBox, CropConfig};
use crate::transform::erase::{EraseConfig, EraseParams};
use crate::transform::eval::SMALL_INPUT;
use crate::transform::flip::flip_horizontal;
use crate::transform::jitter::JitterParams;
use crate::transform::randaugment::{AugmentOp, RandAugmentConfig};
use crate::transform::resize::{Interpolation, MAX_TARGET_SIDE, crop_resize, resize};
use crate::transform::window::window;

/// Black pixels put around an image before a [`TrainCrop::Padded`] crop, on each side.
const PADDING: u32 = 4;

/// How the training crop is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainCrop {
    /// [`Self::Padded`] up to 32 pixels, [`Self::Resized`] above; the reference's rule.
    #[default]
    Auto,
    /// A box of random area and aspect, resized.
    Resized,
    /// Pixels as they are, cut out at a random place after padding with 4 black pixels; for data
    /// that have the size of the input, such as CIFAR.
    Padded,
}

/// Settings of supervised training. The defaults are the paper's fine-tuning recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Side of the result in pixels. Default 224. Not read from recipes: there the model says it.
    #[serde(skip)]
    pub input_size: u32,
    /// How the crop is taken. Default [`TrainCrop::Auto`].
    pub crop: TrainCrop,
    /// Smallest crop as a share of the image's area. Default 0.08.
    pub min_crop_scale: f64,
    /// Filter of the resized crop. Default bicubic.
    pub interpolation: Interpolation,
    /// Probability of a left-right flip. Default 0.5.
    pub hflip: f64,
    /// Whether RandAugment is used; if so, there is no colour jitter, as in timm. Default true.
    pub use_rand_augment: bool,
    /// What RandAugment draws.
    pub rand_augment: RandAugmentConfig,
    /// Strength of brightness, contrast and saturation jitter when RandAugment is not used; 0 turns
    /// it off. Default 0.4.
    pub color_jitter: f64,
    /// Random erasing.
    pub erase: EraseConfig,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            input_size: 224,
            crop: TrainCrop::Auto,
            min_crop_scale: 0.08,
            interpolation: Interpolation::Bicubic,
            hflip: 0.5,
            use_rand_augment: true,
            rand_augment: RandAugmentConfig::default(),
            color_jitter: 0.4,
            erase: EraseConfig::default(),
        }
    }
}

impl FinetuneConfig {
    /// Whether pixels are cut out as they are.
    #[must_use]
    pub fn is_padded(&self) -> bool {
        match self.crop {
            TrainCrop::Auto => self.input_size <= SMALL_INPUT,
            TrainCrop::Resized => false,
            TrainCrop::Padded => true,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: String, expected| Err(TransformError::Setting { name, value, expected });
        if !(1..=MAX_TARGET_SIDE).contains(&self.input_size) {
            return bad("input_size", self.input_size.to_string(), "1 to 16384 pixels");
        }
        if !(self.min_crop_scale > 0.0 && self.min_crop_scale <= 1.0) {
            let expected = "above 0 and at most 1 (0.08 in the paper's recipe)";
            return bad("min_crop_scale", self.min_crop_scale.to_string(), expected);
        }
        if !(0.0..=1.0).contains(&self.hflip) {
            return bad("hflip", self.hflip.to_string(), "a probability from 0 to 1");
        }
        if !(self.color_jitter >= 0.0 && self.color_jitter.is_finite()) {
            return bad("color_jitter", self.color_jitter.to_string(), "0 (off) or more");
        }
        self.rand_augment.validate()?;
        self.erase.validate()
    }
}

/// Where the crop is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A box that is resized.
    Resized(CropBox),
    /// First row and column of the input-sized window, both at least -4.
    Padded {
        /// First row.
        top: i64,
        /// First column.
        left: i64,
    },
}

/// What happens to the colours (and with RandAugment also to the geometry) of the crop.
#[derive(Clone, Debug, PartialEq)]
pub enum Color {
    /// Nothing.
    Keep,
    /// Jitter, with contrast relative to the crop.
    Jitter(JitterParams),
    /// Operations in order, possibly none.
    RandAugment(Vec<AugmentOp>),
}

/// Everything random about one training image; enough to make it again.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneParams {
    /// Where the crop is taken, in the coordinates of the image.
    pub place: Place,
    /// Whether the crop is mirrored.
    pub flip: bool,
    /// What is done to the mirrored crop.
    pub color: Color,
    /// What to erase after normalisation, for [`EraseParams::apply_chw`] or
    /// [`EraseParams::apply_hwc`]. [`Self::apply`] does not do it.
    pub erase: Option<EraseParams>,
}

impl FinetuneParams {
    /// Draws the parameters for an image of `width` x `height` pixels, in the reference's order.
    #[must_use]
    pub fn draw(config: &FinetuneConfig, width: u32, height: u32, key: &Key) -> Self {
        let mut rng = key.rng();
        let size = config.input_size;
        let place = if config.is_padded() {
            let mut start = |length| padded_start(&mut rng, length, size);
            Place::Padded { top: start(height), left: start(width) }
        } else {
            let boxes = CropConfig { min_scale: config.min_crop_scale, ..CropConfig::default() };
            Place::Resized(boxes.sample(&mut rng, width, height))
        };
        let flip = unit(&mut rng) < config.hflip;
        let color = if config.use_rand_augment {
            Color::RandAugment(config.rand_augment.sample(&mut rng))
        } else if config.color_jitter > 0.0 {
            Color::Jitter(JitterParams::sample(&mut rng, config.color_jitter))
        } else {
            Color::Keep
        };
        Self { place, flip, color, erase: EraseParams::draw(&config.erase, size, size, key) }
    }

    /// The box of the image whose pixels are enough for [`Self::apply_region`]; `None` when the whole image is needed,
    /// because a padded crop knows its edges.
    #[must_use]
    pub fn region(&self) -> Option<CropBox> {
        match self.place {
            Place::Resized(area) => Some(area),
            Place::Padded { .. } => None,
        }
    }

    /// Makes the training image, `[input_size, input_size, 3]`, not yet erased.
    ///
    /// # Errors
    /// A box outside the image ([`TransformError::CropOutside`]); an image too small for a padded crop
    /// ([`TransformError::PaddedCrop`]).
    pub fn apply(&self, config: &FinetuneConfig, image: &Image) -> Result<Image, TransformError> {
        let size = config.input_size;
        let out = match self.place {
            Place::Resized(area) => crop_resize(image, area, size, size, config.interpolation)?,
            Place::Padded { top, left } => {
                let (width, height, padding) = (image.width, image.height, PADDING);
                if u64::from(width.min(height)) + 2 * u64::from(padding) < u64::from(size) {
                    return Err(TransformError::PaddedCrop { size, width, height, padding });
                }
                window(image, (top, left), (size, size), [0; 3])?
            }
        };
        self.finish(config, out)
    }

    /// Makes the training image of one that is not decoded yet; of a JPEG, only the part that it shows is decoded if that is
    /// enough.
    ///
    /// # Errors
    /// As [`Self::apply`]; an image that cannot be decoded.
    pub fn apply_encoded(
        &self,
        config: &FinetuneConfig,
        image: &EncodedImage<'_>,
    ) -> Result<Image, SampleError> {
        Ok(match self.region() {
            Some(area) => self.apply_region(config, &image.region(area)?)?,
            None => self.apply(config, image.whole()?.as_ref())?,
        })
    }

    /// Makes the training image from the pixels of [`Self::region`] alone; the same as [`Self::apply`] on the image they
    /// come from.
    ///
    /// # Errors
    /// A region of another size than the box ([`TransformError::RegionSize`]); parameters that need the whole image
    /// ([`TransformError::NeedsWholeImage`]).
    pub fn apply_region(&self, config: &FinetuneConfig, region: &Image) -> Result<Image, TransformError> {
        let (width, height, size) = (region.width, region.height, config.input_size);
        let area = self.region().ok_or(TransformError::NeedsWholeImage { width, height })?;
        area.check_region(region)?;
        self.finish(config, resize(region, size, size, config.interpolation)?)
    }

    /// What happens to the resized crop.
    fn finish(&self, config: &FinetuneConfig, mut out: Image) -> Result<Image, TransformError> {
        if self.flip {
            flip_horizontal(&mut out);
        }
        match &self.color {
            Color::Keep => {}
            Color::Jitter(jitter) => jitter.apply(&mut out),
            Color::RandAugment(ops) => {
                for op in ops {
                    op.apply(&mut out, config.rand_augment.fill)?;
                }
            }
        }
        Ok(out)
    }
}

/// First row or column of a window of `size` in a padded image, uniform over all that fit.
fn padded_start(rng: &mut impl Rng, length: u32, size: u32) -> i64 {
    let room = (u64::from(length) + 2 * u64::from(PADDING)).saturating_sub(size.into());
    below(rng, room + 1) as i64 - i64::from(PADDING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::RngStream;
    use crate::transform::crop::CropBox;
    use crate::transform::resize::crop;

    fn key(index: u64) -> Key {
        Key { seed: 4, epoch: 0, index, stream: RngStream::Augment }
    }

    fn noise(width: u32, height: u32) -> Image {
        let mut rng = Key { stream: RngStream::Order, ..key(0) }.rng();
        Image::new(width, height, (0..width * height * 3).map(|_| rng.next_u32() as u8).collect()).unwrap()
    }

    fn draw(config: &FinetuneConfig, image: &Image, index: u64) -> FinetuneParams {
        FinetuneParams::draw(config, image.width, image.height, &key(index))
    }

    #[test]
    fn replays_and_has_the_right_size() {
        let image = noise(60, 45);
        for config in [
            FinetuneConfig { input_size: 40, ..FinetuneConfig::default() },
            FinetuneConfig { input_size: 40, use_rand_augment: false, ..FinetuneConfig::default() },
            FinetuneConfig { input_size: 32, ..FinetuneConfig::default() },
        ] {
            let mut different = 0;
            for index in 0..20 {
                let params = draw(&config, &image, index);
                assert_eq!(params, draw(&config, &image, index));
                let out = params.apply(&config, &image).unwrap();
                assert_eq!((out.width, out.height), (config.input_size, config.input_size));
                different +=
                    u32::from(out != draw(&config, &image, index + 100).apply(&config, &image).unwrap());
            }
            assert_eq!(different, 20);
        }
    }

    #[test]
    fn padded_crops_reach_every_offset() {
        let image = noise(32, 32);
        let config = FinetuneConfig { input_size: 32, ..FinetuneConfig::default() };
        let mut seen = [[false; 9]; 9];
        for index in 0..2000 {
            let Place::Padded { top, left } = draw(&config, &image, index).place else { panic!("resized") };
            seen[(top + 4) as usize][(left + 4) as usize] = true;
        }
        assert!(seen.as_flattened().iter().all(|&s| s));
        let place = Place::Padded { top: -4, left: 3 };
        let params = FinetuneParams { place, flip: false, color: Color::Keep, erase: None };
        let out = params.apply(&config, &image).unwrap();
        assert_eq!(out.data[..4 * 96], [0; 4 * 96]);
        assert_eq!(out.data[4 * 96..4 * 96 + 87], image.data[9..96]);
    }

    #[test]
    fn resizing_comes_before_the_flip_and_the_flip_before_the_colours() {
        let image = noise(50, 30);
        let config = FinetuneConfig { input_size: 33, ..FinetuneConfig::default() };
        let area = CropBox { top: 2, left: 5, height: 20, width: 31 };
        let op = AugmentOp::ShearX { factor: 0.2 };
        let params = FinetuneParams {
            place: Place::Resized(area),
            flip: true,
            color: Color::RandAugment(vec![op]),
            erase: None,
        };
        let mut plain = crop_resize(&image, area, 33, 33, Interpolation::Bicubic).unwrap();
        flip_horizontal(&mut plain);
        op.apply(&mut plain, [124, 116, 104]).unwrap();
        assert_eq!(params.apply(&config, &image).unwrap(), plain);
        let region = crop(&image, params.region().unwrap()).unwrap();
        assert_eq!(params.apply_region(&config, &region).unwrap(), plain);
        assert!(matches!(params.apply_region(&config, &image), Err(TransformError::RegionSize { .. })));
        let padded = FinetuneParams { place: Place::Padded { top: 0, left: 0 }, ..params };
        assert!(padded.region().is_none());
        assert!(matches!(padded.apply_region(&config, &image), Err(TransformError::NeedsWholeImage { .. })));
    }

    #[test]
    fn rand_augment_turns_jitter_off() {
        let image = noise(50, 30);
        let config = FinetuneConfig::default();
        assert!(matches!(draw(&config, &image, 0).color, Color::RandAugment(_)));
        let jitter = FinetuneConfig { use_rand_augment: false, ..config };
        assert!(matches!(draw(&jitter, &image, 0).color, Color::Jitter(_)));
        let none = FinetuneConfig { color_jitter: 0.0, ..jitter };
        assert_eq!(draw(&none, &image, 0).color, Color::Keep);
    }

    #[test]
    fn erased_boxes_lie_in_the_view() {
        let image = noise(50, 30);
        let config = FinetuneConfig { input_size: 64, ..FinetuneConfig::default() };
        let boxes: Vec<_> = (0..400).filter_map(|i| draw(&config, &image, i).erase).collect();
        assert!((60..140).contains(&boxes.len()), "{}", boxes.len());
        assert!(boxes.iter().all(|erase| erase.area.check(64, 64).is_ok()));
    }

    #[test]
    fn mistakes_are_named() {
        let config = FinetuneConfig { crop: TrainCrop::Padded, input_size: 64, ..FinetuneConfig::default() };
        let image = noise(50, 80);
        let sentence = draw(&config, &image, 0).apply(&config, &image).unwrap_err().to_string();
        assert_eq!(
            sentence,
            "a crop of 64 x 64 does not fit into the image of 50 x 80 with 4 pixels of padding; use larger images or crop = \"resized\""
        );
        assert!(config.validate().is_ok());
        assert!(FinetuneConfig { hflip: 2.0, ..config }.validate().is_err());
        assert!(FinetuneConfig { input_size: 0, ..config }.validate().is_err());
        let parsed: FinetuneConfig =
            toml::from_str("crop = 'resized'\n[rand_augment]\nmagnitude = 5.0").unwrap();
        assert_eq!((parsed.rand_augment.magnitude, parsed.is_padded(), parsed.input_size), (5.0, false, 224));
        assert!(toml::from_str::<FinetuneConfig>("aa = 'rand'").is_err());
    }
}
