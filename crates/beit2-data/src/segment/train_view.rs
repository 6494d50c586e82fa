//! The training view of semantic segmentation (docs/method.md §5): image and mask are resized together,
//! cropped, mirrored and padded; then the image's colours are distorted.
//!
//! Only the crop is ever computed. Resizing is a function of single output pixels, so that the result is
//! the same as cropping the resized image, at a fraction of the work.

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::image::Image;
use crate::rng::{Key, Rng, below, uniform, unit};
use crate::segment::label_map::{IGNORE, LabelMap};
use crate::segment::photometric::{PhotometricConfig, PhotometricParams};
use crate::segment::resize::{check_target, nearest_positions, resize_linear_crop};
use crate::segment::test_view::keep_ratio;
use crate::transform::crop::CropBox;
use crate::transform::flip::flip_horizontal;
use crate::transform::randaugment::IMAGENET_MEAN_COLOR;
use crate::transform::resize::MAX_TARGET_SIDE;
use crate::transform::window::window;

/// Boxes that are looked at before one is taken unseen, as in the reference.
const TRIES: usize = 10;

/// Settings of the training view. The defaults are the paper's recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentTrainConfig {
    /// Longer and shorter side, in pixels, that an image is fitted into before the ratio. Default 2048
    /// and 512.
    pub base: [u32; 2],
    /// Smallest ratio that `base` is multiplied with. Default 0.5.
    pub min_ratio: f64,
    /// Largest ratio that `base` is multiplied with. Default 2.
    pub max_ratio: f64,
    /// Side of the crop in pixels. Default 512. Not read from recipes: there the model says it.
    #[serde(skip)]
    pub crop_size: u32,
    /// A crop is drawn again, up to ten times, when one class has this share of its labelled pixels or
    /// more, or when there are fewer than two classes; 1 takes the first. Default 0.75.
    pub cat_max_ratio: f64,
    /// Probability of a left-right flip. Default 0.5.
    pub hflip: f64,
    /// Whether colours are distorted. Default true.
    pub use_photometric: bool,
    /// What photometric distortion draws.
    pub photometric: PhotometricConfig,
    /// Colour to the right of and below an image smaller than the crop. Default: ImageNet's mean,
    /// which is 0 after normalisation to within 0.009.
    ///
    /// Differs from upstream: exactly 0, because the reference pads after normalisation;
    /// [`SegmentTrainView::content`] says where.
    pub pad_color: [u8; 3],
}

impl Default for SegmentTrainConfig {
    fn default() -> Self {
        Self {
            base: [2048, 512],
            min_ratio: 0.5,
            max_ratio: 2.0,
            crop_size: 512,
            cat_max_ratio: 0.75,
            hflip: 0.5,
            use_photometric: true,
            photometric: PhotometricConfig::default(),
            pad_color: IMAGENET_MEAN_COLOR,
        }
    }
}

impl SegmentTrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: String, expected| Err(TransformError::Setting { name, value, expected });
        if !self.base.iter().all(|side| (1..=MAX_TARGET_SIDE).contains(side)) {
            return bad("base", format!("{:?}", self.base), "two sides of 1 to 16384 pixels");
        }
        let longest = f64::from(self.base[0].max(self.base[1])) * self.max_ratio;
        if !(self.min_ratio > 0.0 && self.min_ratio <= self.max_ratio) || longest > MAX_TARGET_SIDE.into() {
            let value = format!("{} to {}", self.min_ratio, self.max_ratio);
            let expected = "above 0, in order, and with `base` at most 16384 pixels (0.5 to 2 in the paper)";
            return bad("min_ratio to max_ratio", value, expected);
        }
        if !(1..=MAX_TARGET_SIDE).contains(&self.crop_size) {
            return bad("crop_size", self.crop_size.to_string(), "1 to 16384 pixels");
        }
        if !(self.cat_max_ratio > 0.0 && self.cat_max_ratio <= 1.0) {
            let expected = "above 0 and at most 1 (0.75 in the paper, 1 takes any crop)";
            return bad("cat_max_ratio", self.cat_max_ratio.to_string(), expected);
        }
        if !(0.0..=1.0).contains(&self.hflip) {
            return bad("hflip", self.hflip.to_string(), "a probability from 0 to 1");
        }
        self.photometric.validate()
    }

    /// Whether a crop of the mask, resized to `resized` (width, height), has two classes, and none with
    /// [`Self::cat_max_ratio`] of the labelled pixels or more. An empty or broken mask has none.
    #[must_use]
    pub fn accepts(&self, mask: &LabelMap, resized: (u32, u32), area: CropBox) -> bool {
        if mask.data.is_empty() || mask.check().is_err() {
            return false;
        }
        let columns = repeated(&nearest_positions(mask.width, resized.0, area.left, area.width));
        let rows = repeated(&nearest_positions(mask.height, resized.1, area.top, area.height));
        // A box has at most 16384 x 16384 pixels, which fits.
        let mut counts = [0u32; 256];
        for (row, times) in rows {
            let row = &mask.data[row * mask.width as usize..][..mask.width as usize];
            for &(column, more) in &columns {
                counts[usize::from(row[column])] += times * more;
            }
        }
        counts[usize::from(IGNORE)] = 0;
        let present = counts.iter().filter(|&&count| count > 0).count();
        let largest = counts.iter().max().copied().unwrap_or(0);
        let total: u32 = counts.iter().sum();
        present > 1 && f64::from(largest) / f64::from(total) < self.cat_max_ratio
    }
}

