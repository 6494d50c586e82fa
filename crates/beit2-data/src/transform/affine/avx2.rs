//! The warp with AVX2: the same arithmetic as the plain loop, four double-precision lanes at a time.
//!
//! The three coefficients of a cubic through 8-bit values are whole numbers, so they are computed as such and are exact
//! either way. A point on a row or column of pixel centres (shear, translation) needs one cubic instead of five, because
//! the others are multiplied by a distance of 0.

use std::arch::x86_64::*;

use crate::transform::affine::{Affine, Place};

/// Bytes that are read of each row around a point: four pixels, and four bytes that are not used.
const READ: usize = 16;

/// Pixels of a row that are computed together when their sources lie on one row, or at the same height.
const RUN: usize = 8;

/// Pixels of a row whose sources are computed ahead: one at a time, each would wait for its own.
const AHEAD: usize = 32;

/// Fills in what comes from inside. `size` is (width, height), both at least 1.
#[target_feature(enable = "avx2")]
pub(super) fn run(pixels: &[[u8; 3]], size: (usize, usize), map: &Affine, out: &mut [[u8; 3]]) {
    let (width, height) = size;
    assert!(pixels.len() == width * height && width > 0 && height > 0 && width.max(height) < 1 << 30);
    let mut points =
        Points { left: [0; AHEAD], top: [0; AHEAD], dx: [0.0; AHEAD], dy: [0.0; AHEAD], inside: 0 };
    for (row, y) in out.chunks_exact_mut(width).zip(0..) {
        for (targets, number) in row.chunks_mut(AHEAD).zip(0..) {
            points.compute(map, (number * AHEAD, y), size);
            for (target, at) in targets.chunks_mut(RUN).zip((0..).step_by(RUN)) {
                if let Ok(target) = <&mut [[u8; 3]; RUN]>::try_from(&mut *target)
                    && let Some(values) = straight(pixels, size, map, &points, at, number * AHEAD + at)
                {
                    target.as_flattened_mut().copy_from_slice(&values);
                    continue;
                }
                for (pixel, at) in target.iter_mut().zip(at..) {
                    if points.inside >> at & 1 == 1 {
                        *pixel = point(pixels, size, &points.place(at));
                    }
                }
            }
        }
    }
}

/// What `point_of` says of neighbouring pixels of a row.
struct Points {
    left: [i32; AHEAD],
    top: [i32; AHEAD],
    dx: [f64; AHEAD],
    dy: [f64; AHEAD],
    /// A bit for each that lies inside of the image; the others have no place.
    inside: u32,
}

impl Points {
    /// Computes those of the pixels from (x, y) on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn compute(&mut self, map: &Affine, (x, y): (usize, usize), (width, height): (usize, usize)) {
        let set = |value: f64| _mm256_set1_pd(value);
        let (half, one, cy) = (set(0.5), set(1.0), set(y as f64 + 0.5));
        let steps = _mm256_setr_pd(0.0, 1.0, 2.0, 3.0);
        let limits = [set(width as f64), set(height as f64)];
        self.inside = 0;
        for at in (0..AHEAD).step_by(4) {
            let cx = _mm256_add_pd(_mm256_add_pd(set((x + at) as f64), steps), half);
            let along = |[a, b, c]: [f64; 3], limit: __m256d| {
                let sum = _mm256_add_pd(_mm256_mul_pd(set(a), cx), _mm256_mul_pd(set(b), cy));
                let source = _mm256_add_pd(sum, set(c));
                let within = _mm256_and_pd(
                    _mm256_cmp_pd::<_CMP_GE_OQ>(source, _mm256_setzero_pd()),
                    _mm256_cmp_pd::<_CMP_LT_OQ>(source, limit),
                );
                let point = _mm256_sub_pd(source, half);
                let first = _mm_sub_epi32(_mm256_cvttpd_epi32(_mm256_add_pd(point, one)), _mm_set1_epi32(1));
                (first, _mm256_sub_pd(point, _mm256_cvtepi32_pd(first)), within)
            };
            let (left, dx, in_x) = along(map.x, limits[0]);
            let (top, dy, in_y) = along(map.y, limits[1]);
            self.inside |= (_mm256_movemask_pd(_mm256_and_pd(in_x, in_y)) as u32) << at;
            // SAFETY: four numbers of each array.
            unsafe {
                _mm_storeu_si128(self.left[at..at + 4].as_mut_ptr().cast(), left);
                _mm_storeu_si128(self.top[at..at + 4].as_mut_ptr().cast(), top);
                _mm256_storeu_pd(self.dx[at..at + 4].as_mut_ptr(), dx);
                _mm256_storeu_pd(self.dy[at..at + 4].as_mut_ptr(), dy);
            }
        }
    }

    #[inline]
    fn place(&self, at: usize) -> Place {
        Place { left: self.left[at] as isize, top: self.top[at] as isize, dx: self.dx[at], dy: self.dy[at] }
    }
}

