//! Folders and tar shards on a real file system.
#![allow(clippy::unwrap_used)]

#[path = "sources/archives.rs"]
mod archives;
mod common;
#[path = "sources/folders.rs"]
mod folders;
#[path = "sources/patterns.rs"]
mod patterns;
#[path = "sources/tars.rs"]
mod tars;

use std::fs;
use std::path::{Path, PathBuf};

use beit2_data::source::{ArchiveSource, FolderSource, Source, open};

fn touch(root: &Path, files: &[&str]) {
    for file in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file.as_bytes()).unwrap();
    }
}

/// `name=label` of every sample, names below `root`.
fn listing(source: &dyn Source, root: &Path) -> Vec<String> {
    let prefix = format!("{}/", root.display());
    let label = |i| source.label(i).map_or("-".to_owned(), |l| l.to_string());
    (0..source.len()).map(|i| format!("{}={}", source.name(i).replace(&prefix, ""), label(i))).collect()
}

fn tar_bytes(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn shard(root: &Path, name: &str, members: &[(&str, &[u8])]) -> PathBuf {
    let path = root.join(name);
    fs::write(&path, tar_bytes(members)).unwrap();
    path
}

fn tar_error(bytes: Vec<u8>) -> String {
    ArchiveSource::from_static(&[("x.tar", bytes.leak())]).unwrap_err().to_string()
}

#[test]
fn class_folders_as_torchvision_numbers_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    touch(
        root,
        &[
            "dog/b.PNG",
            "dog/a.jpg",
            "cat/x/1.jpg",
            "cat/2.webp",
            "cat/notes.txt",
            ".hidden/1.jpg",
            "dog/.b.jpg",
        ],
    );
    fs::create_dir(root.join("ant")).unwrap();
    let source = FolderSource::open(root).unwrap();
    // "ant" has no images: it is no class, and whoever needs labels is told so.
    assert_eq!(source.classes(), ["cat", "dog"]);
    assert_eq!(listing(&source, root), ["cat/2.webp=0", "cat/x/1.jpg=0", "dog/a.jpg=1", "dog/b.PNG=1"]);
    assert_eq!(
        source.account().to_string(),
        "4 used, 4 skipped: 1 .txt, 1 class without images, 2 hidden or system files"
    );
    let sentence = source.check_labels().unwrap_err().to_string();
    assert!(
        sentence.contains("ant is empty; put the images of its class into it, or remove it"),
        "{sentence}"
    );
    assert_eq!(source.read(2).unwrap(), b"dog/a.jpg");
    assert!(source.read(4).unwrap_err().to_string().contains("has 4"));
}

#[test]
fn flat_folders_have_no_labels() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    touch(root, &["b.jpg", "a.jpg"]);
    fs::create_dir(root.join("logs")).unwrap();
    let source = FolderSource::open(root).unwrap();
    assert_eq!(listing(&source, root), ["a.jpg=-", "b.jpg=-"]);
    assert!(source.classes().is_empty());
    assert_eq!(source.account().to_string(), "2 used");
    source.check_labels().unwrap();
}

#[test]
fn fingerprint_follows_the_data_not_the_place() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    touch(a.path(), &["x/1.jpg", "y/2.jpg"]);
    touch(b.path(), &["x/1.jpg", "y/2.jpg"]);
    let print = |dir: &Path| FolderSource::open(dir).unwrap().fingerprint();
    assert_eq!(print(a.path()), print(b.path()));
    fs::write(b.path().join("x/1.jpg"), "longer than before").unwrap();
    assert_ne!(print(a.path()), print(b.path()));
    touch(a.path(), &["y/3.jpg"]);
    assert_ne!(print(a.path()), print(b.path()));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_cannot_loop() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data");
    touch(&root, &["cat/1.jpg", "dog/2.jpg"]);
    touch(dir.path(), &["elsewhere/3.jpg"]);
    symlink(dir.path().join("elsewhere"), root.join("fox")).unwrap();
    symlink(&root, root.join("cat/up")).unwrap();
    symlink("nowhere.jpg", root.join("dog/dangling.jpg")).unwrap();
    let source = FolderSource::open(&root).unwrap();
    assert_eq!(source.classes(), ["cat", "dog", "fox"]);
    let own: Vec<_> =
        listing(&source, &root).into_iter().filter(|line| !line.starts_with("cat/up")).collect();
    assert_eq!(own, ["cat/1.jpg=0", "dog/2.jpg=1", "fox/3.jpg=2"]);
}

#[cfg(unix)]
#[test]
fn a_vanished_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["a.jpg"]);
    let source = FolderSource::open(dir.path()).unwrap();
    fs::remove_file(dir.path().join("a.jpg")).unwrap();
    assert!(source.read(0).unwrap_err().to_string().contains("a.jpg: cannot read it"));
}

#[test]
fn folder_errors() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["notes.txt"]);
    let sentence = |path: PathBuf| FolderSource::open(path).unwrap_err().to_string();
    assert!(sentence(dir.path().into()).contains("no images in it, only 1 .txt; JPEG, PNG,"));
    assert!(sentence(dir.path().join("notes.txt")).contains("not a folder"));
    assert!(sentence(dir.path().join("gone")).contains("no such file or folder"));
}

