//! The two-view transform of BEiT v2 pretraining: one crop box, two sizes.
//!
//! The image is jittered, flipped and cropped once; the crop is resized for the patch embedding
//! of the model and, when the tokenizer wants another size or filter, a second time for the
//! tokenizer. When both agree there is one image and [`Views::token`] is `None`: the two views
//! then differ only in normalisation, which happens on the device.

use serde::{Deserialize, Serialize};

use crate::encoded::EncodedImage;
use crate::error::{SampleError, TransformError};
use crate::image::Image;
use crate::rng::{Key, unit};
use crate::transform::crop::{CropBox, CropConfig};
use crate::transform::flip::flip_horizontal;
use crate::transform::jitter::{JitterParams, PixelJitter};
use crate::transform::resize::{Interpolation, MAX_TARGET_SIDE, check_target, crop, resize, resize_cut};
use crate::transform::rows::Cut;

/// Settings of the two-view transform; the defaults are those of the paper's documented pretraining
/// commands.
///
/// The tokenizer's own training (one view, no jitter) is `min_crop_scale = 0.08`, `color_jitter =
/// 0`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TwoViewConfig {
    /// Side of the patch view in pixels. Default 224.
    pub input_size: u32,
    /// Side of the token view in pixels. Default 224.
    pub second_size: u32,
    /// Filter of the patch view. Default bicubic.
    pub interpolation: Interpolation,
    /// Filter of the token view. Default bicubic, as documented (the reference's own default is
    /// lanczos).
    pub second_interpolation: Interpolation,
    /// Smallest crop as a share of the image's area. Default 0.2 (the reference's own default is
    /// 0.08).
    pub min_crop_scale: f64,
    /// Strength of brightness, contrast and saturation jitter; 0 turns it off. Default 0.4.
    pub color_jitter: f64,
    /// Probability of a left-right flip. Default 0.5.
    pub hflip: f64,
}

impl Default for TwoViewConfig {
    fn default() -> Self {
        Self {
            input_size: 224,
            second_size: 224,
            interpolation: Interpolation::Bicubic,
            second_interpolation: Interpolation::Bicubic,
            min_crop_scale: 0.2,
            color_jitter: 0.4,
            hflip: 0.5,
        }
    }
}

impl TwoViewConfig {
    /// Whether patch view and token view are the same pixels.
    #[must_use]
    pub fn is_one_view(&self) -> bool {
        self.input_size == self.second_size && self.interpolation == self.second_interpolation
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: String, expected| Err(TransformError::Setting { name, value, expected });
        for (name, size) in [("input_size", self.input_size), ("second_size", self.second_size)] {
            if !(1..=MAX_TARGET_SIDE).contains(&size) {
                return bad(name, size.to_string(), "1 to 16384 pixels");
            }
        }
        if !(self.min_crop_scale > 0.0 && self.min_crop_scale <= 1.0) {
            return bad(
                "min_crop_scale",
                self.min_crop_scale.to_string(),
                "above 0 and at most 1 (0.2 in the paper's recipe)",
            );
        }
        if !(self.color_jitter >= 0.0 && self.color_jitter.is_finite()) {
            return bad(
                "color_jitter",
                self.color_jitter.to_string(),
                "0 (off) or more (0.4 in the paper's recipe)",
            );
        }
        if !(0.0..=1.0).contains(&self.hflip) {
            return bad("hflip", self.hflip.to_string(), "a probability from 0 to 1");
        }
        Ok(())
    }
}

/// Everything random about one augmented image; enough to make it again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ViewParams {
    /// Colour operations, or none.
    pub jitter: Option<JitterParams>,
    /// Whether the image is mirrored before it is cropped.
    pub flip: bool,
    /// The box, in the coordinates of the (possibly mirrored) image.
    pub crop: CropBox,
}

/// The views of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Views {
    /// For the model. Shape `[input_size, input_size, 3]`.
    pub patch: Image,
    /// For the tokenizer, `[second_size, second_size, 3]`; `None` when it is the same pixels as
    /// `patch`.
    pub token: Option<Image>,
}

impl Views {
    /// The token view, wherever it is stored.
    #[must_use]
    pub fn token_view(&self) -> &Image {
        self.token.as_ref().unwrap_or(&self.patch)
    }
}

