//! DICOM files (the feature `dicom`).
//!
//! The `dicom` crates parse the file and unpack its first frame; what the stored values mean (PS3.3, C.7.6.3 and C.11)
//! is decided here: rescale slope and intercept make modality values, and `auto` shows them by the file's own VOI table
//! or window.

use std::error::Error;

use dicom_object::file::ReadPreamble;
use dicom_object::{DefaultDicomObject, OpenFileOptions, Tag};
use dicom_pixeldata::{DecodedPixelData, PixelDecoder, PlanarConfiguration, VoiLutFunction};

use super::options::{DecodeOptions, PixelRange};
use super::samples::{Alpha, Color, Number, Samples, Values};
use super::{allocation_limit, check_dimensions};
use crate::error::DecodeError;
use crate::pool::guarded;

const SAMPLES_PER_PIXEL: Tag = Tag(0x0028, 0x0002);
const PHOTOMETRIC: Tag = Tag(0x0028, 0x0004);
const FRAMES: Tag = Tag(0x0028, 0x0008);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const PALETTE: [Tag; 3] = [Tag(0x0028, 0x1101), Tag(0x0028, 0x1102), Tag(0x0028, 0x1103)];
const PALETTE_DATA: [Tag; 3] = [Tag(0x0028, 0x1201), Tag(0x0028, 0x1202), Tag(0x0028, 0x1203)];
const MODALITY_LUT: Tag = Tag(0x0028, 0x3000);
const PIXELS: Tag = Tag(0x7FE0, 0x0010);

const RLE: &str = "1.2.840.10008.1.2.5";
const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
const LOSSY_JPEG: [&str; 2] = ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"];

/// The samples of the first frame, and the number of frames.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<(Samples, usize), DecodeError> {
    guarded(|| first_frame(bytes, options)).unwrap_or_else(|panic| Err(invalid(panic)))
}

fn invalid(reason: impl ToString) -> DecodeError {
    DecodeError::Invalid { reason: reason.to_string() }
}

/// An error with its causes.
fn explain(error: &dyn Error) -> DecodeError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = inner.source();
    }
    invalid(format!("its DICOM data are broken or of a kind that is not read ({text})"))
}

fn unsupported(kind: &str) -> DecodeError {
    DecodeError::UnsupportedPixels { kind: kind.to_owned() }
}

fn first_frame(bytes: &[u8], options: &DecodeOptions) -> Result<(Samples, usize), DecodeError> {
    let object = OpenFileOptions::new()
        .read_preamble(ReadPreamble::Always)
        .from_reader(bytes)
        .map_err(|error| explain(&error))?;
    let number = |tag: Tag| object.get(tag).and_then(|element| element.to_int::<u32>().ok());
    if object.get(PIXELS).is_none() {
        return Err(invalid("the DICOM file has no image (no integer pixel data)"));
    }
    let (Some(width), Some(height)) = (number(COLUMNS), number(ROWS)) else {
        return Err(invalid("the DICOM file does not say how many rows and columns it has"));
    };
    check_dimensions(width, height, options)?;
    let frames = number(FRAMES).unwrap_or(1).max(1) as usize;
    let syntax = object.meta().transfer_syntax.trim_end_matches('\0').to_owned();
    if let Some(name) = unread_syntax(&syntax) {
        return Err(unsupported(&format!("{name} compressed DICOM")));
    }
    let photometric = object.get(PHOTOMETRIC).and_then(|element| element.to_str().ok());
    let photometric = photometric.as_deref().map(str::trim).unwrap_or_default().to_owned();
    let channels = number(SAMPLES_PER_PIXEL).unwrap_or(1) as usize;
    let size = u64::from(width) * u64::from(height) * channels as u64;
    if size.saturating_mul(8) > allocation_limit(options) {
        return Err(invalid("it needs more memory than the pixel limit allows"));
    }

    if photometric == "YBR_FULL_422" && is_plain(&syntax) {
        return Err(unsupported("subsampled YCbCr DICOM"));
    }
    if photometric == "RGB"
        && channels == 3
        && LOSSY_JPEG.contains(&syntax.as_str())
        && !says_its_colours(&object)
    {
        return Err(unsupported(
            "RGB DICOM (as a JPEG that does not say that it is RGB, so that decoders take it for YCbCr)",
        ));
    }

    let frame = object.decode_pixel_data_frame(0).map_err(|error| explain(&error))?;
    if (frame.columns(), frame.rows()) != (width, height) {
        return Err(invalid("its compressed image has another size than its DICOM header says"));
    }
    let stored = stored_values(&frame, size as usize, syntax == BIG_ENDIAN)?;
    let stored = match frame.planar_configuration() {
        PlanarConfiguration::PixelFirst if channels > 1 => interleaved(&stored, channels),
        _ => stored,
    };
    let samples = match (photometric.as_str(), channels) {
        ("MONOCHROME1" | "MONOCHROME2", 1) => {
            grey(&object, &frame, stored, (width, height), options.range, photometric == "MONOCHROME1")?
        }
        ("PALETTE COLOR", 1) => {
            let values = Values::U8(looked_up(&object, &stored)?);
            Samples::new((width, height), Color::Rgb, Alpha::None, values)
        }
        (_, 3) => {
            // JPEG decoders give RGB; run lengths and plain values are as the file says.
            let converted = !(syntax == RLE || is_plain(&syntax));
            let color = match photometric.as_str() {
                "RGB" => Color::Rgb,
                "YBR_FULL" | "YBR_FULL_422" | "YBR_ICT" | "YBR_RCT" if converted => Color::Rgb,
                "YBR_FULL" => Color::YCbCr,
                other => return Err(unsupported(&format!("{other} DICOM"))),
            };
            let bits = u32::from(frame.bits_stored());
            let mut samples =
                Samples::new((width, height), color, Alpha::None, narrow(stored, Number::Unsigned(bits)));
            samples.full = Some((0.0, 2f64.powi(bits as i32) - 1.0));
            samples
        }
        (other, count) => return Err(unsupported(&format!("{other} DICOM (with {count} samples)"))),
    };
    Ok((samples, frames))
}

