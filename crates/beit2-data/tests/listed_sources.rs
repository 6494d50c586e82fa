//! IDX files and index files on a real file system, sound and hostile.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;

use beit2_data::source::{IdxSource, IdxSplit, IndexFileSource, Source, open};
use beit2_data::{DecodeOptions, decode};
use flate2::{Compression, write::GzEncoder};

/// An IDX file of bytes in as many dimensions as there are sizes.
fn idx(sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, sizes.len() as u8];
    out.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    out.extend_from_slice(data);
    out
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Three images of 3 x 2 pixels, values 0 to 17, labels 2, 0, 4.
fn images() -> Vec<u8> {
    idx(&[3, 2, 3], &(0..18).collect::<Vec<u8>>())
}

fn write(dir: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn error(bytes: Vec<u8>) -> String {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("train-images-idx3-ubyte", bytes)]);
    IdxSource::open(dir.path(), IdxSplit::Train).unwrap_err().to_string()
}

#[test]
fn idx_packed_and_plain_are_the_same_data() {
    let (plain, packed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let labels = idx(&[3], &[2, 0, 4]);
    write(
        plain.path(),
        &[("train-images-idx3-ubyte", images()), ("train-labels-idx1-ubyte", labels.clone())],
    );
    write(
        packed.path(),
        &[("train-images-idx3-ubyte.gz", gz(&images())), ("train-labels-idx1-ubyte.gz", gz(&labels))],
    );
    let mut prints = Vec::new();
    for dir in [&plain, &packed] {
        let source = IdxSource::open(dir.path(), IdxSplit::Train).unwrap();
        assert_eq!((source.len(), source.classes().len()), (3, 5));
        assert_eq!([0, 1, 2, 3].map(|i| source.label(i)), [Some(2), Some(0), Some(4), None]);
        let image = decode(&source.read(1).unwrap(), &DecodeOptions::default()).unwrap();
        assert_eq!((image.width, image.height), (3, 2));
        assert_eq!(image.data, (6..12).flat_map(|v| [v; 3]).collect::<Vec<u8>>());
        assert!(source.name(2).contains("train-images-idx3-ubyte") && source.name(2).ends_with(":2"));
        assert!(source.read(3).unwrap_err().to_string().contains("has 3") && source.name(3).is_empty());
        prints.push(source.fingerprint());
    }
    assert_eq!(prints[0], prints[1]);
    write(plain.path(), &[("train-labels-idx1-ubyte", idx(&[3], &[2, 0, 3]))]);
    assert_ne!(IdxSource::open(plain.path(), IdxSplit::Train).unwrap().fingerprint(), prints[0]);
}

#[test]
fn a_folder_is_its_training_images_and_a_file_is_itself() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            ("t10k-images.idx3-ubyte", idx(&[1, 1, 1], &[9])),
            ("train-images-idx3-ubyte", images()),
            ("train-labels-idx1-ubyte.gz", gz(&idx(&[3], &[0, 1, 0]))),
        ],
    );
    let spec = |name: &str| dir.path().join(name).display().to_string();
    assert_eq!((open(&spec("")).unwrap().len(), open(&spec("")).unwrap().label(1)), (3, Some(1)));
    assert_eq!(open(&spec("")).unwrap().account().to_string(), "3 used, 1 skipped: 1 other IDX");
    let test = open(&spec("t10k-images.idx3-ubyte")).unwrap();
    assert!(test.check_labels().unwrap_err().to_string().contains("no file of labels"));
    assert_eq!((test.len(), test.label(0), test.classes().len()), (1, None, 0));
    assert_eq!(IdxSource::open(dir.path(), IdxSplit::Test).unwrap().len(), 1);
    fs::remove_file(dir.path().join("t10k-images.idx3-ubyte")).unwrap();
    let sentence = IdxSource::open(dir.path(), IdxSplit::Test).unwrap_err().to_string();
    assert!(sentence.ends_with("looked for t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz"));
}

#[test]
fn hostile_idx_files_are_named() {
    let check = |bytes: Vec<u8>, part: &str| {
        let sentence = error(bytes.clone());
        assert!(sentence.contains(part), "{sentence}");
        // Packed, the same file is refused too, without unpacking what the header promises.
        error(gz(&bytes));
    };
    check(vec![], "truncated or damaged");
    check(vec![0, 0, 8, 3, 0], "truncated or damaged");
    check(idx(&[3], &[1, 2, 3]).into_iter().chain([0; 16]).collect(), "begins with 00 00 08 01, 00 00 08 03");
    check(idx(&[0, 28, 28], &[]), "no images");
    check(idx(&[5, 0, 28], &[]), "28 x 0 pixels");
    check(idx(&[1, 5000, 1], &[]), "1 x 5000 pixels; each side must be 1 to 4096");
    check(idx(&[u32::MAX, 4096, 4096], &[]), "more than the limit of 8589934592");
    check(
        idx(&[1 << 20, 28, 28], &[1, 2, 3]),
        "truncated: 822083584 bytes were expected behind its header, found 3",
    );
    check(idx(&[1, 1, 2], &[1, 2, 3]), "more than the 2 bytes");
    let mut cut = gz(&images());
    cut.truncate(cut.len() - 9);
    assert!(error(cut).contains("truncated or damaged"));
}