#[test]
fn shards_with_class_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let a = shard(
        root,
        "s-000.tar",
        &[("0.jpg", b"zero"), ("0.cls", b"2\n"), ("1.png", b"one"), ("1.cls", b" 0 "), ("1.json", b"{}")],
    );
    let b = shard(
        root,
        "s-001.tar",
        &[("0.jpg", b"again"), ("._0.jpg", b"mac"), ("classes.txt", b"ant\ncat\n\ndog\n")],
    );
    let source = ArchiveSource::open(&[a, b]).unwrap();
    assert_eq!(listing(&source, root), ["s-000.tar:0.jpg=2", "s-000.tar:1.png=0", "s-001.tar:0.jpg=-"]);
    assert_eq!(source.classes(), ["ant", "cat", "dog"]);
    assert_eq!(
        [0, 1, 2].map(|i| source.read(i).unwrap()),
        [b"zero".to_vec(), b"one".to_vec(), b"again".to_vec()]
    );

    let spec = |text: &str| open(&root.join(text).display().to_string()).unwrap();
    let expected = source.fingerprint();
    for text in ["", "s-{000..001}.tar", "s-*.tar", "{s-000,s-001}.tar"] {
        assert_eq!(spec(text).fingerprint(), expected, "{text}");
    }
    assert_eq!(spec("s-001.tar").len(), 1);
}

#[test]
fn shards_with_class_folders() {
    let members: &[(&str, &[u8])] =
        &[("./train/dog/1.jpg", b"d"), ("train/cat/1.jpg", b"c"), ("train/cat/2.jpg", b"e")];
    let source = ArchiveSource::from_static(&[("in memory", tar_bytes(members).leak())]).unwrap();
    assert_eq!(source.classes(), ["cat", "dog"]);
    assert_eq!([0, 1, 2].map(|i| source.label(i)), [Some(1), Some(0), Some(0)]);
    assert_eq!(source.name(0), "in memory:train/dog/1.jpg");
    assert_eq!(source.read(2).unwrap(), b"e");

    let packaged =
        ArchiveSource::from_static(&[("p", tar_bytes(&[("pics/1.jpg", b"a"), ("pics/2.jpg", b"b")]).leak())])
            .unwrap();
    assert!(packaged.classes().is_empty() && packaged.label(0).is_none());

    let mut named = members.to_vec();
    named.push(("classes.txt", b"dog\ncat"));
    let source = ArchiveSource::from_static(&[("n", tar_bytes(&named).leak())]).unwrap();
    assert_eq!([0, 1].map(|i| source.label(i)), [Some(0), Some(1)]);
}

#[test]
fn long_names_and_many_readers() {
    let long = format!("{}/image.jpg", "deep/".repeat(60).trim_end_matches('/'));
    let bytes: Vec<(String, Vec<u8>)> =
        (0..200).map(|i| (format!("{i:03}-{long}"), vec![i as u8; i * 7])).collect();
    let members: Vec<(&str, &[u8])> = bytes.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let dir = tempfile::tempdir().unwrap();
    let source = ArchiveSource::open(&[shard(dir.path(), "long.tar", &members)]).unwrap();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (source, bytes) = (&source, &bytes);
            scope.spawn(move || {
                for i in (start..200).step_by(3) {
                    assert_eq!(source.read(i).unwrap(), bytes[i].1);
                }
            });
        }
    });
}

#[test]
fn unsound_shards_are_named() {
    let good = tar_bytes(&[("1.jpg", &[7; 3000]), ("2.jpg", &[8; 3000])]);
    assert!(
        tar_error(good[..2000].to_vec()).contains("x.tar: truncated: member 1.jpg needs 3000 bytes"),
        "{}",
        tar_error(good[..2000].to_vec())
    );
    assert!(
        tar_error(good[..3700].to_vec()).contains("not a sound tar file"),
        "{}",
        tar_error(good[..3700].to_vec())
    );
    assert!(tar_error(b"this is not a tar file".repeat(100)).contains("not a sound tar file"));
    assert!(tar_error(vec![]).contains("empty"));
    assert!(tar_error(tar_bytes(&[("a.txt", b"a")])).contains("no images in it"));
    assert!(
        tar_error(tar_bytes(&[("1.jpg", b"x"), ("1.cls", b"cat")]))
            .contains("member 1.cls: 'cat' is not a class number")
    );
    assert!(tar_error(tar_bytes(&[("1.jpg", b"x"), ("1.cls", b"4294967295")])).contains("below 1000000"));
    let classes: &[(&str, &[u8])] = &[("1.jpg", b"x"), ("1.cls", b"3"), ("classes.txt", b"a\nb")];
    assert!(tar_error(tar_bytes(classes)).contains("class 3 is not in classes.txt, which has 2 lines"));

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.tar.gz"), b"\x1F\x8B\x08\0").unwrap();
    let sentence = open(&dir.path().join("x.tar.gz").display().to_string()).err().unwrap().to_string();
    assert!(sentence.contains("unpack it first"), "{sentence}");
}

/// Every byte of a header flipped: an error or a sound index, never a panic, never a read outside
/// the shard.
#[test]
fn damaged_headers_never_panic() {
    let good = tar_bytes(&[("a/1.jpg", b"first"), ("b/2.jpg", b"second")]);
    for position in 0..1100 {
        for flip in [0x01, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[position] ^= flip;
            let Ok(source) = ArchiveSource::from_static(&[("x.tar", bytes.leak())]) else {
                continue;
            };
            (0..source.len()).for_each(|i| drop(source.read(i).unwrap()));
        }
    }
}
