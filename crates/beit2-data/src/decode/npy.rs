//! NumPy arrays as images: `[H, W, C]` or `[C, H, W]`.

use super::samples::{Alpha, Color, Number, Samples, Values};
use super::{DecodeOptions, check_dimensions, decode_samples};
use crate::error::DecodeError;

const MAGIC: &[u8] = b"\x93NUMPY";

/// In the header of what [`join_bands`] writes.
const BANDS_FIRST: &str = "'bands_first': True, ";

/// Most bands of an array that is taken for an image when nobody says how many it has.
const MOST_BANDS: usize = 64;

/// Whether the content is a NumPy array.
pub(super) fn is_array(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Whether an array that begins like this can be an image: three dimensions, one of them few bands.
pub(super) fn is_image(start: &[u8]) -> bool {
    is_array(start)
        && Header::read(start).is_ok_and(
            |header| matches!(header.shape[..], [a, _, c] if a.min(c) <= MOST_BANDS && a.min(c) > 0),
        )
}

struct Header {
    /// Big-endian numbers.
    big: bool,
    /// `u`, `i` or `f`, and bytes.
    kind: (char, usize),
    shape: Vec<usize>,
    /// Where the values start.
    start: usize,
    /// Written by [`join_bands`]: known to be `[C, H, W]`.
    bands_first: bool,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let wrong = |what: &str| format!("its NumPy header {what}");
        let (start, length) = match (bytes.get(6), bytes.get(8..12)) {
            (Some(1), Some(&[a, b, ..])) => (10, usize::from(u16::from_le_bytes([a, b]))),
            (Some(2 | 3), Some(&[a, b, c, d])) => (12, u32::from_le_bytes([a, b, c, d]) as usize),
            _ => return Err(wrong("is cut off or of an unknown version")),
        };
        let end = start + length;
        let text = bytes.get(start..end).ok_or_else(|| wrong("is cut off"))?;
        let text = std::str::from_utf8(text).map_err(|_| wrong("is not text"))?;
        let after = |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start_matches([' ', ':']));
        let quoted =
            |rest: &str| rest.strip_prefix(['\'', '"'])?.split(['\'', '"']).next().map(str::to_owned);
        let descr = after("'descr'").and_then(quoted).ok_or_else(|| wrong("names no simple type"))?;
        if after("'fortran_order'").is_some_and(|rest| rest.starts_with("True")) {
            return Err("it is in Fortran order; save np.ascontiguousarray(array)".into());
        }
        let shape = after("'shape'").and_then(|rest| rest.strip_prefix('(')?.split(')').next());
        let shape = shape.ok_or_else(|| wrong("has no shape"))?;
        let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty()).map(str::parse);
        let shape = sides.collect::<Result<Vec<usize>, _>>().map_err(|_| wrong("has no sound shape"))?;
        let mut letters = descr.chars();
        let (order, kind) = (letters.next().unwrap_or(' '), letters.next().unwrap_or(' '));
        let size = letters.as_str().parse().unwrap_or(0);
        if !matches!((kind, size), ('u' | 'i', 1 | 2 | 4) | ('f', 4 | 8))
            || !['<', '>', '|', '='].contains(&order)
        {
            return Err(format!(
                "it holds values of NumPy type '{descr}'; integers of 8 to 32 bits and floats of 32 or 64 bits are read"
            ));
        }
        Ok(Self {
            big: order == '>',
            kind: (kind, size),
            shape,
            start: end,
            bands_first: text.contains(BANDS_FIRST),
        })
    }
}

