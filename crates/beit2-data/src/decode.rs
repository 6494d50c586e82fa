//! Encoded bytes to 8-bit RGB, the way the reference's loader (Pillow, `open(...).convert("RGB")`)
//! does it.
//!
//! The format is told from the content, not from the file name. Grey is replicated, palettes are
//! looked up, alpha is dropped (not blended with a background), CMYK is converted, the first frame
//! of an animation is taken. EXIF orientation is **not** applied, because torchvision's loader does
//! not apply it either: rotate such files beforehand if it matters.

use std::error::Error;
use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, error::LimitErrorKind};

use crate::error::DecodeError;
use crate::image::Image;
use crate::jpeg;
use crate::source::MAX_SAMPLE_BYTES;

/// How 16-bit grey becomes 8-bit. (16-bit colour always keeps its high byte, as in Pillow.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gray16 {
    /// `min(value, 255)`: what Pillow does and therefore what the reference saw. An image that
    /// uses the full 16-bit range comes out almost white.
    #[default]
    Clip,
    /// `value >> 8`: what one wants for images that use the full 16-bit range (X-ray,
    /// microscopy).
    HighByte,
}

/// What is accepted, checked before pixels are allocated, and how 16-bit grey is read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest width x height. Default 178 956 970, where Pillow refuses an image as a
    /// decompression bomb.
    pub max_pixels: u64,
    /// Largest encoded size in bytes. Default 256 MiB.
    pub max_file_bytes: u64,
    /// Largest width or height in pixels. Default 65 535, which is also the most a JPEG can have.
    pub max_side: u32,
    /// Reading of 16-bit grey. Default: as Pillow.
    pub gray16: Gray16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pixels: 178_956_970,
            max_file_bytes: MAX_SAMPLE_BYTES,
            max_side: 65_535,
            gray16: Gray16::Clip,
        }
    }
}

/// Decodes one image.
///
/// # Shapes
///
/// The image is `[height, width, 3]`, RGB, `u8`.
///
/// # Errors
/// [`DecodeError`]: no or too many bytes or pixels, an unknown format, truncated data (never a half-grey image), pixels that are no
/// integers of 8 or 16 bits.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() as u64 > limits.max_file_bytes {
        return Err(DecodeError::FileTooLarge { bytes: bytes.len() as u64, limit: limits.max_file_bytes });
    }
    let format = guess_format(bytes).ok_or(DecodeError::UnknownFormat)?;
    if format == ImageFormat::Jpeg {
        return jpeg::decode(bytes, limits);
    }
    let invalid = |error: ImageError| describe(format, &error);

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocation_limits(limits));
    let decoder = reader.into_decoder().map_err(invalid)?;
    let (width, height) = decoder.dimensions();
    check_dimensions(width, height, limits)?;
    let pixels = DynamicImage::from_decoder(decoder).map_err(invalid)?;
    let data = to_rgb8(pixels, limits.gray16)?;
    Image::new(width, height, data).map_err(|error| DecodeError::Invalid { reason: error.to_string() })
}

/// Tells one of the supported formats from the first bytes.
pub(crate) fn guess_format(bytes: &[u8]) -> Option<ImageFormat> {
    let format = image::guess_format(bytes).ok()?;
    // The `image` crate is built without JPEG, which `jpeg.rs` reads.
    (format == ImageFormat::Jpeg || format.reading_enabled()).then_some(format)
}

/// Width and height against the limits, before any pixel is allocated.
pub(crate) fn check_dimensions(width: u32, height: u32, limits: &Limits) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::NoPixels { width, height });
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels || width.max(height) > limits.max_side {
        let (max_pixels, max_side) = (limits.max_pixels, limits.max_side);
        return Err(DecodeError::TooManyPixels { width, height, max_pixels, max_side });
    }
    Ok(())
}

/// Limits for the format decoders' own buffers: 16-bit RGBA of the largest image, twice, plus
/// room for small tables.
fn allocation_limits(limits: &Limits) -> image::Limits {
    let mut out = image::Limits::no_limits();
    out.max_alloc = Some(limits.max_pixels.saturating_mul(16).saturating_add(1 << 20));
    out
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
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        _ => "PNM",
    }
}

/// `convert("RGB")`: see the module's first lines.
fn to_rgb8(pixels: DynamicImage, gray16: Gray16) -> Result<Vec<u8>, DecodeError> {
    let high = |v: u16| (v >> 8) as u8;
    Ok(match pixels {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageLuma8(p) => p.iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageRgba8(p) => p.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect(),
        DynamicImage::ImageLuma16(p) => {
            let narrow = |v: u16| match gray16 {
                Gray16::Clip => v.min(255) as u8,
                Gray16::HighByte => high(v),
            };
            p.iter().flat_map(|&v| [narrow(v); 3]).collect()
        }
        DynamicImage::ImageLumaA16(p) => p.pixels().flat_map(|p| [high(p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(p) => p.iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageRgba16(p) => {
            p.pixels().flat_map(|p| [high(p.0[0]), high(p.0[1]), high(p.0[2])]).collect()
        }
        other => {
            return Err(DecodeError::UnsupportedPixels { kind: format!("{:?}", other.color()) });
        }
    })
}
