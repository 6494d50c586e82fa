//! JPEG to RGB with the arithmetic of libjpeg-turbo, which is what Pillow and therefore the
//! reference decodes with.
//!
//! JPEG leaves the inverse transform and the enlarging of subsampled colour to the decoder. Against
//! Pillow 13 on 68 files (photographs of several qualities and samplings, tiny and odd sizes, noise),
//! `zune-jpeg` 0.5 differs in 1 to 27 % of the values by up to 7 levels (28 on noise), `jpeg-decoder`
//! 0.3 in 2 to 17 % by up to 7. [`beit2_jpeg`] differs in none and is faster than Pillow, and it
//! decodes only a region if that is enough. What it leaves to others (four channels, rare samplings,
//! damaged data) goes to `mozjpeg`, which is libjpeg-turbo with another encoder.
//!
//! That library reports errors by unwinding through its C frames, so this module needs `panic =
//! "unwind"`, as the loader's workers do.

use beit2_jpeg::{Jpeg, Region};
use mozjpeg::{ColorSpace, Decompress};

use crate::decode::{self, DecodeOptions, check_dimensions};
use crate::error::DecodeError;
use crate::image::Image;
use crate::pool::guarded;

/// Most scans in one file. A progressive photograph has about ten; every further scan costs a pass
/// over the whole image, so that a small file could keep a worker busy for hours.
const MAX_SCANS: usize = 100;

/// Decodes a JPEG. Limits are checked before pixels are allocated.
pub(crate) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Image, DecodeError> {
    match open(bytes, options)? {
        Some(jpeg) => decode_opened(&jpeg, bytes, options),
        None => by_library(bytes, options),
    }
}

/// Decodes a JPEG that was opened.
pub(crate) fn decode_opened(
    jpeg: &Jpeg<'_>,
    bytes: &[u8],
    options: &DecodeOptions,
) -> Result<Image, DecodeError> {
    let (width, height) = (jpeg.width(), jpeg.height());
    match jpeg.decode(Region { left: 0, top: 0, width, height }) {
        Ok(data) => Image::new(width, height, data).map_err(invalid),
        Err(_) => by_library(bytes, options),
    }
}

/// A JPEG whose regions can be decoded; `None` when only the library may know what to do with it. Limits are checked.
///
/// # Errors
/// A file without an end, or beyond the limits.
pub(crate) fn open<'a>(bytes: &'a [u8], options: &DecodeOptions) -> Result<Option<Jpeg<'a>>, DecodeError> {
    // Why: the library fills missing rows with grey instead of failing, as browsers do. Pillow
    // fails, and a half-grey image must not be trained on.
    let Some(scans) = scans_before_end(bytes) else {
        return Err(DecodeError::Truncated { format: "JPEG" });
    };
    if scans > MAX_SCANS {
        return Err(invalid(format!("it has {scans} scans, more than the limit of {MAX_SCANS}")));
    }
    let Ok(jpeg) = Jpeg::open(bytes) else { return Ok(None) };
    check_dimensions(jpeg.width(), jpeg.height(), options)?;
    Ok(Some(jpeg))
}

fn invalid(reason: impl ToString) -> DecodeError {
    DecodeError::Invalid { reason: reason.to_string() }
}

fn by_library(bytes: &[u8], options: &DecodeOptions) -> Result<Image, DecodeError> {
    guarded(|| by_library_unguarded(bytes, options)).unwrap_or_else(|message| Err(invalid(message)))
}

fn by_library_unguarded(bytes: &[u8], options: &DecodeOptions) -> Result<Image, DecodeError> {
    let header = Decompress::new_mem(bytes).map_err(invalid)?;
    let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let (width, height) = (side(header.width()), side(header.height()));
    check_dimensions(width, height, options)?;
    let data = match header.color_space() {
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => {
            let mut image = header.to_colorspace(ColorSpace::JCS_CMYK).map_err(invalid)?;
            let inks: Vec<[u8; 4]> = image.read_scanlines().map_err(invalid)?;
            image.finish().map_err(invalid)?;
            inks.into_iter().flat_map(cmyk_to_rgb).collect()
        }
        _ => {
            let mut image = header.rgb().map_err(invalid)?;
            let data = image.read_scanlines::<u8>().map_err(invalid)?;
            image.finish().map_err(invalid)?;
            data
        }
    };
    Image::new(width, height, data).map_err(invalid)
}

/// Pillow's conversion. All four inks are taken as stored inverted (255 is no ink), which is what
/// Adobe writes and Pillow assumes of every four-channel JPEG.
fn cmyk_to_rgb(stored: [u8; 4]) -> [u8; 3] {
    decode::cmyk_to_rgb(stored.map(|value| 255 - value))
}

/// Number of scans in front of the end-of-image marker; `None` when the marker chain does not lead
/// to one.
///
/// Bytes after the end are ignored, as decoders do. Markers inside segments (an embedded preview)
/// are stepped over by the segment's length. ITU-T T.81, annex B.
fn scans_before_end(bytes: &[u8]) -> Option<usize> {
    const END_OF_IMAGE: u8 = 0xD9;
    const START_OF_SCAN: u8 = 0xDA;
    let mut scans = 0;
    let mut at = 2; // behind the start-of-image marker
    loop {
        // The next marker: 0xFF, any number of fill bytes 0xFF, then a code. In entropy-coded data
        // 0xFF is followed by 0x00 (a stuffed byte) or a restart marker, neither of which ends the
        // data.
        at += memchr::memchr(0xFF, bytes.get(at..)?)? + 1;
        while bytes.get(at) == Some(&0xFF) {
            at += 1;
        }
        let code = *bytes.get(at)?;
        at += 1;
        match code {
            END_OF_IMAGE => return Some(scans),
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => {
                scans += usize::from(code == START_OF_SCAN);
                let length = bytes.get(at..at + 2)?;
                at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inks_mix_as_in_pillow() {
        // Pillow 13: Image.new("CMYK", (1, 1), (255 - c, 255 - m, 255 - y, 255 - k)).convert("RGB").
        assert_eq!(cmyk_to_rgb([255, 255, 255, 255]), [255, 255, 255]);
        assert_eq!(cmyk_to_rgb([0, 128, 255, 255]), [0, 128, 255]);
        assert_eq!(cmyk_to_rgb([200, 100, 50, 128]), [100, 50, 25]);
        assert_eq!(cmyk_to_rgb([9, 9, 9, 0]), [0, 0, 0]);
    }

    #[test]
    fn a_file_of_endless_scans_is_refused() {
        let mut bytes = vec![0xFF, 0xD8];
        bytes.extend([0xFF, 0xDA, 0, 2].repeat(MAX_SCANS + 1));
        assert_eq!(scans_before_end(&bytes), None);
        bytes.extend([0xFF, 0xD9]);
        let sentence = decode(&bytes, &DecodeOptions::default()).unwrap_err().to_string();
        assert_eq!(sentence, "the image cannot be decoded: it has 101 scans, more than the limit of 100");
    }

    #[test]
    fn the_library_s_errors_are_returned() {
        // A start and an end with nothing between; the library unwinds on it.
        let error = decode(&[0xFF, 0xD8, 0xFF, 0xD9], &DecodeOptions::default()).unwrap_err();
        assert!(matches!(error, DecodeError::Invalid { .. }), "{error}");
    }
}
