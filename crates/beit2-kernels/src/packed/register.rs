//! Registers of f32 lanes: what tiles and packing need of an instruction set, written once for each width.

use std::arch::x86_64::*;

use burn::tensor::bf16;

/// A register of [`Register::LANES`] f32 values.
///
/// # Safety
/// Every function wants a CPU with the instructions of its implementation: AVX2 and FMA for `__m256`, AVX-512 F, BW and
/// VL for `__m512`. Pointers need no alignment; those of `some` lanes are used for the first `n` ≤ `LANES` values only.
pub(crate) trait Register: Copy {
    /// Values of a register.
    const LANES: usize;

    /// As many registers as one has lanes.
    type Square: Copy + AsRef<[Self]> + AsMut<[Self]>;

    /// Zeros.
    unsafe fn zero() -> Self;
    /// A square of zeros.
    unsafe fn zeros() -> Self::Square;
    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self;
    /// All lanes.
    unsafe fn load(x: *const f32) -> Self;
    /// The first `n` lanes; zeros in the others.
    unsafe fn load_some(x: *const f32, n: usize) -> Self;
    /// The first `n` lanes from bf16; zeros in the others.
    unsafe fn widen_some(x: *const bf16, n: usize) -> Self;
    /// Writes all lanes.
    unsafe fn store(self, x: *mut f32);
    /// Writes the first `n` lanes.
    unsafe fn store_some(self, x: *mut f32, n: usize);
    /// Sums lane by lane.
    unsafe fn plus(self, other: Self) -> Self;
    /// Products lane by lane.
    unsafe fn times(self, other: Self) -> Self;
    /// `a·b + self`, rounded once.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// Rows become columns.
    unsafe fn transposed(rows: Self::Square) -> Self::Square;
}

impl Register for __m512 {
    const LANES: usize = 16;

    type Square = [Self; 16];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, as in all functions below.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn zeros() -> Self::Square {
        // SAFETY: as above.
        [unsafe { _mm512_setzero_ps() }; 16]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(x: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_some(x: *const f32, n: usize) -> Self {
        // SAFETY: as above; lanes outside the mask are not read.
        unsafe { _mm512_maskz_loadu_ps(mask(n), x) }
    }

    #[inline(always)]
    unsafe fn widen_some(x: *const bf16, n: usize) -> Self {
        // SAFETY: as above; a bf16 is the upper half of an f32.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(n), x.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn store(self, x: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(x, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, x: *mut f32, n: usize) {
        // SAFETY: as above; lanes outside the mask are not written.
        unsafe { _mm512_mask_storeu_ps(x, mask(n), self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn transposed(r: Self::Square) -> Self::Square {
        // SAFETY: as above.
        unsafe {
            // Pairs of rows, then fours: each 128-bit quarter holds a 4 × 4 transpose.
            let (mut t, mut u) = (Self::zeros(), Self::zeros());
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let pd = |x| _mm512_castps_pd(x);
                let ps = |x| _mm512_castpd_ps(x);
                let (a, b, c, d) = (pd(t[4 * i]), pd(t[4 * i + 1]), pd(t[4 * i + 2]), pd(t[4 * i + 3]));
                u[4 * i] = ps(_mm512_unpacklo_pd(a, c));
                u[4 * i + 1] = ps(_mm512_unpackhi_pd(a, c));
                u[4 * i + 2] = ps(_mm512_unpacklo_pd(b, d));
                u[4 * i + 3] = ps(_mm512_unpackhi_pd(b, d));
            }
            // Quarters to their places: column 4q + j collects quarter q of u[j], u[4 + j], u[8 + j], u[12 + j].
            let mut out = Self::zeros();
            for j in 0..4 {
                let (a, b, c, d) = (u[j], u[4 + j], u[8 + j], u[12 + j]);
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
                let low2 = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
                let high2 = _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d);
                out[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low, low2);
                out[4 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low, low2);
                out[8 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high, high2);
                out[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high, high2);
            }
            out
        }
    }
}

/// The first `n` of sixteen lanes.
#[inline(always)]
pub(super) fn mask(n: usize) -> u16 {
    if n >= 16 { u16::MAX } else { (1 << n) - 1 }
}

impl Register for __m256 {
    const LANES: usize = 8;

    type Square = [Self; 8];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, as in all functions below.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn zeros() -> Self::Square {
        // SAFETY: as above.
        [unsafe { _mm256_setzero_ps() }; 8]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(x: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_some(x: *const f32, n: usize) -> Self {
        // SAFETY: as above; lanes outside the mask are not read.
        unsafe { _mm256_maskload_ps(x, lanes(n)) }
    }

    #[inline(always)]
    unsafe fn widen_some(x: *const bf16, n: usize) -> Self {
        // SAFETY: as above; a bf16 is the upper half of an f32. There is no load of some 16-bit values.
        unsafe {
            let mut values = [bf16::ZERO; 8];
            let from = if n >= 8 {
                x
            } else {
                std::ptr::copy_nonoverlapping(x, values.as_mut_ptr(), n);
                values.as_ptr()
            };
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn store(self, x: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(x, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, x: *mut f32, n: usize) {
        // SAFETY: as above; lanes outside the mask are not written.
        unsafe { _mm256_maskstore_ps(x, lanes(n), self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn transposed(r: Self::Square) -> Self::Square {
        // SAFETY: as above.
        unsafe {
            // Each 128-bit half holds a 4 × 4 transpose of four rows.
            let mut u = Self::zeros();
            for i in 0..2 {
                let [a, b, c, d] = [0, 1, 2, 3].map(|j| r[4 * i + j]);
                let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (low2, high2) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                u[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(low, low2);
                u[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(low, low2);
                u[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(high, high2);
                u[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(high, high2);
            }
            // Halves to their places: column 4h + j collects half h of u[j] and u[4 + j].
            let mut out = Self::zeros();
            for j in 0..4 {
                out[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
                out[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
            }
            out
        }
    }
}

/// The first `n` of eight lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn lanes(n: usize) -> __m256i {
    const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: eight values from the first to the ninth on lie inside; the caller vouches for the CPU.
    unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - n.min(8)).cast()) }
}
