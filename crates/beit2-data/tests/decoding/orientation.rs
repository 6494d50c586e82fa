//! EXIF orientation in every format that has it.

use std::io::Write;

use beit2_data::{DecodeOptions, ExifOrientation, Image, decode, decode_with_facts};

use super::files::{BIG, Field, LITTLE, TiffFile, png, tags};
use super::{excerpt_dir, sample};

/// Pixels 1 to 6 as stored:
///
/// ```text
/// 1 2 3
/// 4 5 6
/// ```
const STORED: [u8; 6] = [1, 2, 3, 4, 5, 6];

/// Width, height and pixels as they are seen, for the orientations 1 to 8 (EXIF 2.32, Orientation: where row 0 and column
/// 0 of the stored image are).
const SEEN: [(u32, u32, [u8; 6]); 8] = [
    (3, 2, [1, 2, 3, 4, 5, 6]), // top, left
    (3, 2, [3, 2, 1, 6, 5, 4]), // top, right
    (3, 2, [6, 5, 4, 3, 2, 1]), // bottom, right
    (3, 2, [4, 5, 6, 1, 2, 3]), // bottom, left
    (2, 3, [1, 4, 2, 5, 3, 6]), // left, top
    (2, 3, [4, 1, 5, 2, 6, 3]), // right, top
    (2, 3, [6, 3, 5, 2, 4, 1]), // right, bottom
    (2, 3, [3, 6, 2, 5, 1, 4]), // left, bottom
];

/// EXIF data with nothing but an orientation.
fn exif(orientation: u16, big_endian: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let word = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let long = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    out.extend(if big_endian { b"MM" } else { b"II" });
    out.extend(word(42));
    out.extend(long(8));
    out.extend(word(2));
    for (tag, value) in [(0x0103, 6), (0x0112, orientation)] {
        out.extend(word(tag));
        out.extend(word(3));
        out.extend(long(1));
        out.extend(word(value));
        out.extend(word(0));
    }
    out.extend(long(0));
    out
}

fn gray_png() -> Vec<u8> {
    png((3, 2), png::ColorType::Grayscale, png::BitDepth::Eight, None, &STORED)
}

/// A chunk in front of the first one of that name.
fn with_chunk(png: &[u8], before: &[u8; 4], name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let at = png.windows(4).position(|four| four == before).unwrap() - 4;
    let mut chunk = (content.len() as u32).to_be_bytes().to_vec();
    chunk.extend(name);
    chunk.extend(content);
    let mut crc = flate2::Crc::new();
    crc.update(&chunk[4..]);
    chunk.extend(crc.sum().to_be_bytes());
    [&png[..at], &chunk, &png[at..]].concat()
}

fn with_app1(jpeg: &[u8], exif: &[u8]) -> Vec<u8> {
    let mut segment = vec![0xFF, 0xE1];
    segment.extend(((exif.len() + 8) as u16).to_be_bytes());
    segment.extend(b"Exif\0\0");
    segment.extend(exif);
    [&jpeg[..2], &segment, &jpeg[2..]].concat()
}

/// A lossless WebP in the extended format with EXIF data behind the pixels.
fn webp(exif: &[u8], prefix: &[u8]) -> Vec<u8> {
    let rgb: Vec<u8> = STORED.iter().flat_map(|&value| [value; 3]).collect();
    let mut simple = Vec::new();
    image::codecs::webp::WebPEncoder::new_lossless(&mut simple)
        .encode(&rgb, 3, 2, image::ExtendedColorType::Rgb8)
        .unwrap();
    let mut body = b"WEBPVP8X\x0A\0\0\0\x08\0\0\0\x02\0\0\x01\0\0".to_vec();
    body.extend(&simple[12..]);
    let content = [prefix, exif].concat();
    body.extend(b"EXIF");
    body.extend((content.len() as u32).to_le_bytes());
    body.extend(&content);
    if content.len() % 2 == 1 {
        body.push(0);
    }
    let mut out = b"RIFF".to_vec();
    out.extend((body.len() as u32).to_le_bytes());
    out.write_all(&body).unwrap();
    out
}

fn ignoring() -> DecodeOptions {
    DecodeOptions { exif: ExifOrientation::Ignore, ..DecodeOptions::default() }
}