/// Whether the first frame is a JPEG with Adobe's marker, which says how its colours are stored.
fn says_its_colours(object: &DefaultDicomObject) -> bool {
    let fragments = object.get(PIXELS).and_then(|element| element.fragments());
    let first = fragments.and_then(|fragments| fragments.first());
    first.is_some_and(|jpeg| memchr::memmem::find(&jpeg[..jpeg.len().min(4096)], b"Adobe").is_some())
}

/// Compressions that no decoder here reads.
fn unread_syntax(uid: &str) -> Option<&'static str> {
    let rest = uid.strip_prefix("1.2.840.10008.1.2.4.")?;
    Some(match rest {
        "80" | "81" => "JPEG-LS",
        "90" | "91" | "92" | "93" => "JPEG 2000",
        "201" | "202" | "203" => "High-Throughput JPEG 2000",
        "110" | "111" | "112" => "JPEG XL",
        _ if rest.starts_with("10") && rest.len() == 3 => "video",
        _ => return None,
    })
}

/// Neither compressed nor encapsulated.
fn is_plain(uid: &str) -> bool {
    matches!(
        uid,
        "1.2.840.10008.1.2" | "1.2.840.10008.1.2.1" | "1.2.840.10008.1.2.2" | "1.2.840.10008.1.2.1.99"
    )
}

/// Values of all samples in the order of the file: the stored bits, with their sign.
fn stored_values(
    frame: &DecodedPixelData<'_>,
    count: usize,
    big_endian: bool,
) -> Result<Vec<f64>, DecodeError> {
    let (allocated, stored, high) = (frame.bits_allocated(), frame.bits_stored(), frame.high_bit());
    if stored == 0 || stored > allocated || high >= allocated || high + 1 < stored {
        return Err(invalid(format!(
            "{stored} of {allocated} bits up to bit {high} is no way to store pixels"
        )));
    }
    let data = frame.data();
    let signed = frame.pixel_representation() as u16 == 1;
    let value = |raw: u32| -> f64 {
        let bits = raw >> (high + 1 - stored);
        let unused = 32 - u32::from(stored);
        match signed {
            true => f64::from((bits << unused) as i32 >> unused),
            false => f64::from(bits << unused >> unused),
        }
    };
    let values: Vec<f64> = match allocated {
        // Unpacked to 0 and 255 already.
        1 => data.iter().map(|&byte| f64::from(u8::from(byte > 0))).collect(),
        8 => data.iter().map(|&byte| value(byte.into())).collect(),
        16 => data.as_chunks::<2>().0.iter().map(|&pair| value(u16::from_le_bytes(pair).into())).collect(),
        // The crate turns the bytes of words around, of which each value has two.
        32 if big_endian => {
            let words = |[a, b, c, d]: [u8; 4]| value(u32::from_le_bytes([c, d, a, b]));
            data.as_chunks::<4>().0.iter().map(|&four| words(four)).collect()
        }
        32 => data.as_chunks::<4>().0.iter().map(|&four| value(u32::from_le_bytes(four))).collect(),
        other => return Err(unsupported(&format!("{other}-bit DICOM"))),
    };
    match values.len() {
        found if found < count => Err(DecodeError::Truncated { format: "DICOM" }),
        _ => Ok(values.into_iter().take(count).collect()),
    }
}

fn interleaved(planes: &[f64], channels: usize) -> Vec<f64> {
    let size = planes.len() / channels;
    (0..size * channels).map(|at| planes[at % channels * size + at / channels]).collect()
}

/// 8-bit values as bytes, others as they are.
fn narrow(values: Vec<f64>, number: Number) -> Values {
    match number {
        Number::Unsigned(bits @ 1..=8) => {
            // 8 bits of which fewer are used: the whole range of those.
            let most = (1u32 << bits) - 1;
            let stretch = |value: f64| (value * 255.0 / f64::from(most)).round() as u8;
            Values::U8(values.into_iter().map(stretch).collect())
        }
        _ => Values::Wide(values, number),
    }
}

