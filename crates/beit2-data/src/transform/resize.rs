//! Cropping and resizing with Pillow's filters.
//!
//! Pillow's "bicubic" is the cubic kernel with a = -0.5 and its "lanczos" has three lobes; both
//! widen when shrinking.

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::image::Image;
use crate::transform::crop::CropBox;
use crate::transform::resample::{Axis, resample};
use crate::transform::rows::Cut;

/// Largest side an image may be resized to, in pixels.
pub const MAX_TARGET_SIDE: u32 = 16_384;

/// Resampling filter, with Pillow's meaning of the names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic with a = -0.5. The paper's choice for both views.
    #[default]
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
}

/// Resizes to `width` x `height` pixels. An image that has this size already is returned as it is.
///
/// # Errors
/// A side outside 1 to [`MAX_TARGET_SIDE`] ([`TransformError::TargetSize`]); an empty image.
pub fn resize(
    image: &Image,
    width: u32,
    height: u32,
    filter: Interpolation,
) -> Result<Image, TransformError> {
    check_target(width, height)?;
    image.check()?;
    CropBox::whole(image.width, image.height).check(image.width, image.height)?; // not empty
    if (image.width, image.height) == (width, height) {
        return Ok(image.clone());
    }
    if image.channels != 3 {
        return image.by_threes(|rgb| resize(rgb, width, height, filter));
    }
    resize_cut(&Cut::new(image, CropBox::whole(image.width, image.height)), width, height, filter)
}

/// Fails for a side outside 1 to [`MAX_TARGET_SIDE`].
pub(crate) fn check_target(width: u32, height: u32) -> Result<(), TransformError> {
    if (1..=MAX_TARGET_SIDE).contains(&width) && (1..=MAX_TARGET_SIDE).contains(&height) {
        return Ok(());
    }
    Err(TransformError::TargetSize { width, height, max: MAX_TARGET_SIDE })
}

/// Resizes a cut of RGB pixels; sides are from 1 to [`MAX_TARGET_SIDE`].
pub(crate) fn resize_cut(
    cut: &Cut,
    width: u32,
    height: u32,
    filter: Interpolation,
) -> Result<Image, TransformError> {
    let across = Axis::whole(cut.width, width as usize);
    let down = Axis::whole(cut.height, height as usize);
    Image::new(width, height, resample(cut, &across, &down, filter))
}

/// Copies a box of pixels.
///
/// # Errors
/// A box outside the image ([`TransformError::CropOutside`]).
pub fn crop(image: &Image, area: CropBox) -> Result<Image, TransformError> {
    image.check()?;
    area.check(image.width, image.height)?;
    let pixels = area.width as usize * area.height as usize;
    let mut data = Vec::with_capacity(pixels * image.channels as usize);
    for row in box_rows(image, area) {
        data.extend_from_slice(row);
    }
    Image::with_channels(area.width, area.height, image.channels, data)
}

/// The rows of a box that lies inside the image, each `area.width * channels` bytes.
pub(crate) fn box_rows(image: &Image, area: CropBox) -> impl Iterator<Item = &[u8]> {
    let channels = image.channels as usize;
    let stride = image.width as usize * channels;
    let (start, length) = (area.left as usize * channels, area.width as usize * channels);
    let rows = image.data.chunks_exact(stride.max(1));
    rows.skip(area.top as usize).take(area.height as usize).map(move |row| &row[start..start + length])
}

/// Cuts a box out and resizes it: the pixels outside the box have no influence, as in torchvision's
/// `resized_crop`.
///
/// # Errors
/// As [`crop`] and [`resize`].
pub fn crop_resize(
    image: &Image,
    area: CropBox,
    width: u32,
    height: u32,
    filter: Interpolation,
) -> Result<Image, TransformError> {
    if image.channels != 3 {
        return resize(&crop(image, area)?, width, height, filter);
    }
    check_target(width, height)?;
    image.check()?;
    area.check(image.width, image.height)?;
    resize_cut(&Cut::new(image, area), width, height, filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_images_stay_flat() {
        let image = Image::new(37, 23, [9, 200, 77].repeat(37 * 23)).unwrap();
        for filter in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos] {
            for (w, h) in [(1, 1), (16, 16), (64, 50)] {
                assert_eq!(resize(&image, w, h, filter).unwrap().data, [9, 200, 77].repeat((w * h) as usize));
            }
        }
    }

    #[test]
    fn bad_sizes_are_errors() {
        let image = Image::new(2, 2, vec![0; 12]).unwrap();
        assert!(matches!(
            resize(&image, 0, 4, Interpolation::Bicubic),
            Err(TransformError::TargetSize { .. })
        ));
        assert!(resize(&image, 4, 1 << 20, Interpolation::Bicubic).is_err());
        let area = CropBox { top: 1, left: 1, height: 2, width: 1 };
        assert!(matches!(crop(&image, area), Err(TransformError::CropOutside { .. })));
        let empty = Image { width: 0, height: 0, channels: 3, data: vec![] };
        assert!(resize(&empty, 4, 4, Interpolation::Bicubic).is_err());
        let broken = Image { width: 2, height: 2, channels: 3, data: vec![0; 5] };
        assert!(resize(&broken, 4, 4, Interpolation::Bicubic).is_err());
    }

    #[test]
    fn crop_copies_the_box() {
        let data: Vec<u8> = (0..27).collect();
        let image = Image::new(3, 3, data).unwrap();
        let area = CropBox { top: 1, left: 1, height: 2, width: 2 };
        assert_eq!(crop(&image, area).unwrap().data, [12, 13, 14, 15, 16, 17, 21, 22, 23, 24, 25, 26]);
    }
}
