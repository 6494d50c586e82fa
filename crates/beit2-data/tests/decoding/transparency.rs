//! What becomes of alpha.

use beit2_data::{Background, DecodeOptions, decode};

use super::files::{Field, TiffFile, png, tags};

fn on(bytes: &[u8], background: Background) -> Vec<u8> {
    decode(bytes, &DecodeOptions { background, ..super::files::with("full") }).unwrap().data
}

/// White, black and dropped.
fn all(bytes: &[u8]) -> [Vec<u8>; 3] {
    [Background::White, Background::Black, Background::Drop].map(|background| on(bytes, background))
}

/// 100·128/255 = 50.2, and 127 more in front of white; 200·1/255 = 0.78.
const RGBA: [u8; 12] = [100, 0, 255, 128, 10, 20, 30, 0, 200, 201, 202, 1];
const WHITE: [u8; 9] = [177, 127, 255, 255, 255, 255, 255, 255, 255];
const BLACK: [u8; 9] = [50, 0, 128, 0, 0, 0, 1, 1, 1];
const DROPPED: [u8; 9] = [100, 0, 255, 10, 20, 30, 200, 201, 202];

#[test]
fn rgba_in_png_webp_and_tiff() {
    let mut webp = Vec::new();
    image::codecs::webp::WebPEncoder::new_lossless(&mut webp)
        .encode(&RGBA, 3, 1, image::ExtendedColorType::Rgba8)
        .unwrap();
    let wide: Vec<u8> = RGBA.iter().flat_map(|&value| [value, value]).collect();
    let tiff = |bits: u16, data: Vec<u8>| {
        let mut tags = tags(3, 1, bits, 2, 4, 1);
        tags.push((338, Field::Short(vec![2])));
        TiffFile::one(tags, vec![data]).bytes()
    };
    for bytes in [
        png((3, 1), png::ColorType::Rgba, png::BitDepth::Eight, None, &RGBA),
        png((3, 1), png::ColorType::Rgba, png::BitDepth::Sixteen, None, &wide),
        tiff(8, RGBA.to_vec()),
        tiff(16, wide.clone()),
        webp,
    ] {
        assert_eq!(all(&bytes), [WHITE.to_vec(), BLACK.to_vec(), DROPPED.to_vec()]);
    }
}

#[test]
fn palette_and_grey() {
    let palette = Some((vec![100, 0, 255, 10, 20, 30], vec![128, 0]));
    let bytes = png((2, 1), png::ColorType::Indexed, png::BitDepth::Eight, palette, &[0, 1]);
    assert_eq!(all(&bytes), [WHITE[..6].to_vec(), BLACK[..6].to_vec(), DROPPED[..6].to_vec()]);
    let gray = png((2, 1), png::ColorType::GrayscaleAlpha, png::BitDepth::Eight, None, &[100, 128, 7, 255]);
    assert_eq!(
        all(&gray),
        [vec![177, 177, 177, 7, 7, 7], vec![50, 50, 50, 7, 7, 7], vec![100, 100, 100, 7, 7, 7]]
    );
    let mut tags = tags(2, 1, 8, 1, 2, 1);
    tags.push((338, Field::Short(vec![2])));
    let tiff = TiffFile::one(tags, vec![vec![100, 128, 7, 255]]).bytes();
    assert_eq!(all(&tiff), all(&gray));
}

#[test]
fn colours_that_are_already_multiplied() {
    let mut tags = tags(2, 1, 8, 2, 4, 1);
    tags.push((338, Field::Short(vec![1])));
    // 50 of 128 is 99 of 255 (Pillow truncates 99.6); nothing of nothing is black.
    let bytes = TiffFile::one(tags, vec![vec![50, 0, 128, 128, 0, 0, 0, 0]]).bytes();
    assert_eq!(
        all(&bytes),
        [vec![177, 127, 255, 255, 255, 255], vec![50, 0, 128, 0, 0, 0], vec![99, 0, 255, 0, 0, 0]]
    );
}

#[test]
fn an_image_without_alpha_has_no_background() {
    let bytes = png((1, 1), png::ColorType::Rgb, png::BitDepth::Eight, None, &[1, 2, 3]);
    assert_eq!(all(&bytes), [vec![1, 2, 3], vec![1, 2, 3], vec![1, 2, 3]]);
}
