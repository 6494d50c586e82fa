//! Logits of overlapping windows as rows of one image.
//!
//! Slide inference averages what overlapping windows say of a pixel. Kept at full size, the logits of an image of
//! 6000 × 4000 pixels and 150 classes would take 14 GB. Here windows are computed when a row needs them and dropped after
//! the last row that does, so that the memory grows with the width of an image, not with its area.

use std::collections::VecDeque;

use rayon::prelude::*;

use crate::error::Error;

/// Where windows lie along one axis: `stride` apart, the last one at the border (mmsegmentation's rule). An image
/// shorter than a window has one, which reaches beyond it.
pub fn origins(length: usize, window: usize, stride: usize) -> Vec<usize> {
    let last = length.saturating_sub(window);
    (0..=last.div_ceil(stride.max(1))).map(|at| (at * stride).min(last)).collect()
}

/// Where a resized line reads: between two values, `t` of the way from the first to the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tap {
    low: usize,
    high: usize,
    t: f32,
}

/// Bilinear resize of a line of `from` values to `to` (half-pixel centres, borders repeated, no antialiasing).
pub(super) fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f32 / to as f32;
    let tap = |at: usize| {
        let place = ((at as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (place as usize).min(from - 1);
        Tap { low, high: (low + 1).min(from - 1), t: place - low as f32 }
    };
    (0..to).map(tap).collect()
}

/// The sizes of a [`Stitcher`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Height and width of the image.
    pub image: (usize, usize),
    /// Height and width of a window.
    pub window: (usize, usize),
    /// Distance of windows.
    pub stride: (usize, usize),
    /// Height and width of a window's logits.
    pub logits: (usize, usize),
    /// Classes C.
    pub classes: usize,
}

/// All windows that begin at one row.
struct Band {
    top: usize,
    logits: Vec<Vec<f32>>, // [h, w, C] of each
}

/// The windows that are known at the moment.
struct Mosaic {
    sizes: Sizes,
    lefts: Vec<usize>,
    down: Vec<Tap>,
    across: Vec<Tap>,
    /// How many windows cover each column.
    covers: Vec<u32>,
    bands: VecDeque<Band>,
}

/// Rows of averaged logits.
pub struct Stitcher<F> {
    mosaic: Mosaic,
    tops: Vec<usize>,
    next: usize,
    compute: F,
}

impl<F: FnMut(&[(usize, usize)]) -> Result<Vec<Vec<f32>>, Error>> Stitcher<F> {
    /// `compute` gives the logits `[h, w, C]` of windows that begin at these rows and columns.
    pub fn new(sizes: Sizes, compute: F) -> Self {
        let tops = origins(sizes.image.0, sizes.window.0, sizes.stride.0);
        let lefts = origins(sizes.image.1, sizes.window.1, sizes.stride.1);
        let mut covers = vec![0; sizes.image.1];
        for &left in &lefts {
            covers.iter_mut().skip(left).take(sizes.window.1).for_each(|count| *count += 1);
        }
        let down = taps(sizes.logits.0, sizes.window.0);
        let across = taps(sizes.logits.1, sizes.window.1);
        let mosaic = Mosaic { sizes, lefts, down, across, covers, bands: VecDeque::new() };
        Self { mosaic, tops, next: 0, compute }
    }

    /// Height and width of the image.
    pub fn image(&self) -> (usize, usize) {
        self.mosaic.sizes.image
    }

