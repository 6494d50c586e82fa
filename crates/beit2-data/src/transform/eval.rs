//! The fixed view used for evaluation: resize, cut out the centre.

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::image::Image;
use crate::transform::crop::CropBox;
use crate::transform::randaugment::IMAGENET_MEAN_COLOR;
use crate::transform::resample::{Axis, resample};
use crate::transform::resize::{Interpolation, MAX_TARGET_SIDE, check_target};
use crate::transform::rows::Cut;
use crate::transform::window::window;

/// How an image that is not square becomes a square view; timm's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropMode {
    /// The shorter side is resized, what is too long is cut off. The protocol of the paper.
    #[default]
    Center,
    /// Both sides are resized, the aspect is lost.
    Squash,
    /// The longer side is resized, what is too short is padded with [`EvalConfig::fill`].
    Border,
}

/// Largest input for which images are taken whole, as in training ([`crate::TrainCrop::Auto`]).
pub(crate) const SMALL_INPUT: u32 = 32;

/// Settings of the evaluation view (docs/method.md §4.4). The defaults are the paper's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Side of the view in pixels. Default 224.
    pub size: u32,
    /// The share of the resized image that the view shows. Default: 224 / 256 below 384 pixels,
    /// 1 from there on, and 1 up to 32 pixels, where the reference takes images as they are (CIFAR).
    pub crop_pct: Option<f64>,
    /// What happens to images that are not square. Default [`CropMode::Center`].
    pub crop_mode: CropMode,
    /// Filter. Default bicubic.
    pub interpolation: Interpolation,
    /// Colour of the padding of [`CropMode::Border`]. Default: ImageNet's mean, as in timm.
    pub fill: [u8; 3],
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            size: 224,
            crop_pct: None,
            crop_mode: CropMode::Center,
            interpolation: Interpolation::Bicubic,
            fill: IMAGENET_MEAN_COLOR,
        }
    }
}

