//! Rotation, shear and translation of an image in its own frame, with Pillow's bicubic
//! interpolation.
//!
//! This is interpolation at points, not resampling: the kernel is the cubic with a = -1 (resizing
//! has -0.5), it never widens, and the result is cut off instead of rounded.

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::error::TransformError;
use crate::image::Image;
use crate::simd::{self, Level};

/// For the centre (x, y) of an output pixel, where in the source it comes from: `(a x + b y + c,
/// d x + e y + f)`, in pixels from the upper left corner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// `[a, b, c]`.
    pub x: [f64; 3],
    /// `[d, e, f]`.
    pub y: [f64; 3],
}

impl Affine {
    /// Moves the image left by `dx` and up by `dy` pixels.
    #[must_use]
    pub fn translation(dx: f64, dy: f64) -> Self {
        Self { x: [1.0, 0.0, dx], y: [0.0, 1.0, dy] }
    }

    /// Shifts each row left by `factor` times its distance from the top edge.
    #[must_use]
    pub fn shear_x(factor: f64) -> Self {
        Self { x: [1.0, factor, 0.0], y: [0.0, 1.0, 0.0] }
    }

    /// Shifts each column up by `factor` times its distance from the left edge.
    #[must_use]
    pub fn shear_y(factor: f64) -> Self {
        Self { x: [1.0, 0.0, 0.0], y: [factor, 1.0, 0.0] }
    }

    /// Turns an image of `width` x `height` about its centre, counter-clockwise.
    #[must_use]
    pub fn rotation(degrees: f64, width: u32, height: u32) -> Self {
        // Why: Pillow rounds to 15 digits, so that a quarter turn is exact.
        let round = |value: f64| (value * 1e15).round() / 1e15;
        let (sin, cos) = (-degrees.rem_euclid(360.0).to_radians()).sin_cos();
        let (sin, cos) = (round(sin), round(cos));
        let (cx, cy) = (f64::from(width) / 2.0, f64::from(height) / 2.0);
        // In Pillow's order, for the last bit.
        Self { x: [cos, sin, cos * -cx + sin * -cy + cx], y: [-sin, cos, -sin * -cx + cos * -cy + cy] }
    }
}

/// Maps an image onto its own frame; what comes from outside is filled with one colour.
///
/// # Shapes
///
/// `[height, width, channels]`, as the input. The colour is repeated for channels beyond the third.
///
/// # Errors
/// A broken buffer ([`TransformError::BufferLength`]).
pub fn warp(image: &Image, map: &Affine, fill: [u8; 3]) -> Result<Image, TransformError> {
    if image.channels != 3 {
        return image.by_threes(|rgb| warp(rgb, map, fill));
    }
    image.check()?;
    let (pixels, _) = image.data.as_chunks::<3>();
    let mut out = vec![fill; pixels.len()];
    run(simd::level(), pixels, (image.width as usize, image.height as usize), map, &mut out);
    Image::new(image.width, image.height, out.into_flattened())
}

/// Fills in what comes from inside, with the widest instructions this machine has; nothing is
/// fused, so the bits are the same with any.
fn run(level: Level, pixels: &[[u8; 3]], size: (usize, usize), map: &Affine, out: &mut [[u8; 3]]) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 && !pixels.is_empty() {
        // SAFETY: the level says that there is AVX2.
        unsafe { avx2::run(pixels, size, map, out) };
        return;
    }
    let _ = level;
    for (row, y) in out.chunks_exact_mut(size.0.max(1)).zip(0..) {
        for (pixel, x) in row.iter_mut().zip(0..) {
            if let Some(place) = point_of(map, (x, y), size) {
                *pixel = interpolate(pixels, size, &place);
            }
        }
    }
}

/// A point among pixel centres: the centre up and left of it, which lies at most one pixel outside, and how far
/// behind it the point is, in pixels.
struct Place {
    left: isize,
    top: isize,
    dx: f64,
    dy: f64,
}

/// Where an output pixel comes from; `None` outside of the image.
#[inline(always)]
fn point_of(map: &Affine, (x, y): (usize, usize), (width, height): (usize, usize)) -> Option<Place> {
    let (cx, cy) = (x as f64 + 0.5, y as f64 + 0.5);
    let [sx, sy] = [map.x, map.y].map(|[a, b, c]| a * cx + b * cy + c);
    if !(sx >= 0.0 && sx < width as f64 && sy >= 0.0 && sy < height as f64) {
        return None;
    }
    let (x, y) = (sx - 0.5, sy - 0.5);
    // The same as rounding down, above -1; `floor` is a call where SSE 4.1 is not assumed.
    let (left, top) = ((x + 1.0) as isize - 1, (y + 1.0) as isize - 1);
    Some(Place { left, top, dx: x - left as f64, dy: y - top as f64 })
}

/// The three channels and an empty one, so that they fill a register.
type Lanes = [f64; 4];