/// An image and its class numbers, ready for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentTrainView {
    /// `[crop_size, crop_size, 3]`.
    pub image: Image,
    /// `[crop_size, crop_size]`; [`IGNORE`] where the image is padded.
    pub mask: LabelMap,
    /// Width and height of the part, at the top left, that is not padding.
    pub content: (u32, u32),
}

/// Everything random about one training view; enough to make it again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentTrainParams {
    /// Width and height that the image is resized to.
    pub resized: (u32, u32),
    /// The crop, in the coordinates of the resized image.
    pub area: CropBox,
    /// Whether the crop is mirrored.
    pub flip: bool,
    /// What is done to the colours of the mirrored crop.
    pub photometric: PhotometricParams,
}

impl SegmentTrainParams {
    /// Draws the parameters, in the reference's order. The image has the size of its mask, and the
    /// mask decides which crops are taken.
    ///
    /// # Errors
    /// A mask that is empty, or so long that its resized form exceeds [`MAX_TARGET_SIDE`].
    pub fn draw(config: &SegmentTrainConfig, mask: &LabelMap, key: &Key) -> Result<Self, TransformError> {
        mask.check()?;
        CropBox::whole(mask.width, mask.height).check(mask.width, mask.height)?; // not empty
        let mut rng = key.rng();
        let ratio = uniform(&mut rng, config.min_ratio, config.max_ratio);
        let resized = keep_ratio((mask.width, mask.height), config.base, ratio);
        check_target(resized.0, resized.1)?;
        let area = draw_crop(config, mask, resized, || random_box(&mut rng, resized, config.crop_size));
        let flip = unit(&mut rng) < config.hflip;
        let photometric = match config.use_photometric {
            true => config.photometric.sample(&mut rng),
            false => PhotometricParams::default(),
        };
        Ok(Self { resized, area, flip, photometric })
    }

    /// Makes the view.
    ///
    /// # Errors
    /// A mask of another size than the image ([`TransformError::MaskSize`]).
    pub fn apply(
        &self,
        config: &SegmentTrainConfig,
        image: &Image,
        mask: &LabelMap,
    ) -> Result<SegmentTrainView, TransformError> {
        if (image.width, image.height) != (mask.width, mask.height) {
            let (mask_w, mask_h, width, height) = (mask.width, mask.height, image.width, image.height);
            return Err(TransformError::MaskSize { mask_w, mask_h, width, height });
        }
        let mut image = resize_linear_crop(image, self.resized, self.area)?;
        let mut mask = mask.resize_nearest_crop(self.resized, self.area)?;
        if self.flip {
            flip_horizontal(&mut image);
            mask.flip_horizontal();
        }
        self.photometric.apply(&mut image);
        let (content, size) = ((image.width, image.height), config.crop_size);
        if content != (size, size) {
            image = window(&image, (0, 0), (size, size), config.pad_color)?;
            mask = mask.pad(size, size)?;
        }
        Ok(SegmentTrainView { image, mask, content })
    }
}

/// A box of `size` x `size` anywhere in an image; smaller where the image is.
fn random_box(rng: &mut impl Rng, (width, height): (u32, u32), size: u32) -> CropBox {
    let mut start = |length: u32| below(rng, u64::from(length.saturating_sub(size)) + 1) as u32;
    let (top, left) = (start(height), start(width));
    CropBox { top, left, height: height.min(size), width: width.min(size) }
}

/// The first of ten boxes that shows enough of a second class; else an eleventh, whatever it shows.
fn draw_crop(
    config: &SegmentTrainConfig,
    mask: &LabelMap,
    resized: (u32, u32),
    mut draw: impl FnMut() -> CropBox,
) -> CropBox {
    let mut area = draw();
    if config.cat_max_ratio >= 1.0 {
        return area;
    }
    for _ in 0..TRIES {
        if config.accepts(mask, resized, area) {
            break;
        }
        area = draw();
    }
    area
}

