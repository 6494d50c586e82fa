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
use crate::pool::guarded;

/// Most directories that are looked at.
const MAX_PAGES: usize = 100_000;

mod tag {
    pub(super) const SUBFILE: u16 = 254;
    pub(super) const WIDTH: u16 = 256;
    pub(super) const HEIGHT: u16 = 257;
    pub(super) const BITS: u16 = 258;
    pub(super) const COMPRESSION: u16 = 259;
    pub(super) const PHOTOMETRIC: u16 = 262;
    pub(super) const SAMPLES: u16 = 277;
    pub(super) const PLANAR: u16 = 284;
    pub(super) const COLOR_MAP: u16 = 320;
    pub(super) const TILE_WIDTH: u16 = 322;
    pub(super) const TILE_HEIGHT: u16 = 323;
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
    let mut channels = samples;
    let bits = value(tag::BITS, 1);
    let photometric = value(tag::PHOTOMETRIC, u64::MAX);
    let (color, alpha) = match meaning(&tiff, &entries, photometric, samples) {
        Err(DecodeError::Bands { bands }) if options.channels == bands as u32 => {
            (Color::Bands(bands), Alpha::None)
        }
        meaning => meaning?,
    };
    if photometric == 6 && value(tag::COMPRESSION, 1) != JPEG {
        let subsampling = tiff.values(&entries, tag::SUBSAMPLING, 2).unwrap_or(vec![2, 2]);
        if subsampling != [1, 1] {
            return Err(unsupported("subsampled YCbCr (without JPEG compression)"));
        }
    }

    let (width, height) = (value(tag::WIDTH, 0), value(tag::HEIGHT, 0));
    let side = |length: u64| u32::try_from(length).unwrap_or(u32::MAX);
    check_dimensions(side(width), side(height), options)?;
    let (width, height) = (width as usize, height as usize);
    let planes = if value(tag::PLANAR, 1) == 2 { samples } else { 1 };

