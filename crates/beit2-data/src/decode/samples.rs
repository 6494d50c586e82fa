//! Samples of any numeric type, and how they become 8-bit RGB.

use super::options::{Background, DecodeOptions, PixelRange};
use crate::error::{DecodeError, TransformError};
use crate::image::Image;
use crate::transform::jitter::luma;

/// The numeric type that values have in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// Unsigned, of this many bits.
    Unsigned(u32),
    /// With a sign, of this many bits.
    Signed(u32),
    /// Floating point of this many bits.
    Float(u32),
    /// Integers of this many bits, rescaled by the file (to Hounsfield units, for example).
    #[cfg_attr(not(feature = "dicom"), allow(dead_code))]
    Rescaled(u32),
}

impl Number {
    /// For messages.
    fn name(self) -> String {
        match self {
            Self::Unsigned(bits) => format!("{bits}-bit"),
            Self::Signed(bits) => format!("signed {bits}-bit"),
            Self::Float(bits) => format!("{bits}-bit float"),
            Self::Rescaled(bits) => format!("rescaled {bits}-bit"),
        }
    }

    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Unsigned(bits) | Self::Signed(bits) | Self::Float(bits) | Self::Rescaled(bits) => bits,
        }
    }

    /// What `full` maps to 0 and 255.
    pub(super) fn full(self) -> (f64, f64) {
        match self {
            Self::Unsigned(bits) => (0.0, 2f64.powi(bits as i32) - 1.0),
            Self::Signed(bits) => (-(2f64.powi(bits as i32 - 1)), 2f64.powi(bits as i32 - 1) - 1.0),
            Self::Float(_) | Self::Rescaled(_) => (0.0, 1.0),
        }
    }
}

/// Values of all samples, `[height, width, channels]`.
pub(super) enum Values {
    U8(Vec<u8>),
    U16(Vec<u16>),
    /// Any other type; no value that an image has is lost in it.
    Wide(Vec<f64>, Number),
}

/// What the channels mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Gray,
    Rgb,
    /// Inks: 0 is none.
    Cmyk,
    /// Full range, as in JPEG.
    YCbCr,
    /// This many values of no colour.
    Bands(usize),
}

impl Color {
    pub(super) fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb | Self::YCbCr => 3,
            Self::Cmyk => 4,
            Self::Bands(bands) => bands,
        }
    }
}

/// What the channel behind the colours means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpha {
    None,
    Straight,
    /// Colours are already multiplied with it.
    Premultiplied,
}

/// A decoded image in the file's own type.
pub(super) struct Samples {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) color: Color,
    pub(super) alpha: Alpha,
    /// Colours, then alpha, then whatever else a pixel has.
    pub(super) channels: usize,
    pub(super) values: Values,
    /// What `full` maps to 0 and 255, where it is not the range of the type: the file says it.
    pub(super) full: Option<(f64, f64)>,
    /// The range that the file itself asks to be shown, where it does.
    pub(super) window: Option<(f64, f64)>,
    /// White is the lowest value; colours are inverted in the end.
    pub(super) inverted: bool,
}

impl Samples {
    /// Without anything unusual.
    pub(super) fn new(size: (u32, u32), color: Color, alpha: Alpha, values: Values) -> Self {
        let channels = color.channels() + usize::from(alpha != Alpha::None);
        let (width, height) = size;
        Self { width, height, color, alpha, channels, values, full: None, window: None, inverted: false }
    }

    pub(super) fn number(&self) -> Number {
        match &self.values {
            Values::U8(_) => Number::Unsigned(8),
            Values::U16(_) => Number::Unsigned(16),
            Values::Wide(_, number) => *number,
        }
    }

    /// 8 bits a value, with as many channels as the options say.
    pub(super) fn into_image(self, options: &DecodeOptions) -> Result<Image, DecodeError> {
        let (channels, found) = (options.channels, self.channels as u32);
        match (channels, self.color) {
            (3, Color::Bands(bands)) if bands != 3 => Err(DecodeError::Bands { bands }),
            (3, _) => self.into_rgb8(options),
            // Pillow's convert("L").
            (1, Color::Gray | Color::Rgb | Color::Cmyk | Color::YCbCr) => {
                let rgb = self.into_rgb8(options)?;
                let data = rgb.data.as_chunks::<3>().0.iter().map(|&pixel| luma(pixel)).collect();
                Ok(Image { channels: 1, data, ..rgb })
            }
            _ if found == channels => {
                let (width, height) = (self.width, self.height);
                let bands = Self { color: Color::Bands(self.channels), alpha: Alpha::None, ..self };
                let invalid = |error: TransformError| DecodeError::Invalid { reason: error.to_string() };
                Image::with_channels(width, height, channels, bands.into_bytes(options)?).map_err(invalid)
            }
            _ => Err(DecodeError::Channels { found, expected: channels }),
        }
    }

