//! Zip files, compressed tar files, and labels in JSON members.

use std::fs;
use std::io::Write;

use beit2_data::source::open;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::tar_bytes;

const PIXEL: &[u8] = b"P6 1 1 255\nabc";

fn zip_bytes(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.add_symlink("data/cat/link.ppm", "../dog/1.ppm", SimpleFileOptions::default()).unwrap();
    writer.finish().unwrap().into_inner()
}

#[test]
fn zip_files_have_the_classes_of_their_folders() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zip");
    let long = [PIXEL, &[7; 5000]].concat();
    let members: [(&str, &[u8]); 5] = [
        ("data/dog/1.ppm", &long),
        ("data/cat/1.PPM", PIXEL),
        ("data/cat/noending", PIXEL),
        ("data/cat/x.heic", b"x"),
        ("__MACOSX/data/cat/._1.ppm", b"x"),
    ];
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        fs::write(&path, zip_bytes(&members, method)).unwrap();
        let source = open(path.to_str().unwrap()).unwrap();
        assert_eq!(source.classes(), ["cat", "dog"]);
        let labels: Vec<_> = (0..source.len()).map(|index| source.label(index)).collect();
        assert_eq!(labels, [Some(1), Some(0), Some(0), Some(0)]);
        assert_eq!(source.read(0).unwrap(), long);
        assert_eq!((source.read(2).unwrap(), source.read(3).unwrap()), (PIXEL.to_vec(), long.clone()));
        assert!(source.name(3).ends_with("x.zip:data/cat/link.ppm"));
        let account = source.account().to_string();
        assert_eq!(account, "4 used, 2 skipped: 1 .heic, 1 hidden or system file");
    }
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, &bytes).unwrap();
        if let Ok(source) = open(path.to_str().unwrap()) {
            (0..source.len()).for_each(|index| drop(source.read(index)));
        }
    }
}

#[test]
fn a_changed_byte_of_a_zip_member_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zip");
    let mut bytes = zip_bytes(&[("dog/1.ppm", PIXEL), ("cat/1.ppm", PIXEL)], CompressionMethod::Stored);
    let at = bytes.windows(PIXEL.len()).position(|window| window == PIXEL).unwrap();
    bytes[at + 12] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let source = open(path.to_str().unwrap()).unwrap();
    assert!(source.read(0).unwrap_err().to_string().contains("1.ppm"), "{}", source.read(0).unwrap_err());
    assert_eq!(source.read(1).unwrap(), PIXEL);
}

#[test]
fn compressed_tar_files_are_unpacked_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let tar = tar_bytes(&[("a/cat/1.ppm", PIXEL), ("a/dog/1.ppm", &[PIXEL, b"d"].concat())]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    let gz = gz.finish().unwrap();
    for name in ["x.tar.gz", "x.tgz", "x.tar"] {
        let path = dir.path().join(name);
        fs::write(&path, &gz).unwrap();
        let source = open(path.to_str().unwrap()).unwrap();
        assert_eq!((source.len(), source.classes()), (2, &["cat".to_owned(), "dog".to_owned()][..]));
        assert_eq!(source.read(1).unwrap(), [PIXEL, b"d"].concat());
        assert!(source.account().warnings[0].contains("was unpacked into a temporary file"), "{name}");
    }
    let text = dir.path().join("x.gz");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(b"no archive").unwrap();
    fs::write(&text, gz.finish().unwrap()).unwrap();
    let why = open(text.to_str().unwrap()).err().unwrap().to_string();
    assert!(why.contains("compressed with gzip"), "{why}");
    fs::write(dir.path().join("cut.tar.gz"), &fs::read(dir.path().join("x.tgz")).unwrap()[..60]).unwrap();
    assert!(open(dir.path().join("cut.tar.gz").to_str().unwrap()).is_err());
}

#[test]
fn labels_in_json_members() {
    let dir = tempfile::tempdir().unwrap();
    let labels = |members: &[(&str, &[u8])]| {
        let path = dir.path().join("x.tar");
        fs::write(&path, tar_bytes(members)).unwrap();
        open(path.to_str().unwrap())
    };
    let source = labels(&[
        ("1.jpg", PIXEL),
        ("1.json", br#"{"label": 2, "caption": "a"}"#),
        ("2.jpg", PIXEL),
        ("2.json", br#"{"caption": "b"}"#),
    ])
    .unwrap();
    assert_eq!((source.classes().len(), source.label(0), source.label(1)), (3, Some(2), None));
    assert!(source.check_labels().is_err(), "one has no label");

    let source = labels(&[
        ("1.jpg", PIXEL),
        ("1.json", br#"{"class": "dog"}"#),
        ("2.jpg", PIXEL),
        ("2.json", br#"{"class": "cat"}"#),
    ])
    .unwrap();
    assert_eq!(source.classes(), ["cat", "dog"]);
    assert_eq!((source.label(0), source.label(1)), (Some(1), Some(0)));

    let source = labels(&[
        ("1.jpg", PIXEL),
        ("1.json", br#"{"labels": ["dog", "eel"]}"#),
        ("2.jpg", PIXEL),
        ("2.json", br#"{"labels": []}"#),
    ])
    .unwrap();
    assert!(source.is_multi_label());
    assert_eq!((source.labels(0), source.labels(1)), (Some(vec![0, 1]), Some(vec![])));

    let why = |json: &[u8]| labels(&[("1.jpg", PIXEL), ("1.json", json)]).err().unwrap().to_string();
    assert!(why(br#"{"label": 1, "cls": 2}"#).contains("'label' and 'cls' can both be the label"));
    assert!(why(br#"{"label": 1.5}"#).contains("1.5 is not a label"));
    assert!(why(br#"{"label""#).contains("not sound JSON"));
}
