//! Element types of operands in memory, and how vectors of them are read.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::register::{Register, mask};

/// An element type of operands in memory.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Its value.
    fn value(self) -> f32;

    /// `n` ≤ 16 elements from `x` in the lower half and `m` from `y` in the upper, as bf16 (nearest,
    /// ties to even; subnormal numbers become 0).
    ///
    /// # Safety
    /// The elements can be read, and the CPU has AVX-512 F, BW, VL and BF16.
    unsafe fn narrow(x: *const Self, n: usize, y: *const Self, m: usize) -> __m512i;

    /// `n` elements from `x` as f32, at most a register.
    ///
    /// # Safety
    /// The elements can be read, and the CPU has the register's instructions.
    unsafe fn wide<R: Register>(x: *const Self, n: usize) -> R;
}

impl Element for f32 {
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn narrow(x: *const Self, n: usize, y: *const Self, m: usize) -> __m512i {
        // SAFETY: lanes outside the masks are not read; both types are 512 bits.
        unsafe {
            let (low, high) = (_mm512_maskz_loadu_ps(mask(n), x), _mm512_maskz_loadu_ps(mask(m), y));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[inline(always)]
    unsafe fn wide<R: Register>(x: *const Self, n: usize) -> R {
        // SAFETY: the caller's promise.
        unsafe { R::load_some(x, n) }
    }
}

impl Element for bf16 {
    fn value(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn narrow(x: *const Self, n: usize, y: *const Self, m: usize) -> __m512i {
        // SAFETY: lanes outside the masks are not read.
        unsafe {
            let low = _mm256_maskz_loadu_epi16(mask(n), x.cast());
            let high = _mm256_maskz_loadu_epi16(mask(m), y.cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    #[inline(always)]
    unsafe fn wide<R: Register>(x: *const Self, n: usize) -> R {
        // SAFETY: the caller's promise.
        unsafe { R::widen_some(x, n) }
    }
}
