//! What this machine's cores can multiply when nothing has to be fetched.
//!
//! The reference for shares such as "70 % of the peak": multiply-adds on registers only, on all threads
//! at once, so clock, power limits and neighbours are those of the moment.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::precision::Precision;
use crate::simd::{Level, level};

/// Multiply-adds on registers in one precision.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Only x86-64 has more than one.
    precision: Precision,
}

/// Sums in flight: enough to hide the latency of a multiply-add, few enough for sixteen registers.
const SUMS: usize = 12;
/// Rounds over the sums: half a millisecond on a core of 2025.
const ROUNDS: usize = 150_000;

impl Probe {
    /// A probe; `None` if there are no instructions for matmuls of `precision` here, or none that this
    /// crate knows (only x86-64 and AArch64 are measured).
    pub fn new(precision: Precision) -> Option<Self> {
        let known = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
        let has = precision == Precision::F32 || level() >= Level::Avx512Bf16;
        (known && has).then_some(Self { precision })
    }

    /// Floating-point operations a second of all threads of the current pool together. Takes about two
    /// milliseconds.
    pub fn flops(&self) -> f64 {
        let threads = rayon::current_num_threads();
        let run = || {
            let start = Instant::now();
            let lanes: usize = (0..threads).into_par_iter().with_max_len(1).map(|_| self.rounds()).sum();
            2.0 * (ROUNDS * SUMS * lanes) as f64 / start.elapsed().as_secs_f64()
        };
        // The first wakes threads and raises the clock.
        run();
        run().max(run())
    }

    /// Runs on the caller's thread → multiplications of one instruction.
    #[cfg(target_arch = "x86_64")]
    fn rounds(&self) -> usize {
        // SAFETY: `level` found the features, and bf16 was asked for in `new`.
        unsafe {
            match (self.precision, level()) {
                (Precision::Bf16, _) => x86::bf16(),
                (Precision::F32, Level::Avx512 | Level::Avx512Bf16) => x86::avx512(),
                (Precision::F32, Level::Avx2) => x86::avx2(),
                (Precision::F32, Level::Baseline) => x86::sse2(),
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn rounds(&self) -> usize {
        use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
        // SAFETY: every AArch64 CPU has NEON.
        unsafe {
            let x = vdupq_n_f32(black_box(0.5));
            repeat(x, |sum| vfmaq_f32(sum, x, x));
        }
        4
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn rounds(&self) -> usize {
        0
    }
}

/// `step` on every sum, over and over.
#[inline(always)]
fn repeat<V: Copy>(start: V, step: impl Fn(V) -> V) {
    let mut sums = black_box([start; SUMS]);
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = step(*sum);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::repeat;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16() -> usize {
        let x = _mm512_set1_ps(black_box(f32::from_bits(0x3F00_3F00)));
        // SAFETY: both types are 512 bits.
        let x: __m512bh = unsafe { std::mem::transmute(x) };
        repeat(_mm512_setzero_ps(), |sum| _mm512_dpbf16_ps(sum, x, x));
        32
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512() -> usize {
        let x = _mm512_set1_ps(black_box(0.5));
        repeat(x, |sum| _mm512_fmadd_ps(x, x, sum));
        16
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2() -> usize {
        let x = _mm256_set1_ps(black_box(0.5));
        repeat(x, |sum| _mm256_fmadd_ps(x, x, sum));
        8
    }

    #[target_feature(enable = "sse2")]
    pub(super) fn sse2() -> usize {
        let x = _mm_set1_ps(black_box(0.5));
        repeat(x, |sum| _mm_add_ps(_mm_mul_ps(x, sum), x));
        4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_precision_of_this_machine_has_a_peak() {
        for precision in [Precision::F32, Precision::Bf16] {
            let Some(probe) = Probe::new(precision) else {
                println!("skipped: no {precision} matmuls here");
                continue;
            };
            let flops = probe.flops();
            println!("{precision}: {:.0} GFLOP/s", flops / 1e9);
            assert!((1e8..1e14).contains(&flops), "{flops:e}");
        }
    }
}