fn assert_seen(bytes: &[u8], orientation: u16) {
    let (width, height, pixels) = SEEN[usize::from(orientation) - 1];
    let (found, facts) = decode_with_facts(bytes, &DecodeOptions::default()).unwrap();
    let expected = pixels.iter().flat_map(|&value| [value; 3]).collect();
    assert_eq!(found, Image::new(width, height, expected).unwrap(), "{} {orientation}", facts.format);
    assert_eq!((u16::from(facts.orientation), facts.width, facts.height), (orientation, 3, 2));
    let stored = decode(bytes, &ignoring()).unwrap();
    assert_eq!((stored.width, stored.data), (3, STORED.iter().flat_map(|&value| [value; 3]).collect()));
}

#[test]
fn all_orientations_in_png_webp_and_tiff() {
    for orientation in 1..=8 {
        for big_endian in [LITTLE, BIG] {
            let exif = exif(orientation, big_endian);
            assert_seen(&with_chunk(&gray_png(), b"IDAT", b"eXIf", &exif), orientation);
            assert_seen(&with_chunk(&gray_png(), b"IEND", b"eXIf", &exif), orientation);
            assert_seen(&webp(&exif, b""), orientation);
            assert_seen(&webp(&exif, b"Exif\0\0"), orientation);
            let mut tags = tags(3, 2, 8, 1, 1, 1);
            tags.push((274, Field::Short(vec![orientation])));
            let pages = vec![(tags, vec![STORED.to_vec()])];
            assert_seen(&TiffFile { big_endian, bigtiff: big_endian, pages }.bytes(), orientation);
        }
    }
}

#[test]
fn all_orientations_of_a_jpeg() {
    let jpeg = std::fs::read(excerpt_dir().join("formats/q60_420.jpg")).unwrap();
    let stored = decode(&jpeg, &DecodeOptions::default()).unwrap();
    let (w, h) = (stored.width as usize, stored.height as usize);
    let pixel = |image: &Image, x: usize, y: usize| {
        let at = 3 * (y * image.width as usize + x);
        [image.data[at], image.data[at + 1], image.data[at + 2]]
    };
    for orientation in 1..=8 {
        let bytes = with_app1(&jpeg, &exif(orientation, BIG));
        let seen = decode(&bytes, &DecodeOptions::default()).unwrap();
        let size = if orientation >= 5 { (h, w) } else { (w, h) };
        assert_eq!((seen.width as usize, seen.height as usize), size);
        // The stored corners, told from the table above.
        let corner =
            |number: u8| SEEN[usize::from(orientation) - 1].2.iter().position(|&at| at == number).unwrap();
        for (number, x, y) in [(1, 0, 0), (3, w - 1, 0), (4, 0, h - 1), (6, w - 1, h - 1)] {
            let columns = if orientation >= 5 { 2 } else { 3 };
            let (column, row) = (corner(number) % columns, corner(number) / columns);
            let (seen_x, seen_y) =
                (if column == 0 { 0 } else { size.0 - 1 }, if row == 0 { 0 } else { size.1 - 1 });
            assert_eq!(pixel(&seen, seen_x, seen_y), pixel(&stored, x, y), "{orientation}, corner {number}");
        }
        assert_eq!(decode(&bytes, &ignoring()).unwrap(), stored);
    }
}

#[test]
fn nonsense_is_no_orientation() {
    let stored = decode(&gray_png(), &DecodeOptions::default()).unwrap();
    for orientation in [0, 9, 700] {
        let bytes = with_chunk(&gray_png(), b"IDAT", b"eXIf", &exif(orientation, LITTLE));
        assert_eq!(decode(&bytes, &DecodeOptions::default()).unwrap(), stored);
    }
    let whole = exif(6, LITTLE);
    for length in 0..whole.len() - 4 {
        let bytes = with_chunk(&gray_png(), b"IDAT", b"eXIf", &whole[..length]);
        let image = decode(&bytes, &DecodeOptions::default()).unwrap();
        assert!(image == stored || image.width == 2, "{length}");
    }
    let jpeg = sample("q60_420.jpg");
    for length in 0..whole.len() {
        decode(&with_app1(&jpeg, &whole[..length]), &DecodeOptions::default()).unwrap();
    }
}
