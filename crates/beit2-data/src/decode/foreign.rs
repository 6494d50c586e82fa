//! Formats that are recognised by their content and not read, so that the message can name them.

/// The name of a format that this crate does not read, told from the first bytes (and, for TGA, the last).
#[must_use]
pub fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    const STARTS: [(&[u8], &str); 24] = [
        (b"\x00\x00\x00\x0CjP  \r\n\x87\n", "JPEG 2000 image"),
        (b"\xFF\x4F\xFF\x51", "JPEG 2000 image"),
        (b"\x00\x00\x00\x0CJXL \r\n\x87\n", "JPEG XL image"),
        (b"\xFF\x0A", "JPEG XL image"),
        (b"II\xBC", "JPEG XR image"),
        (b"8BPS", "Photoshop image"),
        (b"\x76\x2F\x31\x01", "OpenEXR image"),
        (b"#?RADIANCE", "Radiance HDR image"),
        (b"#?RGBE", "Radiance HDR image"),
        (b"qoif", "QOI image"),
        (b"DDS ", "DDS image"),
        (b"farbfeld", "farbfeld image"),
        (b"\x00\x00\x01\x00", "Windows icon"),
        (b"SIMPLE  =", "FITS image"),
        (b"FUJIFILMCCD-RAW", "Fujifilm camera raw image"),
        (b"IIRO", "Olympus camera raw image"),
        (b"IIU\0", "Panasonic camera raw image"),
        (b"%PDF", "PDF document"),
        (b"%!PS", "PostScript document"),
        (b"\x89HDF\r\n\x1A\n", "HDF5 file"),
        (b"\x93NUMPY", "NumPy array"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x1F\x8B", "gzip file"),
        (b"\x1A\x45\xDF\xA3", "Matroska or WebM video"),
    ];
    if let Some((_, name)) = STARTS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Some(name);
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return Some(iso_media(bytes));
    }
    if bytes.get(..4).is_some_and(|start| start == b"RIFF") && bytes.get(8..12) == Some(b"AVI ") {
        return Some("AVI video");
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]);
    if text.trim_start().starts_with("<svg")
        || (text.trim_start().starts_with("<?xml") && text.contains("<svg"))
    {
        return Some("SVG drawing");
    }
    if text.trim_start().to_ascii_lowercase().starts_with("<!doctype html")
        || text.trim_start().starts_with("<html")
    {
        return Some("web page");
    }
    is_tga(bytes).then_some("TGA image")
}

/// By the brands of an ISO base media file. A major brand of `mif1` says no more than "image", so the others decide.
fn iso_media(bytes: &[u8]) -> &'static str {
    let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let brands = bytes[8..length.clamp(12, 256).min(bytes.len()).max(8)].as_chunks::<4>().0;
    let any = |names: &[&[u8; 4]]| brands.iter().any(|brand| names.contains(&brand));
    if any(&[b"avif", b"avis"]) {
        "AVIF image"
    } else if any(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"]) {
        "HEIC image"
    } else if any(&[b"mif1", b"msf1"]) {
        "HEIF image"
    } else if any(&[b"crx "]) {
        "Canon camera raw image"
    } else {
        "MP4 or QuickTime video"
    }
}

/// TGA has no magic number: the footer of version 2, or a header in which every field makes sense.
fn is_tga(bytes: &[u8]) -> bool {
    if bytes.ends_with(b"TRUEVISION-XFILE.\0") {
        return true;
    }
    let Some(header) = bytes.first_chunk::<18>() else {
        return false;
    };
    let side = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (map, kind, bits) = (header[1], header[2], usize::from(header[16]));
    let map_is_sound = match map {
        0 => header[3..8] == [0; 5] && matches!(kind, 2 | 3 | 10 | 11),
        1 => side(5) > 0 && matches!(header[7], 15 | 16 | 24 | 32) && matches!(kind, 1 | 9),
        _ => false,
    };
    let pixels = side(12) * side(14) * bits.div_ceil(8);
    map_is_sound
        && matches!(bits, 8 | 15 | 16 | 24 | 32)
        && pixels > 0
        && header[17] & 0xC0 == 0
        && (kind >= 9 || bytes.len() >= 18 + pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ftyp(brands: &[&[u8; 4]]) -> Vec<u8> {
        let mut bytes = ((8 + 4 * (brands.len() + 1)) as u32).to_be_bytes().to_vec();
        bytes.extend(b"ftyp");
        bytes.extend(*brands[0]);
        bytes.extend([0; 4]);
        brands[1..].iter().for_each(|brand| bytes.extend(*brand));
        bytes
    }

    #[test]
    fn formats_by_content() {
        assert_eq!(foreign_format(&ftyp(&[b"heic", b"mif1"])), Some("HEIC image"));
        assert_eq!(foreign_format(&ftyp(&[b"mif1", b"miaf", b"heic"])), Some("HEIC image"));
        assert_eq!(foreign_format(&ftyp(&[b"mif1", b"avif"])), Some("AVIF image"));
        assert_eq!(foreign_format(&ftyp(&[b"isom", b"mp41"])), Some("MP4 or QuickTime video"));
        assert_eq!(foreign_format(b"\x00\x00\x00\x0CjP  \r\n\x87\n...."), Some("JPEG 2000 image"));
        assert_eq!(foreign_format(b"\xFF\x0A\x00"), Some("JPEG XL image"));
        assert_eq!(foreign_format(b"<svg xmlns='...'></svg>"), Some("SVG drawing"));
        let mut tga = vec![0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 24, 0];
        tga.extend([1; 6]);
        assert_eq!(foreign_format(&tga), Some("TGA image"));
        assert_eq!(foreign_format(&tga[..20]), None);
        for nothing in [b"".as_slice(), b"\0\0\0\x0Cftyp", b"hello, this is text", &[0; 40]] {
            let _ = foreign_format(nothing);
        }
        assert_eq!(foreign_format(b"hello, this is text"), None);
        assert_eq!(foreign_format(&[0; 40]), None);
    }
}