    let mut banded = bytes.to_vec();
    if !tiff.replace(&mut banded, &entries, tag::PHOTOMETRIC, BLACK_IS_ZERO) {
        return Err(broken("is damaged"));
    }
    let padded = padded(&mut banded, &tiff, &entries, (width, height))
        .ok_or_else(|| broken("has tiles of a size that cannot be read"))?;
    // Why guarded: the decoder has assertions that damaged files can reach.
    let buffer = guarded(|| unpack(&banded, planes, options));
    let buffer = buffer.unwrap_or_else(|panic| Err(DecodeError::Invalid { reason: panic }))?;
    let mut values = numbers(buffer);
    if let (Values::U8(packed), 1..8) = (&values, bits) {
        // An index stays a number, a grey value is stretched.
        let most = (1u16 << bits) - 1;
        let scale = if photometric == 3 { 1 } else { 255 / most as u8 };
        let row = padded.0 * (samples / planes);
        let levels = unpacked(packed, row, padded.1 * planes, bits as usize);
        values = Values::U8(levels.into_iter().map(|level| level * scale).collect());
    }
    values = cropped(values, padded, (width, height), samples / planes, planes);
    if planes > 1 {
        values = interleaved(values, planes);
    }
    match photometric {
        0 => inverted(&mut values)?,
        3 => values = looked_up(&values, samples, &tiff, &entries, bits)?,
        _ => {}
    }
    if photometric == 3 {
        channels = 2 + samples;
    }
    let pages = tiff.chain(MAX_PAGES).iter().filter(|page| is_page(&tiff, page)).count();
    let size = (width as u32, height as u32);
    Ok((Samples { channels, ..Samples::new(size, color, alpha, values) }, pages))
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
        3 => Color::Rgb,
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
    let colors = if photometric == 3 { 1 } else { color.channels() };
    let extra = tiff.values(entries, tag::EXTRA, 64).unwrap_or_default();
    let alpha = match extra.first() {
        Some(1) => Alpha::Premultiplied,
        Some(2) => Alpha::Straight,
        // Old files have four samples and say nothing about the last; readers take it for alpha.
        None if photometric == 2 && samples == 4 => Alpha::Straight,
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

/// Makes the image as large as its tiles, in a copy of the file: the decoder reads whole tiles rightly, and loses data of some
/// that stand over the edge. Width and height after it.
fn padded(
    bytes: &mut [u8],
    tiff: &Tiff<'_>,
    entries: &[Entry],
    (width, height): (usize, usize),
) -> Option<(usize, usize)> {
    let tile = (tiff.value(entries, tag::TILE_WIDTH), tiff.value(entries, tag::TILE_HEIGHT));
    let (Some(tile_width @ 1..=0xFFFF), Some(tile_height @ 1..=0xFFFF)) = tile else {
        return (tile == (None, None)).then_some((width, height));
    };
    let padded = (width.next_multiple_of(tile_width as usize), height.next_multiple_of(tile_height as usize));
    let sides = [(tag::WIDTH, width, padded.0), (tag::HEIGHT, height, padded.1)];
    let fits =
        sides.into_iter().all(|(tag, old, new)| old == new || tiff.replace(bytes, entries, tag, new as u64));
    fits.then_some(padded)
}

/// All samples, plane by plane, each row in bytes of its own.
fn unpack(bytes: &[u8], planes: usize, options: &DecodeOptions) -> Result<DecodingResult, DecodeError> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(describe)?;
    let limit = usize::try_from(allocation_limit(options)).unwrap_or(usize::MAX);
    let mut limits = Limits::unlimited();
    (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (limit, limit);
    limits.ifd_value_size = limit;
    decoder = decoder.with_limits(limits.clone());
    let layout = decoder.image_buffer_layout().map_err(describe)?;
    let mut buffer = DecodingResult::U8(Vec::new());
    buffer.resize_to(&layout, &limits).map_err(describe)?;
    let (width, height) = decoder.dimensions().map_err(describe)?;
    let (chunk_width, chunk_height) = decoder.chunk_dimensions();
    let across = width.div_ceil(chunk_width.max(1));
    let per_plane = across * height.div_ceil(chunk_height.max(1));
    let row = layout.row_stride.map_or(0, |stride| stride.get());
    let mut all = buffer.as_buffer(0);
    let all = all.as_bytes_mut();
    let mut chunk = Vec::new();
    for index in 0..per_plane * planes as u32 {
        let part = decoder.image_chunk_buffer_layout(index).map_err(describe)?;
        let part_row = part.row_stride.map_or(0, |stride| stride.get());
        chunk.resize(part.len, 0);
        decoder.read_chunk_bytes(index, &mut chunk).map_err(describe)?;
        let (plane, place) = ((index / per_plane) as usize, index % per_plane);
        let start = plane * (layout.complete_len / planes)
            + (place / across * chunk_height) as usize * row
            + (place % across) as usize * part_row;
        for (at, line) in chunk.chunks_exact(part_row.max(1)).enumerate() {
            let to = start + at * row;
            let whole = all.get_mut(to..to + part_row);
            whole.ok_or_else(|| describe(TiffError::LimitsExceeded))?.copy_from_slice(line);
        }
    }
    Ok(buffer)
}

/// The part of each plane that is image, without the padding of its tiles.
fn cropped(
    values: Values,
    (padded_width, padded_height): (usize, usize),
    (width, height): (usize, usize),
    samples: usize,
    planes: usize,
) -> Values {
    if (padded_width, padded_height) == (width, height) {
        return values;
    }
    let of = |length: usize| -> Vec<std::ops::Range<usize>> {
        let row = padded_width * samples;
        let starts =
            (0..planes).flat_map(|plane| (0..height).map(move |y| (plane * padded_height + y) * row));
        starts.map(|start| start..start + width * samples).filter(|range| range.end <= length).collect()
    };
    match values {
        Values::U8(data) => {
            Values::U8(of(data.len()).into_iter().flat_map(|range| data[range].to_vec()).collect())
        }
        Values::U16(data) => {
            Values::U16(of(data.len()).into_iter().flat_map(|range| data[range].to_vec()).collect())
        }
        Values::Wide(data, number) => {
            Values::Wide(of(data.len()).into_iter().flat_map(|range| data[range].to_vec()).collect(), number)
        }
    }
}

fn numbers(buffer: DecodingResult) -> Values {
    fn wide<T: Copy>(data: &[T], number: Number, to: impl Fn(T) -> f64) -> Values {
        Values::Wide(data.iter().map(|&value| to(value)).collect(), number)
    }
    match buffer {
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
    }
}

/// Values of fewer than 8 bits, each row in bytes of its own, the first value in the highest bits.
fn unpacked(packed: &[u8], row: usize, rows: usize, bits: usize) -> Vec<u8> {
    let row_bytes = (row * bits).div_ceil(8).max(1);
    let mask = (1u16 << bits) - 1;
    let mut levels = Vec::with_capacity(row * rows);
    for line in packed.chunks_exact(row_bytes).take(rows) {
        levels.extend((0..row).map(|x| {
            let at = x * bits;
            let next = line.get(at / 8 + 1).copied().unwrap_or(0);
            let pair = u16::from_be_bytes([line[at / 8], next]);
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
        Values::Wide(_, Number::Signed(_) | Number::Rescaled(_)) => {
            return Err(unsupported("signed white-is-zero"));
        }
    }
    Ok(())
}

/// Colours of palette entries. The colour map has all reds, then all greens, then all blues, in 16 bits, of which the high
/// bytes are used, as in Pillow.
fn looked_up(
    values: &Values,
    samples: usize,
    tiff: &Tiff<'_>,
    entries: &[Entry],
    bits: u64,
) -> Result<Values, DecodeError> {
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
    let color = |index: u8| [0, 1, 2].map(|channel| (map[channel * size + usize::from(index)] >> 8) as u8);
    let pixels = indices.chunks_exact(samples);
    let whole = pixels.flat_map(|pixel| color(pixel[0]).into_iter().chain(pixel[1..].iter().copied()));
    Ok(Values::U8(whole.collect()))
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
