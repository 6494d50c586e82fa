//! One image of a pack: its bytes as they are, or shrunk and written again.

use mozjpeg::{ColorSpace, Compress};
use serde::Serialize;

use super::PackError;
use crate::decode::{DecodeOptions, ImageFacts, PixelRange, decode_with_facts};
use crate::image::Image;
use crate::source::Source;
use crate::transform::eval::{longer_side_to, shorter_side_to};
use crate::transform::resize::{Interpolation, MAX_TARGET_SIDE, resize};

/// Lowest JPEG quality: at 90 the error of a shrunk photograph is 2.7 levels (root mean square), and grows fast below.
pub const MIN_QUALITY: u8 = 90;
/// Highest JPEG quality.
pub const MAX_QUALITY: u8 = 100;

/// The side that larger images are shrunk to, in pixels. No image is enlarged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The longer side.
    Longer(u32),
    /// The shorter side.
    Shorter(u32),
}

impl Side {
    pub(super) fn validate(self) -> Result<(), PackError> {
        let (Self::Longer(px) | Self::Shorter(px)) = self;
        match (1..=MAX_TARGET_SIDE).contains(&px) {
            true => Ok(()),
            false => Err(PackError::Setting {
                name: "the side to shrink to",
                value: px.to_string(),
                expected: "1 to 16384 pixels",
            }),
        }
    }

    /// Width and height of an image after shrinking, rounded as torchvision's `Resize` (shorter side) and timm's
    /// `ResizeKeepRatio` (longer side) do; its own when it is not larger.
    fn of(self, image: &Image) -> (u32, u32) {
        let size = (image.width, image.height);
        match self {
            Self::Shorter(px) if image.shorter_side() > px => shorter_side_to(px, size),
            Self::Longer(px) if image.width.max(image.height) > px => longer_side_to(px, size),
            _ => size,
        }
    }
}

/// How images are written that are not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Baseline JPEG without chroma subsampling (4:4:4), with Huffman tables made for the image.
    Jpeg {
        /// 90 to 100.
        quality: u8,
    },
    /// The pixels as they are, as binary PPM (RGB) or PGM (grey).
    Lossless,
}

impl Default for Encoding {
    fn default() -> Self {
        Self::Jpeg { quality: 95 }
    }
}

/// An image as it goes into a shard.
#[derive(Debug, PartialEq)]
pub(super) struct Ready {
    pub(super) bytes: Vec<u8>,
    /// Ending of its name, after its content.
    pub(super) ending: &'static str,
    /// Whether `bytes` are those of the source.
    pub(super) copied: bool,
}

/// What is done with each image.
#[derive(Clone, Debug)]
pub(super) struct Repack {
    pub(super) side: Option<Side>,
    pub(super) encoding: Encoding,
    pub(super) decode: DecodeOptions,
}

impl Repack {
    /// Reads, decodes, and shrinks where it has to; the error is a sentence about the image.
    pub(super) fn one(&self, source: &dyn Source, index: usize) -> Result<Ready, String> {
        let bytes = source.read(index).map_err(|error| error.to_string())?;
        let (image, facts) = decode_with_facts(&bytes, &self.decode).map_err(|error| error.to_string())?;
        let size = self.side.map_or((image.width, image.height), |side| side.of(&image));
        if self.side.is_none() || (size == (image.width, image.height) && self.is_plain(&facts)) {
            return Ok(Ready { bytes, ending: ending_of(facts.format), copied: true });
        }
        drop(bytes);
        let small =
            resize(&image, size.0, size.1, Interpolation::Bicubic).map_err(|error| error.to_string())?;
        let (bytes, ending) =
            encode(&small, self.encoding).map_err(|error| format!("cannot encode it: {error}"))?;
        Ok(Ready { bytes, ending, copied: false })
    }

    /// Whether a file gives the same pixels however it is decoded later. What is not is written again, so that all images
    /// of a shrunk pack went through the same options.
    fn is_plain(&self, facts: &ImageFacts) -> bool {
        let range = matches!(self.decode.range, PixelRange::Auto);
        let known = ["JPEG", "PNG", "WebP", "BMP", "PNM"].contains(&facts.format);
        range && known && facts.bits <= 8 && !facts.alpha && facts.orientation == 1
    }
}

