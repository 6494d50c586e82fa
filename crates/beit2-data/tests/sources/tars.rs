//! Shards as people have them: links, names of WebDataset, odd archives.

use std::fs;

use beit2_data::source::{Account, ArchiveSource, SkipReason, Source};

use super::tar_bytes;

/// A member: a file with its content, or a link with its target.
enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Hard(&'a str, &'a str),
    Soft(&'a str, &'a str),
    Folder(&'a str),
}
use Entry::{File, Folder, Hard, Soft};

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        match entry {
            File(path, bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, *bytes).unwrap();
            }
            Hard(path, target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, path, target).unwrap();
            }
            Soft(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target).unwrap();
            }
            Folder(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, path, &[][..]).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

fn open(bytes: Vec<u8>) -> ArchiveSource {
    ArchiveSource::from_static(&[("x.tar", bytes.leak())]).unwrap()
}

fn error(bytes: Vec<u8>) -> String {
    ArchiveSource::from_static(&[("x.tar", bytes.leak())]).unwrap_err().to_string()
}

/// `name=label:content` of every sample.
fn listing(source: &dyn Source) -> Vec<String> {
    let label = |i| source.label(i).map_or("-".to_owned(), |l| l.to_string());
    let content = |i| String::from_utf8(source.read(i).unwrap()).unwrap();
    let name = |i| source.name(i).replace("x.tar:", "");
    (0..source.len()).map(|i| format!("{}={}:{}", name(i), label(i), content(i))).collect()
}

#[test]
fn links_are_followed_inside_the_archive() {
    let source = open(archive(&[
        Soft("cat/before.jpg", "1.jpg"),
        File("cat/1.jpg", b"one"),
        Hard("dog/hard.jpg", "cat/1.jpg"),
        Soft("dog/across.jpg", "../cat/./1.jpg"),
        Soft("dog/chain.jpg", "across.jpg"),
        Hard("dog/hard of soft.jpg", "dog/chain.jpg"),
        Soft("dog/hard chain.jpg", "hard.jpg"),
        File("dog/2.jpg", b"two"),
        Soft("dog/no ending", "2.jpg"),
        Soft("dog/loop a.jpg", "loop b.jpg"),
        Soft("dog/loop b.jpg", "loop a.jpg"),
        Soft("dog/self.jpg", "self.jpg"),
        Soft("dog/outside.jpg", "/etc/hostname"),
        Soft("dog/above.jpg", "../../../etc/hostname"),
        Hard("dog/nowhere.jpg", "cat/9.jpg"),
    ]));
    assert_eq!(
        listing(&source),
        [
            "cat/before.jpg=0:one",
            "cat/1.jpg=0:one",
            "dog/hard.jpg=1:one",
            "dog/across.jpg=1:one",
            "dog/chain.jpg=1:one",
            "dog/hard of soft.jpg=1:one",
            "dog/hard chain.jpg=1:one",
            "dog/2.jpg=1:two",
        ]
    );
    let account = source.account();
    assert_eq!(account.to_string(), "8 used, 7 skipped: 1 no ending, 6 dangling links");
    assert!(account.skipped[&SkipReason::DanglingLink].names.contains(&"x.tar:dog/outside.jpg".to_owned()));
}

#[test]
fn links_to_folders_are_their_files() {
    let source = open(archive(&[
        File("store/a/1.jpg", b"one"),
        File("store/a/deep/2.jpg", b"two"),
        File("data/cat/3.jpg", b"three"),
        Soft("data/fox", "../store/a"),
        Soft("data/cat/up", ".."),
        Soft("data/gone", "../store/b"),
        Soft("data/by link.jpg", "fox/1.jpg"),
    ]));
    let names: Vec<String> =
        listing(&source).iter().map(|line| line.replace("=0", "=").replace("=1", "=")).collect();
    assert_eq!(
        names,
        [
            "store/a/1.jpg=:one",
            "store/a/deep/2.jpg=:two",
            "data/cat/3.jpg=:three",
            "data/fox/1.jpg=:one",
            "data/fox/deep/2.jpg=:two",
            "data/by link.jpg=:one"
        ]
    );
    assert_eq!(source.account().count(&SkipReason::DanglingLink), 2);
    let expected = "x.tar:data/gone leads to nothing inside the archive; if it is the folder of a class, its images are missing";
    assert!(source.account().warnings.contains(&expected.to_owned()), "{:?}", source.account());
}

