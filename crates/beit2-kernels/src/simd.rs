//! Vector code without intrinsics: plain loops compiled several times, the best copy chosen at run
//! time, and the two functions (`exp`, the normal distribution) that the standard library only has
//! as scalar calls.
//!
//! A kernel is an `#[inline(always)]` function generic in `FMA`; `dispatch!` wraps it in one copy
//! per instruction set. Sums use `LANES` running sums and a fixed tree, so a result depends on
//! the instruction set of the machine but never on threads.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets that kernels are compiled for, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What the target guarantees: SSE2 on x86-64, NEON on AArch64.
    Baseline = 1,
    /// AVX2 with fused multiply-add.
    Avx2 = 2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512 = 3,
    /// Matmuls of bf16 as well (AVX-512-BF16).
    Avx512Bf16 = 4,
}

impl Level {
    /// The level of a name: `baseline`, `avx2`, `avx512` or `avx512bf16`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "baseline" => Some(Self::Baseline),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            "avx512bf16" => Some(Self::Avx512Bf16),
            _ => None,
        }
    }
}

static LIMIT: AtomicU8 = AtomicU8::new(Level::Avx512Bf16 as u8);

/// Keeps kernels of the whole process at or below `level`: for tests and comparisons. What Burn computes itself is not
/// affected, nor are the matmuls of the `gemm` crate, which only [`Level::Baseline`] uses. Weights that are packed already
/// stay as they are.
pub fn limit(level: Level) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}

/// The instruction set in use: the best that this CPU has, within [`limit`].
#[inline]
pub fn level() -> Level {
    best(LIMIT.load(Ordering::Relaxed))
}

/// Whether weights in 8-bit integers ([`pack_weight_int8`](crate::pack_weight_int8)) are multiplied by instructions for them
/// (AVX-512 VNNI), within [`limit`].
#[inline]
pub fn multiplies_bytes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return level() >= Level::Avx512 && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The best instruction set that this CPU has, whatever the [`limit`] is.
pub fn highest() -> Level {
    best(u8::MAX)
}

#[inline]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn best(limit: u8) -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        #[cfg(test)]
        let limit = limit.min(tests::limit());
        if limit >= Level::Avx512 as u8
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma")
        {
            return match limit >= Level::Avx512Bf16 as u8 && is_x86_feature_detected!("avx512bf16") {
                true => Level::Avx512Bf16,
                false => Level::Avx512,
            };
        }
        if limit >= Level::Avx2 as u8 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// Whether the target has fused multiply-add without asking; elsewhere `mul_add` is a library call.
pub(crate) const BASELINE_FMA: bool = cfg!(target_arch = "aarch64");

/// Defines `fn name(args)` that runs `body::<FMA>(args)` compiled for the best instruction set.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` found every feature of this copy on this CPU.
                    $crate::simd::Level::Avx512 | $crate::simd::Level::Avx512Bf16 => {
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Baseline => {}
                }
            }
            $body::<{ $crate::simd::BASELINE_FMA }>($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// Running sums of a reduction: two AVX-512 registers, enough to hide the latency of an addition.
pub(crate) const LANES: usize = 32;

/// Adds up running sums in a fixed order.
#[inline(always)]
pub(crate) fn reduce(mut acc: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            acc[i] += acc[i + half];
        }
        half /= 2;
    }
    acc[0]
}

/// `a·b + c`, fused where that is an instruction.
#[inline(always)]
pub(crate) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Sum of a slice.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut acc = [0.0; LANES];
    for c in chunks {
        for i in 0..LANES {
            acc[i] += c[i];
        }
    }
    for (a, x) in acc.iter_mut().zip(tail) {
        *a += x;
    }
    reduce(acc)
}

/// Largest value of a slice, −∞ of an empty one; NaN is skipped.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut acc = [f32::NEG_INFINITY; LANES];
    for c in chunks {
        for i in 0..LANES {
            acc[i] = if c[i] > acc[i] { c[i] } else { acc[i] };
        }
    }
    for (a, &x) in acc.iter_mut().zip(tail) {
        *a = if x > *a { x } else { *a };
    }
    acc.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
}

