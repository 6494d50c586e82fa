//! The view for evaluation and prediction (docs/method.md §5): the whole image, resized with its aspect
//! kept. Masks stay as they are; predictions are brought to their size.

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::image::Image;
use crate::segment::resize::resize_linear;
use crate::transform::resize::MAX_TARGET_SIDE;

/// Settings of the view. The default is the paper's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentTestConfig {
    /// Longer and shorter side, in pixels, that an image is fitted into; `None` leaves it as it is.
    /// Default 2048 and 512.
    pub base: Option<[u32; 2]>,
}

impl Default for SegmentTestConfig {
    fn default() -> Self {
        Self { base: Some([2048, 512]) }
    }
}

impl SegmentTestConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        match self.base {
            Some(base) if !base.iter().all(|side| (1..=MAX_TARGET_SIDE).contains(side)) => {
                let (value, expected) = (format!("{base:?}"), "two sides of 1 to 16384 pixels");
                Err(TransformError::Setting { name: "base", value, expected })
            }
            _ => Ok(()),
        }
    }

    /// Width and height of the view of an image of `width` x `height` pixels at a ratio: 1, or 0.5 to
    /// 1.75 when several scales are averaged.
    #[must_use]
    pub fn size(&self, width: u32, height: u32, ratio: f64) -> (u32, u32) {
        keep_ratio((width, height), self.base.unwrap_or([width, height]), ratio)
    }

    /// Makes the view; see [`Self::size`].
    ///
    /// # Errors
    /// An image so long that its resized form would exceed [`MAX_TARGET_SIDE`]
    /// ([`TransformError::TargetSize`]).
    pub fn apply(&self, image: &Image, ratio: f64) -> Result<Image, TransformError> {
        let (width, height) = self.size(image.width, image.height, ratio);
        resize_linear(image, width, height)
    }
}

/// Fits a size into `base` times `ratio`, whichever way round, and keeps the aspect; mmcv's rounding.
/// No side becomes 0.
pub(super) fn keep_ratio((width, height): (u32, u32), base: [u32; 2], ratio: f64) -> (u32, u32) {
    // Cutting off is what the reference does to base times ratio.
    let [a, b] = base.map(|side| (f64::from(side) * ratio).floor());
    let [long, short] = [a.max(b) / f64::from(width.max(height)), a.min(b) / f64::from(width.min(height))];
    let scaled = |side: u32| ((f64::from(side) * long.min(short) + 0.5) as u32).max(1);
    (scaled(width), scaled(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_reference() {
        let config = SegmentTestConfig::default();
        // ADE20K images have a shorter side of 512 in most cases.
        assert_eq!(config.size(683, 512, 1.0), (683, 512));
        assert_eq!(config.size(512, 683, 1.0), (512, 683));
        assert_eq!(config.size(500, 375, 1.0), (683, 512));
        assert_eq!(config.size(500, 375, 1.75), (1195, 896));
        assert_eq!(config.size(4000, 500, 1.0), (2048, 256));
        assert_eq!(config.size(1, 20_000, 1.0), (1, 2048));
        // 108 x 68 after cutting off: 68 / 37 * 51 = 93.7.
        assert_eq!(keep_ratio((51, 37), [64, 40], 1.7), (94, 68));
        assert_eq!(keep_ratio((51, 37), [40, 64], 0.5), (28, 20));
        let native = SegmentTestConfig { base: None };
        assert_eq!(native.size(51, 37, 1.0), (51, 37));
        assert_eq!(native.size(51, 37, 0.5), (25, 18));
    }

    #[test]
    fn native_images_are_not_touched_and_long_ones_are_refused() {
        let long = Image::new(20_000, 1, vec![7; 60_000]).unwrap();
        let native = SegmentTestConfig { base: None };
        assert_eq!(native.apply(&long, 1.0).unwrap(), long);
        assert!(matches!(native.apply(&long, 2.0), Err(TransformError::TargetSize { .. })));
        assert_eq!(SegmentTestConfig::default().apply(&long, 1.0).unwrap().width, 2048);
        assert!(SegmentTestConfig { base: Some([0, 5]) }.validate().is_err());
        assert!(SegmentTestConfig::default().validate().is_ok());
    }
}