impl ViewParams {
    /// Draws the parameters for an image of `width` x `height` pixels, in the reference's order:
    /// jitter, flip, box.
    #[must_use]
    pub fn draw(config: &TwoViewConfig, width: u32, height: u32, key: &Key) -> Self {
        let mut rng = key.rng();
        let jitter = (config.color_jitter > 0.0).then(|| JitterParams::sample(&mut rng, config.color_jitter));
        let flip = unit(&mut rng) < config.hflip;
        let boxes = CropConfig { min_scale: config.min_crop_scale, ..CropConfig::default() };
        Self { jitter, flip, crop: boxes.sample(&mut rng, width, height) }
    }

    /// Whether the box has fewer pixels than a view, so that resizing enlarges. The reference does
    /// so silently; callers should warn once when it is frequent, because the model then learns to
    /// predict interpolated pixels.
    #[must_use]
    pub fn upscales(&self, config: &TwoViewConfig) -> bool {
        self.crop.smaller_than(config.input_size.max(config.second_size))
    }

    /// The box of the stored image whose pixels are enough for [`Self::apply_region`], in an image of `width` pixels;
    /// `None` when the whole image is needed, because contrast jitter looks at its mean.
    #[must_use]
    pub fn region(&self, width: u32) -> Option<CropBox> {
        if self.jitter.is_some_and(|jitter| jitter.looks_at_whole()) {
            return None;
        }
        Some(if self.flip { self.crop.mirrored(width) } else { self.crop })
    }

    /// Makes the views of an image.
    ///
    /// The result is bit for bit that of jittering, flipping and cropping the whole image
    /// (tested), but only the pixels inside the box are jittered and mirrored, on their way into the resize.
    ///
    /// # Errors
    /// A box outside the image ([`TransformError::CropOutside`]).
    pub fn apply(&self, config: &TwoViewConfig, image: &Image) -> Result<Views, TransformError> {
        self.crop.check(image.width, image.height)?;
        let area = if self.flip { self.crop.mirrored(image.width) } else { self.crop };
        let jitter = self.jitter.map(|jitter| jitter.prepare(image));
        self.views(config, image, area, jitter.as_ref())
    }

    /// Makes the views from the pixels of [`Self::region`] alone; the same as [`Self::apply`] on the image they come from.
    ///
    /// # Errors
    /// A region of another size than the box ([`TransformError::RegionSize`]); parameters that need the whole image
    /// ([`TransformError::NeedsWholeImage`]).
    pub fn apply_region(&self, config: &TwoViewConfig, region: &Image) -> Result<Views, TransformError> {
        self.crop.check_region(region)?;
        if self.jitter.is_some_and(|jitter| jitter.looks_at_whole()) {
            let (width, height) = (region.width, region.height);
            return Err(TransformError::NeedsWholeImage { width, height });
        }
        let jitter = self.jitter.map(|jitter| jitter.prepare(region));
        self.views(config, region, CropBox::whole(region.width, region.height), jitter.as_ref())
    }

    /// Makes the views of an image that is not decoded yet; of a JPEG, only the part that they show is decoded if that is
    /// enough.
    ///
    /// # Errors
    /// As [`Self::apply`]; an image that cannot be decoded.
    pub fn apply_encoded(
        &self,
        config: &TwoViewConfig,
        image: &EncodedImage<'_>,
    ) -> Result<Views, SampleError> {
        Ok(match self.region(image.width()) {
            Some(area) => self.apply_region(config, &image.region(area)?)?,
            None => self.apply(config, image.whole()?.as_ref())?,
        })
    }