    /// 8-bit RGB: values by the range, then the colour space, then the background.
    fn into_rgb8(self, options: &DecodeOptions) -> Result<Image, DecodeError> {
        let (width, height) = (self.width, self.height);
        let samples = u64::from(width) * u64::from(height) * self.channels as u64;
        let found = match &self.values {
            Values::U8(values) => values.len(),
            Values::U16(values) => values.len(),
            Values::Wide(values, _) => values.len(),
        };
        if found as u64 != samples {
            return Err(DecodeError::Invalid {
                reason: format!("it has {found} values instead of {samples}"),
            });
        }
        let (color, alpha, channels, inverted) = (self.color, self.alpha, self.channels, self.inverted);
        let mut data = self.into_bytes(options)?;
        if inverted {
            let pixels = data.chunks_exact_mut(channels);
            pixels.for_each(|pixel| {
                pixel[..color.channels()].iter_mut().for_each(|value| *value = 255 - *value)
            });
        }
        let data = match (color, alpha, channels) {
            (Color::Rgb, Alpha::None, 3) => data,
            (Color::Gray, Alpha::None, 1) => data.into_iter().flat_map(|value| [value; 3]).collect(),
            _ => {
                let mut rgb = Vec::with_capacity(data.len() / channels * 3);
                for pixel in data.chunks_exact(channels) {
                    let mut value = to_rgb(color, pixel);
                    match alpha {
                        Alpha::None => {}
                        Alpha::Straight => {
                            value = blended(value, pixel[color.channels()], options.background)
                        }
                        Alpha::Premultiplied => {
                            value = premultiplied(value, pixel[color.channels()], options.background);
                        }
                    }
                    rgb.extend(value);
                }
                rgb
            }
        };
        Image::new(width, height, data).map_err(|error| DecodeError::Invalid { reason: error.to_string() })
    }

    /// All samples in 8 bits: colours by the range, alpha by the whole range of its type.
    fn into_bytes(self, options: &DecodeOptions) -> Result<Vec<u8>, DecodeError> {
        let mapping = self.mapping(options.range)?;
        let (colors, channels, number) = (self.color.channels(), self.channels, self.number());
        // 8 bits are mostly left alone, and 16 bits have few enough values for a table.
        Ok(match self.values {
            Values::U8(data) if mapping == Mapping::Same => data,
            Values::U8(mut data) => {
                let table: Vec<u8> = (0..=255u16).map(|value| mapping.apply(value.into())).collect();
                for pixel in data.chunks_exact_mut(channels) {
                    pixel[..colors].iter_mut().for_each(|value| *value = table[usize::from(*value)]);
                }
                data
            }
            Values::U16(data) => {
                let table: Vec<u8> = (0..=u16::MAX).map(|value| mapping.apply(value.into())).collect();
                if colors == channels {
                    return Ok(data.into_iter().map(|value| table[usize::from(value)]).collect());
                }
                let (low, high) = self.full.unwrap_or((0.0, 65535.0));
                let other = Mapping::linear(low, high);
                let each = |pixel: &[u16]| -> Vec<u8> {
                    let color = pixel[..colors].iter().map(|&value| table[usize::from(value)]);
                    color.chain(pixel[colors..].iter().map(|&value| other.apply(value.into()))).collect()
                };
                data.chunks_exact(channels).flat_map(each).collect()
            }
            Values::Wide(data, _) => {
                let (low, high) = number.full();
                let other = Mapping::linear(low.max(0.0), high);
                let value = |(at, &value): (usize, &f64)| {
                    if at % channels < colors { mapping.apply(value) } else { other.apply(value) }
                };
                data.iter().enumerate().map(value).collect()
            }
        })
    }

