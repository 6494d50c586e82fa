//! RGB to hue, saturation and value and back, with OpenCV's arithmetic on 8-bit values: hue in steps of
//! 2 degrees (0 to 179), saturation and value 0 to 255.
//!
//! Both directions are equal to `cv2.cvtColor` for every input (a test compares fingerprints of all 16.8
//! and 11.8 million results).
//!
//! Differs from upstream: on the way back, OpenCV's vector code cuts fractions off and its code for the last
//! (width mod 32) pixels of a row rounds, on CPUs with AVX2. Here all pixels are cut off.

/// Fraction bits of the division tables.
const BITS: u32 = 12;
/// One half, to round a product with a table entry.
const HALF: i32 = 1 << (BITS - 1);
/// 255 / value.
static PER_VALUE: [i32; 256] = quotients(255 << BITS);
/// 30 / range: a sixth of the colour circle is 30 steps of hue.
static PER_RANGE: [i32; 256] = quotients(30 << BITS);

/// `dividend / i` to the nearest, ties to even; 0 for i = 0.
const fn quotients(dividend: i32) -> [i32; 256] {
    let mut table = [0; 256];
    let mut i = 1;
    while i < 256 {
        let (whole, rest) = (dividend / i, dividend % i);
        let up = 2 * rest > i || (2 * rest == i && whole % 2 == 1);
        table[i as usize] = whole + up as i32;
        i += 1;
    }
    table
}

/// RGB to `[hue, saturation, value]`.
#[inline(always)]
pub(super) fn from_rgb(rgb: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = rgb.map(i32::from);
    let value = r.max(g).max(b);
    let range = value - r.min(g).min(b);
    let saturation = (range * PER_VALUE[(value & 255) as usize] + HALF) >> BITS;
    let sector = if value == r {
        g - b
    } else if value == g {
        b - r + 2 * range
    } else {
        r - g + 4 * range
    };
    let hue = (sector * PER_RANGE[(range & 255) as usize] + HALF) >> BITS;
    let hue = if hue < 0 { hue + 180 } else { hue };
    [hue as u8, saturation as u8, value as u8]
}

/// `[hue, saturation, value]` to RGB. A hue from 180 on is taken modulo 180.
#[inline(always)]
pub(super) fn to_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    let place = f32::from(hue) * (1.0 / 30.0);
    let sector = place as u8;
    let within = place - f32::from(sector);
    let saturation = f32::from(saturation) * (1.0 / 255.0);
    let value = f32::from(value) * (1.0 / 255.0);
    // Why f64: OpenCV's vector code rounds product and difference once, together. A product of two f32 is
    // exact in f64.
    let without = |share: f32| (1.0 - f64::from(saturation) * f64::from(share)) as f32;
    let scaled = |level: f32| (level * 255.0) as u8;
    let high = scaled(value);
    let low = scaled(value * (1.0 - saturation));
    let falling = scaled(value * without(within));
    let rising = scaled(value * without(1.0 - within));
    match sector % 6 {
        0 => [high, rising, low],
        1 => [falling, high, low],
        2 => [low, high, rising],
        3 => [low, falling, high],
        4 => [rising, low, high],
        _ => [high, low, falling],
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn pure_colours() {
        assert_eq!(from_rgb([255, 0, 0]), [0, 255, 255]);
        assert_eq!(from_rgb([0, 255, 0]), [60, 255, 255]);
        assert_eq!(from_rgb([0, 0, 128]), [120, 255, 128]);
        assert_eq!(from_rgb([255, 0, 255]), [150, 255, 255]);
        assert_eq!(from_rgb([77, 77, 77]), [0, 0, 77]);
        assert_eq!(from_rgb([0, 0, 0]), [0, 0, 0]);
        for rgb in [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]] {
            assert_eq!(to_rgb(from_rgb(rgb)), rgb);
        }
        assert_eq!(to_rgb([180, 255, 255]), [255, 0, 0]);
    }

    /// All inputs with the first number below `n`, in order.
    fn all(n: u16) -> impl Iterator<Item = [u8; 3]> {
        let triple = |at: u32| [(at >> 16) as u8, (at >> 8) as u8, at as u8];
        (0..u32::from(n) << 16).map(triple)
    }

    /// The fingerprint that `scripts/record_segment_data.py` took of OpenCV's results.
    fn recorded(name: &str) -> String {
        let record: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/segment.json")).unwrap();
        record["sha256"][name].as_str().unwrap().to_owned()
    }

    fn fingerprint(results: impl Iterator<Item = [u8; 3]>) -> String {
        let bytes: Vec<u8> = results.flatten().collect();
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn every_colour_as_in_opencv() {
        assert_eq!(fingerprint(all(256).map(from_rgb)), recorded("rgb_to_hsv"));
        assert_eq!(fingerprint(all(180).map(to_rgb)), recorded("hsv_to_rgb"));
    }
}