    /// The views of a box of an image. Flipping comes before resizing: filters and rounding are not exactly symmetric, so
    /// a flip afterwards could differ in the last bit.
    fn views(
        &self,
        config: &TwoViewConfig,
        image: &Image,
        area: CropBox,
        jitter: Option<&PixelJitter>,
    ) -> Result<Views, TransformError> {
        let (size, second) = (config.input_size, config.second_size);
        if image.channels == 3 && config.is_one_view() {
            check_target(size, size)?;
            image.check()?;
            let cut = Cut::new(image, area).changed(jitter, self.flip);
            return Ok(Views { patch: resize_cut(&cut, size, size, config.interpolation)?, token: None });
        }
        let mut cut = crop(image, area)?;
        if let Some(jitter) = jitter {
            jitter.apply(&mut cut.data);
        }
        if self.flip {
            flip_horizontal(&mut cut);
        }
        let token = match config.is_one_view() {
            true => None,
            false => Some(resize(&cut, second, second, config.second_interpolation)?),
        };
        Ok(Views { patch: resize(&cut, size, size, config.interpolation)?, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, RngStream};
    use crate::transform::resize::crop_resize;
    use proptest::prelude::*;

    fn key(seed: u64) -> Key {
        Key { seed, epoch: 1, index: 2, stream: RngStream::Augment }
    }

    fn noise(width: u32, height: u32, seed: u64) -> Image {
        let mut rng = Key { stream: RngStream::Order, ..key(seed) }.rng();
        Image::new(width, height, (0..width * height * 3).map(|_| rng.next_u32() as u8).collect()).unwrap()
    }

    /// The reference's order of operations, on whole images.
    fn plain(params: &ViewParams, config: &TwoViewConfig, image: &Image) -> (Image, Image) {
        let mut whole = image.clone();
        if let Some(jitter) = &params.jitter {
            jitter.apply(&mut whole);
        }
        if params.flip {
            flip_horizontal(&mut whole);
        }
        let view = |size, filter| crop_resize(&whole, params.crop, size, size, filter).unwrap();
        (view(config.input_size, config.interpolation), view(config.second_size, config.second_interpolation))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn cropping_first_changes_no_bit(seed: u64, width in 1u32..90, height in 1u32..90, second in 20u32..28, lanczos: bool) {
            let second_interpolation = if lanczos { Interpolation::Lanczos } else { Interpolation::Bicubic };
            let config = TwoViewConfig { input_size: 24, second_size: second, second_interpolation, ..TwoViewConfig::default() };
            let image = noise(width, height, seed);
            let params = ViewParams::draw(&config, width, height, &key(seed));
            let views = params.apply(&config, &image).unwrap();
            let (patch, token) = plain(&params, &config, &image);
            prop_assert_eq!(views.token.is_none(), config.is_one_view());
            prop_assert_eq!(views.token_view(), &token);
            prop_assert_eq!(&views.patch, &patch);
            prop_assert!(params.region(width).is_none());
            let params = ViewParams { jitter: None, ..params };
            let region = crop(&image, params.region(width).unwrap()).unwrap();
            prop_assert_eq!(params.apply_region(&config, &region).unwrap(), params.apply(&config, &image).unwrap());
        }
    }

    #[test]
    fn small_boxes_are_reported() {
        let config = TwoViewConfig::default();
        let params = ViewParams { jitter: None, flip: false, crop: CropBox::whole(224, 224) };
        assert!(!params.upscales(&config));
        assert!(ViewParams { crop: CropBox::whole(500, 223), ..params }.upscales(&config));
        assert!(params.upscales(&TwoViewConfig { second_size: 256, ..config }));
    }

    #[test]
    fn a_box_of_another_image_is_an_error() {
        let config = TwoViewConfig { input_size: 8, second_size: 8, ..TwoViewConfig::default() };
        let params = ViewParams { jitter: None, flip: true, crop: CropBox::whole(50, 10) };
        assert!(matches!(params.apply(&config, &noise(10, 10, 0)), Err(TransformError::CropOutside { .. })));
        let sentence = params.apply_region(&config, &noise(50, 9, 0)).unwrap_err().to_string();
        assert_eq!(sentence, "the transform needs a region of 50 x 10 pixels, found one of 50 x 9");
        let drawn = ViewParams::draw(&TwoViewConfig::default(), 50, 10, &key(0));
        let jittered = ViewParams { jitter: drawn.jitter, ..params };
        let error = jittered.apply_region(&config, &noise(50, 10, 0)).unwrap_err();
        assert!(matches!(error, TransformError::NeedsWholeImage { .. }));
    }

    #[test]
    fn settings_are_checked_and_named() {
        assert!(TwoViewConfig::default().validate().is_ok());
        let bad = TwoViewConfig { min_crop_scale: 0.0, ..TwoViewConfig::default() };
        let sentence = bad.validate().unwrap_err().to_string();
        assert_eq!(
            sentence,
            "min_crop_scale is 0; it must be above 0 and at most 1 (0.2 in the paper's recipe)"
        );
        assert!(TwoViewConfig { hflip: f64::NAN, ..TwoViewConfig::default() }.validate().is_err());
        assert!(TwoViewConfig { input_size: 0, ..TwoViewConfig::default() }.validate().is_err());
        let parsed: TwoViewConfig =
            toml::from_str("input_size = 64\nsecond_interpolation = 'lanczos'").unwrap();
        assert_eq!((parsed.input_size, parsed.second_interpolation), (64, Interpolation::Lanczos));
        assert!(toml::from_str::<TwoViewConfig>("inptu_size = 64").is_err());
    }
}
