//! What may vary in decoding: limits, the range of values, orientation, background.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::source::MAX_SAMPLE_BYTES;

/// How values of more than 8 bits, or in floating point, become 8-bit values. `data.range` in recipes.
///
/// A range [low, high] maps a value v to round((v − low)/(high − low)·255), cut at 0 and 255.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum PixelRange {
    /// 8-bit values as they are; so are integers of another kind that all lie in 0 to 255 (8-bit data in 16 bits). Any
    /// other values are an error that names their range: nothing is cut in silence.
    #[default]
    Auto,
    /// The whole range of the type: 0 to 65535 for 16 bits, -32768 to 32767 with a sign, the largest value that a PNM
    /// file declares, 0 to 1 for floating point (values outside are an error).
    Full,
    /// As Pillow's `convert("RGB")`, and therefore the reference: grey is cut at 255, 16-bit colour keeps its high byte.
    EightBit,
    /// These values become 0 and 255, whatever the type (8-bit values too).
    Bounds(f64, f64),
    /// As `Bounds` of the image's own 0.5 and 99.5 percentiles (of all its colour channels together, linear between
    /// ranks), whatever the type. A constant image becomes black.
    Percentile,
}

/// Bounds are never NaN ([`PixelRange::bounds`]).
impl Eq for PixelRange {}

impl PixelRange {
    /// A range, in order.
    ///
    /// # Errors
    /// Bounds that are not finite, or not in order.
    pub fn bounds(low: f64, high: f64) -> Result<Self, String> {
        if low.is_finite() && high.is_finite() && low < high {
            return Ok(Self::Bounds(low, high));
        }
        Err(format!("[{low}, {high}] is no range; two numbers were expected, the lower one first"))
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::Auto => Some("auto"),
            Self::Full => Some("full"),
            Self::EightBit => Some("8bit"),
            Self::Percentile => Some("percentile"),
            Self::Bounds(..) => None,
        }
    }
}

impl fmt::Display for PixelRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Bounds(low, high)) => write!(f, "{low},{high}"),
            (None, _) => Ok(()),
        }
    }
}

impl FromStr for PixelRange {
    type Err = String;

    /// A name, or two numbers: `0,4095` or `[0, 4095]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(named) = [Self::Auto, Self::Full, Self::EightBit, Self::Percentile]
            .into_iter()
            .find(|range| range.name() == Some(text))
        {
            return Ok(named);
        }
        let numbers = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let numbers: Option<Vec<f64>> = numbers.split(',').map(|number| number.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[low, high]) => Self::bounds(low, high),
            _ => Err(format!("'{text}' is none of auto, full, 8bit, percentile and two numbers (0,4095)")),
        }
    }
}

impl Serialize for PixelRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bounds(low, high) => [low, high].serialize(serializer),
            named => serializer.collect_str(named),
        }
    }
}

impl<'de> Deserialize<'de> for PixelRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = PixelRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, full, 8bit, percentile or [low, high]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PixelRange, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PixelRange, A::Error> {
                let mut numbers: Vec<f64> = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                match numbers[..] {
                    [low, high] => PixelRange::bounds(low, high).map_err(de::Error::custom),
                    _ => Err(de::Error::invalid_length(numbers.len(), &"two numbers, [low, high]")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What is done about EXIF orientation. `data.exif` in recipes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExifOrientation {
    /// The image is turned and mirrored as its orientation tag says, as viewers show it.
    #[default]
    Apply,
    /// Pixels as they are stored, as torchvision's loader and therefore the reference reads them.
    Ignore,
}

impl ExifOrientation {
    /// As in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Ignore => "ignore",
        }
    }
}

/// What transparent pixels become. `data.background` in recipes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Background {
    /// Blended with white: round((c·a + 255·(255 − a))/255) for an 8-bit value c and alpha a, as Pillow's `paste`.
    White,
    /// Blended with black: round(c·a/255).
    Black,
    /// Alpha is dropped, and the colour under it shows: what Pillow's `convert("RGB")` and therefore the reference does.
    #[default]
    Drop,
}

impl Background {
    /// As in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::White => "white",
            Self::Black => "black",
            Self::Drop => "drop",
        }
    }
}

/// How encoded bytes become an image. The limits are checked before pixels are allocated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// Largest width x height. Default 178 956 970, where Pillow refuses an image as a
    /// decompression bomb.
    pub max_pixels: u64,
    /// Largest encoded size in bytes. Default 256 MiB.
    pub max_file_bytes: u64,
    /// Largest width or height in pixels. Default 65 535, which is also the most a JPEG can have.
    pub max_side: u32,
    /// Values of a pixel of the result. Default 3: RGB, to which grey and others are converted. 1: grey, as Pillow's
    /// `convert("L")`. Any other number: an image that has as many, as they are stored.
    pub channels: u32,
    /// How values become 8-bit values. Default [`PixelRange::Auto`].
    pub range: PixelRange,
    /// Whether EXIF orientation is applied. Default [`ExifOrientation::Apply`].
    pub exif: ExifOrientation,
    /// What transparent pixels become. Default [`Background::Drop`].
    pub background: Background,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            max_pixels: 178_956_970,
            max_file_bytes: MAX_SAMPLE_BYTES,
            max_side: 65_535,
            channels: 3,
            range: PixelRange::Auto,
            exif: ExifOrientation::Apply,
            background: Background::Drop,
        }
    }
}

impl DecodeOptions {
    /// The same for images of this many channels.
    #[must_use]
    pub fn of_channels(self, channels: usize) -> Self {
        Self { channels: channels as u32, ..self }
    }

    /// The reference's loader: `PIL.Image.open(...).convert("RGB")`.
    #[must_use]
    pub fn reference() -> Self {
        Self { range: PixelRange::EightBit, exif: ExifOrientation::Ignore, ..Self::default() }
    }
}