#[test]
fn labels_must_fit_the_images() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[("train-images-idx3-ubyte", images()), ("train-labels-idx1-ubyte", idx(&[2], &[0, 1]))],
    );
    let sentence = IdxSource::open(dir.path(), IdxSplit::Train).unwrap_err().to_string();
    assert!(sentence.ends_with("it holds 2 labels, but there are 3 images beside it"), "{sentence}");
}

fn index(text: &str) -> Result<IndexFileSource, String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("index.jsonl", text.into())]);
    IndexFileSource::open(dir.path().join("index.jsonl"), dir.path()).map_err(|e| e.to_string())
}

#[test]
fn index_files_number_classes_by_name_and_samples_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("dog/deep")).unwrap();
    fs::create_dir_all(root.join("cat")).unwrap();
    write(root, &[("dog/deep/1.jpg", b"one".to_vec()), ("cat/2.png", b"two".to_vec())]);
    let text = "{\"class\": \"dog\", \"files\": [\"deep/1.jpg\", \"gone.jpg\"]}\n\n{\"files\": [\"2.png\"], \"class\": \"cat\"}\n{\"class\": \"ant\", \"files\": []}";
    fs::write(root.join("index.jsonl"), text).unwrap();
    let source = open(&root.join("index.jsonl").display().to_string()).unwrap();
    assert_eq!(source.classes(), ["ant", "cat", "dog"]);
    assert_eq!(source.account().to_string(), "3 used, 1 skipped: 1 class without images");
    assert!(
        source
            .check_labels()
            .unwrap_err()
            .to_string()
            .contains("the class 'ant' has no files; list its images")
    );
    assert_eq!([0, 1, 2, 3].map(|i| source.label(i)), [Some(2), Some(2), Some(1), None]);
    assert_eq!((source.read(0).unwrap(), source.read(2).unwrap()), (b"one".to_vec(), b"two".to_vec()));
    assert!(source.read(1).unwrap_err().to_string().contains("gone.jpg"));
    assert!(source.name(0).replace('\\', "/").ends_with("dog/deep/1.jpg"));
    let elsewhere = tempfile::tempdir().unwrap();
    fs::copy(root.join("index.jsonl"), elsewhere.path().join("index.jsonl")).unwrap();
    let same = IndexFileSource::open(elsewhere.path().join("index.jsonl"), root).unwrap();
    assert_eq!(same.fingerprint(), source.fingerprint());
    let other = IndexFileSource::open(elsewhere.path().join("index.jsonl"), elsewhere.path()).unwrap();
    assert_ne!(other.fingerprint(), source.fingerprint());
}

#[test]
fn bad_index_files_are_named_by_line() {
    let good = "{\"class\": \"a\", \"files\": [\"1.jpg\"]}\n";
    assert_eq!(index(good).unwrap().len(), 1);
    let check = |line: &str, part: &str| {
        let sentence = index(&format!("{good}{line}")).unwrap_err();
        assert!(sentence.contains("index.jsonl, line 2: ") && sentence.contains(part), "{sentence}");
    };
    check("{\"class\": \"b\"", "EOF");
    check("{\"class\": 3, \"files\": []}", "invalid type");
    check("{\"class\": \"b\"}", "missing field `files`");
    check("{\"class\": \"b\", \"files\": [\"../../etc/passwd\"]}", "leads out");
    check("{\"class\": \"b\", \"files\": [\"/etc/passwd\"]}", "leads out");
    check("{\"class\": \"..\", \"files\": [\"x\"]}", "leads out");
    check("{\"class\": \"\", \"files\": [\"x\"]}", "leads out");
    check("{\"class\": \".\", \"files\": [\"x\"]}", "leads out");
    check(good.trim(), "is on an earlier line too");
    assert!(index("{\"class\": \"a\", \"files\": []}").unwrap_err().contains("no images in it"));
    assert!(index("").unwrap_err().contains("no images in it"));
    assert!(IndexFileSource::open("/nowhere/x.jsonl", "/").unwrap_err().to_string().contains("no such file"));
}
