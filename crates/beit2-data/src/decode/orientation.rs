//! EXIF orientation: where each format keeps it, and turning an image by it.

use image::ImageFormat;

use super::ifd::Tiff;
use crate::image::Image;
use crate::transform::CropBox;

/// The tag of the orientation, in EXIF data and in TIFF files.
const ORIENTATION: u16 = 274;

/// The orientation that a file states, 1 to 8; 1 (as stored) when it says nothing or nonsense.
pub(super) fn orientation(bytes: &[u8], format: ImageFormat) -> u8 {
    let exif = match format {
        ImageFormat::Jpeg => in_jpeg(bytes),
        ImageFormat::Png => in_png(bytes),
        ImageFormat::WebP => in_webp(bytes),
        ImageFormat::Tiff => Some(bytes),
        _ => None,
    };
    exif.and_then(in_exif).unwrap_or(1)
}

/// The orientation that a JPEG states, as [`orientation`].
pub(crate) fn jpeg_orientation(bytes: &[u8]) -> u8 {
    orientation(bytes, ImageFormat::Jpeg)
}

fn in_exif(bytes: &[u8]) -> Option<u8> {
    let tiff = Tiff::open(bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes))?;
    let value = tiff.value(&tiff.first()?, ORIENTATION)?;
    u8::try_from(value).ok().filter(|value| (1..=8).contains(value))
}

/// The first APP1 segment with EXIF data in front of the first scan.
fn in_jpeg(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 2;
    loop {
        if *bytes.get(at)? != 0xFF {
            return None;
        }
        while bytes.get(at) == Some(&0xFF) {
            at += 1;
        }
        let code = *bytes.get(at)?;
        if code == 0xDA || code == 0xD9 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([*bytes.get(at + 1)?, *bytes.get(at + 2)?])).max(2);
        let content = bytes.get(at + 3..at + 1 + length)?;
        if code == 0xE1 && content.starts_with(b"Exif\0\0") {
            return Some(content);
        }
        at += 1 + length;
    }
}

/// The chunk `eXIf`, which may stand behind the pixels.
fn in_png(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 8;
    loop {
        let length = u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
        let name = bytes.get(at + 4..at + 8)?;
        let content = bytes.get(at + 8..at.checked_add(8 + length)?)?;
        match name {
            b"eXIf" => return Some(content),
            b"IEND" => return None,
            _ => at += 12 + length,
        }
    }
}

/// The chunk `EXIF` of the extended format.
fn in_webp(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    loop {
        let name = bytes.get(at..at + 4)?;
        let length = u32::from_le_bytes(*bytes.get(at + 4..)?.first_chunk()?) as usize;
        let content = bytes.get(at + 8..at.checked_add(8 + length)?)?;
        if name == b"EXIF" {
            return Some(content);
        }
        at += 8 + length + length % 2;
    }
}

/// Whether the orientation exchanges width and height.
pub(crate) fn swaps_sides(orientation: u8) -> bool {
    orientation >= 5
}

/// Where the pixels of a box of the image that is seen are stored; `size` is that of the stored image.
pub(crate) fn stored_box(area: CropBox, orientation: u8, (w, h): (u32, u32)) -> CropBox {
    let CropBox { top, left, height, width } = area;
    // Counted from the other end of a stored side, as [`orient`] does.
    let (from_right, from_bottom) =
        (|at: u32, length: u32| w - at - length, |at: u32, length: u32| h - at - length);
    let (left, top) = match orientation {
        2 => (from_right(left, width), top),
        3 => (from_right(left, width), from_bottom(top, height)),
        4 => (left, from_bottom(top, height)),
        5 => (top, left),
        6 => (top, from_bottom(left, width)),
        7 => (from_right(top, height), from_bottom(left, width)),
        8 => (from_right(top, height), left),
        _ => (left, top),
    };
    let (width, height) = if swaps_sides(orientation) { (height, width) } else { (width, height) };
    CropBox { top, left, height, width }
}

/// Turns a stored image the way it is to be seen. The channels of a pixel stay together, however many there are.
///
/// With (x, y) counted from the top left of the image that is seen, and w, h the sides of the stored one, the pixel comes
/// from: 2 (w−1−x, y), 3 (w−1−x, h−1−y), 4 (x, h−1−y), 5 (y, x), 6 (y, h−1−x), 7 (w−1−y, h−1−x), 8 (w−1−y, x).
pub(crate) fn orient(image: Image, orientation: u8) -> Image {
    if !(2..=8).contains(&orientation) || image.data.is_empty() {
        return image;
    }
    let (w, h) = (image.width as usize, image.height as usize);
    let channels = image.data.len() / (w * h);
    let (width, height) = if swaps_sides(orientation) { (h, w) } else { (w, h) };
    let mut data = Vec::with_capacity(image.data.len());
    for y in 0..height {
        for x in 0..width {
            let (from_x, from_y) = match orientation {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            let at = (from_y * w + from_x) * channels;
            data.extend_from_slice(&image.data[at..at + channels]);
        }
    }
    Image { width: width as u32, height: height as u32, data, ..image }
}

#[cfg(test)]
/// A JPEG without EXIF data, with an orientation.
pub(crate) fn with_orientation_tag(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let exif =
        [&b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]]
            .concat();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length[..], &exif[..], &jpeg[2..]].concat()
}