    /// How colours are mapped. Looks at the values where the setting asks for it.
    fn mapping(&self, range: PixelRange) -> Result<Mapping, DecodeError> {
        self.check_finite()?;
        let number = self.number();
        let full = || self.full.unwrap_or_else(|| number.full());
        match range {
            PixelRange::Auto => {
                if let Some((low, high)) = self.window {
                    return Ok(Mapping::linear(low, high));
                }
                if number == Number::Unsigned(8) {
                    return Ok(Mapping::Same);
                }
                let (low, high) = self.extremes();
                if !matches!(number, Number::Float(_) | Number::Rescaled(_)) && low >= 0.0 && high <= 255.0 {
                    return Ok(Mapping::Same);
                }
                let (from, to) = full();
                Err(DecodeError::RangeNeeded {
                    kind: number.name(),
                    values: format!("{} to {}", short(low), short(high)),
                    full: format!("{} to {}", short(from), short(to)),
                    bounds: format!("[{}, {}]", short(low), short(if high > low { high } else { low + 1.0 })),
                })
            }
            PixelRange::Full if number == Number::Unsigned(8) && self.full.is_none() => Ok(Mapping::Same),
            PixelRange::Full => {
                let (from, to) = full();
                let mapping = Mapping::linear(from, to);
                if let Number::Float(_) = number {
                    let (low, high) = self.extremes();
                    // What rounds to the ends anyway is not cut.
                    if low < -0.5 / 255.0 || high > 1.0 + 0.5 / 255.0 {
                        let values = format!("{} to {}", short(low), short(high));
                        return Err(DecodeError::BeyondFull { kind: number.name(), values });
                    }
                }
                Ok(mapping)
            }
            PixelRange::EightBit => Ok(match (number, self.color, self.alpha, self.full) {
                (Number::Unsigned(8), ..) => Mapping::Same,
                (Number::Unsigned(16), Color::Gray, Alpha::None, full) => {
                    Mapping::Scaled(full.map(|(_, white)| white))
                }
                (Number::Unsigned(16), _, _, Some((low, high))) => Mapping::linear(low, high),
                (Number::Unsigned(16), ..) => Mapping::HighByte,
                _ => Mapping::Same,
            }),
            PixelRange::Bounds(low, high) => Ok(Mapping::linear(low, high)),
            PixelRange::Percentile => {
                let mut values = self.colors();
                let [low, high] = [0.005, 0.995].map(|share| quantile(&mut values, share));
                let (least, most) = self.extremes();
                match (low < high, least < most) {
                    (true, _) => Ok(Mapping::linear(low, high)),
                    (false, false) => Ok(Mapping::Black),
                    (false, true) => Err(DecodeError::FlatPercentiles {
                        at: short(low),
                        values: format!("{} to {}", short(least), short(most)),
                    }),
                }
            }
        }
    }

    fn colors(&self) -> Vec<f64> {
        let (colors, channels) = (self.color.channels(), self.channels);
        fn all<T: Copy + Into<f64>>(data: &[T], colors: usize, channels: usize) -> Vec<f64> {
            data.chunks_exact(channels)
                .flat_map(|pixel| pixel[..colors].iter().map(|&value| value.into()))
                .collect()
        }
        match &self.values {
            Values::U8(data) => all(data, colors, channels),
            Values::U16(data) => all(data, colors, channels),
            Values::Wide(data, _) => all(data, colors, channels),
        }
    }

    /// Lowest and highest value of a colour.
    fn extremes(&self) -> (f64, f64) {
        let (colors, channels) = (self.color.channels(), self.channels);
        fn of<T: Copy + Into<f64>>(data: &[T], colors: usize, channels: usize) -> (f64, f64) {
            let values = data.chunks_exact(channels).flat_map(|pixel| &pixel[..colors]);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
                let value: f64 = value.into();
                (low.min(value), high.max(value))
            })
        }
        match &self.values {
            Values::U8(data) => of(data, colors, channels),
            Values::U16(data) => of(data, colors, channels),
            Values::Wide(data, _) => of(data, colors, channels),
        }
    }

    fn check_finite(&self) -> Result<(), DecodeError> {
        let Values::Wide(data, Number::Float(_)) = &self.values else {
            return Ok(());
        };
        match data.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let pixel = at / self.channels;
                let (x, y) = (pixel % self.width as usize, pixel / self.width as usize);
                let value = if data[at].is_nan() { "NaN" } else { "infinite" };
                Err(DecodeError::NotFinite { x: x as u32, y: y as u32, value })
            }
        }
    }
}

/// From a value to 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mapping {
    /// Cut at 0 and 255 only, fractions truncated, as Pillow does.
    Same,
    Linear {
        low: f64,
        high: f64,
    },
    HighByte,
    /// Pillow's 16-bit grey: scaled up to 65535 when the file declares another white, then cut at 255.
    Scaled(Option<f64>),
    Black,
}

impl Mapping {
    fn linear(low: f64, high: f64) -> Self {
        Self::Linear { low, high }
    }

    fn apply(self, value: f64) -> u8 {
        // `as` cuts at both ends.
        match self {
            Self::Same => value as u8,
            Self::Linear { low, high } => ((value - low) * 255.0 / (high - low)).round() as u8,
            Self::HighByte => (value as u16 >> 8) as u8,
            Self::Scaled(white) => (value * 65535.0 / white.unwrap_or(65535.0)).round() as u8,
            Self::Black => 0,
        }
    }
}