/// Eight pixels, the points from `at` on and from column `x` of the output on, if their sources are neighbours on one row
/// of pixel centres, or lie in their own columns, all at one height.
#[inline]
#[target_feature(enable = "avx2")]
fn straight(
    pixels: &[[u8; 3]],
    (width, height): (usize, usize),
    map: &Affine,
    points: &Points,
    at: usize,
    x: usize,
) -> Option<[u8; RUN * 3]> {
    // The height is the same for all where x counts 0 times.
    if map.y[0] != 0.0 || points.inside >> at & 0xFF != 0xFF {
        return None;
    }
    let first = points.place(at);
    if first.dx == 0.0 && map.x == [1.0, 0.0, 0.0] {
        let row = |offset: isize| {
            let row = (first.top + offset).clamp(0, height as isize - 1) as usize;
            pixels[row * width + x..][..RUN].as_ptr().cast::<u8>()
        };
        let distance = _mm256_set1_pd(first.dy);
        // SAFETY: eight pixels of each row.
        return Some(unsafe { eight([row(-1), row(0), row(1), row(2)], [distance; 2]) });
    }
    if first.dy != 0.0 || first.left < 1 || first.left as usize + RUN + 1 >= width {
        return None;
    }
    let lefts = &points.left[at..at + RUN];
    if (0..).zip(lefts).any(|(number, &left)| left != lefts[0] + number) {
        return None; // rounding carried one over a pixel's centre
    }
    let line = &pixels[first.top as usize * width..][..width];
    let tap = |tap: usize| line[first.left as usize - 1 + tap..][..RUN].as_ptr().cast::<u8>();
    let distances = &points.dx[at..at + RUN];
    // SAFETY: eight numbers; eight pixels of each tap.
    unsafe {
        let halves = [_mm256_loadu_pd(distances.as_ptr()), _mm256_loadu_pd(distances[4..].as_ptr())];
        Some(eight([tap(0), tap(1), tap(2), tap(3)], halves))
    }
}

/// One cubic for each value of eight pixels, each tap at its own place; the pixels' distances are in two halves.
///
/// # Safety
/// 24 bytes can be read at each place.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn eight(source: [*const u8; 4], [first, second]: [__m256d; 2]) -> [u8; RUN * 3] {
    // A distance for each of four values; the pixels have three.
    let distances = [
        _mm256_permute4x64_pd::<0b01_00_00_00>(first),
        _mm256_permute4x64_pd::<0b10_10_01_01>(first),
        _mm256_permute4x64_pd::<0b11_11_11_10>(first),
        _mm256_permute4x64_pd::<0b01_00_00_00>(second),
        _mm256_permute4x64_pd::<0b10_10_01_01>(second),
        _mm256_permute4x64_pd::<0b11_11_11_10>(second),
    ];
    let mut out = [0; RUN * 3];
    for third in 0..3 {
        // SAFETY: the caller's promise.
        let tap =
            |tap: usize| unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(source[tap].add(third * 8).cast())) };
        let [constant, slope, square, cube] = coefficients([tap(0), tap(1), tap(2), tap(3)]);
        let lower =
            [wide::<false>(constant), wide::<false>(slope), wide::<false>(square), wide::<false>(cube)];
        let upper = [wide::<true>(constant), wide::<true>(slope), wide::<true>(square), wide::<true>(cube)];
        let (first, second) =
            (polynomial(lower, distances[third * 2]), polynomial(upper, distances[third * 2 + 1]));
        let words = _mm_packs_epi32(_mm256_cvttpd_epi32(first), _mm256_cvttpd_epi32(second));
        // SAFETY: eight bytes.
        unsafe {
            _mm_storel_epi64(
                out[third * 8..third * 8 + 8].as_mut_ptr().cast(),
                _mm_packus_epi16(words, words),
            );
        }
    }
    out
}