/// File name ending for the name of a format.
fn ending_of(format: &str) -> &'static str {
    match format {
        "JPEG" => "jpg",
        "PNG" => "png",
        "WebP" => "webp",
        "GIF" => "gif",
        "BMP" => "bmp",
        "TIFF" => "tif",
        "NPY" => "npy",
        "DICOM" => "dcm",
        _ => "ppm",
    }
}

/// Bytes of a file and its ending. Grey images, also those that are stored as RGB, get one channel.
fn encode(image: &Image, encoding: Encoding) -> std::io::Result<(Vec<u8>, &'static str)> {
    let (rgb, _) = image.data.as_chunks::<3>();
    let grey: Option<Vec<u8>> = match image.channels {
        1 => Some(image.data.clone()),
        _ if rgb.iter().all(|&[r, g, b]| r == g && g == b) => Some(rgb.iter().map(|&[r, ..]| r).collect()),
        _ => None,
    };
    let values = grey.as_ref().unwrap_or(&image.data);
    match encoding {
        Encoding::Lossless => {
            let (magic, ending) = if grey.is_some() { ("P5", "pgm") } else { ("P6", "ppm") };
            let mut out = format!("{magic}\n{} {}\n255\n", image.width, image.height).into_bytes();
            out.extend_from_slice(values);
            Ok((out, ending))
        }
        Encoding::Jpeg { quality } => {
            let space = if grey.is_some() { ColorSpace::JCS_GRAYSCALE } else { ColorSpace::JCS_RGB };
            let mut compress = Compress::new(space);
            compress.set_size(image.width as usize, image.height as usize);
            // Without the encoder's trellis search and progressive scans: both take long, and scans slow decoding.
            compress.set_fastest_defaults();
            compress.set_optimize_coding(true);
            compress.set_quality(f32::from(quality));
            if grey.is_none() {
                compress.set_chroma_sampling_pixel_sizes((1, 1), (1, 1));
            }
            let mut started = compress.start_compress(Vec::new())?;
            started.write_scanlines(values)?;
            Ok((started.finish()?, "jpg"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;

    fn gradient(width: u32, height: u32) -> Image {
        let pixel = |at: u32| [(at % width * 3) as u8, (at / width * 5) as u8, (at % 7 * 9) as u8];
        Image::new(width, height, (0..width * height).flat_map(pixel).collect()).unwrap()
    }

    #[test]
    fn only_larger_images_shrink() {
        let image = gradient(90, 60);
        assert_eq!(Side::Shorter(40).of(&image), (60, 40));
        assert_eq!(Side::Longer(45).of(&image), (45, 30));
        assert_eq!(Side::Shorter(60).of(&image), (90, 60));
        assert_eq!(Side::Longer(200).of(&image), (90, 60));
    }

    #[test]
    fn lossless_keeps_every_value() {
        let image = gradient(31, 17);
        let (bytes, ending) = encode(&image, Encoding::Lossless).unwrap();
        assert_eq!(ending, "ppm");
        assert_eq!(decode(&bytes, &DecodeOptions::default()).unwrap(), image);
        let grey = Image::new(5, 3, (0..15u8).flat_map(|v| [v * 9; 3]).collect()).unwrap();
        let (bytes, ending) = encode(&grey, Encoding::Lossless).unwrap();
        assert_eq!((ending, bytes.len()), ("pgm", "P5\n5 3\n255\n".len() + 15));
        assert_eq!(decode(&bytes, &DecodeOptions::default()).unwrap(), grey);
    }

    #[test]
    fn a_jpeg_is_close_and_grey_stays_grey() {
        let image = gradient(64, 48);
        let close = |image: &Image, quality| {
            let (bytes, ending) = encode(image, Encoding::Jpeg { quality }).unwrap();
            assert_eq!(ending, "jpg");
            let decoded = decode(&bytes, &DecodeOptions::default()).unwrap();
            image.data.iter().zip(&decoded.data).map(|(a, b)| a.abs_diff(*b)).max()
        };
        assert!(close(&image, 100) <= Some(4), "{:?}", close(&image, 100));
        let grey = Image::new(16, 16, (0..=255u8).flat_map(|v| [v; 3]).collect()).unwrap();
        assert!(close(&grey, 100) <= Some(2), "{:?}", close(&grey, 100));
    }
}