    /// Rows `from..to` `[to − from, W, C]`. A later call must not begin above an earlier one: windows that ended there
    /// are gone.
    ///
    /// # Errors
    /// What `compute` reports.
    pub fn rows(&mut self, from: usize, to: usize) -> Result<Vec<f32>, Error> {
        let mosaic = &mut self.mosaic;
        while let Some(band) = mosaic.bands.front()
            && band.top + mosaic.sizes.window.0 <= from
        {
            mosaic.bands.pop_front();
        }
        while let Some(&top) = self.tops.get(self.next)
            && top < to
        {
            let places: Vec<(usize, usize)> = mosaic.lefts.iter().map(|&left| (top, left)).collect();
            mosaic.bands.push_back(Band { top, logits: (self.compute)(&places)? });
            self.next += 1;
        }
        let line = mosaic.sizes.image.1 * mosaic.sizes.classes;
        let mut rows = vec![0.0; (to - from) * line];
        if line > 0 {
            let mosaic = &*mosaic;
            rows.par_chunks_mut(line).enumerate().for_each(|(at, row)| mosaic.row(from + at, row));
        }
        Ok(rows)
    }
}

impl Mosaic {
    /// One row of the image, `[W, C]`, into a row of zeros.
    fn row(&self, y: usize, row: &mut [f32]) {
        let Sizes { classes, window, logits: (_, width), .. } = self.sizes;
        let mut line = vec![0.0; width * classes];
        let mut bands = 0;
        for band in &self.bands {
            if !(band.top..band.top + window.0).contains(&y) {
                continue;
            }
            bands += 1;
            let tap = self.down[y - band.top];
            for (&left, logits) in self.lefts.iter().zip(&band.logits) {
                let row_of = |at: usize| &logits[at * width * classes..(at + 1) * width * classes];
                between(&mut line, row_of(tap.low), row_of(tap.high), tap.t);
                let places = row[left * classes..].chunks_exact_mut(classes);
                for (place, tap) in places.zip(&self.across) {
                    let value = |at: usize| &line[at * classes..(at + 1) * classes];
                    let (a, b) = (value(tap.low), value(tap.high));
                    for ((sum, a), b) in place.iter_mut().zip(a).zip(b) {
                        *sum += a * (1.0 - tap.t) + b * tap.t;
                    }
                }
            }
        }
        for (place, &count) in row.chunks_exact_mut(classes).zip(&self.covers) {
            let factor = 1.0 / (bands * count).max(1) as f32;
            place.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

fn between(to: &mut [f32], a: &[f32], b: &[f32], t: f32) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = a * (1.0 - t) + b * t;
    }
}

/// A [`Stitcher`]'s rows resized to another image size, mirrored on request.
pub struct Rows<F> {
    stitcher: Stitcher<F>,
    size: (usize, usize),
    down: Vec<Tap>,
    across: Vec<Tap>,
    mirrored: bool,
}

impl<F: FnMut(&[(usize, usize)]) -> Result<Vec<Vec<f32>>, Error>> Rows<F> {
    /// Rows of an image of `size` (height, width) from those of another; `mirrored` turns left and right.
    pub fn new(stitcher: Stitcher<F>, size: (usize, usize), mirrored: bool) -> Self {
        let (height, width) = stitcher.image();
        let (down, across) = (taps(height, size.0), taps(width, size.1));
        Self { stitcher, size, down, across, mirrored }
    }

