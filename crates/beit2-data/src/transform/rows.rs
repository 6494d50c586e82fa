//! The rows of a box of an RGB image, as resizing reads them: jittered and mirrored on the way where that is wanted.
//!
//! A few rows at a time pass through a buffer that stays in the first-level cache; rows that need nothing are read
//! where they are.

use crate::image::Image;
#[cfg(target_arch = "x86_64")]
use crate::simd::{self, Level};
use crate::transform::crop::CropBox;
use crate::transform::jitter::PixelJitter;

/// Bytes that can be read behind the last row that [`Cut::rows`] gives: as many as a vector register has.
pub(crate) const SLACK: usize = 64;

/// A box of an RGB image.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    data: &'a [u8],
    /// Bytes from row to row.
    stride: usize,
    /// First byte of the box.
    first: usize,
    /// Width of the box in pixels.
    pub width: usize,
    /// Rows of the box.
    pub height: usize,
    /// What is done to each pixel.
    jitter: Option<&'a PixelJitter>,
    /// Whether the rows are mirrored.
    mirrored: bool,
}

/// Rows of pixels, [`SLACK`] readable bytes behind the last one.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub data: &'a [u8],
    /// Bytes from row to row.
    pub stride: usize,
}

impl<'a> Cut<'a> {
    /// The box as it is. The image has three channels and a whole buffer, and the box lies inside; both were checked.
    pub fn new(image: &'a Image, area: CropBox) -> Self {
        let stride = image.width as usize * 3;
        Self {
            data: &image.data,
            stride,
            first: area.top as usize * stride + area.left as usize * 3,
            width: area.width as usize,
            height: area.height as usize,
            jitter: None,
            mirrored: false,
        }
    }

    /// The box with every pixel jittered, if that is wanted, and every row mirrored.
    pub fn changed(self, jitter: Option<&'a PixelJitter>, mirrored: bool) -> Self {
        Self { jitter, mirrored, ..self }
    }

    /// Rows `first..first + count` of the box; `buffer` holds them where they are not read in place.
    pub fn rows<'s>(&'s self, first: usize, count: usize, buffer: &'s mut Vec<u8>) -> Rows<'s> {
        let width = self.width * 3;
        let start = self.first + first * self.stride;
        let end = start + count.saturating_sub(1) * self.stride + width + SLACK;
        if self.jitter.is_none() && !self.mirrored && end <= self.data.len() {
            return Rows { data: &self.data[start..end], stride: self.stride };
        }
        buffer.resize(count * width + SLACK, 0);
        self.copy(first, &mut buffer[..count * width]);
        Rows { data: buffer, stride: width }
    }

    /// Copies rows from `first` on, as many as `out` holds: `[rows, width, 3]` without gaps.
    pub fn copy(&self, first: usize, out: &mut [u8]) {
        let width = self.width * 3;
        for (number, row) in out.chunks_exact_mut(width).enumerate() {
            let start = self.first + (first + number) * self.stride;
            let source = &self.data[start..start + width];
            if self.mirrored { mirror(source, row) } else { row.copy_from_slice(source) }
        }
        if let Some(jitter) = self.jitter {
            jitter.apply(out);
        }
    }
}

/// Copies a row of RGB pixels from right to left.
pub(crate) fn mirror(source: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if simd::level() >= Level::Avx2 {
        // SAFETY: the level says that there is AVX2.
        return unsafe { mirror_avx2(source, out) };
    }
    mirror_plain(source, out);
}

fn mirror_plain(source: &[u8], out: &mut [u8]) {
    let pixels = source.as_chunks::<3>().0.iter().rev();
    for (to, from) in out.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *to = *from;
    }
}

/// Five pixels at a time; the sixteenth byte of a store is overwritten by the next.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn mirror_avx2(source: &[u8], out: &mut [u8]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_setr_epi8, _mm_shuffle_epi8, _mm_storeu_si128};
    let length = source.len().min(out.len());
    let turned = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
    let mut done = 0;
    while done + 16 <= length {
        let (from, to) = (&source[length - done - 16..length - done], &mut out[done..done + 16]);
        // SAFETY: both slices have 16 bytes.
        unsafe {
            let pixels = _mm_loadu_si128(from.as_ptr().cast());
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_shuffle_epi8(pixels, turned));
        }
        done += 15;
    }
    mirror_plain(&source[..length - done], &mut out[done..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_width_are_mirrored() {
        for width in 0..70u8 {
            let source: Vec<u8> = (0..width * 3).collect();
            let [mut fast, mut plain] = [vec![0; source.len()], vec![0; source.len()]];
            mirror(&source, &mut fast);
            mirror_plain(&source, &mut plain);
            assert_eq!(fast, plain);
            let mut reversed = source.as_chunks::<3>().0.to_vec();
            reversed.reverse();
            assert_eq!(plain, reversed.into_flattened());
        }
    }

    #[test]
    fn rows_are_read_in_place_or_copied() {
        let image = Image::new(30, 4, (0..=255).cycle().take(360).collect()).unwrap();
        let area = CropBox { top: 1, left: 2, height: 3, width: 5 };
        let cut = Cut::new(&image, area);
        let mut buffer = Vec::new();
        for (first, count) in [(0, 1), (0, 3), (2, 1)] {
            let rows = cut.rows(first, count, &mut buffer);
            for row in 0..count {
                let start = (1 + first + row) * 90 + 6;
                assert_eq!(rows.data[row * rows.stride..][..15], image.data[start..start + 15]);
                assert!(rows.data.len() >= row * rows.stride + 15 + SLACK);
            }
        }
    }
}