/// The value below which this share of the values lies, linear between neighbours. `values` are reordered.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    let last = values.len() - 1;
    let place = share * last as f64;
    let at = place.floor() as usize;
    let (_, &mut value, above) = values.select_nth_unstable_by(at, f64::total_cmp);
    let next = above.iter().copied().fold(f64::INFINITY, f64::min);
    if at < last { value + (next - value) * (place - at as f64) } else { value }
}

/// A number for a message: integers as they are, others with four significant digits or so.
fn short(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value}");
    }
    let text = format!("{value:.4}");
    if text.trim_start_matches(['-', '0', '.']).is_empty() { format!("{value:e}") } else { text }
}

fn to_rgb(color: Color, pixel: &[u8]) -> [u8; 3] {
    match color {
        Color::Gray => [pixel[0]; 3],
        Color::Rgb => [pixel[0], pixel[1], pixel[2]],
        Color::Cmyk => cmyk_to_rgb([pixel[0], pixel[1], pixel[2], pixel[3]]),
        Color::YCbCr => ycbcr_to_rgb([pixel[0], pixel[1], pixel[2]]),
        Color::Bands(_) => [0, 1, 2].map(|band| pixel.get(band).copied().unwrap_or(0)),
    }
}

/// Pillow's conversion, from inks: 0 is none.
pub(crate) fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let white = 255 - k;
    [c, m, y].map(|ink| white.saturating_sub(product(ink, white)))
}

/// JFIF's conversion (ITU-R BT.601, full range), rounded.
fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136_286 * cb - 0.714_136_286 * cr, y + 1.772 * cb]
        .map(|value| value.round() as u8)
}

/// a·b/255, rounded.
fn product(a: u8, b: u8) -> u8 {
    ((u32::from(a) * u32::from(b) * 2 + 255) / 510) as u8
}

/// A colour in front of the background.
fn blended(color: [u8; 3], alpha: u8, background: Background) -> [u8; 3] {
    let behind = match background {
        Background::Drop => return color,
        Background::White => 255,
        Background::Black => 0,
    };
    let (a, rest) = (u32::from(alpha), u32::from(255 - alpha) * behind);
    color.map(|value| (((u32::from(value) * a + rest) * 2 + 255) / 510) as u8)
}

/// The same for a colour that is already multiplied with its alpha.
fn premultiplied(color: [u8; 3], alpha: u8, background: Background) -> [u8; 3] {
    match background {
        // As Pillow divides.
        Background::Drop if alpha == 0 => [0; 3],
        Background::Drop => color.map(|value| (255 * u32::from(value) / u32::from(alpha)).min(255) as u8),
        Background::White => color.map(|value| value.saturating_add(255 - alpha)),
        Background::Black => color,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_rounded() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let exact = (f64::from(a) * f64::from(b) / 255.0).round() as u8;
                assert_eq!(product(a, b), exact);
                let white = (f64::from(a) * f64::from(b) / 255.0 + f64::from(255 - b)).round() as u8;
                assert_eq!(blended([a; 3], b, Background::White), [white; 3]);
                assert_eq!(blended([a; 3], b, Background::Black), [exact; 3]);
            }
        }
    }

    #[test]
    fn inks_mix_as_in_pillow() {
        // Pillow 13: Image.new("CMYK", (1, 1), (c, m, y, k)).convert("RGB").
        assert_eq!(cmyk_to_rgb([0, 0, 0, 0]), [255, 255, 255]);
        assert_eq!(cmyk_to_rgb([255, 127, 0, 0]), [0, 128, 255]);
        assert_eq!(cmyk_to_rgb([55, 155, 205, 127]), [100, 50, 25]);
        assert_eq!(cmyk_to_rgb([246, 246, 246, 255]), [0, 0, 0]);
    }

    #[test]
    fn quantiles_are_linear_between_ranks() {
        // numpy.percentile([1, 2, 4, 8, 16], [0, 10, 50, 99.5, 100]).
        let values = [16.0, 2.0, 8.0, 1.0, 4.0];
        for (share, expected) in [(0.0, 1.0), (0.1, 1.4), (0.5, 4.0), (0.995, 15.84), (1.0, 16.0)] {
            assert!((quantile(&mut values.clone(), share) - expected).abs() < 1e-12, "{share}");
        }
        assert_eq!(quantile(&mut [3.0], 0.995), 3.0);
    }

    #[test]
    fn ycbcr() {
        assert_eq!(ycbcr_to_rgb([128, 128, 128]), [128; 3]);
        assert_eq!(ycbcr_to_rgb([76, 85, 255]), [254, 0, 0]);
        assert_eq!(ycbcr_to_rgb([255, 128, 128]), [255; 3]);
    }
}
