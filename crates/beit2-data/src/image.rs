//! The one image type of this crate: 8-bit RGB, height x width x channel.

use crate::error::TransformError;

/// An 8-bit RGB image.
///
/// Shape of `data`: `[height, width, 3]`, row-major, values 0 to 255.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Pixels, `height * width * 3` bytes.
    pub data: Vec<u8>,
}

impl Image {
    /// Wraps a buffer of `height * width * 3` bytes.
    ///
    /// # Errors
    /// A buffer of any other length ([`TransformError::BufferLength`]).
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self, TransformError> {
        let expected = u64::from(width) * u64::from(height) * 3;
        if data.len() as u64 != expected {
            return Err(TransformError::BufferLength { width, height, expected, found: data.len() as u64 });
        }
        Ok(Self { width, height, data })
    }

    /// Length of the shorter side in pixels.
    #[must_use]
    pub fn shorter_side(&self) -> u32 {
        self.width.min(self.height)
    }

    /// Fails when `data` (a public field) no longer has the length that width and height require.
    pub(crate) fn check(&self) -> Result<(), TransformError> {
        let expected = u64::from(self.width) * u64::from(self.height) * 3;
        if self.data.len() as u64 == expected {
            return Ok(());
        }
        let found = self.data.len() as u64;
        Err(TransformError::BufferLength { width: self.width, height: self.height, expected, found })
    }
}

/// Joins images of one size into one buffer for the device.
///
/// # Shapes
///
/// The result is `[B, height, width, 3]`, row-major `u8`; empty without images.
///
/// # Errors
/// Images of different sizes ([`TransformError::MixedSizes`]).
pub fn stack_hwc<'a>(images: impl IntoIterator<Item = &'a Image>) -> Result<Vec<u8>, TransformError> {
    let mut out = Vec::new();
    let mut first: Option<(u32, u32)> = None;
    for (position, image) in images.into_iter().enumerate() {
        image.check()?;
        let (first_w, first_h) = *first.get_or_insert((image.width, image.height));
        if (image.width, image.height) != (first_w, first_h) {
            let (width, height) = (image.width, image.height);
            return Err(TransformError::MixedSizes { position, width, height, first_w, first_h });
        }
        out.extend_from_slice(&image.data);
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
        assert_eq!(error.to_string(), "an RGB image of 2 x 3 needs 18 bytes, found 17");
    }

    #[test]
    fn stacking_needs_one_size() {
        let a = Image::new(1, 1, vec![1, 2, 3]).unwrap();
        let b = Image::new(1, 1, vec![4, 5, 6]).unwrap();
        assert_eq!(stack_hwc([&a, &b]).unwrap(), [1, 2, 3, 4, 5, 6]);
        let c = Image::new(2, 1, vec![0; 6]).unwrap();
        assert!(matches!(stack_hwc([&a, &c]), Err(TransformError::MixedSizes { position: 1, .. })));
        assert!(stack_hwc([]).unwrap().is_empty());
    }
}
