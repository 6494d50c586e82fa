//! TIFF and BigTIFF.
//!
//! The `tiff` crate unpacks strips and tiles; what the samples mean is decided here. It sees every file as one of plain
//! bands, because its own interpretation refuses palettes, and undoes the horizontal predictor wrongly when it leaves out
//! extra samples.

use std::io::Cursor;

use tiff::TiffError;
use tiff::decoder::{Decoder, DecodingResult, Limits};

use super::ifd::{Entry, Tiff};
use super::samples::{Alpha, Color, Number, Samples, Values};
use super::{DecodeOptions, allocation_limit, check_dimensions};
use crate::error::DecodeError;

/// Most directories that are looked at.
const MAX_PAGES: usize = 100_000;

mod tag {
    pub(super) const SUBFILE: u16 = 254;
    pub(super) const BITS: u16 = 258;
    pub(super) const COMPRESSION: u16 = 259;
    pub(super) const PHOTOMETRIC: u16 = 262;
    pub(super) const SAMPLES: u16 = 277;
    pub(super) const PLANAR: u16 = 284;
    pub(super) const COLOR_MAP: u16 = 320;
    pub(super) const EXTRA: u16 = 338;
    pub(super) const SUBSAMPLING: u16 = 530;
    pub(super) const REFERENCE: u16 = 532;
    pub(super) const DNG: u16 = 50706;
}

/// Photometric interpretations.
const BLACK_IS_ZERO: u64 = 1;
/// JPEG, which brings its own upsampling of colour.
const JPEG: u64 = 7;

/// The samples of the first page, and the number of pages.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<(Samples, usize), DecodeError> {
    let broken = |what: &str| DecodeError::Invalid { reason: format!("its TIFF directory {what}") };
    let tiff = Tiff::open(bytes).ok_or_else(|| broken("cannot be found"))?;
    let entries = tiff.first().ok_or(DecodeError::Truncated { format: "TIFF" })?;
    let value = |tag: u16, default: u64| tiff.value(&entries, tag).unwrap_or(default);
    if value(tag::SUBFILE, 0) & 1 == 1 || entries.iter().any(|entry| entry.tag == tag::DNG) {
        return Err(unsupported("camera raw (its first TIFF page is only a preview)"));
    }
    let samples = usize::try_from(value(tag::SAMPLES, 1)).unwrap_or(usize::MAX);
    let bits = value(tag::BITS, 1);
    let photometric = value(tag::PHOTOMETRIC, u64::MAX);
    let (color, alpha) = meaning(&tiff, &entries, photometric, samples)?;
    if photometric == 6 && value(tag::COMPRESSION, 1) != JPEG {
        let subsampling = tiff.values(&entries, tag::SUBSAMPLING, 2).unwrap_or(vec![2, 2]);
        if subsampling != [1, 1] {
            return Err(unsupported("subsampled YCbCr (without JPEG compression)"));
        }
    }

    let banded = as_bands(bytes, &tiff, &entries, photometric);
    let mut decoder = Decoder::new(Cursor::new(banded.as_slice())).map_err(describe)?;
    let (width, height) = decoder.dimensions().map_err(describe)?;
    check_dimensions(width, height, options)?;
    let limit = usize::try_from(allocation_limit(options)).unwrap_or(usize::MAX);
    let mut limits = Limits::unlimited();
    (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (limit, limit);
    limits.ifd_value_size = limit;
    decoder = decoder.with_limits(limits);
    let mut buffer = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut buffer).map_err(describe)?;
    if buffer.as_buffer(0).as_bytes().len() < layout.complete_len {
        return Err(describe(TiffError::LimitsExceeded));
    }

    let mut values = numbers(buffer)?;
    if let (Values::U8(packed), 1..8) = (&values, bits) {
        if samples > 1 {
            return Err(unsupported(&format!("{samples} samples of {bits} bits")));
        }
        // An index stays a number, a grey value is stretched.
        let most = (1u16 << bits) - 1;
        let scale = if photometric == 3 { 1 } else { 255 / most as u8 };
        let levels = unpacked(packed, (width as usize, height as usize), bits as usize);
        values = Values::U8(levels.into_iter().map(|level| level * scale).collect());
    }
    if value(tag::PLANAR, 1) == 2 && samples > 1 {
        values = interleaved(values, samples);
    }
    match photometric {
        0 => inverted(&mut values)?,
        3 => values = looked_up(&values, &tiff, &entries, bits)?,
        _ => {}
    }
    let pages = tiff.chain(MAX_PAGES).iter().filter(|page| is_page(&tiff, page)).count();
    let channels = if photometric == 3 { 3 } else { samples };
    Ok((Samples { channels, ..Samples::new((width, height), color, alpha, values) }, pages))
}

