//! The fast form of colour jitter: the same arithmetic as `jitter.rs`, on separate colour planes, a
//! piece at a time.
//!
//! The loops are plain, so that the compiler vectorises them; they are compiled a second time for
//! AVX2 and chosen at run time. A property test in `jitter.rs` compares. Single-precision products
//! and sums are rounded alike everywhere (nothing is fused), so the bits do not depend on it.

use crate::transform::jitter::luma;

/// Pixels per piece: three planes of this size stay in the first-level cache.
const PIECE: usize = 1024;

/// One operation with its parameters resolved.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Blend every channel with one value.
    Blend {
        /// Black for brightness, the mean grey for contrast.
        degenerate: f32,
        /// 1 changes nothing.
        factor: f32,
    },
    /// Blend with the pixel's own grey.
    Saturation {
        /// 1 changes nothing.
        factor: f32,
    },
}

/// Applies the steps, in order, to every pixel.
pub(super) fn apply(steps: &[Step], pixels: &mut [[u8; 3]]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the function only needs AVX2, which was just detected.
        return unsafe { apply_avx2(steps, pixels) };
    }
    apply_plain(steps, pixels);
}

/// Sum of the grey values that the steps would leave; the pixels stay as they are.
pub(super) fn luma_sum(steps: &[Step], pixels: &[[u8; 3]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the function only needs AVX2, which was just detected.
        return unsafe { luma_sum_avx2(steps, pixels) };
    }
    luma_sum_plain(steps, pixels)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn apply_avx2(steps: &[Step], pixels: &mut [[u8; 3]]) {
    apply_plain(steps, pixels);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn luma_sum_avx2(steps: &[Step], pixels: &[[u8; 3]]) -> u64 {
    luma_sum_plain(steps, pixels)
}

#[inline(always)]
fn apply_plain(steps: &[Step], pixels: &mut [[u8; 3]]) {
    let mut planes = Planes::new();
    for piece in pixels.chunks_mut(PIECE) {
        planes.load(piece);
        steps.iter().for_each(|step| planes.apply(step));
        for (pixel, ((&r, &g), &b)) in piece.iter_mut().zip(planes.r.iter().zip(&planes.g).zip(&planes.b)) {
            *pixel = [r, g, b];
        }
    }
}

#[inline(always)]
fn luma_sum_plain(steps: &[Step], pixels: &[[u8; 3]]) -> u64 {
    let mut planes = Planes::new();
    let mut sum = 0;
    for piece in pixels.chunks(PIECE) {
        planes.load(piece);
        steps.iter().for_each(|step| planes.apply(step));
        // 1024 values of 8 bits fit into 32 bits with room to spare.
        sum += u64::from(planes.luma_sum(piece.len()));
    }
    sum
}

/// Colour planes of one piece; what lies behind a shorter last piece is computed along and not
/// used.
struct Planes {
    r: [u8; PIECE],
    g: [u8; PIECE],
    b: [u8; PIECE],
}

impl Planes {
    fn new() -> Self {
        Self { r: [0; PIECE], g: [0; PIECE], b: [0; PIECE] }
    }

    #[inline(always)]
    fn load(&mut self, pixels: &[[u8; 3]]) {
        let planes = self.r.iter_mut().zip(&mut self.g).zip(&mut self.b);
        for (pixel, ((r, g), b)) in pixels.iter().zip(planes) {
            [*r, *g, *b] = *pixel;
        }
    }

    #[inline(always)]
    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Blend { degenerate, factor } => {
                for plane in [&mut self.r, &mut self.g, &mut self.b] {
                    for value in plane {
                        *value = blend(degenerate, *value, factor);
                    }
                }
            }
            Step::Saturation { factor } => {
                for ((r, g), b) in self.r.iter_mut().zip(&mut self.g).zip(&mut self.b) {
                    let gray = f32::from(luma([*r, *g, *b]));
                    [*r, *g, *b] =
                        [blend(gray, *r, factor), blend(gray, *g, factor), blend(gray, *b, factor)];
                }
            }
        }
    }

    #[inline(always)]
    fn luma_sum(&self, length: usize) -> u32 {
        let planes = self.r.iter().zip(&self.g).zip(&self.b).take(length);
        planes.map(|((&r, &g), &b)| u32::from(luma([r, g, b]))).sum()
    }
}

/// The blend of `jitter.rs`, clipped before the cast: a cast that clips by itself is not
/// vectorised, and the whole jitter was measured to take three times as long with it.
#[inline(always)]
#[expect(clippy::manual_clamp, reason = "`clamp` lets a NaN through, which the cast must not see")]
fn blend(degenerate: f32, value: u8, factor: f32) -> u8 {
    let clipped = (degenerate + factor * (f32::from(value) - degenerate)).max(0.0).min(255.0);
    // SAFETY: the value lies in 0..=255 and is not NaN, because `max` and `min` give the other
    // operand for a NaN.
    let whole: i32 = unsafe { clipped.to_int_unchecked() };
    whole as u8
}