/// Runs of equal positions as (position, length): an enlarged mask repeats its pixels.
fn repeated(positions: &[usize]) -> Vec<(usize, u32)> {
    positions.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::RngStream;

    #[test]
    fn the_eleventh_box_is_taken_unseen() {
        // Class 1 is the left column only.
        let mask = LabelMap::new(8, 4, (0..32).map(|at| u8::from(at % 8 == 0)).collect()).unwrap();
        let config = SegmentTrainConfig { crop_size: 4, ..SegmentTrainConfig::default() };
        let boxed = |left| CropBox { top: 0, left, height: 4, width: 2 };
        let drawn = |lefts: &[u32]| {
            let mut boxes = lefts.iter().map(|&left| boxed(left));
            let area = draw_crop(&config, &mask, (8, 4), || boxes.next().unwrap());
            (area.left, boxes.count())
        };
        assert_eq!(drawn(&[0, 1, 2]), (0, 2));
        assert_eq!(drawn(&[3, 2, 0, 1]), (0, 1));
        assert_eq!(drawn(&[3, 2, 4, 5, 3, 2, 4, 5, 3, 2, 6, 0]), (6, 1));
        let any = SegmentTrainConfig { cat_max_ratio: 1.0, ..config };
        assert_eq!(draw_crop(&any, &mask, (8, 4), || boxed(3)).left, 3);
    }

    #[test]
    fn unlabelled_pixels_do_not_count() {
        let config = SegmentTrainConfig::default();
        let accepts = |classes: [u8; 8]| {
            let mask = LabelMap::new(8, 1, classes.to_vec()).unwrap();
            config.accepts(&mask, (8, 1), CropBox::whole(8, 1))
        };
        assert!(accepts([0, 0, 0, 1, 1, 2, 2, 2]));
        assert!(!accepts([0; 8]) && !accepts([255; 8]));
        assert!(!accepts([0, 0, 0, 255, 255, 255, 255, 255]));
        // 3 of 4 is not below 0.75, 5 of 7 is.
        assert!(!accepts([0, 0, 0, 1, 255, 255, 255, 255]));
        assert!(accepts([0, 0, 0, 0, 0, 1, 1, 255]));
        let empty = LabelMap { width: 0, height: 0, data: vec![] };
        assert!(!config.accepts(&empty, (8, 1), CropBox::whole(8, 1)));
    }

    #[test]
    fn counting_runs_is_counting_pixels() {
        let mask =
            LabelMap::new(50, 37, (0..50 * 37).map(|at| (at % 50 / 16 + at / 800) as u8).collect()).unwrap();
        let resized = (141, 104);
        let area = CropBox { top: 13, left: 29, height: 60, width: 71 };
        let plain = mask.resize_nearest_crop(resized, area).unwrap().histogram();
        let largest = *plain.iter().max().unwrap() as f64 / (60.0 * 71.0);
        let at = |cat_max_ratio| SegmentTrainConfig { cat_max_ratio, ..SegmentTrainConfig::default() };
        assert!(at(largest + 1e-9).accepts(&mask, resized, area));
        assert!(!at(largest - 1e-9).accepts(&mask, resized, area));
    }

    #[test]
    fn mistakes_are_named() {
        let image = Image::new(40, 30, vec![0; 3600]).unwrap();
        let mask = LabelMap::new(40, 30, vec![0; 1200]).unwrap();
        let config = SegmentTrainConfig::default();
        let key = Key { seed: 9, epoch: 0, index: 0, stream: RngStream::Augment };
        let params = SegmentTrainParams::draw(&config, &mask, &key).unwrap();
        let small = mask.crop(CropBox::whole(40, 29)).unwrap();
        assert_eq!(
            params.apply(&config, &image, &small).unwrap_err().to_string(),
            "the mask is 40 x 29 pixels, its image is 40 x 30; both must agree"
        );
        let empty = LabelMap { width: 0, height: 0, data: vec![] };
        assert!(SegmentTrainParams::draw(&config, &empty, &key).is_err());
        assert!(config.validate().is_ok());
        for bad in [
            SegmentTrainConfig { base: [0, 512], ..config },
            SegmentTrainConfig { min_ratio: 0.0, ..config },
            SegmentTrainConfig { min_ratio: 3.0, ..config },
            SegmentTrainConfig { max_ratio: f64::NAN, ..config },
            SegmentTrainConfig { max_ratio: 9.0, ..config },
            SegmentTrainConfig { crop_size: 0, ..config },
            SegmentTrainConfig { cat_max_ratio: 0.0, ..config },
            SegmentTrainConfig { hflip: -0.1, ..config },
            SegmentTrainConfig {
                photometric: PhotometricConfig { prob: 2.0, ..config.photometric },
                ..config
            },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
        let parsed: SegmentTrainConfig = toml::from_str("hflip = 0.25\n[photometric]\nhue = 5").unwrap();
        // A recipe's crop has the model's size, which is not said twice.
        assert_eq!((parsed.crop_size, parsed.photometric.hue, parsed.hflip), (512, 5, 0.25));
        assert!(toml::from_str::<SegmentTrainConfig>("crop_size = 64").is_err());
        assert!(toml::from_str::<SegmentTrainConfig>("crop = 3").is_err());
    }
}