/// Modality values of a grey image, and how the file wants them shown.
fn grey(
    object: &DefaultDicomObject,
    frame: &DecodedPixelData<'_>,
    stored: Vec<f64>,
    size: (u32, u32),
    range: PixelRange,
    inverted: bool,
) -> Result<Samples, DecodeError> {
    if object.get(MODALITY_LUT).is_some_and(|lut| lut.items().is_some_and(|items| !items.is_empty())) {
        return Err(unsupported("DICOM (with a modality lookup table)"));
    }
    let broken = |error: dicom_pixeldata::Error| explain(&error);
    let (slope, intercept) = frame
        .rescale()
        .map_err(broken)?
        .first()
        .map_or((1.0, 0.0), |rescale| (rescale.slope, rescale.intercept));
    let bits = u32::from(frame.bits_stored());
    let signed = frame.pixel_representation() as u16 == 1;
    let number = match (slope == 1.0 && intercept == 0.0, signed) {
        (true, true) => Number::Signed(bits),
        (true, false) => Number::Unsigned(bits),
        (false, _) => Number::Rescaled(bits),
    };
    let (low, high) = if signed { Number::Signed(bits).full() } else { Number::Unsigned(bits).full() };
    let ends = [low, high].map(|value| value * slope + intercept);
    let mut values: Vec<f64> = stored.into_iter().map(|value| value * slope + intercept).collect();

    let table = frame.voi_lut_sequence().map_err(broken)?.and_then(|tables| tables.first());
    let window = frame.window().map_err(broken)?.and_then(|windows| windows.first());
    let mut shown = None;
    if let (PixelRange::Auto, Some(table)) = (range, table) {
        let last = table.data.len().saturating_sub(1);
        for value in &mut values {
            let at = (*value - f64::from(table.min_pixel_value)).clamp(0.0, last as f64) as usize;
            *value = f64::from(table.data.get(at).copied().unwrap_or(0));
        }
        shown = Some((0.0, 2f64.powi(i32::from(table.bits_stored)) - 1.0));
    } else if let Some(window) = window {
        let function = frame.voi_lut_function().map_err(broken)?.and_then(|all| all.first().copied());
        shown = match function.unwrap_or_default() {
            // PS3.3, C.11.2.1.2.
            VoiLutFunction::Linear => {
                let (middle, half) = (window.center - 0.5, (window.width - 1.0) / 2.0);
                Some((middle - half, middle + half))
            }
            VoiLutFunction::LinearExact => {
                Some((window.center - window.width / 2.0, window.center + window.width / 2.0))
            }
            VoiLutFunction::Sigmoid if range == PixelRange::Auto => {
                return Err(unsupported("DICOM (with a sigmoid window; choose data.range)"));
            }
            VoiLutFunction::Sigmoid => None,
        };
    }
    // Shown by a window, 8 bits are values like others; without one they are as they are.
    let values = match (number, shown) {
        (Number::Unsigned(1..=8), None) => narrow(values, number),
        _ => Values::Wide(values, number),
    };
    let mut samples = Samples::new(size, Color::Gray, Alpha::None, values);
    if let Values::Wide(..) = samples.values {
        samples.full = Some((ends[0].min(ends[1]), ends[0].max(ends[1])));
    }
    samples.window = shown;
    samples.inverted = inverted;
    Ok(samples)
}

/// Colours of palette entries, the high bytes of 16-bit ones.
fn looked_up(object: &DefaultDicomObject, stored: &[f64]) -> Result<Vec<u8>, DecodeError> {
    let missing = || invalid("its DICOM palette is missing or broken");
    let channel = |at: usize| -> Result<(f64, Vec<u8>), DecodeError> {
        let descriptor = object.get(PALETTE[at]).and_then(|element| element.to_multi_int::<i32>().ok());
        let descriptor = descriptor.filter(|values| values.len() == 3).ok_or_else(missing)?;
        let bytes =
            object.get(PALETTE_DATA[at]).and_then(|element| element.to_bytes().ok()).ok_or_else(missing)?;
        // 0 stands for 65536.
        let count = if descriptor[0] == 0 { 65536 } else { (descriptor[0] & 0xFFFF) as usize };
        let colors: Vec<u8> = match bytes.len() >= 2 * count {
            true => {
                let words = bytes.as_chunks::<2>().0.iter().take(count).map(|&word| u16::from_le_bytes(word));
                let shift = if descriptor[2] == 16 { 8 } else { 0 };
                words.map(|word| (word >> shift) as u8).collect()
            }
            false => bytes.iter().copied().take(count).collect(),
        };
        if colors.is_empty() {
            return Err(missing());
        }
        Ok((f64::from(descriptor[1]), colors))
    };
    let channels = [channel(0)?, channel(1)?, channel(2)?];
    let color = |&value: &f64| {
        channels.each_ref().map(|(first, colors)| {
            let at = (value - first).clamp(0.0, (colors.len() - 1) as f64) as usize;
            colors[at]
        })
    };
    Ok(stored.iter().flat_map(color).collect())
}
