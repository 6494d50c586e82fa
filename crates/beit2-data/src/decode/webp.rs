//! Still WebP images by libwebp, which Pillow decodes with too. Animations and damaged files are left to the `image` crate.
//!
//! Why a C library: it is twice as fast on lossy images and a quarter faster on lossless ones, with the same pixels
//! (docs/decisions.md, dependencies).

use libwebp_sys::{
    VP8StatusCode, WebPBitstreamFeatures, WebPDecodeRGBAInto, WebPDecodeRGBInto, WebPGetFeatures,
};

use super::samples::{Alpha, Color, Samples, Values};
use super::{DecodeOptions, check_dimensions};
use crate::error::DecodeError;

/// The samples of a still image, RGB or RGBA; `None`: not for this decoder.
///
/// # Errors
/// More pixels than allowed.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Option<Samples>, DecodeError> {
    let mut features = std::mem::MaybeUninit::<WebPBitstreamFeatures>::zeroed();
    // SAFETY: the bytes and their number belong together; the library fills the features, which are plain numbers.
    let status = unsafe { WebPGetFeatures(bytes.as_ptr(), bytes.len(), features.as_mut_ptr()) };
    // SAFETY: zeros are valid numbers too.
    let features = unsafe { features.assume_init() };
    let (Ok(width), Ok(height)) = (u32::try_from(features.width), u32::try_from(features.height)) else {
        return Ok(None);
    };
    if status != VP8StatusCode::VP8_STATUS_OK || features.has_animation != 0 {
        return Ok(None);
    }
    check_dimensions(width, height, options)?;
    let alpha = features.has_alpha != 0;
    let channels = if alpha { 4 } else { 3 };
    let stride = width as usize * channels;
    let mut data = vec![0u8; stride * height as usize];
    let into = if alpha { WebPDecodeRGBAInto } else { WebPDecodeRGBInto };
    // A side has at most 16383 pixels in this format, so that a row's length fits.
    let Ok(row) = i32::try_from(stride) else { return Ok(None) };
    // SAFETY: the library writes `height` rows of `row` bytes, which is what `data` has room for, and no more.
    let done = unsafe { into(bytes.as_ptr(), bytes.len(), data.as_mut_ptr(), data.len(), row) };
    if done.is_null() {
        return Ok(None);
    }
    let kind = if alpha { Alpha::Straight } else { Alpha::None };
    Ok(Some(Samples::new((width, height), Color::Rgb, kind, Values::U8(data))))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, ImageReader};

    use super::*;

    /// The pixels by the `image` crate.
    fn reference(bytes: &[u8]) -> (Vec<u8>, bool) {
        match ImageReader::with_format(Cursor::new(bytes), ImageFormat::WebP).decode().unwrap() {
            DynamicImage::ImageRgb8(image) => (image.into_raw(), false),
            DynamicImage::ImageRgba8(image) => (image.into_raw(), true),
            other => panic!("{:?}", other.color()),
        }
    }

    fn values(samples: &Samples) -> &[u8] {
        match &samples.values {
            Values::U8(values) => values,
            _ => panic!("not 8 bits"),
        }
    }

    #[test]
    fn both_decoders_give_the_same_pixels() {
        let options = DecodeOptions::default();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/formats/lossy.webp");
        let mut files = vec![std::fs::read(path).unwrap()];
        for (width, height, alpha) in [(1, 1, false), (17, 9, true), (64, 33, false)] {
            let channels = if alpha { 4 } else { 3 };
            let pixels = (0..width * height * channels).map(|at: u32| (at * at / 7 % 256) as u8).collect();
            let image = match alpha {
                true => {
                    DynamicImage::ImageRgba8(image::ImageBuffer::from_raw(width, height, pixels).unwrap())
                }
                false => {
                    DynamicImage::ImageRgb8(image::ImageBuffer::from_raw(width, height, pixels).unwrap())
                }
            };
            let mut bytes = Vec::new();
            image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::WebP).unwrap();
            files.push(bytes);
        }
        for bytes in files {
            let found = decode(&bytes, &options).unwrap().unwrap();
            let (expected, alpha) = reference(&bytes);
            assert_eq!(values(&found), expected);
            assert_eq!(found.alpha != Alpha::None, alpha);
            for end in [0, 11, 29, bytes.len() / 2, bytes.len() - 1] {
                assert!(decode(&bytes[..end], &options).unwrap().is_none(), "{end} of {}", bytes.len());
            }
        }
    }
}