/// `eˣ` for x ≤ 88, within 2 ulp; 0 below −87.3 (no subnormal results), NaN for NaN.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    // Adding it rounds to an integer in the low bits of the mantissa, with the exponent's bias on top.
    const MAGIC: f32 = 12_582_912.0 + 127.0;
    // ln 2 in two parts; products of the first with small integers are exact, with or without FMA.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Minimax of (eʳ − 1 − r)/r² on |r| ≤ ln 2 / 2.
    const P: [f32; 5] = [0.5, 0.166_665_78, 0.041_666_854, 0.008_363_146, 0.001_390_128_7];
    // Written so that a NaN stays.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let biased = madd::<FMA>(clamped, std::f32::consts::LOG2_E, MAGIC);
    let n = biased - MAGIC;
    let r = madd::<FMA>(n, -LN2_LO, madd::<FMA>(n, -LN2_HI, clamped));
    let mut p = P[4];
    for c in [P[3], P[2], P[1], P[0]] {
        p = madd::<FMA>(p, r, c);
    }
    let p = madd::<FMA>(p * r, r, r) + 1.0;
    let y = p * f32::from_bits(biased.to_bits() << 23);
    if x < LOWEST { 0.0 } else { y }
}

/// The standard normal distribution at `x`: (probability below `x`, density), both within a few ulp
/// also in the left tail, where `½(1 + erf)` would cancel.
#[inline(always)]
pub(crate) fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    // Minimax of eᵗ²·erfc(t) on 0 ≤ t ≤ 10.2 as a polynomial of u = (t − 3)/(t + 3).
    const P: [f32; 11] = [
        0.179_001_15,
        -0.326_233_57,
        0.245_603_8,
        -0.150_115_79,
        0.071_665_86,
        -0.024_394_23,
        0.004_268_876_3,
        0.000_715_731_06,
        -0.000_594_569_54,
        2.888_032_4e-5,
        5.591_593_4e-5,
    ];
    const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
    // Beyond, both tails are zero in f32; NaN stays.
    let a = x.abs();
    let a = if a > 14.4 { 14.4 } else { a };
    let t = a * std::f32::consts::FRAC_1_SQRT_2;
    let u = (t - 3.0) / (t + 3.0);
    let mut p = P[10];
    for i in (0..10).rev() {
        p = madd::<FMA>(p, u, P[i]);
    }
    // What a² loses by rounding is a relative error of the exponential: give it back.
    let square = a * a;
    let lost = if FMA { a.mul_add(a, -square) } else { 0.0 };
    let e = exp::<FMA>(-0.5 * square) * (1.0 - 0.5 * lost);
    let tail = 0.5 * e * p;
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    (below, e * FRAC_1_SQRT_2PI)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    /// What `BEIT2_TEST_SIMD` keeps the tests of this crate at.
    pub(super) fn limit() -> u8 {
        static LIMIT: LazyLock<Level> = LazyLock::new(|| match std::env::var_os("BEIT2_TEST_SIMD") {
            None => Level::Avx512Bf16,
            Some(name) => {
                let level = name.to_str().and_then(Level::named);
                level.unwrap_or_else(|| panic!("BEIT2_TEST_SIMD: no instruction set {}", name.display()))
            }
        });
        *LIMIT as u8
    }

    fn steps(from: f32, to: f32, n: usize) -> impl Iterator<Item = f32> {
        (0..=n).map(move |i| from + (to - from) * i as f32 / n as f32)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for x in steps(-87.0, 80.0, 1_000_003) {
            let want = libm::exp(x as f64);
            for got in [exp::<true>(x), exp::<false>(x)] {
                worst = worst.max(((got as f64 - want) / want).abs());
            }
        }
        println!("exp: worst relative error {worst:.2e}");
        assert!(worst < 2.0 * f32::EPSILON as f64, "{worst:e}");
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn normal_matches_erfc_in_both_tails() {
        let (mut below, mut density) = (0.0f64, 0.0f64);
        for x in steps(-12.0, 12.0, 1_000_003) {
            let wide = x as f64;
            let want = 0.5 * libm::erfc(-wide / std::f64::consts::SQRT_2);
            let (got, pdf) = normal::<true>(x);
            below = below.max(((got as f64 - want) / want).abs());
            let want = (-0.5 * wide * wide).exp() / (2.0 * std::f64::consts::PI).sqrt();
            density = density.max(((pdf as f64 - want) / want).abs());
        }
        println!("normal: worst relative error {below:.2e}, density {density:.2e}");
        assert!(below < 6e-7 && density < 4e-7, "{below:e} {density:e}");
        for x in steps(-8.0, 8.0, 100_003) {
            let want = 0.5 * libm::erfc(-x as f64 / std::f64::consts::SQRT_2);
            assert!((normal::<false>(x).0 as f64 - want).abs() < 1.5e-7);
        }
        assert_eq!(normal::<true>(f32::INFINITY), (1.0, 0.0));
        assert_eq!(normal::<true>(f32::NEG_INFINITY), (0.0, 0.0));
        assert!(normal::<true>(f32::NAN).0.is_nan());
    }

    #[test]
    fn sums_and_maxima_of_odd_lengths() {
        for n in [0, 1, 31, 32, 33, 197] {
            let x: Vec<f32> = (0..n).map(|i| (i * 7 % 11) as f32 - 3.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
