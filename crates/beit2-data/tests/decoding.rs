//! Hostile and unusual images: one clear error each, and never a panic or a huge allocation.
#![allow(clippy::unwrap_used)]

mod common;

use beit2_data::{DecodeError, Gray16, Limits, decode};
use common::{excerpt_dir, noise, ppm};

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(excerpt_dir().join("formats").join(name)).unwrap()
}

fn refused(bytes: &[u8]) -> DecodeError {
    decode(bytes, &Limits::default()).unwrap_err()
}

#[test]
fn bad_files_are_named() {
    assert_eq!(refused(b""), DecodeError::Empty);
    assert_eq!(refused(&sample("text.jpg")), DecodeError::UnknownFormat);
    assert_eq!(refused(&sample("truncated.jpg")), DecodeError::Truncated { format: "JPEG" });
    assert_eq!(refused(&sample("truncated.png")), DecodeError::Truncated { format: "PNG" });
}

#[test]
fn limits_hold_before_pixels_are_allocated() {
    // A PPM header that promises 12 GB, a PNG header likewise: refused by size, not by running out
    // of data.
    let huge = b"P6 65000 65000 255\n".to_vec();
    assert!(
        matches!(refused(&huge), DecodeError::TooManyPixels { width: 65_000, height: 65_000, .. }),
        "{:?}",
        refused(&huge)
    );
    let image = ppm(&noise(30, 20, 1));
    let small = Limits { max_side: 29, ..Limits::default() };
    let sentence = decode(&image, &small).unwrap_err().to_string();
    assert_eq!(sentence, "the image is 30 x 20 pixels, above the limit of 178956970 pixels and 29 per side");
    let few = Limits { max_pixels: 599, ..Limits::default() };
    assert!(matches!(decode(&image, &few), Err(DecodeError::TooManyPixels { .. })));
    let short = Limits { max_file_bytes: 10, ..Limits::default() };
    assert!(matches!(decode(&image, &short), Err(DecodeError::FileTooLarge { limit: 10, .. })));
    assert!(decode(&image, &Limits { max_side: 30, max_pixels: 600, ..Limits::default() }).is_ok());
}

#[test]
fn sixteen_bit_gray_by_either_rule() {
    let bytes = sample("gray16.png");
    let clipped = decode(&bytes, &Limits::default()).unwrap();
    let high = decode(&bytes, &Limits { gray16: Gray16::HighByte, ..Limits::default() }).unwrap();
    assert!(clipped.data.iter().all(|&v| v == 255));
    assert_eq!(high.data[..6], [0x71, 0x71, 0x71, 0x6D, 0x6D, 0x6D]);
}

#[test]
fn every_cut_is_an_error_or_the_whole_image() {
    for name in ["cmyk.jpg", "q60_420.jpg", "lossy.webp", "palette_transparent.png", "gray16.png"] {
        let bytes = sample(name);
        let whole = decode(&bytes, &Limits::default()).unwrap();
        for length in 0..bytes.len() {
            if let Ok(cut) = decode(&bytes[..length], &Limits::default()) {
                assert_eq!(cut, whole, "{name} cut to {length} of {} bytes", bytes.len());
            }
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    for name in ["cmyk.jpg", "q60_420.jpg", "lossy.webp", "palette_transparent.png", "gray16.png"] {
        let bytes = sample(name);
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0xFF;
            if let Ok(image) = decode(&damaged, &Limits { max_pixels: 1 << 22, ..Limits::default() }) {
                assert_eq!(image.data.len(), (image.width * image.height * 3) as usize);
            }
        }
    }
}
