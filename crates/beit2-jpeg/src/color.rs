//! Luma and chroma to RGB: JFIF's equations in 16-bit fixed point, rounded once per term as libjpeg does.

/// A row's samples; chroma is offset by 128. Longer than the row is allowed.
#[derive(Clone, Copy)]
pub(crate) struct Colors<'a> {
    pub(crate) luma: &'a [u8],
    pub(crate) cb: &'a [u8],
    pub(crate) cr: &'a [u8],
}

/// The equations' factors times 2¹⁶.
mod factor {
    /// 1.402, of Cr in red.
    pub(super) const CR_RED: i32 = 91_881;
    /// 1.772, of Cb in blue.
    pub(super) const CB_BLUE: i32 = 116_130;
    /// -0.34414, of Cb in green.
    pub(super) const CB_GREEN: i32 = -22_554;
    /// -0.71414, of Cr in green.
    pub(super) const CR_GREEN: i32 = -46_802;
}

const BITS: u32 = 16;
const HALF: i32 = 1 << (BITS - 1);

/// Writes a row of pixels, `out.len() / 3` of them.
pub(crate) fn to_rgb(colors: Colors<'_>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was just detected.
        let done = unsafe { x86::to_rgb(colors, out) };
        let Colors { luma, cb, cr } = colors;
        return plain(Colors { luma: &luma[done..], cb: &cb[done..], cr: &cr[done..] }, &mut out[done * 3..]);
    }
    plain(colors, out);
}

fn plain(colors: Colors<'_>, out: &mut [u8]) {
    let samples = colors.luma.iter().zip(colors.cb).zip(colors.cr);
    for (pixel, ((&luma, &cb), &cr)) in out.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        let (luma, cb, cr) = (i32::from(luma), i32::from(cb) - 128, i32::from(cr) - 128);
        let red = luma + ((factor::CR_RED * cr + HALF) >> BITS);
        let green = luma + ((factor::CB_GREEN * cb + factor::CR_GREEN * cr + HALF) >> BITS);
        let blue = luma + ((factor::CB_BLUE * cb + HALF) >> BITS);
        *pixel = [red, green, blue].map(|value| value.clamp(0, 255) as u8);
    }
}

