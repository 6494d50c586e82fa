//! The one image type of this crate: 8 bits a value, height x width x channel. Three channels are RGB.

use crate::error::TransformError;

/// An image of 8-bit values: RGB, or any other number of bands.
///
/// Shape of `data`: `[height, width, channels]`, row-major, values 0 to 255.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Values of a pixel; 3 are RGB.
    pub channels: u32,
    /// Pixels, `height * width * channels` bytes.
    pub data: Vec<u8>,
}

impl Image {
    /// Wraps an RGB buffer of `height * width * 3` bytes.
    ///
    /// # Errors
    /// A buffer of any other length ([`TransformError::BufferLength`]).
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self, TransformError> {
        Self::with_channels(width, height, 3, data)
    }

    /// Wraps a buffer of `height * width * channels` bytes.
    ///
    /// # Errors
    /// A buffer of any other length ([`TransformError::BufferLength`]).
    pub fn with_channels(
        width: u32,
        height: u32,
        channels: u32,
        data: Vec<u8>,
    ) -> Result<Self, TransformError> {
        let image = Self { width, height, channels, data };
        image.check()?;
        Ok(image)
    }

    /// Length of the shorter side in pixels.
    #[must_use]
    pub fn shorter_side(&self) -> u32 {
        self.width.min(self.height)
    }

    /// Fails when `data` (a public field) no longer has the length that its sizes require.
    pub(crate) fn check(&self) -> Result<(), TransformError> {
        let Self { width, height, channels, .. } = *self;
        let expected = u64::from(width) * u64::from(height) * u64::from(channels);
        let found = self.data.len() as u64;
        match found == expected {
            true => Ok(()),
            false => Err(TransformError::BufferLength { width, height, channels, expected, found }),
        }
    }

    /// What a transform of RGB images makes of an image of any number of channels: it sees three of them at a time, each
    /// channel once (the last ones are repeated to fill the last three).
    ///
    /// Right for transforms that treat channels alike and apart: geometry, resampling, per-channel tables.
    ///
    /// # Errors
    /// Those of `transform`.
    pub fn by_threes(
        &self,
        mut transform: impl FnMut(&Image) -> Result<Image, TransformError>,
    ) -> Result<Image, TransformError> {
        if self.channels == 3 {
            return transform(self);
        }
        self.check()?;
        let channels = self.channels as usize;
        let mut out: Option<Image> = None;
        for first in (0..channels).step_by(3) {
            let band = |at: usize| (first + at).min(channels - 1);
            let three = |pixel: &[u8]| [pixel[band(0)], pixel[band(1)], pixel[band(2)]];
            let data = self.data.chunks_exact(channels).flat_map(three).collect();
            let part = transform(&Image { channels: 3, data, ..*self })?;
            part.check()?;
            let (width, height) = (part.width, part.height);
            let all = out.get_or_insert_with(|| {
                let data = vec![0; width as usize * height as usize * channels];
                Image { width, height, channels: self.channels, data }
            });
            if (all.width, all.height) != (width, height) {
                let (first_w, first_h) = (all.width, all.height);
                return Err(TransformError::MixedSizes { position: first, width, height, first_w, first_h });
            }
            for (to, from) in all.data.chunks_exact_mut(channels).zip(part.data.as_chunks::<3>().0) {
                let count = 3.min(channels - first);
                to[first..first + count].copy_from_slice(&from[..count]);
            }
        }
        match out {
            Some(out) => Ok(out),
            None => transform(self), // no channels at all
        }
    }

    /// Three chosen channels as RGB, counted from 0.
    ///
    /// # Errors
    /// A channel that is not there ([`TransformError::Channel`]).
    pub fn rgb_of(&self, bands: [u32; 3]) -> Result<Image, TransformError> {
        self.check()?;
        if let Some(&channel) = bands.iter().find(|&&band| band >= self.channels) {
            return Err(TransformError::Channel { channel, channels: self.channels });
        }
        let bands = bands.map(|band| band as usize);
        let pixels = self.data.chunks_exact(self.channels as usize);
        let data = pixels.flat_map(|pixel| bands.map(|band| pixel[band])).collect();
        Ok(Image { channels: 3, data, ..*self })
    }
}

/// The pixels of images of one size, as a device takes them: `[height, width, channels]` each, row-major `u8`.
///
/// # Errors
/// Images of different sizes ([`TransformError::MixedSizes`]) or numbers of channels ([`TransformError::Channels`]).
pub fn batch_hwc<'a>(images: impl IntoIterator<Item = &'a Image>) -> Result<Vec<&'a [u8]>, TransformError> {
    let mut out = Vec::new();
    let mut first: Option<(u32, u32, u32)> = None;
    for (position, image) in images.into_iter().enumerate() {
        image.check()?;
        let (first_w, first_h, channels) = *first.get_or_insert((image.width, image.height, image.channels));
        if image.channels != channels {
            return Err(TransformError::Channels { expected: channels, found: image.channels });
        }
        if (image.width, image.height) != (first_w, first_h) {
            let (width, height) = (image.width, image.height);
            return Err(TransformError::MixedSizes { position, width, height, first_w, first_h });
        }
        out.push(&image.data[..]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_checked() {
        assert!(Image::new(2, 3, vec![0; 18]).is_ok());
        let error = Image::new(2, 3, vec![0; 17]).unwrap_err();
        assert_eq!(error.to_string(), "an image of 2 x 3 with 3 channels needs 18 bytes, found 17");
    }

    #[test]
    fn a_batch_has_one_size() {
        let a = Image::new(1, 1, vec![1, 2, 3]).unwrap();
        let b = Image::new(1, 1, vec![4, 5, 6]).unwrap();
        assert_eq!(batch_hwc([&a, &b]).unwrap(), [[1, 2, 3], [4, 5, 6]]);
        let c = Image::new(2, 1, vec![0; 6]).unwrap();
        assert!(matches!(batch_hwc([&a, &c]), Err(TransformError::MixedSizes { position: 1, .. })));
        assert!(batch_hwc([]).unwrap().is_empty());
    }

    #[test]
    fn channels_are_transformed_three_at_a_time() {
        for channels in [1u32, 2, 4, 5, 6, 7] {
            let data: Vec<u8> = (0..2 * 3 * channels).map(|value| value as u8).collect();
            let image = Image::with_channels(2, 3, channels, data).unwrap();
            // Mirrored by hand, and by the transform of RGB images.
            let mirrored = image
                .by_threes(|rgb| {
                    let mut rgb = rgb.clone();
                    crate::transform::flip::flip_horizontal(&mut rgb);
                    Ok(rgb)
                })
                .unwrap();
            let rows = image.data.chunks_exact(2 * channels as usize);
            let expected: Vec<u8> = rows
                .flat_map(|row| {
                    row.chunks_exact(channels as usize).rev().flatten().copied().collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(mirrored.data, expected, "{channels} channels");
        }
        let image = Image::with_channels(1, 1, 5, vec![1, 2, 3, 4, 5]).unwrap();
        assert_eq!(image.rgb_of([4, 0, 2]).unwrap().data, [5, 1, 3]);
        assert!(image.rgb_of([0, 1, 5]).unwrap_err().to_string().contains("channel 6 of 5"));
        let rgb = Image::new(1, 1, vec![0; 3]).unwrap();
        assert!(matches!(batch_hwc([&image, &rgb]), Err(TransformError::Channels { expected: 5, found: 3 })));
    }
}
