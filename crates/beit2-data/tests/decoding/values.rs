//! Values of more than 8 bits, of every numeric type.

use super::files::{colors, gray16, grays, plain, png, refused};

fn le16(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn sixteen_bits_that_do_not_fit_are_an_error_that_says_what_to_do() {
    let bytes = gray16((3, 1), &[0, 100, 4095]);
    assert_eq!(
        refused(&bytes, "auto"),
        "the image has 16-bit values from 0 to 4095, but 8 bits hold 0 to 255; choose with data.range (--range) how they \
         are mapped: full (all of 0 to 65535), [0, 4095] or other bounds for all images, percentile (of each image), or \
         8bit (as Pillow, which cuts grey at 255)"
    );
    assert_eq!(grays(&bytes, "full"), [0, 0, 16]); // 4095 / 257 = 15.93
    assert_eq!(grays(&bytes, "0,4095"), [0, 6, 255]); // 100 · 255/4095 = 6.23
    assert_eq!(grays(&bytes, "100,200"), [0, 0, 255]);
    assert_eq!(grays(&bytes, "8bit"), [0, 100, 255]);
}

#[test]
fn eight_bits_in_sixteen_are_as_they_are() {
    let bytes = gray16((3, 1), &[0, 100, 255]);
    assert_eq!(grays(&bytes, "auto"), [0, 100, 255]);
    assert_eq!(grays(&bytes, "8bit"), [0, 100, 255]);
}

/// Every value of 8 bits, times 257, is itself in every 16-bit format.
#[test]
fn a_sixteen_bit_twin_is_equal_to_the_byte() {
    let levels: Vec<u8> = (0..=255).collect();
    let wide: Vec<u16> = levels.iter().map(|&level| u16::from(level) * 257).collect();
    let big: Vec<u8> = wide.iter().flat_map(|value| value.to_be_bytes()).collect();
    let gray = [
        gray16((16, 16), &wide),
        plain((16, 16), 16, 1, 1, 1, le16(&wide)),
        [b"P5 16 16 65535\n".as_slice(), &big].concat(),
    ];
    for bytes in gray {
        assert_eq!(grays(&bytes, "full"), levels);
        assert_eq!(grays(&bytes, "0,65535"), levels);
    }
    // 255 colours of three values each, and 4 · 64 with alpha, which is dropped.
    let color = [
        png((17, 5), png::ColorType::Rgb, png::BitDepth::Sixteen, None, &big[..510]),
        plain((17, 5), 16, 2, 3, 1, le16(&wide[..255])),
        [b"P6 17 5 65535\n".as_slice(), &big[..510]].concat(),
    ];
    for bytes in color {
        assert_eq!(colors(&bytes, "full"), levels[..255]);
        assert_eq!(colors(&bytes, "8bit"), levels[..255], "the reference keeps high bytes");
        assert!(
            refused(&bytes, "auto").contains("16-bit values from 0 to 65278"),
            "{}",
            refused(&bytes, "auto")
        );
    }
    let rgba = png((16, 4), png::ColorType::Rgba, png::BitDepth::Sixteen, None, &big);
    let expected: Vec<u8> = levels.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
    assert_eq!(colors(&rgba, "full"), expected);
    let gray_alpha = png((16, 8), png::ColorType::GrayscaleAlpha, png::BitDepth::Sixteen, None, &big);
    let expected: Vec<u8> = levels.iter().copied().step_by(2).collect();
    assert_eq!(grays(&gray_alpha, "full"), expected);
}

#[test]
fn floating_point_needs_a_range() {
    let bytes = plain((4, 1), 32, 1, 1, 3, f32s(&[0.0, 0.25, 0.5, 1.0]));
    assert!(
        refused(&bytes, "auto").starts_with("the image has 32-bit float values from 0 to 1, but 8 bits"),
        "{}",
        refused(&bytes, "auto")
    );
    assert_eq!(grays(&bytes, "full"), [0, 64, 128, 255]);
    assert_eq!(grays(&bytes, "0,0.5"), [0, 128, 255, 255]);
    let beyond = plain((2, 1), 32, 1, 1, 3, f32s(&[-3.5, 40.0]));
    assert_eq!(
        refused(&beyond, "full"),
        "the image has 32-bit float values from -3.5000 to 40, but range full takes 0 to 1 for floating point; give the \
         bounds as data.range = [low, high] (--range low,high), or use percentile"
    );
    assert_eq!(grays(&beyond, "-3.5,40"), [0, 255]);
    let doubles: Vec<u8> = [0.0f64, 0.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(grays(&plain((2, 1), 64, 1, 1, 3, doubles), "full"), [0, 128]);
    let color = plain((1, 1), 32, 2, 3, 3, f32s(&[0.0, 0.5, 1.0]));
    assert_eq!(colors(&color, "full"), [0, 128, 255]);
}

#[test]
fn values_that_are_no_numbers_are_named() {
    let bytes = |value: f32| plain((2, 2), 32, 1, 1, 3, f32s(&[0.0, 0.5, 0.5, value]));
    for range in ["auto", "full", "8bit", "percentile", "0,1"] {
        assert_eq!(
            refused(&bytes(f32::NAN), range),
            "pixel (1, 1) is NaN; every value must be a finite number"
        );
        assert!(refused(&bytes(f32::INFINITY), range).contains("pixel (1, 1) is infinite"));
    }
}

#[test]
fn integers_with_a_sign_and_of_32_bits() {
    let signed: Vec<u8> = [-1000i16, 0, 400, 32767].iter().flat_map(|value| value.to_le_bytes()).collect();
    let bytes = plain((4, 1), 16, 1, 1, 2, signed);
    assert!(refused(&bytes, "auto").contains("signed 16-bit values from -1000 to 32767"));
    assert!(refused(&bytes, "auto").contains("full (all of -32768 to 32767)"));
    assert_eq!(grays(&bytes, "full"), [124, 128, 129, 255]); // 31768/65535 · 255 = 123.6, 127.5, 129.06
    assert_eq!(grays(&bytes, "-1000,400"), [0, 182, 255, 255]);
    assert_eq!(grays(&bytes, "8bit"), [0, 0, 255, 255]);
    let long: Vec<u8> = [0u32, 1 << 31, u32::MAX].iter().flat_map(|value| value.to_le_bytes()).collect();
    let bytes = plain((3, 1), 32, 1, 1, 1, long);
    assert!(refused(&bytes, "auto").contains("32-bit values from 0 to 4294967295"));
    assert_eq!(grays(&bytes, "full"), [0, 128, 255]);
    let small: Vec<u8> = [0u32, 7, 255].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(grays(&plain((3, 1), 32, 1, 1, 1, small), "auto"), [0, 7, 255]);
    assert_eq!(grays(&plain((2, 1), 8, 1, 1, 2, vec![0, 127]), "auto"), [0, 127]);
    assert!(
        refused(&plain((2, 1), 8, 1, 1, 2, vec![0, 0xFF]), "auto")
            .contains("signed 8-bit values from -1 to 0")
    );
}

#[test]
fn percentiles_of_each_image() {
    // 0 to 999 with one hot pixel: ranks 4.995 and 994.005.
    let mut values: Vec<u16> = (0..1000).collect();
    values[999] = 60000;
    let bytes = gray16((40, 25), &values);
    let found = grays(&bytes, "percentile");
    let expected = |value: f64| ((value - 4.995) / (994.005 - 4.995) * 255.0).round() as u8;
    assert_eq!(
        (found[0], found[5], found[500], found[994], found[999]),
        (0, expected(5.0), expected(500.0), 255, 255)
    );
    assert_eq!(grays(&gray16((2, 1), &[900, 900]), "percentile"), [0, 0]);
    let mut sparse = vec![0; 1000];
    sparse[3] = 4000;
    assert_eq!(
        refused(&gray16((40, 25), &sparse), "percentile"),
        "the image's 0.5 and 99.5 percentiles are both 0, while its values are 0 to 4000; give bounds as data.range = \
         [low, high] (--range low,high)"
    );
    // 8-bit images are stretched too: the setting says so for all.
    assert_eq!(grays(b"P5 2 1 255\n\x32\x64", "percentile"), [0, 255]);
    assert_eq!(grays(b"P5 2 1 255\n\x32\x64", "50,150"), [0, 128]);
}

#[test]
fn pnm_with_another_white() {
    // 12 bits of a camera: stored values count, not what the decoder stretches them to.
    let mut bytes = b"P5 3 1 4095\n".to_vec();
    bytes.extend([0u16, 2048, 4095].iter().flat_map(|value| value.to_be_bytes()));
    assert!(refused(&bytes, "auto").contains("16-bit values from 0 to 4095"), "{}", refused(&bytes, "auto"));
    assert!(refused(&bytes, "auto").contains("full (all of 0 to 4095)"));
    assert_eq!(grays(&bytes, "full"), [0, 128, 255]);
    assert_eq!(grays(&bytes, "0,4095"), [0, 128, 255]);
    assert_eq!(grays(&bytes, "0,8190"), [0, 64, 128]);
    assert_eq!(colors(b"P3 1 1 1023\n0 511 1023\n", "full"), [0, 127, 255]);
    assert_eq!(grays(b"P2 3 1 15\n0 7 15\n", "auto"), [0, 119, 255]);
}
