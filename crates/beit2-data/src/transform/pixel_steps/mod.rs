//! The fast form of colour jitter: the same arithmetic as `jitter.rs`, many pixels at a time.
//!
//! Here are plain loops, on separate colour planes, for any processor; `avx2.rs` computes the same in registers, and
//! `avx512.rs` looks bytes up in tables (`tables.rs`). A property test in `jitter.rs` compares them all.
//! Single-precision products and sums are rounded alike everywhere (nothing is fused).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86-64 looks tables up"))]
mod tables;

use crate::simd::Level;
use crate::transform::jitter::luma;

/// Pixels per piece: three planes of this size stay in the first-level cache.
const PIECE: usize = 1024;

/// One operation with its parameters resolved.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Blend every channel with one value.
    Blend {
        /// Black for brightness, the mean grey for contrast.
        degenerate: u8,
        /// 1 changes nothing.
        factor: f32,
    },
    /// Blend with the pixel's own grey.
    Saturation {
        /// 1 changes nothing.
        factor: f32,
    },
}

/// Steps, first to last.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    level: Level,
    steps: Vec<Step>,
    /// The same as tables, as far as the level uses them and there are exact ones.
    stages: Option<Vec<tables::Stage>>,
}

impl Steps {
    /// No steps; none of the vector code above `level` will be used.
    pub fn new(level: Level) -> Self {
        let stages = (level >= Level::Avx512).then(|| Vec::with_capacity(3));
        Self { level, steps: Vec::with_capacity(3), stages }
    }

    /// Adds one behind the others.
    pub fn push(&mut self, step: Step) {
        if self.stages.as_mut().is_some_and(|stages| !tables::push(stages, &step)) {
            self.stages = None;
        }
        self.steps.push(step);
    }

    /// Applies the steps to every pixel.
    pub fn apply(&self, pixels: &mut [[u8; 3]]) {
        apply_plain(&self.steps, self.apply_vectors(pixels));
    }

    /// Sum of the grey values that the steps would leave; the pixels stay as they are.
    pub fn luma_sum(&self, pixels: &[[u8; 3]]) -> u64 {
        let (sum, rest) = self.sum_vectors(pixels);
        sum + luma_sum_plain(&self.steps, rest)
    }

    /// Applies the steps with vector code, and returns the pixels that it leaves over.
    #[cfg(target_arch = "x86_64")]
    fn apply_vectors<'p>(&self, pixels: &'p mut [[u8; 3]]) -> &'p mut [[u8; 3]] {
        let mut done = 0;
        if let Some(stages) = &self.stages {
            // SAFETY: there are stages only where there is AVX-512.
            unsafe { avx512::apply(stages, pixels) };
            done = pixels.len();
        } else if self.level >= Level::Avx2 {
            // SAFETY: the level says that there is AVX2.
            done = unsafe { avx2::apply(&self.steps, pixels) };
        }
        &mut pixels[done..]
    }

    /// The sum of as many pixels as come in whole blocks, and the others.
    #[cfg(target_arch = "x86_64")]
    fn sum_vectors<'p>(&self, pixels: &'p [[u8; 3]]) -> (u64, &'p [[u8; 3]]) {
        let (mut sum, mut rest) = (0, pixels);
        if let Some(stages) = &self.stages {
            let (blocks, behind) = rest.as_chunks::<{ avx512::BLOCK }>();
            // SAFETY: there are stages only where there is AVX-512.
            sum += unsafe { avx512::luma_sum(stages, blocks) };
            rest = behind;
        }
        if self.level >= Level::Avx2 {
            // SAFETY: the level says that there is AVX2.
            let (more, done) = unsafe { avx2::luma_sum(&self.steps, rest) };
            sum += more;
            rest = &rest[done..];
        }
        (sum, rest)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn apply_vectors<'p>(&self, pixels: &'p mut [[u8; 3]]) -> &'p mut [[u8; 3]] {
        let _ = self.level;
        pixels
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn sum_vectors<'p>(&self, pixels: &'p [[u8; 3]]) -> (u64, &'p [[u8; 3]]) {
        (0, pixels)
    }
}

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
                        *value = blend(f32::from(degenerate), *value, factor);
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

/// The blend of `jitter::blend` in f32, clipped before the cast: a cast that clips by itself is not
/// vectorised, and the whole jitter was measured to take three times as long with it.
#[inline(always)]
#[expect(clippy::manual_clamp, reason = "`clamp` lets a NaN through, which the cast must not see")]
pub(super) fn blend(degenerate: f32, value: u8, factor: f32) -> u8 {
    let clipped = (degenerate + factor * (f32::from(value) - degenerate)).max(0.0).min(255.0);
    // SAFETY: the value lies in 0..=255 and is not NaN, because `max` and `min` give the other
    // operand for a NaN.
    let whole: i32 = unsafe { clipped.to_int_unchecked() };
    whole as u8
}