/// The value at a point; pixels beyond the edge repeat the outermost.
fn interpolate(pixels: &[[u8; 3]], (width, height): (usize, usize), place: &Place) -> [u8; 3] {
    let &Place { left, top, dx, dy } = place;
    let clamped = |first: isize, i: usize, length: usize| {
        (first - 1 + i as isize).clamp(0, length as isize - 1) as usize
    };
    let lanes = |[r, g, b]: [u8; 3]| [f64::from(r), f64::from(g), f64::from(b), 0.0];
    let inside = left >= 1 && left as usize + 2 < width;
    let across: [Lanes; 4] = std::array::from_fn(|i| {
        let line = &pixels[clamped(top, i, height) * width..][..width];
        // Why two ways: away from the edges the four neighbours lie together, which was measured to
        // be 1.7 times as fast.
        let four = if inside { line[left as usize - 1..].first_chunk::<4>() } else { None };
        let values = match four {
            Some(four) => four.map(lanes),
            None => std::array::from_fn(|i| lanes(line[clamped(left, i, width)])),
        };
        cubic(values, dx)
    });
    let [r, g, b, _] = cubic(across, dy);
    [r as u8, g as u8, b as u8] // clips, and cuts the fraction off
}

/// Keys' cubic convolution with a = -1 through four neighbours, `d` behind the second; in Pillow's
/// order of operations, because the cut of the fraction would show a difference in the last bit.
#[inline(always)]
fn cubic([p, q, r, s]: [Lanes; 4], d: f64) -> Lanes {
    std::array::from_fn(|lane| {
        let (p, q, r, s) = (p[lane], q[lane], r[lane], s[lane]);
        let slope = r - p;
        let square = 2.0 * (p - q) + r - s;
        let cube = -p + q - r + s;
        q + d * (slope + d * (square + d * cube))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn every_level_gives_the_bits_of_the_plain_loop(width in 1u32..60, height in 1u32..40, seed: u32, kind in 0usize..6, strength in -1.0f64..1.0, whole: bool) {
            let data = (0..width * height * 3).map(|i| (i + 1).wrapping_mul(seed | 1).to_be_bytes()[0]).collect();
            let image = Image::new(width, height, data).unwrap();
            let shift = if whole { (strength * 20.0).round() } else { strength * 20.0 };
            let map = match kind {
                0 => Affine::translation(shift, 0.0),
                1 => Affine::translation(0.0, shift),
                2 => Affine::shear_x(strength),
                3 => Affine::shear_y(strength),
                4 => Affine::rotation(if whole { (strength * 4.0).round() * 45.0 } else { strength * 180.0 }, width, height),
                _ => Affine { x: [strength, 0.3, shift], y: [-0.2, 1.0 - strength, shift] },
            };
            let pixels = image.data.as_chunks::<3>().0;
            let size = (width as usize, height as usize);
            let mut expected = vec![FILL; pixels.len()];
            run(Level::Baseline, pixels, size, &map, &mut expected);
            for level in Level::ALL.into_iter().filter(|&level| level <= simd::level()) {
                let mut found = vec![FILL; pixels.len()];
                run(level, pixels, size, &map, &mut found);
                prop_assert!(found == expected, "{:?} {:?}", level, map);
            }
        }
    }

    const FILL: [u8; 3] = [1, 2, 3];

    fn ramp() -> Image {
        Image::new(5, 4, (0..60).map(|v| v * 4).collect()).unwrap()
    }

    #[test]
    fn maps_that_change_nothing() {
        let image = ramp();
        let maps = [
            Affine::shear_x(-0.0),
            Affine::shear_y(0.0),
            Affine::rotation(0.0, 5, 4),
            Affine::translation(0.0, 0.0),
        ];
        for map in maps {
            assert_eq!(warp(&image, &map, FILL).unwrap(), image, "{map:?}");
        }
    }

    #[test]
    fn whole_pixels_are_copied_and_the_rest_is_filled() {
        let moved = warp(&ramp(), &Affine::translation(2.0, -1.0), FILL).unwrap();
        assert_eq!(moved.data[..15], FILL.repeat(5));
        assert_eq!(moved.data[15..24], ramp().data[6..15]);
        assert_eq!(moved.data[24..30], FILL.repeat(2));
    }

    #[test]
    fn a_half_turn_is_exact() {
        let turned = warp(&ramp(), &Affine::rotation(180.0, 5, 4), FILL).unwrap();
        let mut reversed = ramp().data.as_chunks::<3>().0.to_vec();
        reversed.reverse();
        assert_eq!(turned.data, reversed.into_flattened());
    }

    #[test]
    fn broken_and_empty_images() {
        let map = Affine::shear_x(0.3);
        assert!(warp(&Image { width: 2, height: 2, channels: 3, data: vec![0; 5] }, &map, FILL).is_err());
        assert!(
            warp(&Image { width: 0, height: 0, channels: 3, data: vec![] }, &map, FILL)
                .unwrap()
                .data
                .is_empty()
        );
        let far = Affine::translation(f64::NAN, 1e300);
        assert_eq!(warp(&ramp(), &far, FILL).unwrap().data, FILL.repeat(20));
    }
}