/// Writes a row of grey pixels.
pub(crate) fn gray_to_rgb(luma: &[u8], out: &mut [u8]) {
    for (pixel, &value) in out.as_chunks_mut::<3>().0.iter_mut().zip(luma) {
        *pixel = [value; 3];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Colors, HALF, factor};

    /// Factors without their whole part, which is added as such: what is left fits into 16 bits.
    const CR_RED: i16 = (factor::CR_RED - (1 << 16)) as i16;
    const CB_BLUE: i16 = (factor::CB_BLUE - (2 << 16)) as i16;
    const CB_GREEN: i16 = factor::CB_GREEN as i16;
    const CR_GREEN: i16 = (factor::CR_GREEN + (1 << 16)) as i16;

    /// Pixels at a time.
    const LANES: usize = 16;

    /// [`super::to_rgb`] for as many whole groups of 16 pixels as there are; how many pixels that were.
    #[target_feature(enable = "avx2")]
    pub(super) fn to_rgb(colors: Colors<'_>, out: &mut [u8]) -> usize {
        let groups = out.as_chunks_mut::<{ LANES * 3 }>().0;
        let done = groups.len() * LANES;
        let (luma, _) = colors.luma[..done].as_chunks::<LANES>();
        let (cb, _) = colors.cb[..done].as_chunks::<LANES>();
        let (cr, _) = colors.cr[..done].as_chunks::<LANES>();
        for (((out, luma), cb), cr) in groups.iter_mut().zip(luma).zip(cb).zip(cr) {
            interleave(sixteen(luma, cb, cr), out);
        }
        done
    }

    /// Red, green and blue of 16 pixels.
    #[target_feature(enable = "avx2")]
    fn sixteen(luma: &[u8; LANES], cb: &[u8; LANES], cr: &[u8; LANES]) -> [__m128i; 3] {
        let wide = |values: &[u8; LANES]| {
            // SAFETY: 16 bytes are read of 16.
            _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
        };
        let center = _mm256_set1_epi16(128);
        let (luma, cb, cr) =
            (wide(luma), _mm256_sub_epi16(wide(cb), center), _mm256_sub_epi16(wide(cr), center));
        // (x·f + 2¹⁵) / 2¹⁶ = ((2x·f) / 2¹⁶ + 1) / 2, both rounded down.
        let one = _mm256_set1_epi16(1);
        let scaled = |x: __m256i, f: i16| {
            let product = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(f));
            _mm256_srai_epi16::<1>(_mm256_add_epi16(product, one))
        };
        let red = _mm256_add_epi16(luma, _mm256_add_epi16(cr, scaled(cr, CR_RED)));
        let blue = _mm256_add_epi16(luma, _mm256_add_epi16(_mm256_add_epi16(cb, cb), scaled(cb, CB_BLUE)));
        let factors = _mm256_set1_epi32((CB_GREEN as u16 as u32 | (CR_GREEN as u16 as u32) << 16) as i32);
        let sum = |both| {
            let wide = _mm256_add_epi32(_mm256_madd_epi16(both, factors), _mm256_set1_epi32(HALF));
            _mm256_srai_epi32::<16>(wide)
        };
        let mixed =
            _mm256_packs_epi32(sum(_mm256_unpacklo_epi16(cb, cr)), sum(_mm256_unpackhi_epi16(cb, cr)));
        let green = _mm256_add_epi16(luma, _mm256_sub_epi16(mixed, cr));
        let bytes = |wide: __m256i| {
            _mm_packus_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide))
        };
        [bytes(red), bytes(green), bytes(blue)]
    }

    /// Writes three planes pixel by pixel.
    #[target_feature(enable = "avx2")]
    fn interleave(planes: [__m128i; 3], out: &mut [u8; LANES * 3]) {
        for (part, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut bytes = _mm_setzero_si128();
            for (plane, order) in planes.iter().zip(&ORDER[part]) {
                // SAFETY: 16 bytes are read of 16.
                let order = unsafe { _mm_loadu_si128(order.as_ptr().cast()) };
                bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(*plane, order));
            }
            // SAFETY: 16 bytes are written to 16.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
        }
    }

    /// By sixteen bytes of output and plane: which of the plane's bytes goes where; 0x80: none.
    const ORDER: [[[u8; LANES]; 3]; 3] = order();

    const fn order() -> [[[u8; LANES]; 3]; 3] {
        let mut order = [[[0x80; LANES]; 3]; 3];
        let mut at = 0;
        while at < LANES * 3 {
            order[at / LANES][at % 3][at % LANES] = (at / 3) as u8;
            at += 1;
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_color_is_as_in_the_plain_form() {
        let all: Vec<u8> = (0..=255).collect();
        for luma in 0..=255 {
            for cb in 0..=255 {
                let colors = Colors { luma: &[luma; 256], cb: &[cb; 256], cr: &all };
                let (mut fast, mut slow) = ([0; 256 * 3], [0; 256 * 3]);
                to_rgb(colors, &mut fast);
                plain(colors, &mut slow);
                assert_eq!(fast, slow, "{luma} {cb}");
            }
        }
    }

    #[test]
    fn known_colors() {
        let convert = |luma, cb, cr| {
            let mut out = [0; 3];
            to_rgb(Colors { luma: &[luma], cb: &[cb], cr: &[cr] }, &mut out);
            out
        };
        assert_eq!(convert(77, 128, 128), [77; 3]);
        // Pillow 13: Image.new("YCbCr", (1, 1), (76, 85, 255)).convert("RGB") is (254, 0, 0).
        assert_eq!(convert(76, 85, 255), [254, 0, 0]);
    }
}
