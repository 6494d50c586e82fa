//! Encoded bytes to 8-bit RGB.
//!
//! The format is told from the content, not from the file name. Grey is replicated, palettes are looked up, CMYK is
//! converted as Pillow does, the first frame of an animation and the first page of a TIFF file are taken. What may vary is
//! in [`DecodeOptions`]: how 16-bit and floating point values become 8-bit values ([`PixelRange`]), whether EXIF
//! orientation is applied ([`ExifOrientation`]), and what transparent pixels become ([`Background`]).
//! [`DecodeOptions::reference`] is the reference's loader (Pillow, `open(...).convert("RGB")`).

#[cfg(feature = "dicom")]
mod dicom;
mod foreign;
mod ifd;
mod npy;
mod options;
mod orientation;
mod samples;
mod tiff;
mod webp;

use std::error::Error;
use std::io::Cursor;

use image::codecs::pnm::PnmDecoder;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, error::LimitErrorKind};

pub use self::foreign::foreign_format;
pub(crate) use self::npy::join_bands;
pub use self::options::{Background, DecodeOptions, ExifOrientation, PixelRange};
#[cfg(test)]
pub(crate) use self::orientation::with_orientation_tag;
pub(crate) use self::orientation::{jpeg_orientation, orient, stored_box, swaps_sides};
pub(crate) use self::samples::cmyk_to_rgb;
use self::samples::{Alpha, Color, Samples, Values};
use crate::error::DecodeError;
use crate::image::Image;
use crate::jpeg;

/// What a file says about its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ImageFacts {
    /// Name of the format: `JPEG`, `PNG`, ….
    pub format: &'static str,
    /// Width of the stored image in pixels, before any orientation is applied.
    pub width: u32,
    /// Height of the stored image in pixels.
    pub height: u32,
    /// Samples of a pixel, alpha among them; a palette counts as 3.
    pub channels: usize,
    /// Bits of a sample.
    pub bits: u32,
    /// Whether pixels can be transparent.
    pub alpha: bool,
    /// EXIF orientation, 1 (as stored) to 8.
    pub orientation: u8,
    /// Pages of a TIFF file, or frames of a DICOM file; of which the first is used. 1 for other formats.
    pub pages: usize,
}

/// Decodes one image.
///
/// # Shapes
///
/// The image is `[height, width, channels]`, `u8`; 3 channels are RGB.
///
/// # Errors
/// [`DecodeError`]: no or too many bytes or pixels, an unknown format, truncated data (never a half-grey image), values that
/// `options.range` would cut in silence, a kind of pixels that is not read.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Image, DecodeError> {
    decode_with_facts(bytes, options).map(|(image, _)| image)
}

/// As [`decode`], with what the file says about the image.
///
/// # Errors
/// As [`decode`].
pub fn decode_with_facts(bytes: &[u8], options: &DecodeOptions) -> Result<(Image, ImageFacts), DecodeError> {
    let (image, facts) = decode_as_stored(bytes, options)?;
    match options.exif {
        ExifOrientation::Apply => Ok((orient(image, facts.orientation), facts)),
        ExifOrientation::Ignore => Ok((image, facts)),
    }
}

/// Pixels as they are stored, whatever `options.exif` says.
pub(crate) fn decode_as_stored(
    bytes: &[u8],
    options: &DecodeOptions,
) -> Result<(Image, ImageFacts), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() as u64 > options.max_file_bytes {
        return Err(DecodeError::FileTooLarge { bytes: bytes.len() as u64, limit: options.max_file_bytes });
    }
    let (samples, format, orientation, pages) = read_samples(bytes, options)?;
    let facts = ImageFacts {
        format,
        width: samples.width,
        height: samples.height,
        channels: samples.channels,
        bits: samples.number().bits(),
        alpha: samples.alpha != Alpha::None,
        orientation,
        pages,
    };
    Ok((samples.into_image(options)?, facts))
}

/// Samples in the file's own type, without the limits on its length.
fn decode_samples(bytes: &[u8], options: &DecodeOptions) -> Result<Samples, DecodeError> {
    read_samples(bytes, options).map(|(samples, ..)| samples)
}

/// Samples, the name of the format, the EXIF orientation and the number of pages.
fn read_samples(
    bytes: &[u8],
    options: &DecodeOptions,
) -> Result<(Samples, &'static str, u8, usize), DecodeError> {
    Ok(if is_dicom(bytes) {
        let (samples, frames) = dicom_samples(bytes, options)?;
        (samples, "DICOM", 1, frames)
    } else if npy::is_array(bytes) {
        (npy::decode(bytes, options)?, "NPY", 1, 1)
    } else {
        let format = guess_format(bytes).ok_or_else(|| match foreign_format(bytes) {
            Some(name) => DecodeError::ForeignFormat { name },
            None => DecodeError::UnknownFormat,
        })?;
        let (samples, pages) = match format {
            ImageFormat::Jpeg => (from_jpeg(bytes, options)?, 1),
            ImageFormat::Tiff => tiff::decode(bytes, options)?,
            ImageFormat::WebP => match webp::decode(bytes, options)? {
                Some(samples) => (samples, 1),
                None => (from_image_crate(bytes, format, options)?, 1),
            },
            _ => (from_image_crate(bytes, format, options)?, 1),
        };
        (samples, format_name(format), orientation::orientation(bytes, format), pages)
    })
}

/// Whether the content is a DICOM file: its magic number stands behind a preamble of 128 bytes.
fn is_dicom(bytes: &[u8]) -> bool {
    bytes.get(128..132) == Some(b"DICM")
}

#[cfg(feature = "dicom")]
fn dicom_samples(bytes: &[u8], options: &DecodeOptions) -> Result<(Samples, usize), DecodeError> {
    dicom::decode(bytes, options)
}