/// Whether a directory is an image of its own: neither a smaller copy nor a mask.
fn is_page(tiff: &Tiff<'_>, entries: &[Entry]) -> bool {
    tiff.value(entries, tag::SUBFILE).unwrap_or(0) & 0b101 == 0
}

fn unsupported(kind: &str) -> DecodeError {
    DecodeError::UnsupportedPixels { kind: kind.to_owned() }
}

/// What the samples of a pixel are.
fn meaning(
    tiff: &Tiff<'_>,
    entries: &[Entry],
    photometric: u64,
    samples: usize,
) -> Result<(Color, Alpha), DecodeError> {
    let color = match photometric {
        0 | 1 => Color::Gray,
        2 => Color::Rgb,
        3 => return Ok((Color::Rgb, Alpha::None)),
        5 => Color::Cmyk,
        6 => {
            let reference = tiff.fractions(entries, tag::REFERENCE, 6);
            if reference.is_some_and(|found| found != [0.0, 255.0, 128.0, 255.0, 128.0, 255.0]) {
                return Err(unsupported("YCbCr (with values for black and white of its own)"));
            }
            Color::YCbCr
        }
        4 => return Err(unsupported("transparency mask")),
        8..=10 => return Err(unsupported("CIE L*a*b*")),
        32803 | 34892 => return Err(unsupported("camera raw")),
        32844 | 32845 => return Err(unsupported("LogLuv")),
        u64::MAX => return Err(unsupported("undeclared (no PhotometricInterpretation)")),
        other => return Err(unsupported(&format!("unknown (PhotometricInterpretation {other})"))),
    };
    let colors = color.channels();
    let extra = tiff.values(entries, tag::EXTRA, 64).unwrap_or_default();
    let alpha = match extra.first() {
        Some(1) => Alpha::Premultiplied,
        Some(2) => Alpha::Straight,
        // Old files have four samples and say nothing about the last; readers take it for alpha.
        None if color == Color::Rgb && samples == 4 => Alpha::Straight,
        _ => Alpha::None,
    };
    if samples < colors + usize::from(alpha != Alpha::None) {
        return Err(DecodeError::Invalid { reason: format!("it has {samples} samples per pixel, too few") });
    }
    // Several bands of no stated colour are not grey: taking the first would lose the others in silence.
    if color == Color::Gray && samples > 1 && (alpha == Alpha::None || samples > 2) {
        return Err(DecodeError::Bands { bands: samples });
    }
    Ok((color, alpha))
}

/// The file with PhotometricInterpretation "black is zero", which the decoder takes for plain bands.
fn as_bands(bytes: &[u8], tiff: &Tiff<'_>, entries: &[Entry], photometric: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if photometric != BLACK_IS_ZERO
        && let Some(entry) = entries.iter().find(|entry| entry.tag == tag::PHOTOMETRIC)
        && let Some(place) = bytes.get_mut(entry.at..entry.at + 2)
    {
        place.copy_from_slice(&tiff.short(BLACK_IS_ZERO as u16));
    }
    bytes
}

