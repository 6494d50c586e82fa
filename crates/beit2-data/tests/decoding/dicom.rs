//! DICOM files: small ones made here, and those of pydicom (scripts/compare_dicom.py) when `BEIT2_DICOM` names them.

use beit2_data::{DecodeOptions, decode, decode_with_facts};

use super::files::{colors, grays, refused, with};

/// A file of explicit VR, little endian: (group, element, VR, value).
fn dicom(elements: &[(u16, u16, &[u8; 2], Vec<u8>)]) -> Vec<u8> {
    let element = |group: u16, number: u16, vr: &[u8; 2], value: &[u8]| -> Vec<u8> {
        let mut value = value.to_vec();
        if value.len() % 2 == 1 {
            value.push(if vr == b"UI" { 0 } else { b' ' });
        }
        let mut out = [group.to_le_bytes(), number.to_le_bytes(), *vr].concat();
        match vr {
            b"OB" | b"OW" => {
                out.extend([0, 0]);
                out.extend((value.len() as u32).to_le_bytes());
            }
            _ => out.extend((value.len() as u16).to_le_bytes()),
        }
        out.extend(value);
        out
    };
    let mut meta = element(2, 1, b"OB", &[0, 1]);
    meta.extend(element(2, 2, b"UI", b"1.2.840.10008.5.1.4.1.1.7"));
    meta.extend(element(2, 3, b"UI", b"1.2.3"));
    meta.extend(element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1"));
    meta.extend(element(2, 0x12, b"UI", b"1.2.3"));
    let mut out = vec![0; 128];
    out.extend(b"DICM");
    out.extend(element(2, 0, b"UL", &(meta.len() as u32).to_le_bytes()));
    out.extend(meta);
    let mut sorted: Vec<_> = elements.iter().collect();
    sorted.sort_by_key(|(group, number, ..)| (*group, *number));
    sorted.into_iter().for_each(|(group, number, vr, value)| out.extend(element(*group, *number, vr, value)));
    out
}

type Element = (u16, u16, &'static [u8; 2], Vec<u8>);

fn short(number: u16, value: u16) -> Element {
    (0x28, number, b"US", value.to_le_bytes().to_vec())
}

fn text(number: u16, value: &str) -> Element {
    (0x28, number, b"DS", value.as_bytes().to_vec())
}

/// A row of grey pixels of 16 bits, of which `stored` are used.
fn row(values: &[i16], stored: u16, signed: u16, photometric: &str, more: Vec<Element>) -> Vec<u8> {
    let mut elements = vec![
        short(2, 1),
        (0x28, 4, b"CS", photometric.as_bytes().to_vec()),
        short(0x10, 1),
        short(0x11, values.len() as u16),
        short(0x100, 16),
        short(0x101, stored),
        short(0x102, stored - 1),
        short(0x103, signed),
        (0x7FE0, 0x10, b"OW", values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    ];
    elements.extend(more);
    dicom(&elements)
}

#[test]
fn dicom_values_are_rescaled_and_shown_by_the_window() {
    // −1000, 0 and 400 Hounsfield units, stored with an offset of 1024; window −200 to 300 (PS3.3, C.11.2.1.2).
    let hu = vec![text(0x1052, "-1024"), text(0x1053, "1")];
    let bytes = row(&[24, 1024, 1424], 12, 0, "MONOCHROME2", hu);
    assert!(
        refused(&bytes, "auto").contains("rescaled 12-bit values from -1000 to 400"),
        "{}",
        refused(&bytes, "auto")
    );
    assert!(refused(&bytes, "auto").contains("full (all of -1024 to 3071)"));
    assert_eq!(grays(&bytes, "-1000,400"), [0, 182, 255]);
    assert_eq!(grays(&bytes, "full"), [1, 64, 89]); // 24, 1024 and 1424 of 4095
    let windowed = vec![text(0x1052, "-1024"), text(0x1053, "1"), text(0x1050, "50"), text(0x1051, "501")];
    let bytes = row(&[24, 1024, 1424, 1073], 12, 0, "MONOCHROME2", windowed.clone());
    // From −200.5 to 299.5.
    assert_eq!(grays(&bytes, "auto"), [0, 102, 255, 127]);
    assert_eq!(
        grays(&row(&[24, 1024, 1424, 1073], 12, 0, "MONOCHROME1", windowed), "auto"),
        [255, 153, 0, 128]
    );
}

#[test]
fn dicom_bits_signs_and_frames() {
    // Twelve bits with a sign; the four above them do not count.
    let bytes = row(&[0x0FFF, 0x7000 | 1, 0x0800], 12, 1, "MONOCHROME2", vec![]);
    assert!(
        refused(&bytes, "auto").contains("signed 12-bit values from -2048 to 1"),
        "{}",
        refused(&bytes, "auto")
    );
    assert_eq!(grays(&bytes, "full"), [127, 128, 0]);
    assert_eq!(grays(&row(&[0, 7, 255], 16, 0, "MONOCHROME2", vec![]), "auto"), [0, 7, 255]);
    let mut two = row(&[1, 2, 3, 4], 16, 0, "MONOCHROME2", vec![(0x28, 8, b"IS", b"2".to_vec())]);
    // Two columns instead of four: two frames.
    let columns = two.windows(4).position(|four| four == [0x28, 0, 0x11, 0]).unwrap();
    two[columns + 8] = 2;
    let (image, facts) = decode_with_facts(&two, &DecodeOptions::default()).unwrap();
    assert_eq!((image.data, facts.pages, facts.format), (vec![1, 1, 1, 2, 2, 2], 2, "DICOM"));
}

#[test]
fn dicom_colours() {
    let color = |photometric: &str, planar: u16, data: Vec<u8>| {
        dicom(&[
            short(2, 3),
            (0x28, 4, b"CS", photometric.as_bytes().to_vec()),
            short(6, planar),
            short(0x10, 1),
            short(0x11, 2),
            short(0x100, 8),
            short(0x101, 8),
            short(0x102, 7),
            short(0x103, 0),
            (0x7FE0, 0x10, b"OB", data),
        ])
    };
    assert_eq!(colors(&color("RGB", 0, vec![1, 2, 3, 4, 5, 6]), "auto"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(colors(&color("RGB", 1, vec![1, 4, 2, 5, 3, 6]), "auto"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(
        colors(&color("YBR_FULL", 0, vec![128, 128, 128, 76, 85, 255]), "auto"),
        [128, 128, 128, 254, 0, 0]
    );
    assert!(refused(&color("YBR_FULL_422", 0, vec![0; 6]), "auto").contains("subsampled YCbCr DICOM"));
}

#[test]
fn broken_dicom_files_never_panic() {
    let bytes = row(&[0, 7, 255], 16, 0, "MONOCHROME2", vec![text(0x1050, "50"), text(0x1051, "501")]);
    let whole = decode(&bytes, &DecodeOptions::default()).unwrap();
    for length in (132..bytes.len()).step_by(3) {
        if let Ok(cut) = decode(&bytes[..length], &DecodeOptions::default()) {
            assert_eq!(cut, whole);
        }
        let mut damaged = bytes.clone();
        damaged[length] ^= 0xFF;
        let _ = decode(&damaged, &DecodeOptions { max_pixels: 1 << 20, ..DecodeOptions::default() });
    }
    assert!(refused(&bytes[..140], "auto").contains("DICOM"), "{}", refused(&bytes[..140], "auto"));
}

/// Every file that has a `.rgb` beside it: the pixels, and `NAME.rule`: the range and the largest difference.
#[test]
fn dicom_files_as_in_pydicom() {
    let Some(folder) = std::env::var_os("BEIT2_DICOM") else {
        super::common::checks::skip("BEIT2_DICOM is not set; scripts/compare_dicom.py makes the folder");
        return;
    };
    let mut compared = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let beside = |ending: &str| format!("{}.{ending}", path.display());
        let Ok(expected) = std::fs::read(beside("rgb")) else {
            continue;
        };
        let rule = std::fs::read_to_string(beside("rule")).unwrap();
        let (range, tolerance) = rule.trim().split_once(' ').unwrap();
        let found = decode(&std::fs::read(&path).unwrap(), &with(range));
        // A refusal is no wrong pixel.
        let found = match found {
            Ok(image) => image.data,
            Err(error) => {
                println!("{}: {error}", path.display());
                continue;
            }
        };
        assert_eq!(found.len(), expected.len(), "{}", path.display());
        let largest = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(largest <= tolerance.parse().unwrap(), "{} differs by {largest}", path.display());
        compared += 1;
    }
    println!("{compared} files");
    assert!(compared >= 50);
}