impl EvalConfig {
    /// The paper's protocol at another size.
    #[must_use]
    pub fn of_size(size: u32) -> Self {
        Self { size, ..Self::default() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: String, expected| Err(TransformError::Setting { name, value, expected });
        if !(1..=MAX_TARGET_SIDE).contains(&self.size) {
            return bad("size", self.size.to_string(), "1 to 16384 pixels");
        }
        match self.crop_pct {
            Some(pct) if !(pct > 0.0 && pct <= 2.0) => {
                bad("crop_pct", pct.to_string(), "above 0 and at most 2 (0.875 or 1 in the paper's protocol)")
            }
            _ => Ok(()),
        }
    }

    /// Length in pixels to which the side named by the mode is resized: `floor(size / crop_pct)`.
    #[must_use]
    pub fn resize_side(&self) -> u32 {
        match self.crop_pct {
            Some(pct) => (f64::from(self.size) / pct) as u32,
            None if self.size <= SMALL_INPUT => self.size,
            None => eval_resize_side(self.size),
        }
    }

    /// The box of an image of `width` x `height` pixels whose pixels are enough for [`Self::apply_region`].
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn region(&self, width: u32, height: u32) -> Result<CropBox, TransformError> {
        Ok(self.plan(width, height)?.area)
    }

    /// Makes the view, `[size, size, 3]`.
    ///
    /// Only the part of the resized image that the view shows is computed. A view larger than the resized image
    /// (`crop_pct` above 1) is padded, with black in the modes that come from torchvision.
    ///
    /// # Errors
    /// An image so long that its resized form would exceed [`MAX_TARGET_SIDE`]
    /// ([`TransformError::TargetSize`]).
    pub fn apply(&self, image: &Image) -> Result<Image, TransformError> {
        image.check()?;
        if image.channels != 3 {
            return image.by_threes(|rgb| self.apply(rgb));
        }
        let plan = self.plan(image.width, image.height)?;
        self.view(&plan, &Cut::new(image, plan.area))
    }

    /// Makes the view from the pixels of [`Self::region`] of an image of `whole` (width, height) pixels; the same as
    /// [`Self::apply`] on that image.
    ///
    /// # Errors
    /// As [`Self::apply`]; a region of another size ([`TransformError::RegionSize`]).
    pub fn apply_region(&self, region: &Image, whole: (u32, u32)) -> Result<Image, TransformError> {
        let plan = self.plan(whole.0, whole.1)?;
        plan.area.check_region(region)?;
        if region.channels != 3 {
            return region.by_threes(|rgb| self.apply_region(rgb, whole));
        }
        self.view(&plan, &Cut::new(region, CropBox::whole(region.width, region.height)))
    }

    fn view(&self, plan: &Plan, cut: &Cut) -> Result<Image, TransformError> {
        let data = resample(cut, &plan.across, &plan.down, self.interpolation);
        let shown = Image::new(plan.across.outputs.len() as u32, plan.down.outputs.len() as u32, data)?;
        if (shown.width, shown.height) == (self.size, self.size) {
            return Ok(shown);
        }
        let fill = if self.crop_mode == CropMode::Border { self.fill } else { [0; 3] };
        window(&shown, plan.start, (self.size, self.size), fill)
    }

    fn plan(&self, width: u32, height: u32) -> Result<Plan, TransformError> {
        let side = self.resize_side();
        let (w, h) = match self.crop_mode {
            CropMode::Center => shorter_side_to(side, (width, height)),
            CropMode::Squash => (side, side),
            CropMode::Border => longer_side_to(side, (width, height)),
        };
        check_target(w, h)?;
        CropBox::whole(width, height).check(width, height)?; // not empty
        let axis = |from: u32, to: u32| {
            let start = centered(to, self.size);
            let outputs = start.max(0) as usize..(start + i64::from(self.size)).min(to.into()) as usize;
            let axis = Axis { outputs, ..Axis::whole(from as usize, to as usize) };
            let inputs = axis.inputs(self.interpolation);
            (Axis { origin: inputs.start, ..axis }, inputs, start.min(0))
        };
        let ((across, columns, left), (down, rows, top)) = (axis(width, w), axis(height, h));
        let area = CropBox {
            top: rows.start as u32,
            left: columns.start as u32,
            height: rows.len() as u32,
            width: columns.len() as u32,
        };
        Ok(Plan { across, down, area, start: (top, left) })
    }
}

/// How the view of images of one size is made.
struct Plan {
    /// The columns and rows of the resized image that the view shows.
    across: Axis,
    down: Axis,
    /// The pixels that they are made of.
    area: CropBox,
    /// First row and column of the view in what is shown: 0, or below where the view is padded.
    start: (i64, i64),
}

/// torchvision's Resize: the longer side is rounded down.
pub(crate) fn shorter_side_to(side: u32, (width, height): (u32, u32)) -> (u32, u32) {
    let (w, h) = (u64::from(width), u64::from(height));
    let scaled = |length: u64| u32::try_from(u64::from(side) * length / w.min(h).max(1)).unwrap_or(u32::MAX);
    (scaled(w), scaled(h))
}

/// timm's ResizeKeepRatio: the shorter side is rounded to the nearest, half to even.
pub(crate) fn longer_side_to(side: u32, (width, height): (u32, u32)) -> (u32, u32) {
    let (w, h) = (f64::from(width), f64::from(height));
    let ratio = w.max(h) / f64::from(side);
    let scaled = |length: f64| (length / ratio).round_ties_even().max(1.0) as u32;
    (scaled(w), scaled(h))
}

/// First row or column of a central stretch of `size`; negative when the image is shorter.
///
/// Cutting rounds half to even, as Python does; padding puts the odd pixel behind the image.
fn centered(length: u32, size: u32) -> i64 {
    let (length, size) = (i64::from(length), i64::from(size));
    if length < size {
        -((size - length) / 2)
    } else {
        ((length - size) as f64 / 2.0).round_ties_even() as i64
    }
}

/// Length the shorter side is resized to before a crop of `size` pixels: `floor(size / (224 /
/// 256))` below 384 pixels, `size` itself from there on (BEiT v2 evaluation transform).
#[must_use]
pub fn eval_resize_side(size: u32) -> u32 {
    if size >= 384 { size } else { size * 256 / 224 }
}

/// The central box of `size` x `size` in an image at least that large; offsets round half to even,
/// as Python does.
#[must_use]
pub fn eval_crop(width: u32, height: u32, size: u32) -> CropBox {
    let offset = |length: u32| u32::try_from(centered(length, size)).unwrap_or(0);
    CropBox { top: offset(height), left: offset(width), height: size, width: size }
}

/// The view of [`EvalConfig`] with its defaults: resize + central crop to `size` x `size` pixels.
///
/// # Errors
/// As [`EvalConfig::apply`].
pub fn eval_view(image: &Image, size: u32, filter: Interpolation) -> Result<Image, TransformError> {
    EvalConfig { size, interpolation: filter, ..EvalConfig::default() }.apply(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::resize::{crop, resize};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn the_region_is_enough(width in 1u32..90, height in 1u32..90, size in 1u32..70, pct in 0.5f64..1.5, mode in 0usize..3, channels in 1u32..5) {
            let crop_mode = [CropMode::Center, CropMode::Squash, CropMode::Border][mode];
            let config = EvalConfig { size, crop_pct: Some(pct), crop_mode, ..EvalConfig::default() };
            let data = (0..width * height * channels).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let image = Image::with_channels(width, height, channels, data).unwrap();
            let side = config.resize_side();
            let (w, h) = match crop_mode {
                CropMode::Center => shorter_side_to(side, (width, height)),
                CropMode::Squash => (side, side),
                CropMode::Border => longer_side_to(side, (width, height)),
            };
            if side == 0 {
                return Ok(());
            }
            let fill = if crop_mode == CropMode::Border { config.fill } else { [0; 3] };
            let resized = resize(&image, w, h, config.interpolation).unwrap();
            let expected = window(&resized, (centered(h, size), centered(w, size)), (size, size), fill).unwrap();
            prop_assert_eq!(&config.apply(&image).unwrap(), &expected);
            let region = crop(&image, config.region(width, height).unwrap()).unwrap();
            prop_assert_eq!(&config.apply_region(&region, (width, height)).unwrap(), &expected);
        }
    }

    #[test]
    fn sizes_of_the_reference() {
        assert_eq!([224, 96, 384, 512, 64].map(eval_resize_side), [256, 109, 384, 512, 73]);
        // The demo image of the BEiT v2 paper's code: 335 x 256 after resizing; 55.5 rounds to
        // 56.
        assert_eq!(eval_crop(335, 256, 224), CropBox { top: 16, left: 56, height: 224, width: 224 });
        let given =
            |size, pct| EvalConfig { size, crop_pct: Some(pct), ..EvalConfig::default() }.resize_side();
        assert_eq!(
            [given(224, 0.875), given(224, 0.9), given(384, 1.0), given(384, 0.95)],
            [256, 248, 384, 404]
        );
        let own = |size| EvalConfig { size, ..EvalConfig::default() }.resize_side();
        assert_eq!([own(28), own(32), own(40)], [28, 32, 45]);
    }

    #[test]
    fn extreme_shapes_are_errors_not_panics() {
        let line = Image::new(1, 20_000, vec![0; 60_000]).unwrap();
        assert!(matches!(
            eval_view(&line, 224, Interpolation::Bicubic),
            Err(TransformError::TargetSize { .. })
        ));
        let border = EvalConfig { crop_mode: CropMode::Border, ..EvalConfig::default() };
        assert_eq!(border.apply(&line).unwrap().data.len(), 224 * 224 * 3);
        let small = Image::new(3, 2, vec![7; 18]).unwrap();
        assert_eq!(eval_view(&small, 32, Interpolation::Bicubic).unwrap().data, [7; 32 * 32 * 3]);
        let empty = Image { width: 0, height: 0, channels: 3, data: vec![] };
        for crop_mode in [CropMode::Center, CropMode::Squash, CropMode::Border] {
            assert!(EvalConfig { crop_mode, ..EvalConfig::default() }.apply(&empty).is_err());
        }
    }

    #[test]
    fn modes_show_what_they_promise() {
        // Left half 0, right half 200, twice as wide as high.
        let data = [[0; 3], [200; 3]].map(|color| color.repeat(20)).concat().repeat(20);
        let image = Image::new(40, 20, data).unwrap();
        let view = |crop_mode| {
            let config = EvalConfig {
                size: 20,
                crop_pct: Some(1.0),
                crop_mode,
                fill: [1, 2, 3],
                ..EvalConfig::default()
            };
            config.apply(&image).unwrap()
        };
        let row = |view: &Image, y: usize| view.data[y * 60..(y + 1) * 60].to_vec();
        let halves = [[0; 3], [200; 3]].map(|color| color.repeat(10)).concat();
        assert_eq!(row(&view(CropMode::Center), 0), halves);
        let squashed = view(CropMode::Squash);
        assert_eq!((row(&squashed, 0)[..24].to_vec(), squashed.width), (vec![0; 24], 20));
        let bordered = view(CropMode::Border);
        assert_eq!(row(&bordered, 4), [1, 2, 3].repeat(20));
        assert_eq!(row(&bordered, 15), [1, 2, 3].repeat(20));
        assert_eq!(row(&bordered, 5)[..24], [0; 24]);
    }

    #[test]
    fn views_larger_than_the_image_are_padded() {
        let image = Image::new(8, 8, vec![9; 192]).unwrap();
        let config = EvalConfig { size: 11, crop_pct: Some(1.4), ..EvalConfig::default() };
        assert_eq!(config.resize_side(), 7);
        let view = config.apply(&image).unwrap();
        let covered = view.data.iter().step_by(3).filter(|&&value| value == 9).count();
        assert_eq!((covered, view.data[2 * 33 + 6], view.data[2 * 33 + 3]), (49, 9, 0));
    }

    #[test]
    fn settings_are_checked() {
        assert!(EvalConfig::default().validate().is_ok());
        for pct in [0.0, -1.0, f64::NAN, 3.0] {
            assert!(EvalConfig { crop_pct: Some(pct), ..EvalConfig::default() }.validate().is_err());
        }
        assert!(EvalConfig { size: 0, ..EvalConfig::default() }.validate().is_err());
    }
}