/// One pixel anywhere inside.
#[inline]
#[target_feature(enable = "avx2")]
fn point(pixels: &[[u8; 3]], (width, height): (usize, usize), place: &Place) -> [u8; 3] {
    let left = place.left;
    // Why written out: closures over arrays are not inlined here, which was measured to take three times as long.
    let line = |offset: isize| (place.top + offset).clamp(0, height as isize - 1) as usize * width;
    let lines = [line(-1), line(0), line(1), line(2)];
    let mut edge = [[0u8; READ]; 4];
    let (base, starts) = if left >= 1 && left as usize + 5 <= width {
        let start = |line: usize| (line + left as usize - 1) * 3;
        (pixels.as_flattened(), [start(lines[0]), start(lines[1]), start(lines[2]), start(lines[3])])
    } else {
        for (edge, line) in edge.iter_mut().zip(lines) {
            for (pixel, x) in edge.as_chunks_mut::<3>().0.iter_mut().take(4).zip(left - 1..) {
                *pixel = pixels[line + x.clamp(0, width as isize - 1) as usize];
            }
        }
        (edge.as_flattened(), [0, READ, 2 * READ, 3 * READ])
    };
    let load = |start: usize| -> __m128i {
        let row = &base[start..start + READ];
        // SAFETY: 16 bytes.
        unsafe { _mm_loadu_si128(row.as_ptr().cast()) }
    };
    let rows = [load(starts[0]), load(starts[1]), load(starts[2]), load(starts[3])];
    if place.dx == 0.0 {
        // Only the second of the four columns counts.
        let tap = |row: __m128i| _mm256_castsi128_si256(_mm_shuffle_epi8(row, color(1)));
        let taps = [tap(rows[0]), tap(rows[1]), tap(rows[2]), tap(rows[3])];
        return cut(cubic_of_whole::<false>(coefficients(taps), place.dy));
    }
    if place.dy == 0.0 {
        let tap = |tap: i8| _mm256_castsi128_si256(_mm_shuffle_epi8(rows[1], color(tap)));
        return cut(cubic_of_whole::<false>(coefficients([tap(0), tap(1), tap(2), tap(3)]), place.dx));
    }
    let (above, below) = (two_rows(rows[0], rows[1]), two_rows(rows[2], rows[3]));
    let (p, q) = (cubic_of_whole::<false>(above, place.dx), cubic_of_whole::<true>(above, place.dx));
    let (r, s) = (cubic_of_whole::<false>(below, place.dx), cubic_of_whole::<true>(below, place.dx));
    // As `cubic` of the plain form.
    let two = _mm256_set1_pd(2.0);
    let slope = _mm256_sub_pd(r, p);
    let square = _mm256_sub_pd(_mm256_add_pd(_mm256_mul_pd(two, _mm256_sub_pd(p, q)), r), s);
    let minus = _mm256_xor_pd(p, _mm256_set1_pd(-0.0));
    let cube = _mm256_add_pd(_mm256_sub_pd(_mm256_add_pd(minus, q), r), s);
    cut(polynomial([q, slope, square, cube], _mm256_set1_pd(place.dy)))
}

/// The coefficients along two rows of four pixels.
#[inline]
#[target_feature(enable = "avx2")]
fn two_rows(first: __m128i, second: __m128i) -> [__m256i; 4] {
    let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second);
    let tap = |tap: i8| _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(color(tap)));
    coefficients([tap(0), tap(1), tap(2), tap(3)])
}

/// The three channels of one of four pixels, as 32-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn color(pixel: i8) -> __m128i {
    let (z, first) = (-1, pixel * 3);
    _mm_setr_epi8(first, z, z, z, first + 1, z, z, z, first + 2, z, z, z, z, z, z, z)
}

/// Constant, slope, square and cube of the cubics through four neighbours, which are whole numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn coefficients([p, q, r, s]: [__m256i; 4]) -> [__m256i; 4] {
    let (before, behind) = (_mm256_sub_epi32(p, q), _mm256_sub_epi32(r, s));
    let both = _mm256_add_epi32(before, behind);
    [
        q,
        _mm256_sub_epi32(r, p),
        _mm256_add_epi32(before, both),
        _mm256_sub_epi32(_mm256_setzero_si256(), both),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn cubic_of_whole<const UPPER: bool>(coefficients: [__m256i; 4], distance: f64) -> __m256d {
    let [constant, slope, square, cube] = coefficients;
    let lanes = [wide::<UPPER>(constant), wide::<UPPER>(slope), wide::<UPPER>(square), wide::<UPPER>(cube)];
    polynomial(lanes, _mm256_set1_pd(distance))
}

/// `constant + d (slope + d (square + d cube))`, nothing fused.
#[inline]
#[target_feature(enable = "avx2")]
fn polynomial([constant, slope, square, cube]: [__m256d; 4], d: __m256d) -> __m256d {
    let inner = _mm256_add_pd(square, _mm256_mul_pd(d, cube));
    let middle = _mm256_add_pd(slope, _mm256_mul_pd(d, inner));
    _mm256_add_pd(constant, _mm256_mul_pd(d, middle))
}

/// Cuts fractions off and clips.
#[inline]
#[target_feature(enable = "avx2")]
fn cut(values: __m256d) -> [u8; 3] {
    let words = _mm_packs_epi32(_mm256_cvttpd_epi32(values), _mm_setzero_si128());
    let [r, g, b, _] = _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes();
    [r, g, b]
}

/// The lower or upper four of eight numbers, in double precision.
#[inline]
#[target_feature(enable = "avx2")]
fn wide<const UPPER: bool>(values: __m256i) -> __m256d {
    _mm256_cvtepi32_pd(match UPPER {
        true => _mm256_extracti128_si256::<1>(values),
        false => _mm256_castsi256_si128(values),
    })
}
