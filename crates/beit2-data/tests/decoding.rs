//! Hostile and unusual images: one clear error each, and never a panic or a huge allocation.
#![allow(clippy::unwrap_used)]

#[path = "decoding/bands.rs"]
mod bands;
mod common;
#[cfg(feature = "dicom")]
#[path = "decoding/dicom.rs"]
mod dicom;
#[path = "decoding/files.rs"]
mod files;
#[path = "decoding/orientation.rs"]
mod orientation;
#[path = "decoding/tiffs.rs"]
mod tiffs;
#[path = "decoding/transparency.rs"]
mod transparency;
#[path = "decoding/values.rs"]
mod values;

use beit2_data::{DecodeError, DecodeOptions, decode};
use common::{excerpt_dir, noise, ppm};

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(excerpt_dir().join("formats").join(name)).unwrap()
}

fn refused(bytes: &[u8]) -> DecodeError {
    decode(bytes, &DecodeOptions::default()).unwrap_err()
}

#[test]
fn bad_files_are_named() {
    assert_eq!(refused(b""), DecodeError::Empty);
    assert_eq!(refused(&sample("text.jpg")), DecodeError::UnknownFormat);
    assert_eq!(refused(&sample("truncated.jpg")), DecodeError::Truncated { format: "JPEG" });
    assert_eq!(refused(&sample("truncated.png")), DecodeError::Truncated { format: "PNG" });
}

#[test]
fn foreign_formats_are_named() {
    assert_eq!(
        refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").to_string(),
        "this is a HEIC image, which beit2 cannot read; convert it to JPEG or PNG"
    );
    assert!(refused(b"\0\0\0\x0CjP  \r\n\x87\n").to_string().starts_with("this is a JPEG 2000 image"));
    let mut dicom = vec![0; 128];
    dicom.extend(b"DICM");
    let sentence = refused(&dicom).to_string();
    assert!(cfg!(feature = "dicom") || sentence.contains("--features dicom"), "{sentence}");
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
    let small = DecodeOptions { max_side: 29, ..DecodeOptions::default() };
    let sentence = decode(&image, &small).unwrap_err().to_string();
    assert_eq!(sentence, "the image is 30 x 20 pixels, above the limit of 178956970 pixels and 29 per side");
    let few = DecodeOptions { max_pixels: 599, ..DecodeOptions::default() };
    assert!(matches!(decode(&image, &few), Err(DecodeError::TooManyPixels { .. })));
    let short = DecodeOptions { max_file_bytes: 10, ..DecodeOptions::default() };
    assert!(matches!(decode(&image, &short), Err(DecodeError::FileTooLarge { limit: 10, .. })));
    assert!(
        decode(&image, &DecodeOptions { max_side: 30, max_pixels: 600, ..DecodeOptions::default() }).is_ok()
    );
}

#[test]
fn every_cut_is_an_error_or_the_whole_image() {
    let options = DecodeOptions::reference();
    for name in ["cmyk.jpg", "q60_420.jpg", "lossy.webp", "palette_transparent.png", "gray16.png"] {
        let bytes = sample(name);
        let whole = decode(&bytes, &options).unwrap();
        for length in 0..bytes.len() {
            if let Ok(cut) = decode(&bytes[..length], &options) {
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
            if let Ok(image) =
                decode(&damaged, &DecodeOptions { max_pixels: 1 << 22, ..DecodeOptions::reference() })
            {
                assert_eq!(image.data.len(), (image.width * image.height * 3) as usize);
            }
        }
    }
}