    /// Rows `from..to` `[to − from, W, C]`; as [`Stitcher::rows`], never upwards.
    ///
    /// # Errors
    /// As [`Stitcher::rows`].
    pub fn rows(&mut self, from: usize, to: usize) -> Result<Vec<f32>, Error> {
        let classes = self.stitcher.mosaic.sizes.classes;
        let (width, old) = (self.size.1, self.stitcher.image());
        let mut rows = if old == self.size {
            self.stitcher.rows(from, to)?
        } else {
            let (first, last) = (self.down[from].low, self.down[to - 1].high);
            let source = self.stitcher.rows(first, last + 1)?;
            let mut rows = vec![0.0; (to - from) * width * classes];
            rows.par_chunks_mut(width * classes).enumerate().for_each(|(at, row)| {
                let tap = self.down[from + at];
                let line = old.1 * classes;
                let row_of = |at: usize| &source[(at - first) * line..(at - first + 1) * line];
                let mut mean = vec![0.0; line];
                between(&mut mean, row_of(tap.low), row_of(tap.high), tap.t);
                for (place, tap) in row.chunks_exact_mut(classes).zip(&self.across) {
                    let value = |at: usize| &mean[at * classes..(at + 1) * classes];
                    between(place, value(tap.low), value(tap.high), tap.t);
                }
            });
            rows
        };
        if self.mirrored {
            for row in rows.chunks_exact_mut(width * classes) {
                mirror(row, classes);
            }
        }
        Ok(rows)
    }
}

/// Turns a row of pixels of `classes` values around.
fn mirror(row: &mut [f32], classes: usize) {
    let width = row.len() / classes.max(1);
    for at in 0..width / 2 {
        for class in 0..classes {
            row.swap(at * classes + class, (width - 1 - at) * classes + class);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_reach_the_border_and_no_further() {
        assert_eq!(origins(512, 512, 341), [0]);
        assert_eq!(origins(683, 512, 341), [0, 171]);
        assert_eq!(origins(900, 512, 341), [0, 341, 388]);
        assert_eq!(origins(853, 512, 341), [0, 341]);
        assert_eq!(origins(300, 512, 341), [0]);
    }

    /// Logits that depend on the place alone must come out as that function, whatever the windows.
    #[test]
    fn a_plane_is_stitched_to_a_plane() {
        let sizes = Sizes { image: (23, 31), window: (8, 8), stride: (5, 3), logits: (8, 8), classes: 2 };
        let plane = |y: usize, x: usize| [(y * 100 + x) as f32, -(x as f32)];
        let mut seen = Vec::new();
        let compute = |places: &[(usize, usize)]| {
            seen.extend(places.to_vec());
            let window = |&(top, left): &(usize, usize)| {
                (0..64).flat_map(|at| plane(top + at / 8, left + at % 8)).collect()
            };
            Ok(places.iter().map(window).collect())
        };
        let mut stitcher = Stitcher::new(sizes.clone(), compute);
        let mut found = Vec::new();
        for from in (0..23).step_by(3) {
            found.extend(stitcher.rows(from, (from + 3).min(23)).unwrap());
            assert!(stitcher.mosaic.bands.len() <= 3);
        }
        let expected: Vec<f32> = (0..23 * 31).flat_map(|at| plane(at / 31, at % 31)).collect();
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-3, "{off}");
        let all = origins(23, 8, 5).len() * origins(31, 8, 3).len();
        assert_eq!(seen.len(), all, "each window once");
    }

    #[test]
    fn a_small_image_takes_the_corner_of_its_window() {
        let sizes = Sizes { image: (3, 2), window: (8, 8), stride: (5, 5), logits: (2, 2), classes: 1 };
        let mut stitcher = Stitcher::new(sizes, |_| Ok(vec![vec![0.0, 8.0, 16.0, 24.0]]));
        // Value at (y, x) of the 2 × 2 logits stretched over 8 × 8: 2(y − 1.5) clamped, and so on.
        let found = stitcher.rows(0, 3).unwrap();
        assert_eq!(found, [0.0, 0.0, 0.0, 0.0, 2.0, 2.0]);
    }

    #[test]
    fn resized_and_mirrored() {
        let sizes = Sizes { image: (2, 4), window: (2, 4), stride: (2, 4), logits: (2, 4), classes: 1 };
        let values: Vec<f32> = (0..8).map(|at| at as f32).collect();
        let stitched = || {
            let values = values.clone();
            Stitcher::new(sizes.clone(), move |_| Ok(vec![values.clone()]))
        };
        let mut plain = Rows::new(stitched(), (2, 4), true);
        assert_eq!(plain.rows(0, 2).unwrap(), [3.0, 2.0, 1.0, 0.0, 7.0, 6.0, 5.0, 4.0]);
        let mut larger = Rows::new(stitched(), (4, 8), false);
        let mut found = larger.rows(0, 1).unwrap();
        found.extend(larger.rows(1, 4).unwrap());
        assert_eq!(found[..8], [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]);
        assert_eq!(found[8..16], [1.0, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.0]);
    }
}