#[cfg(not(feature = "dicom"))]
fn dicom_samples(_: &[u8], _: &DecodeOptions) -> Result<(Samples, usize), DecodeError> {
    Err(DecodeError::NoDicom)
}

/// Whether a file that begins like this is an image that [`decode`] reads.
pub(crate) fn is_readable(start: &[u8]) -> bool {
    (is_dicom(start) && cfg!(feature = "dicom")) || npy::is_image(start) || guess_format(start).is_some()
}

/// Tells one of the supported formats from the first bytes.
fn guess_format(bytes: &[u8]) -> Option<ImageFormat> {
    // The last two are BigTIFF's.
    if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|start| bytes.starts_with(*start)) {
        return Some(ImageFormat::Tiff);
    }
    let format = image::guess_format(bytes).ok()?;
    // The `image` crate is built without JPEG, which `jpeg.rs` reads.
    (format == ImageFormat::Jpeg || format.reading_enabled()).then_some(format)
}

fn from_jpeg(bytes: &[u8], options: &DecodeOptions) -> Result<Samples, DecodeError> {
    let Image { width, height, data, .. } = jpeg::decode(bytes, options)?;
    Ok(Samples::new((width, height), Color::Rgb, Alpha::None, Values::U8(data)))
}

fn from_image_crate(
    bytes: &[u8],
    format: ImageFormat,
    options: &DecodeOptions,
) -> Result<Samples, DecodeError> {
    let invalid = |error: ImageError| describe(format, &error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocation_limits(options));
    let decoder = reader.into_decoder().map_err(invalid)?;
    let (width, height) = decoder.dimensions();
    check_dimensions(width, height, options)?;
    let pixels = DynamicImage::from_decoder(decoder).map_err(invalid)?;
    let (color, alpha, values) = match pixels {
        DynamicImage::ImageRgb8(p) => (Color::Rgb, Alpha::None, Values::U8(p.into_raw())),
        DynamicImage::ImageLuma8(p) => (Color::Gray, Alpha::None, Values::U8(p.into_raw())),
        DynamicImage::ImageLumaA8(p) => (Color::Gray, Alpha::Straight, Values::U8(p.into_raw())),
        DynamicImage::ImageRgba8(p) => (Color::Rgb, Alpha::Straight, Values::U8(p.into_raw())),
        DynamicImage::ImageLuma16(p) => (Color::Gray, Alpha::None, Values::U16(p.into_raw())),
        DynamicImage::ImageLumaA16(p) => (Color::Gray, Alpha::Straight, Values::U16(p.into_raw())),
        DynamicImage::ImageRgb16(p) => (Color::Rgb, Alpha::None, Values::U16(p.into_raw())),
        DynamicImage::ImageRgba16(p) => (Color::Rgb, Alpha::Straight, Values::U16(p.into_raw())),
        other => return Err(DecodeError::UnsupportedPixels { kind: format!("{:?}", other.color()) }),
    };
    let mut samples = Samples::new((width, height), color, alpha, values);
    if format == ImageFormat::Pnm {
        unscale(bytes, &mut samples).map_err(invalid)?;
    }
    Ok(samples)
}

/// Takes 16-bit values of a PNM file back to what is stored: the decoder stretches them so that the largest value that
/// the header declares becomes 65535.
fn unscale(bytes: &[u8], samples: &mut Samples) -> Result<(), ImageError> {
    if let Values::U16(values) = &mut samples.values {
        let white = PnmDecoder::new(bytes)?.into_inner().1.maximal_sample();
        if white != 65535 {
            // Exact, because neighbours lie at least 1 apart after the stretching.
            let stored = |value: u16| (f64::from(value) * f64::from(white) / 65535.0).round() as u16;
            values.iter_mut().for_each(|value| *value = stored(*value));
            samples.full = Some((0.0, f64::from(white)));
        }
    }
    Ok(())
}

/// Width and height against the limits, before any pixel is allocated.
pub(crate) fn check_dimensions(width: u32, height: u32, options: &DecodeOptions) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::NoPixels { width, height });
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > options.max_pixels || width.max(height) > options.max_side {
        let (max_pixels, max_side) = (options.max_pixels, options.max_side);
        return Err(DecodeError::TooManyPixels { width, height, max_pixels, max_side });
    }
    Ok(())
}

/// Limits for the format decoders' own buffers: 16-bit RGBA of the largest image, twice, plus
/// room for small tables.
fn allocation_limits(options: &DecodeOptions) -> image::Limits {
    let mut out = image::Limits::no_limits();
    out.max_alloc = Some(allocation_limit(options));
    out
}

fn allocation_limit(options: &DecodeOptions) -> u64 {
    options.max_pixels.saturating_mul(16).saturating_add(1 << 20)
}

/// The decoder's error as one of ours; running out of data is recognised in all its forms.
fn describe(format: ImageFormat, error: &ImageError) -> DecodeError {
    if let ImageError::Limits(limit) = error
        && limit.kind() == LimitErrorKind::InsufficientMemory
    {
        return DecodeError::Invalid { reason: "it needs more memory than the pixel limit allows".into() };
    }
    let out_of_data = |error: &std::io::Error| error.kind() == std::io::ErrorKind::UnexpectedEof;
    if matches!(error, ImageError::IoError(io) if out_of_data(io)) {
        return DecodeError::Truncated { format: format_name(format) };
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.downcast_ref().is_some_and(out_of_data) {
            return DecodeError::Truncated { format: format_name(format) };
        }
        cause = inner.source();
    }
    DecodeError::Invalid { reason: error.to_string() }
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        _ => "PNM",
    }
}
