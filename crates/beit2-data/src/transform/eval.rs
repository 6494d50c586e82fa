//! The fixed view used for evaluation: resize the shorter side, cut out the centre (torchvision's
//! Resize + CenterCrop).

use crate::error::TransformError;
use crate::image::Image;
use crate::transform::crop::CropBox;
use crate::transform::resize::{Interpolation, crop, resize};

/// Length the shorter side is resized to before a crop of `size` pixels: `floor(size / (224 /
/// 256))` below 384 pixels, `size` itself from there on (BEiT v2 evaluation transform).
#[must_use]
pub fn eval_resize_side(size: u32) -> u32 {
    if size >= 384 { size } else { size * 256 / 224 }
}

/// The central box of `size` x `size` in a picture at least that large; offsets round half to even,
/// as Python does.
#[must_use]
pub fn eval_crop(width: u32, height: u32, size: u32) -> CropBox {
    let offset = |length: u32| (f64::from(length.saturating_sub(size)) / 2.0).round_ties_even() as u32;
    CropBox { top: offset(height), left: offset(width), height: size, width: size }
}

/// Resize + central crop to `size` x `size` pixels.
pub fn eval_view(image: &Image, size: u32, filter: Interpolation) -> Result<Image, TransformError> {
    let side = u64::from(eval_resize_side(size));
    let (w, h) = (u64::from(image.width), u64::from(image.height));
    let short = w.min(h).max(1);
    let scaled = |length: u64| u32::try_from(side * length / short).unwrap_or(u32::MAX);
    let resized = resize(image, scaled(w), scaled(h), filter)?;
    crop(&resized, eval_crop(resized.width, resized.height, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_reference() {
        assert_eq!([224, 96, 384, 512, 64].map(eval_resize_side), [256, 109, 384, 512, 73]);
        // The demo picture of the BEiT v2 paper's code: 335 x 256 after resizing; 55.5 rounds to
        // 56.
        assert_eq!(eval_crop(335, 256, 224), CropBox { top: 16, left: 56, height: 224, width: 224 });
    }

    #[test]
    fn extreme_shapes_are_errors_not_panics() {
        let line = Image::new(1, 20_000, vec![0; 60_000]).unwrap();
        assert!(matches!(
            eval_view(&line, 224, Interpolation::Bicubic),
            Err(TransformError::TargetSize { .. })
        ));
        let small = Image::new(3, 2, vec![7; 18]).unwrap();
        assert_eq!(eval_view(&small, 32, Interpolation::Bicubic).unwrap().data, [7; 32 * 32 * 3]);
    }
}
