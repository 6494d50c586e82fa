//! From planes to rows of RGB: subsampled colour is enlarged by libjpeg's triangle filter ("fancy upsampling"), that is,
//! each sample counts three times as much as its neighbour on the other side.
//!
//! Rounding alternates between neighbours, so that nothing becomes brighter on average. At the edges a sample is its own
//! neighbour.

use crate::Region;
use crate::blocks::{Plane, Planes};
use crate::color::{self, Colors};
use crate::frame::{Component, Frame};

/// Spare room in a row for vector code.
const SLACK: usize = 32;

/// The region's pixels, `[height, width, 3]`.
pub(crate) fn to_rgb(frame: &Frame, planes: &Planes, region: Region) -> Vec<u8> {
    let (left, width) = (region.left as usize, region.width as usize);
    let mut out = vec![0; width * 3 * region.height as usize];
    let mut chroma: Vec<Enlarger<'_>> = frame.components[1..]
        .iter()
        .zip(&planes.0[1..])
        .map(|(component, plane)| Enlarger::new(frame, component, plane, left, width))
        .collect();
    for (y, out) in (region.top as usize..).zip(out.chunks_exact_mut(width * 3)) {
        let luma = planes.0[0].row(left, y);
        match &mut chroma[..] {
            [cb, cr] => {
                let (cb, cr) = (cb.row(y), cr.row(y));
                color::to_rgb(Colors { luma, cb, cr }, out);
            }
            _ => color::gray_to_rgb(luma, out),
        }
    }
    out
}

/// Gives the rows of a component at the image's size.
struct Enlarger<'a> {
    plane: &'a Plane,
    /// How many times the image is larger than the component.
    across: usize,
    down: usize,
    /// Rows of the component.
    height: usize,
    /// Samples of a row that are needed: first, behind the last; and whether the first and the last of them are at the
    /// image's edge.
    columns: (usize, usize),
    edges: (bool, bool),
    /// The region's first and number of columns, and the pixels in front of it that an enlarged row begins with.
    left: usize,
    before: usize,
    /// Sums of a row and its neighbour, with a further sample on each side.
    sums: Vec<u16>,
    enlarged: Vec<u8>,
}

impl<'a> Enlarger<'a> {
    fn new(frame: &Frame, component: &Component, plane: &'a Plane, left: usize, width: usize) -> Self {
        let (across, down) = (frame.max_h / component.h, frame.max_v / component.v);
        let columns = (left / across, (left + width - 1) / across + 1);
        let count = columns.1 - columns.0;
        Self {
            plane,
            across,
            down,
            height: component.height,
            columns,
            edges: (columns.0 == 0, columns.1 == component.width),
            left,
            before: left % across,
            sums: vec![0; count + 2],
            enlarged: vec![0; count * across + SLACK],
        }
    }

    /// Row `y` of the image, from the region's first column on.
    fn row(&mut self, y: usize) -> &[u8] {
        let own = y / self.down;
        if (self.across, self.down) == (1, 1) {
            return self.plane.row(self.left, own);
        }
        // Above for the upper of two rows, below for the lower one.
        let upper = y.is_multiple_of(self.down);
        let other = match (self.down, upper) {
            (1, _) => own,
            (_, true) => own.saturating_sub(1),
            (_, false) => (own + 1).min(self.height - 1),
        };
        let count = self.columns.1 - self.columns.0;
        if self.across == 1 {
            let [own, other] = [own, other].map(|row| &self.plane.row(self.columns.0, row)[..count]);
            between_rows(own, other, if upper { 1 } else { 2 }, &mut self.enlarged[..count]);
            return &self.enlarged;
        }
        let inner = &mut self.sums[1..=count];
        let (first, behind) = (self.columns.0, self.columns.1);
        let single = self.down == 1;
        let row = |y: usize| self.plane.row(first, y);
        if single {
            inner.iter_mut().zip(row(own)).for_each(|(sum, &value)| *sum = value.into());
        } else {
            sum_rows(&row(own)[..count], &row(other)[..count], inner);
        }
        // The neighbours outside, which the plane has unless they are outside the image.
        let at = |x: usize| {
            let [own, other] = [own, other].map(|y| u16::from(self.plane.row(x, y)[0]));
            if single { own } else { 3 * own + other }
        };
        let neighbours = [
            if self.edges.0 { self.sums[1] } else { at(first - 1) },
            if self.edges.1 { self.sums[count] } else { at(behind) },
        ];
        (self.sums[0], self.sums[count + 1]) = (neighbours[0], neighbours[1]);
        let (pairs, _) = self.enlarged[..count * 2].as_chunks_mut::<2>();
        match single {
            true => between_columns::<2>(&self.sums, pairs),
            false => between_columns::<4>(&self.sums, pairs),
        }
        &self.enlarged[self.before..]
    }
}

/// Compiles a function a second time for AVX2, whose plain loops the compiler vectorises, and chooses at run time.
macro_rules! with_avx2 {
    (fn $name:ident$(<const $n:ident: $t:ty>)?($($arg:ident: $ty:ty),*) $body:block) => {
        fn $name$(<const $n: $t>)?($($arg: $ty),*) {
            #[inline(always)]
            fn plain$(<const $n: $t>)?($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2$(<const $n: $t>)?($($arg: $ty),*) {
                    plain$(::<$n>)?($($arg),*);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: AVX2 was just detected.
                    return unsafe { avx2$(::<$n>)?($($arg),*) };
                }
            }
            plain$(::<$n>)?($($arg),*);
        }
    };
}

with_avx2! {
    fn between_rows(own: &[u8], other: &[u8], bias: u16, out: &mut [u8]) {
        for ((out, &own), &other) in out.iter_mut().zip(own).zip(other) {
            *out = ((3 * u16::from(own) + u16::from(other) + bias) >> 2) as u8;
        }
    }
}

with_avx2! {
    fn sum_rows(own: &[u8], other: &[u8], out: &mut [u16]) {
        for ((out, &own), &other) in out.iter_mut().zip(own).zip(other) {
            *out = 3 * u16::from(own) + u16::from(other);
        }
    }
}

with_avx2! {
    // Two pixels of each value: nearer to the one before, nearer to the one behind. `BITS` are to be rounded off; the first
    // rounds half up, the second half down (two bits: the other way round).
    fn between_columns<const BITS: u32>(sums: &[u16], out: &mut [[u8; 2]]) {
        let biases = if BITS == 2 { [1, 2] } else { [8, 7] };
        let before = &sums[..out.len()];
        let own = &sums[1..=out.len()];
        let behind = &sums[2..];
        for (((out, &before), &own), &behind) in out.iter_mut().zip(before).zip(own).zip(behind) {
            let mixed = [3 * own + before + biases[0], 3 * own + behind + biases[1]];
            *out = mixed.map(|value| (value >> BITS) as u8);
        }
    }
}