/// The samples of an array. The number of channels that the options expect tells `[H, W, C]` from `[C, H, W]`.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Samples, DecodeError> {
    let invalid = |reason: String| DecodeError::Invalid { reason };
    let header = Header::read(bytes).map_err(invalid)?;
    let wanted = options.channels as usize;
    let shape = format!("{:?}", header.shape).replace(['[', ']'], "");
    let (height, width, channels, planar) = match header.shape[..] {
        [h, w] => (h, w, 1, false),
        [c, h, w] if header.bands_first && c == wanted => (h, w, c, true),
        [a, _, c] if c == wanted && a == wanted => {
            return Err(invalid(format!(
                "an array of {shape} can be [H, W, C] and [C, H, W] for {wanted} channels; crop or resize the images"
            )));
        }
        [h, w, c] if c == wanted => (h, w, c, false),
        [c, h, w] if c == wanted => (h, w, c, true),
        [a, _, c] => {
            return Err(DecodeError::Channels { found: a.min(c) as u32, expected: options.channels });
        }
        _ => {
            return Err(invalid(format!(
                "an array of {shape} is no image; [H, W, C] or [C, H, W] was expected"
            )));
        }
    };
    let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let size = (side(width), side(height));
    check_dimensions(size.0, size.1, options)?;
    let (kind, bytes_each) = header.kind;
    let count = width * height * channels;
    let data = bytes.get(header.start..).and_then(|rest| rest.get(..count.checked_mul(bytes_each)?));
    let data = data.ok_or(DecodeError::Truncated { format: "NPY" })?;
    // Position in the file of each value in the order [H, W, C].
    let place = |at: usize| match planar {
        true => at % channels * width * height + at / channels,
        false => at,
    };
    let each = |at: usize| {
        let mut value = [0; 8];
        let from = place(at) * bytes_each;
        value[..bytes_each].copy_from_slice(&data[from..from + bytes_each]);
        if header.big {
            value[..bytes_each].reverse();
        }
        value
    };
    let all = 0..count;
    let wide =
        |number, to: fn([u8; 8]) -> f64| Values::Wide(all.clone().map(|at| to(each(at))).collect(), number);
    fn low<const N: usize>(value: [u8; 8]) -> [u8; N] {
        std::array::from_fn(|at| value[at])
    }
    let values = match (kind, bytes_each) {
        ('u', 1) => Values::U8(all.clone().map(|at| each(at)[0]).collect()),
        ('u', 2) => Values::U16(all.clone().map(|at| u16::from_le_bytes(low(each(at)))).collect()),
        ('u', _) => wide(Number::Unsigned(32), |v| u32::from_le_bytes(low(v)).into()),
        ('i', 1) => wide(Number::Signed(8), |v| i8::from_le_bytes(low(v)).into()),
        ('i', 2) => wide(Number::Signed(16), |v| i16::from_le_bytes(low(v)).into()),
        ('i', _) => wide(Number::Signed(32), |v| i32::from_le_bytes(low(v)).into()),
        (_, 4) => wide(Number::Float(32), |v| f32::from_le_bytes(low(v)).into()),
        _ => wide(Number::Float(64), f64::from_le_bytes),
    };
    let color = match channels {
        1 => Color::Gray,
        3 => Color::Rgb,
        bands => Color::Bands(bands),
    };
    Ok(Samples::new(size, color, Alpha::None, values))
}

/// Encoded images of one band each → one array `[C, H, W]`, as a file of the same values.
pub(crate) fn join_bands(
    bands: &[Vec<u8>],
    options: &DecodeOptions,
) -> Result<Vec<u8>, (usize, DecodeError)> {
    let mut out = Vec::new();
    let mut first: Option<((u32, u32), Number)> = None;
    for (at, bytes) in bands.iter().enumerate() {
        let fail = |reason: String| (at, DecodeError::Invalid { reason });
        let samples = decode_samples(bytes, options).map_err(|error| (at, error))?;
        if samples.channels != 1 {
            let found = samples.channels as u32;
            return Err((at, DecodeError::Channels { found, expected: 1 }));
        }
        let (size, number) = ((samples.width, samples.height), samples.number());
        let (first_size, first_number) = *first.get_or_insert((size, number));
        if size != first_size {
            let ((w, h), (first_w, first_h)) = (size, first_size);
            return Err(fail(format!(
                "the band is {w} x {h} pixels, and the first one {first_w} x {first_h}; bring the bands to one grid"
            )));
        }
        if number != first_number {
            return Err(fail(
                "the band has another type of numbers than the first one; save all bands alike".into(),
            ));
        }
        if at == 0 {
            let descr = match (&samples.values, number) {
                (Values::U8(_), _) => "|u1",
                (Values::U16(_), _) => "<u2",
                (_, Number::Unsigned(32)) => "<u4",
                (_, Number::Signed(16)) => "<i2",
                (_, Number::Signed(32)) => "<i4",
                (_, Number::Float(_) | Number::Rescaled(_)) => "<f8",
                _ => {
                    return Err(fail(
                        "bands of this type of numbers cannot be joined; save them as 16 bits".into(),
                    ));
                }
            };
            let (w, h, c) = (size.0, size.1, bands.len());
            let text = format!(
                "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({c}, {h}, {w}), {BANDS_FIRST}}}\n"
            );
            out.extend_from_slice(MAGIC);
            out.extend([1, 0]);
            out.extend((text.len() as u16).to_le_bytes());
            out.extend(text.as_bytes());
        }
        match (samples.values, number) {
            (Values::U8(values), _) => out.extend(values),
            (Values::U16(values), _) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            (Values::Wide(values, _), Number::Unsigned(_)) => {
                out.extend(values.iter().flat_map(|&value| (value as u32).to_le_bytes()));
            }
            (Values::Wide(values, _), Number::Signed(16)) => {
                out.extend(values.iter().flat_map(|&value| (value as i16).to_le_bytes()));
            }
            (Values::Wide(values, _), Number::Signed(_)) => {
                out.extend(values.iter().flat_map(|&value| (value as i32).to_le_bytes()));
            }
            (Values::Wide(values, _), Number::Float(_) | Number::Rescaled(_)) => {
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
    Ok(out)
}
