//! Which vector instructions the transforms use: the best that this CPU has.
//!
//! Every level gives the same bits (tested), so the choice only matters for speed. The plain loops stand beside the
//! vector code and run where there is none: on other processors, and for whatever the vector code refuses.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets that there is code for, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Plain loops, compiled for what the target guarantees.
    Baseline = 1,
    /// AVX2.
    Avx2 = 2,
    /// AVX-512 F, BW, VL, VBMI and VNNI: Intel since Ice Lake, AMD since Zen 4.
    Avx512 = 3,
}

impl Level {
    /// All of them, worst first.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Avx2, Self::Avx512];
}

static LIMIT: AtomicU8 = AtomicU8::new(Level::Avx512 as u8);

/// Keeps the transforms of the whole process at or below `level`: for tests and comparisons.
pub fn limit(level: Level) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}

/// The instruction set in use: the best that this CPU has, within [`limit`].
#[inline]
#[must_use]
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let limit = LIMIT.load(Ordering::Relaxed);
        if limit >= Level::Avx512 as u8
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni")
        {
            return Level::Avx512;
        }
        if limit >= Level::Avx2 as u8 && is_x86_feature_detected!("avx2") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}
