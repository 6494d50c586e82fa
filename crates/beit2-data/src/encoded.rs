//! An image that is decoded when it is looked at, whole or only a region.

use std::borrow::Cow;
use std::sync::Arc;

use beit2_jpeg::{Jpeg, Region};

use crate::decode::{
    DecodeOptions, ExifOrientation, PixelRange, decode_as_stored, jpeg_orientation, orient, stored_box,
    swaps_sides,
};
use crate::error::DecodeError;
use crate::image::Image;
use crate::jpeg;
use crate::pool::guarded;
use crate::source::Source;
use crate::timing::decoding;
use crate::transform::CropBox;
use crate::transform::resize::crop;

/// An image of a known size that is not decoded yet, if its format allows it (JPEG); others are decoded at once.
///
/// The pixels of a region are those of the whole image, but only the part of a JPEG that they depend on is decoded. Damage
/// elsewhere in the file is not noticed then.
pub struct EncodedImage<'a> {
    state: State<'a>,
    width: u32,
    height: u32,
}

enum State<'a> {
    Jpeg {
        jpeg: Box<Jpeg<'a>>,
        bytes: &'a [u8],
        options: &'a DecodeOptions,
        orientation: u8,
    },
    Decoded(Image),
    /// From the cache.
    Shared(Arc<Image>),
}

impl<'a> EncodedImage<'a> {
    /// Reads the header of an encoded image, or all of it.
    ///
    /// # Errors
    /// As [`decode`](crate::decode()); of a JPEG, only what its header and length tell.
    pub fn open(bytes: &'a [u8], options: &'a DecodeOptions) -> Result<Self, DecodeError> {
        Self::with_orientation(bytes, options, |orientation, _| Ok(orientation))
    }

    /// Opens a sample of a source. When the source knows the size that the image has to have
    /// ([`Source::image_size`]), EXIF orientation is applied only where it leads to that size.
    pub(crate) fn of_sample(
        source: &dyn Source,
        index: usize,
        bytes: &'a [u8],
        options: &'a DecodeOptions,
    ) -> Result<Self, DecodeError> {
        Self::with_orientation(bytes, options, |orientation, (width, height)| {
            let Some(wanted) = source.image_size(index).filter(|_| orientation > 1) else {
                return Ok(orientation);
            };
            let seen = if swaps_sides(orientation) { (height, width) } else { (width, height) };
            match ((width, height) == wanted, seen == wanted) {
                (true, true) => Err(DecodeError::AmbiguousOrientation { orientation, width, height }),
                (false, true) => Ok(orientation),
                _ => Ok(1),
            }
        })
    }

    /// `choose` gets the orientation that the file states and the stored size, and gives the one to apply.
    fn with_orientation(
        bytes: &'a [u8],
        options: &'a DecodeOptions,
        choose: impl Fn(u8, (u32, u32)) -> Result<u8, DecodeError>,
    ) -> Result<Self, DecodeError> {
        let choose = |orientation: u8, size| match options.exif {
            ExifOrientation::Apply => choose(orientation, size),
            ExifOrientation::Ignore => Ok(1),
        };
        if let Some(jpeg) = open_jpeg(bytes, options)? {
            let (width, height) = (jpeg.width(), jpeg.height());
            let orientation = choose(jpeg_orientation(bytes), (width, height))?;
            let (width, height) = if swaps_sides(orientation) { (height, width) } else { (width, height) };
            let state = State::Jpeg { jpeg: Box::new(jpeg), bytes, options, orientation };
            return Ok(Self { state, width, height });
        }
        let (image, facts) = decoding(|| decode_as_stored(bytes, options))?;
        let orientation = choose(facts.orientation, (image.width, image.height))?;
        Ok(Self::from(orient(image, orientation)))
    }

    /// Width in pixels, as the image is seen.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Length of the shorter side in pixels.
    #[must_use]
    pub fn shorter_side(&self) -> u32 {
        self.width.min(self.height)
    }

    /// The whole image.
    ///
    /// # Errors
    /// As [`decode`](crate::decode()).
    pub fn whole(&self) -> Result<Cow<'_, Image>, DecodeError> {
        match &self.state {
            State::Decoded(image) => Ok(Cow::Borrowed(image)),
            State::Shared(image) => Ok(Cow::Borrowed(image)),
            &State::Jpeg { ref jpeg, bytes, options, orientation } => {
                let decoded = decoding(|| guarded(|| jpeg::decode_opened(jpeg, bytes, options)));
                Ok(Cow::Owned(orient(decoded.unwrap_or_else(crashed)?, orientation)))
            }
        }
    }

    /// As [`Self::whole`], without a copy.
    ///
    /// # Errors
    /// As [`Self::whole`].
    pub fn into_whole(self) -> Result<Image, DecodeError> {
        match self.state {
            State::Decoded(image) => Ok(image),
            State::Jpeg { .. } | State::Shared(_) => self.whole().map(Cow::into_owned),
        }
    }

    /// The pixels of a box.
    ///
    /// # Errors
    /// A box that is empty or leaves the image; as [`decode`](crate::decode()).
    pub fn region(&self, area: CropBox) -> Result<Image, DecodeError> {
        let invalid = |error: crate::TransformError| DecodeError::Invalid { reason: error.to_string() };
        area.check(self.width, self.height).map_err(invalid)?;
        if let &State::Jpeg { ref jpeg, orientation, .. } = &self.state {
            let stored = stored_box(area, orientation, (jpeg.width(), jpeg.height()));
            let CropBox { left, top, width, height } = stored;
            let decoded = decoding(|| guarded(|| jpeg.decode(Region { left, top, width, height })));
            if let Ok(Ok(data)) = decoded {
                let image = Image::new(width, height, data).map_err(invalid)?;
                return Ok(orient(image, orientation));
            }
        }
        crop(self.whole()?.as_ref(), area).map_err(invalid)
    }
}