fn numbers(buffer: DecodingResult) -> Result<Values, DecodeError> {
    fn wide<T: Copy>(data: &[T], number: Number, to: impl Fn(T) -> f64) -> Values {
        Values::Wide(data.iter().map(|&value| to(value)).collect(), number)
    }
    Ok(match buffer {
        DecodingResult::U8(data) => Values::U8(data),
        DecodingResult::U16(data) => Values::U16(data),
        DecodingResult::U32(data) => wide(&data, Number::Unsigned(32), f64::from),
        DecodingResult::U64(data) => wide(&data, Number::Unsigned(64), |value| value as f64),
        DecodingResult::I8(data) => wide(&data, Number::Signed(8), f64::from),
        DecodingResult::I16(data) => wide(&data, Number::Signed(16), f64::from),
        DecodingResult::I32(data) => wide(&data, Number::Signed(32), f64::from),
        DecodingResult::I64(data) => wide(&data, Number::Signed(64), |value| value as f64),
        DecodingResult::F16(data) => wide(&data, Number::Float(16), |value| value.to_f64()),
        DecodingResult::F32(data) => wide(&data, Number::Float(32), f64::from),
        DecodingResult::F64(data) => Values::Wide(data, Number::Float(64)),
    })
}

/// Values of fewer than 8 bits, each row in bytes of its own, the first pixel in the highest bits.
fn unpacked(packed: &[u8], (width, height): (usize, usize), bits: usize) -> Vec<u8> {
    let row_bytes = (width * bits).div_ceil(8);
    let mask = (1u16 << bits) - 1;
    let mut levels = Vec::with_capacity(width * height);
    for row in packed.chunks_exact(row_bytes).take(height) {
        levels.extend((0..width).map(|x| {
            let at = x * bits;
            let next = row.get(at / 8 + 1).copied().unwrap_or(0);
            let pair = u16::from_be_bytes([row[at / 8], next]);
            ((pair >> (16 - bits - at % 8)) & mask) as u8
        }));
    }
    levels
}

/// Planes one after the other → samples of a pixel side by side.
fn interleaved(values: Values, planes: usize) -> Values {
    fn of<T: Copy>(data: &[T], planes: usize) -> Vec<T> {
        let size = data.len() / planes;
        (0..size * planes).map(|at| data[at % planes * size + at / planes]).collect()
    }
    match values {
        Values::U8(data) => Values::U8(of(&data, planes)),
        Values::U16(data) => Values::U16(of(&data, planes)),
        Values::Wide(data, number) => Values::Wide(of(&data, planes), number),
    }
}

/// "White is zero": the largest value of the type becomes 0. (Grey, so without samples of another meaning but alpha, which
/// such files do not have.)
fn inverted(values: &mut Values) -> Result<(), DecodeError> {
    match values {
        Values::U8(data) => data.iter_mut().for_each(|value| *value = 255 - *value),
        Values::U16(data) => data.iter_mut().for_each(|value| *value = 65535 - *value),
        Values::Wide(data, Number::Float(_)) => data.iter_mut().for_each(|value| *value = 1.0 - *value),
        Values::Wide(data, Number::Unsigned(bits)) => {
            let white = 2f64.powi(*bits as i32) - 1.0;
            data.iter_mut().for_each(|value| *value = white - *value);
        }
        Values::Wide(_, Number::Signed(_)) => return Err(unsupported("signed white-is-zero")),
    }
    Ok(())
}

/// Colours of palette entries. The colour map has all reds, then all greens, then all blues, in 16 bits, of which the high
/// bytes are used, as in Pillow.
fn looked_up(values: &Values, tiff: &Tiff<'_>, entries: &[Entry], bits: u64) -> Result<Values, DecodeError> {
    let Values::U8(indices) = values else {
        return Err(unsupported(&format!("{bits}-bit palette")));
    };
    let size = 1usize << bits;
    let map = tiff.values(entries, tag::COLOR_MAP, 3 * 256).unwrap_or_default();
    if map.len() != 3 * size {
        return Err(DecodeError::Invalid {
            reason: format!("its palette has {} values instead of {}", map.len(), 3 * size),
        });
    }
    let color = |&index: &u8| [0, 1, 2].map(|channel| (map[channel * size + usize::from(index)] >> 8) as u8);
    Ok(Values::U8(indices.iter().flat_map(color).collect()))
}

fn describe(error: TiffError) -> DecodeError {
    match error {
        TiffError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: "TIFF" }
        }
        TiffError::LimitsExceeded => {
            DecodeError::Invalid { reason: "it needs more memory than the pixel limit allows".into() }
        }
        TiffError::UnsupportedError(error) => DecodeError::UnsupportedTiff { reason: error.to_string() },
        other => DecodeError::Invalid { reason: other.to_string() },
    }
}