#[test]
fn names_that_lead_out_are_only_names() {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in [("/abs/cat/1.jpg", b"a"), ("../../cat/2.jpg", b"b"), ("cat/../dog/3.jpg", b"c")] {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(1);
        header.set_cksum();
        builder.append(&header, &bytes[..]).unwrap();
    }
    let source = open(builder.into_inner().unwrap());
    assert_eq!(listing(&source), ["abs/cat/1.jpg=0:a", "cat/2.jpg=1:b", "dog/3.jpg=2:c"]);
    assert_eq!(source.classes(), ["abs", "cat", "dog"]);
}

#[test]
fn keys_with_dots_pair_by_the_longest_stem() {
    let mut members: Vec<(String, Vec<u8>)> = Vec::new();
    for at in 0..12 {
        members.push((format!("cam_2023.01.{at:02}.png"), vec![b'a' + at]));
        members.push((format!("cam_2023.01.{at:02}.cls"), (at % 3).to_string().into_bytes()));
        members.push((format!("cam_2023.01.{at:02}.json"), b"{}".to_vec()));
    }
    let members: Vec<(&str, &[u8])> = members.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let source = open(tar_bytes(&members));
    let labels: Vec<u32> = (0..12).map(|i| source.label(i).unwrap()).collect();
    assert_eq!(labels, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    assert_eq!(source.account().to_string(), "12 used, 12 skipped: 12 .json");
    source.check_labels().unwrap();
}

#[test]
fn ambiguous_archives_are_errors() {
    let check = |members: &[&str], parts: &[&str]| {
        let members: Vec<(&str, &[u8])> = members.iter().map(|&name| (name, b"1" as &[u8])).collect();
        let sentence = error(tar_bytes(&members));
        assert!(parts.iter().all(|part| sentence.contains(part)), "{sentence}");
    };
    check(
        &["x.0.jpg", "x.1.jpg", "x.cls"],
        &["x.tar: x.0.jpg and x.1.jpg could both be the image of the label x.cls"],
    );
    check(&["1.jpg", "1.seg.png", "1.cls"], &["1.jpg and 1.seg.png could both"]);
    check(&["1.jpg", "1.seg.png", "2.jpg"], &["1.seg.png looks like a mask of the image of the same name"]);
    check(&["a/1.jpg", "a/1.jpg"], &["member a/1.jpg is in it twice; make the shard again"]);
    check(&["1.jpg", "1.cls", "1.cls"], &["member 1.cls is in it twice"]);
    check(&["./1.jpg", "1.jpg"], &["member 1.jpg is in it twice"]);
    check(&["train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg"], &["splits of the data, not classes"]);
    let twice: &[(&str, &[u8])] = &[("1.jpg", b"x"), ("1.cls", b"1"), ("classes.txt", b"cat\ncat\n")];
    assert!(
        error(tar_bytes(twice))
            .contains("the class 'cat' is on two lines; each class needs a name of its own")
    );
    check(&["images/1.jpg", "masks/1.png"], &["it holds images and their masks"]);
}

#[test]
fn labels_that_are_missing_are_counted_and_refused_where_they_matter() {
    let source = open(tar_bytes(&[
        ("1.jpg", b"a"),
        ("1.cls", b"1"),
        ("2.jpg", b"b"),
        ("3.heic", b"c"),
        ("3.cls", b"0"),
    ]));
    assert_eq!(listing(&source), ["1.jpg=1:a", "2.jpg=-:b"]);
    assert_eq!(source.account().to_string(), "2 used, 2 skipped: 1 .heic, 1 label without an image");
    let expected =
        "1 of 2 images have no label in a .cls or .json member (x.tar:2.jpg), though others have one";
    assert_eq!(source.account().warnings, [expected]);
    assert!(source.check_labels().unwrap_err().to_string().contains(expected));
}

#[test]
fn a_tar_has_the_classes_of_its_folder() {
    let classes = |members: &[&str]| {
        let members: Vec<(&str, &[u8])> = members.iter().map(|&name| (name, b"x" as &[u8])).collect();
        let source = open(tar_bytes(&members));
        (source.classes().join(" "), source.account())
    };
    assert_eq!(classes(&["cat/x/1.jpg", "cat/y/2.jpg", "dog/x/3.jpg"]).0, "cat dog");
    assert_eq!(classes(&["d/train/dog/1.jpg", "d/train/cat/2.jpg"]).0, "cat dog");
    let (names, account) = classes(&["p/cat/1.jpg", "p/dog/2.jpg", "p/stray.jpg", "p/notes/x.json"]);
    assert_eq!(names, "cat dog");
    assert_eq!(account.to_string(), "3 used, 2 skipped: 1 .json, 1 class without images");
    assert!(
        account.label_errors[0].contains("1 of 3 images have no class folder (x.tar:p/stray.jpg)"),
        "{account:?}"
    );
    let (names, account) = classes(&[
        "__MACOSX/cat/._1.jpg",
        "cat/1.jpg",
        "cat/._1.jpg",
        "dog/2.jpg",
        "@eaDir/3.jpg",
        "dog/Thumbs.db",
    ]);
    assert_eq!(
        (names.as_str(), account.to_string().as_str()),
        ("cat dog", "2 used, 4 skipped: 4 hidden or system files")
    );

    let empty = open(archive(&[File("cat/1.jpg", b"x"), File("dog/2.jpg", b"x"), Folder("fox/")]));
    assert_eq!(empty.classes(), ["cat", "dog"]);
    assert!(empty.check_labels().unwrap_err().to_string().contains("the class folder fox holds no image"));
}

#[test]
fn content_decides_inside_shards_too() {
    let png = b"\x89PNG\r\n\x1A\n";
    let source = open(tar_bytes(&[
        ("1", png),
        ("2.jfif", b"x"),
        ("3.JPG", b"y"),
        ("4.txt", png),
        ("5.txt", b"hello"),
    ]));
    assert_eq!(source.len(), 4);
    assert_eq!(source.account().to_string(), "4 used, 1 skipped: 1 .txt");
}

#[test]
fn archives_behind_archives_are_read() {
    let (a, b) = (tar_bytes(&[("1.jpg", b"one")]), tar_bytes(&[("2.jpg", b"two"), ("3.jpg", b"three")]));
    let source = open([a.clone(), b].concat());
    assert_eq!(listing(&source), ["1.jpg=-:one", "2.jpg=-:two", "3.jpg=-:three"]);
    assert_eq!(source.account(), Account::all_used(3));

    let source = open([a.as_slice(), b"garbage"].concat());
    assert_eq!(source.len(), 1);
    assert!(
        source.account().warnings[0]
            .contains("the last 7 bytes, behind the end of the archive, are no members")
    );
    let source = open(a[..1024].to_vec());
    assert!(source.account().warnings[0].contains("the mark at the end of a tar file is missing"));
    let source = open([a.as_slice(), &vec![0; 3 << 20]].concat());
    assert!(
        source.account().warnings[0].contains("bytes are zeros; if it is a download that was not finished")
    );
    let sentence = error(vec![0; 10240]);
    assert!(sentence.contains("x.tar: no images in it (x.tar: it holds nothing but zeros"), "{sentence}");
}

#[test]
fn members_with_holes_are_counted_and_never_read_wrong() {
    // The list of parts of POSIX's format 1.0 stands before the data.
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([
            ("GNU.sparse.major", b"1" as &[u8]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"1.jpg"),
            ("GNU.sparse.realsize", b"4096"),
        ])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(512);
    header.set_mode(0o644);
    builder.append_data(&mut header, "GNUSparseFile.1/1.jpg", &[b'1'; 512][..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    builder.append_data(&mut header, "2.jpg", &b"two"[..]).unwrap();
    let source = open(builder.into_inner().unwrap());
    assert_eq!(listing(&source), ["2.jpg=-:two"]);
    assert_eq!(source.account().to_string(), "1 used, 1 skipped: 1 sparse member");
}

#[test]
fn posix_headers_give_long_names_and_targets() {
    let long = format!("{}/1.jpg", vec!["deep"; 50].join("/"));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    builder.append_pax_extensions([("path", long.as_bytes())]).unwrap();
    header.set_path("short.jpg").unwrap();
    header.set_size(3);
    header.set_cksum();
    builder.append(&header, &b"one"[..]).unwrap();
    builder.append_pax_extensions([("linkpath", long.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Link);
    header.set_path("link.jpg").unwrap();
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &[][..]).unwrap();
    let source = open(builder.into_inner().unwrap());
    assert_eq!(listing(&source), [format!("{long}=-:one"), "link.jpg=-:one".into()]);
}

#[test]
fn a_gzip_file_named_tar_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    fs::write(&path, b"\x1F\x8B\x08\0\0\0\0\0").unwrap();
    let sentence = ArchiveSource::open(&[path]).unwrap_err().to_string();
    assert!(sentence.contains("x.tar: it is compressed with gzip"), "{sentence}");
}