impl From<Image> for EncodedImage<'_> {
    fn from(image: Image) -> Self {
        Self { width: image.width, height: image.height, state: State::Decoded(image) }
    }
}

impl From<Arc<Image>> for EncodedImage<'_> {
    fn from(image: Arc<Image>) -> Self {
        Self { width: image.width, height: image.height, state: State::Shared(image) }
    }
}

/// A JPEG that can be decoded in parts: its pixels are the values that it stores.
fn open_jpeg<'a>(bytes: &'a [u8], options: &DecodeOptions) -> Result<Option<Jpeg<'a>>, DecodeError> {
    let as_stored = matches!(options.range, PixelRange::Auto | PixelRange::Full | PixelRange::EightBit);
    if !bytes.starts_with(&[0xFF, 0xD8, 0xFF]) || options.channels != 3 || !as_stored {
        return Ok(None);
    }
    if bytes.len() as u64 > options.max_file_bytes {
        return Err(DecodeError::FileTooLarge { bytes: bytes.len() as u64, limit: options.max_file_bytes });
    }
    jpeg::open(bytes, options)
}

fn crashed<T>(message: String) -> Result<T, DecodeError> {
    Err(DecodeError::Invalid { reason: format!("the decoder crashed on it ({message})") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;
    use crate::decode::with_orientation_tag;
    use proptest::prelude::*;

    fn photo() -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/formats/q60_420.jpg");
        std::fs::read(path).unwrap()
    }

    proptest! {
        #[test]
        fn a_region_is_a_part_of_the_whole(orientation in 1u8..=8, places: [u16; 4]) {
            let bytes = with_orientation_tag(&photo(), orientation);
            let options = DecodeOptions::default();
            let whole = decode(&bytes, &options).unwrap();
            let encoded = EncodedImage::open(&bytes, &options).unwrap();
            let is_jpeg = matches!(encoded.state, State::Jpeg { .. });
            prop_assert!(is_jpeg);
            prop_assert_eq!((encoded.width(), encoded.height()), (whole.width, whole.height));
            prop_assert_eq!(&encoded.whole().unwrap().into_owned(), &whole);
            let part = |length: u32, a: u16, b: u16| {
                let (a, b) = (u32::from(a) % length, u32::from(b) % length);
                (a.min(b), a.abs_diff(b) + 1)
            };
            let (left, width) = part(whole.width, places[0], places[1]);
            let (top, height) = part(whole.height, places[2], places[3]);
            let area = CropBox { top, left, height, width };
            prop_assert_eq!(encoded.region(area).unwrap(), crop(&whole, area).unwrap());
        }
    }

    #[test]
    fn training_views_are_those_of_the_whole_image() {
        use crate::{FinetuneConfig, FinetuneParams, Key, RngStream, TwoViewConfig, ViewParams};
        let (bytes, options) = (with_orientation_tag(&photo(), 6), DecodeOptions::default());
        let whole = decode(&bytes, &options).unwrap();
        let (width, height) = (whole.width, whole.height);
        let encoded = EncodedImage::open(&bytes, &options).unwrap();
        let views = TwoViewConfig { input_size: 24, second_size: 16, ..TwoViewConfig::default() };
        let finetune = FinetuneConfig { input_size: 40, ..FinetuneConfig::default() };
        for index in 0..40 {
            let key = Key { seed: 3, epoch: 0, index, stream: RngStream::Augment };
            for color_jitter in [0.0, 0.4] {
                let views = TwoViewConfig { color_jitter, ..views };
                let params = ViewParams::draw(&views, width, height, &key);
                assert_eq!(
                    params.apply_encoded(&views, &encoded).unwrap(),
                    params.apply(&views, &whole).unwrap()
                );
            }
            let params = FinetuneParams::draw(&finetune, width, height, &key);
            let expected = params.apply(&finetune, &whole).unwrap();
            assert_eq!(params.apply_encoded(&finetune, &encoded).unwrap(), expected);
        }
    }

    #[test]
    fn other_formats_are_decoded_at_once() {
        let options = DecodeOptions::default();
        let encoded = EncodedImage::open(b"P6 2 1 255\n\x01\x02\x03\x04\x05\x06", &options).unwrap();
        let area = CropBox { top: 0, left: 1, height: 1, width: 1 };
        assert_eq!(encoded.region(area).unwrap().data, [4, 5, 6]);
        assert!(encoded.region(CropBox { width: 2, ..area }).is_err());
    }

    #[test]
    fn values_that_are_mapped_need_the_whole_image() {
        let options = DecodeOptions { range: PixelRange::Percentile, ..DecodeOptions::default() };
        let bytes = photo();
        let encoded = EncodedImage::open(&bytes, &options).unwrap();
        assert_eq!(encoded.whole().unwrap().into_owned(), decode(&bytes, &options).unwrap());
    }
}
