//! The random box of RandomResizedCrop (Szegedy et al. 2015, "Going deeper with convolutions";
//! torchvision's rules).

use crate::error::TransformError;
use crate::image::Image;
use crate::rng::{Rng, below, uniform};

/// Tries before the central crop is taken.
const TRIES: usize = 10;

/// A rectangle of pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First row.
    pub top: u32,
    /// First column.
    pub left: u32,
    /// Rows, at least 1.
    pub height: u32,
    /// Columns, at least 1.
    pub width: u32,
}

impl CropBox {
    /// The whole image.
    #[must_use]
    pub fn whole(width: u32, height: u32) -> Self {
        Self { top: 0, left: 0, height, width }
    }

    /// The same pixels' box after a left-right flip of an image `image_width` pixels wide.
    #[must_use]
    pub fn mirrored(&self, image_width: u32) -> Self {
        let left = image_width.saturating_sub(self.left).saturating_sub(self.width);
        Self { left, ..*self }
    }

    /// Whether resizing this box to `size` x `size` has to invent pixels.
    #[must_use]
    pub fn smaller_than(&self, size: u32) -> bool {
        self.width < size || self.height < size
    }

    /// Checks that a region has the size of the box.
    pub(crate) fn check_region(&self, region: &Image) -> Result<(), TransformError> {
        let (width, height) = (region.width, region.height);
        if (width, height) == (self.width, self.height) && width > 0 && height > 0 {
            return region.check();
        }
        Err(TransformError::RegionSize { need_w: self.width, need_h: self.height, width, height })
    }

    /// Checks that the box lies inside an image of `width` x `height` pixels.
    ///
    /// # Errors
    /// A box that is empty or leaves the image ([`TransformError::CropOutside`]).
    pub fn check(&self, width: u32, height: u32) -> Result<(), TransformError> {
        let inside = |start: u32, length: u32, limit: u32| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= limit)
        };
        if inside(self.left, self.width, width) && inside(self.top, self.height, height) {
            return Ok(());
        }
        Err(TransformError::CropOutside {
            left: self.left,
            top: self.top,
            crop_w: self.width,
            crop_h: self.height,
            width,
            height,
        })
    }
}

/// What boxes are drawn. Default: area 0.2 to 1 of the image (the paper's recipe), width / height
/// 3/4 to 4/3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CropConfig {
    /// Smallest share of the image's area.
    pub min_scale: f64,
    /// Largest share of the image's area.
    pub max_scale: f64,
    /// Smallest width / height.
    pub min_ratio: f64,
    /// Largest width / height.
    pub max_ratio: f64,
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { min_scale: 0.2, max_scale: 1.0, min_ratio: 3.0 / 4.0, max_ratio: 4.0 / 3.0 }
    }
}

impl CropConfig {
    /// Draws a box inside an image of `width` x `height` pixels (both at least 1).
    ///
    /// Area uniform, aspect log-uniform, position uniform; after ten boxes that do not fit, the
    /// central crop clamped to the aspect limits.
    pub fn sample(&self, rng: &mut impl Rng, width: u32, height: u32) -> CropBox {
        let area = f64::from(width) * f64::from(height);
        for _ in 0..TRIES {
            let target = area * uniform(rng, self.min_scale, self.max_scale);
            let ratio = uniform(rng, self.min_ratio.ln(), self.max_ratio.ln()).exp();
            let w = (target * ratio).sqrt().round_ties_even() as u32;
            let h = (target / ratio).sqrt().round_ties_even() as u32;
            // Differs from upstream: an image of one or two pixels can round to an empty box, on
            // which Pillow fails.
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = below(rng, u64::from(height - h) + 1) as u32;
                let left = below(rng, u64::from(width - w) + 1) as u32;
                return CropBox { top, left, height: h, width: w };
            }
        }
        self.central(width, height)
    }

    /// The largest central box whose aspect is within the limits.
    fn central(&self, width: u32, height: u32) -> CropBox {
        let (fw, fh) = (f64::from(width), f64::from(height));
        let ratio = fw / fh;
        let (w, h) = if ratio < self.min_ratio {
            (width, (fw / self.min_ratio).round_ties_even() as u32)
        } else if ratio > self.max_ratio {
            ((fh * self.max_ratio).round_ties_even() as u32, height)
        } else {
            (width, height)
        };
        let (w, h) = (w.clamp(1, width.max(1)), h.clamp(1, height.max(1)));
        CropBox { top: height.saturating_sub(h) / 2, left: width.saturating_sub(w) / 2, height: h, width: w }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, RngStream};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn always_inside(width in 1u32..3000, height in 1u32..3000, min_scale in 0.001f64..=1.0, seed: u64) {
            let config = CropConfig { min_scale, ..CropConfig::default() };
            let mut rng = Key { seed, epoch: 0, index: 0, stream: RngStream::Augment }.rng();
            let crop = config.sample(&mut rng, width, height);
            prop_assert!(crop.check(width, height).is_ok(), "{:?}", crop);
            let back = crop.mirrored(width).mirrored(width);
            prop_assert_eq!(crop, back);
        }
    }

    #[test]
    fn long_images_get_the_central_crop() {
        let config = CropConfig { min_scale: 1.0, ..CropConfig::default() };
        let mut rng = Key { seed: 0, epoch: 0, index: 0, stream: RngStream::Augment }.rng();
        // 100 wide at ratio 3/4 is 133.33 high; (600 - 133) / 2 rounds down.
        assert_eq!(config.sample(&mut rng, 100, 600), CropBox { top: 233, left: 0, height: 133, width: 100 });
        assert_eq!(config.sample(&mut rng, 600, 100), CropBox { top: 0, left: 233, height: 100, width: 133 });
        assert_eq!(config.sample(&mut rng, 1, 1), CropBox::whole(1, 1));
    }

    #[test]
    fn boxes_outside_are_refused() {
        let outside = CropBox { top: 0, left: u32::MAX, height: 1, width: 2 };
        assert!(outside.check(10, 10).is_err());
        assert!(CropBox { top: 0, left: 0, height: 0, width: 1 }.check(10, 10).is_err());
    }
}
