//! Class numbers of the pixels of one image.

use crate::error::TransformError;
use crate::segment::resize::{check_target, nearest_positions};
use crate::transform::crop::CropBox;

/// The class number of pixels without a label. Losses and scores leave them out.
pub const IGNORE: u8 = 255;

/// A class number for each pixel.
///
/// Shape of `data`: `[height, width]`, row-major; [`IGNORE`] where there is no label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Class numbers, `height * width` bytes.
    pub data: Vec<u8>,
}

impl LabelMap {
    /// Wraps a buffer of `height * width` class numbers.
    ///
    /// # Errors
    /// A buffer of any other length ([`TransformError::LabelCount`]).
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self, TransformError> {
        let map = Self { width, height, data };
        map.check()?;
        Ok(map)
    }

    /// Fails when `data` (a public field) no longer has the length that width and height require.
    pub(crate) fn check(&self) -> Result<(), TransformError> {
        let (width, height) = (self.width, self.height);
        let (expected, found) = (u64::from(width) * u64::from(height), self.data.len() as u64);
        if found == expected {
            return Ok(());
        }
        Err(TransformError::LabelCount { width, height, expected, found })
    }

    /// How many pixels have each class number; index 255 counts the pixels without a label.
    #[must_use]
    pub fn histogram(&self) -> [u64; 256] {
        let mut counts = [0; 256];
        for &class in &self.data {
            counts[usize::from(class)] += 1;
        }
        counts
    }

    /// Copies a box of class numbers.
    ///
    /// # Errors
    /// A box outside the map ([`TransformError::CropOutside`]).
    pub fn crop(&self, area: CropBox) -> Result<Self, TransformError> {
        self.check()?;
        area.check(self.width, self.height)?;
        let mut data = Vec::with_capacity(area.width as usize * area.height as usize);
        let (start, length) = (area.left as usize, area.width as usize);
        let rows = self.data.chunks_exact(self.width as usize);
        for row in rows.skip(area.top as usize).take(area.height as usize) {
            data.extend_from_slice(&row[start..start + length]);
        }
        Self::new(area.width, area.height, data)
    }

    /// Mirrors the map left to right, in place.
    pub fn flip_horizontal(&mut self) {
        if self.width > 0 {
            self.data.chunks_exact_mut(self.width as usize).for_each(<[u8]>::reverse);
        }
    }

    /// Adds columns on the right and rows at the bottom, up to `width` x `height` pixels, all
    /// [`IGNORE`]. A side that is long enough stays as it is.
    ///
    /// # Errors
    /// A side above 16,384 ([`TransformError::TargetSize`]).
    pub fn pad(&self, width: u32, height: u32) -> Result<Self, TransformError> {
        self.check()?;
        let (width, height) = (width.max(self.width), height.max(self.height));
        check_target(width, height)?;
        let mut data = vec![IGNORE; width as usize * height as usize];
        if self.width > 0 {
            let rows = data.chunks_exact_mut(width as usize);
            for (row, own) in rows.zip(self.data.chunks_exact(self.width as usize)) {
                row[..own.len()].copy_from_slice(own);
            }
        }
        Self::new(width, height, data)
    }

    /// Resizes to `width` x `height` pixels by taking the nearest class number, with OpenCV's rule
    /// (`INTER_NEAREST`): output column x takes column `floor(x * self.width / width)`.
    ///
    /// # Errors
    /// An empty map, or a side that is not 1 to 16,384 ([`TransformError::TargetSize`]).
    pub fn resize_nearest(&self, width: u32, height: u32) -> Result<Self, TransformError> {
        self.resize_nearest_crop((width, height), CropBox::whole(width, height))
    }

    /// The box `area` of [`Self::resize_nearest`] to `target` (width, height), without computing the
    /// rest.
    ///
    /// # Errors
    /// As [`Self::resize_nearest`]; a box outside the target ([`TransformError::CropOutside`]).
    pub fn resize_nearest_crop(&self, target: (u32, u32), area: CropBox) -> Result<Self, TransformError> {
        self.check()?;
        check_target(target.0, target.1)?;
        area.check(target.0, target.1)?;
        CropBox::whole(self.width, self.height).check(self.width, self.height)?; // not empty
        let columns = nearest_positions(self.width, target.0, area.left, area.width);
        let rows = nearest_positions(self.height, target.1, area.top, area.height);
        let mut data = Vec::with_capacity(area.width as usize * area.height as usize);
        for row in rows {
            let row = &self.data[row * self.width as usize..][..self.width as usize];
            data.extend(columns.iter().map(|&column| row[column]));
        }
        Self::new(area.width, area.height, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> LabelMap {
        LabelMap::new(3, 2, vec![1, 2, 3, 4, 5, 6]).unwrap()
    }

    #[test]
    fn length_is_checked() {
        let error = LabelMap::new(3, 2, vec![0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "a label map of 3 x 2 needs 6 ids, found 5");
        let broken = LabelMap { width: 3, height: 2, data: vec![0; 7] };
        assert!(broken.crop(CropBox::whole(3, 2)).is_err());
        assert!(broken.pad(9, 9).is_err() && broken.resize_nearest(2, 2).is_err());
    }

    #[test]
    fn cut_mirrored_padded() {
        let area = CropBox { top: 0, left: 1, height: 2, width: 2 };
        assert_eq!(map().crop(area).unwrap().data, [2, 3, 5, 6]);
        assert!(map().crop(CropBox { left: 2, ..area }).is_err());
        let mut flipped = map();
        flipped.flip_horizontal();
        assert_eq!(flipped.data, [3, 2, 1, 6, 5, 4]);
        let padded = map().pad(4, 3).unwrap();
        assert_eq!(padded.data, [1, 2, 3, 255, 4, 5, 6, 255, 255, 255, 255, 255]);
        assert_eq!(map().pad(2, 1).unwrap(), map());
        assert!(map().pad(1 << 20, 1).is_err());
        assert_eq!(map().histogram()[..8], [0, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn nearest_takes_the_floor() {
        assert_eq!(map().resize_nearest(5, 2).unwrap().data, [1, 1, 2, 2, 3, 4, 4, 5, 5, 6]);
        assert_eq!(map().resize_nearest(1, 1).unwrap().data, [1]);
        assert_eq!(map().resize_nearest(3, 2).unwrap(), map());
        let area = CropBox { top: 1, left: 2, height: 2, width: 3 };
        let whole = map().resize_nearest(7, 5).unwrap();
        assert_eq!(map().resize_nearest_crop((7, 5), area).unwrap(), whole.crop(area).unwrap());
        assert!(map().resize_nearest(0, 1).is_err());
        let empty = LabelMap { width: 0, height: 0, data: vec![] };
        assert!(empty.resize_nearest(2, 2).is_err());
    }
}
