//! Folders as people have them: everything is used or counted, and nothing is invented.

use std::fs;
use std::path::Path;

use beit2_data::source::{Account, SkipReason, open};

use super::{listing, shard, touch};

const JPEG: &[u8] = b"\xFF\xD8\xFF\xE0\0\x10JFIF\0";
const PNG: &[u8] = b"\x89PNG\r\n\x1A\n\0\0\0\rIHDR";

fn put(root: &Path, files: &[(&str, &[u8])]) {
    for (file, bytes) in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn account(root: &Path) -> Account {
    open(&root.display().to_string()).unwrap().account()
}

fn refusal(root: &Path) -> String {
    open(&root.display().to_string()).err().unwrap().to_string()
}

fn label_errors(root: &Path) -> String {
    let source = open(&root.display().to_string()).unwrap();
    let errors = source.account().label_errors.join("\n");
    assert_eq!(source.check_labels().is_err(), !errors.is_empty());
    errors
}

#[test]
fn the_content_says_what_a_file_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let mut files: Vec<(String, &[u8])> = Vec::new();
    let mut add = |count: usize, ending: &str, bytes: &'static [u8]| {
        files.extend((0..count).map(|at| (format!("{}{at}{ending}", &ending[1..]), bytes)));
    };
    add(4, ".jpg", JPEG);
    add(4, ".jfif", JPEG);
    add(3, ".jpe", JPEG);
    add(3, ".jp2", b"\0\0\0\x0CjP  \r\n\x87\n");
    add(3, ".avif", b"\0\0\0\x20ftypavif\0\0\0\0");
    add(3, ".heic", b"\0\0\0\x18ftypheic\0\0\0\0");
    add(2, ".tga", b"\0\0\x02\0\0\0\0\0\0\0\0\0\x04\0\x04\0\x18\0");
    let mut all: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    all.extend([
        ("none1", JPEG),
        ("none2", PNG),
        ("UPPER.JPG", JPEG),
        ("x.JpEg", JPEG),
        ("wrong.txt", PNG),
        ("unknown.xyz", JPEG),
        ("notes.txt", b"BM and P5 are formats" as &[u8]),
        ("README", b"read me"),
        ("raw.NEF", b"II*\0\x08\0\0\0"),
    ]);
    put(root, &all);
    let source = open(&root.display().to_string()).unwrap();
    let account = source.account();
    assert_eq!(
        account.to_string(),
        "17 used, 14 skipped: 3 .avif, 3 .heic, 3 .jp2, 1 .nef, 2 .tga, 1 .txt, 1 no ending"
    );
    assert_eq!((source.len(), account.used), (17, 17));
    let names = listing(source.as_ref(), root).join(" ");
    for name in ["none1", "none2", "UPPER.JPG", "x.JpEg", "wrong.txt", "unknown.xyz", "jfif0.jfif"] {
        assert!(names.contains(&format!("{name}=-")), "{name} in {names}");
    }
    assert!(account.skipped[&SkipReason::Kind(".heic".into())].names[0].ends_with("heic0.heic"));
}

#[test]
fn what_systems_keep_is_no_class_and_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    touch(
        root,
        &[
            "cat/1.jpg",
            "cat/._1.jpg",
            "cat/Thumbs.db",
            "cat/.ipynb_checkpoints/1-checkpoint.jpg",
            "dog/@eaDir/2.jpg/SYNOFILE_THUMB_M.jpg",
            "dog/2.jpg",
            "dog/2.jpg~",
            "__MACOSX/cat/._1.jpg",
            "lost+found/1.jpg",
            "$RECYCLE.BIN/S-1/1.jpg",
            "System Volume Information/1.jpg",
            "desktop.ini",
            "annotations/1.json",
            "annotations/2.xml",
        ],
    );
    let source = open(&root.display().to_string()).unwrap();
    assert_eq!(listing(source.as_ref(), root), ["cat/1.jpg=0", "dog/2.jpg=1"]);
    assert_eq!(source.classes(), ["cat", "dog"]);
    assert_eq!(
        source.account().to_string(),
        "2 used, 13 skipped: 1 .json, 1 .xml, 1 class without images, 10 hidden or system files"
    );
    assert_eq!(label_errors(root), "", "a folder of other files is clearly no class");
}

#[test]
fn a_class_folder_without_images_is_an_error_for_labels() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    put(
        root,
        &[
            ("cat/1.jpg", JPEG),
            ("dog/2.jpg", JPEG),
            ("fox/3.heic", b"\0\0\0\x18ftypheic"),
            ("fox/notes.txt", b"x"),
        ],
    );
    fs::create_dir_all(root.join("eel/empty/too")).unwrap();
    let errors = label_errors(root);
    assert!(
        errors.contains("the class folder eel is empty; put the images of its class into it, or remove it"),
        "{errors}"
    );
    assert!(
        errors.contains("fox holds no image that can be read, only 1 .heic, 1 .txt; convert"),
        "{errors}"
    );
    assert_eq!(account(root).count(&SkipReason::EmptyClass), 2);
    assert_eq!(open(&root.display().to_string()).unwrap().classes(), ["cat", "dog"]);
    for name in ["ant", "bee", "Cat"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    let errors = label_errors(root);
    assert!(
        errors.contains("the class folders Cat, ant, bee and eel are empty; put the images of their"),
        "{errors}"
    );
    let sentence = open(&root.display().to_string()).unwrap().check_labels().unwrap_err().to_string();
    assert!(
        sentence.ends_with("and there is 1 more problem with labels (`beit2 data check` names all)"),
        "{sentence}"
    );
    put(root, &[("Cat/1.jpg", JPEG)]);
    assert!(
        account(root).warnings[0]
            .ends_with("the class folders Cat and cat differ only in upper and lower case")
    );
}

#[cfg(unix)]
#[test]
fn links_to_nothing_are_named() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    touch(root, &["cat/1.jpg", "dog/2.jpg"]);
    symlink("nowhere.jpg", root.join("dog/3.jpg")).unwrap();
    symlink("/nowhere/fox", root.join("fox")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let source = open(&root.display().to_string()).unwrap();
    let account = source.account();
    assert_eq!(source.classes(), ["cat", "dog"]);
    assert_eq!(account.to_string(), "2 used, 3 skipped: 3 dangling links");
    let names = account.skipped[&SkipReason::DanglingLink].names.join(" ");
    assert!(names.contains("dog/3.jpg") && names.contains("fox"), "{names}");
    let expected =
        "fox and loop are links to nothing; if they are folders of classes, their images are missing";
    assert_eq!(account.warnings, [format!("{}: {expected}", root.display())]);
}

#[test]
fn images_beside_class_folders_keep_the_labels_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    touch(root, &["cat/1.jpg", "dog/2.jpg", "stray.jpg"]);
    let source = open(&root.display().to_string()).unwrap();
    assert_eq!(listing(source.as_ref(), root), ["stray.jpg=-", "cat/1.jpg=0", "dog/2.jpg=1"]);
    assert_eq!(
        label_errors(root).replace(&root.display().to_string(), "data"),
        "data: 1 image (stray.jpg) lies beside the class folders cat and dog and has no class; move it into one of the folders, or out of here"
    );
    assert_eq!(source.account().warnings, source.account().label_errors);
    let sentence = source.check_labels().unwrap_err().to_string();
    assert!(sentence.contains(": 1 image (stray.jpg) lies"), "{sentence}");
}

#[test]
fn splits_are_no_classes() {
    let check = |files: &[&str], parts: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), files);
        let sentence = refusal(dir.path()).replace(&dir.path().display().to_string(), "data");
        for part in parts {
            assert!(sentence.contains(part), "{part}: {sentence}");
        }
    };
    check(
        &["train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "test/cat/1.jpg"],
        &[
            "its folders test, train and val are splits of the data, not classes",
            "--data data/train --val data/val",
        ],
    );
    check(&["Training/a/1.jpg", "Validation/a/1.jpg"], &["--data data/Training --val data/Validation"]);
    check(&["train/a/1.jpg", "TEST/a/1.jpg", "readme.txt"], &["--data data/train --val data/TEST"]);
    check(
        &["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"],
        &["name the one that you want: --data data/train"],
    );
    check(&["train/a/1.jpg", "train/b/1.jpg"], &["--data data/train"]);
    check(&["train2017/a/1.jpg", "val2017/a/1.jpg", "annotations/x.json"], &["--val data/val2017"]);

    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["train/1.jpg", "test/2.jpg"]);
    assert!(account(dir.path()).warnings[0].contains("look like splits of the data, and all are used"));
    assert!(
        label_errors(dir.path()).contains("are splits of the data, not classes; give a folder that has one")
    );
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["train/1.jpg", "cat/2.jpg"]);
    assert_eq!(label_errors(dir.path()), "", "one name of a split among classes is a class");
}

#[test]
fn a_folder_around_the_classes_is_named() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["photos/cat/1.jpg", "photos/dog/1.jpg"]);
    let errors = label_errors(dir.path());
    assert!(
        errors.contains("one class folder, photos, which holds folders of its own (cat and dog); give"),
        "{errors}"
    );
}

#[test]
fn images_and_masks_are_not_mixed() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["images/1.jpg", "masks/1.png"]);
    let sentence = refusal(dir.path());
    assert!(sentence.contains("it holds images and their masks (images and masks)"), "{sentence}");
    assert!(sentence.contains(&format!("give {}", dir.path().join("images").display())), "{sentence}");
}

#[test]
fn shards_beside_images_are_counted_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    shard(root, "a.tar", &[("1.jpg", JPEG)]);
    touch(root, &["b.jpg"]);
    let found = account(root);
    assert_eq!(found.to_string(), "1 used, 1 skipped: 1 .tar");
    let expected = format!(
        "{}: 1 .tar shard is beside the images left out; to use the shards instead, give '{}'",
        root.display(),
        root.join("*.tar").display()
    );
    assert_eq!(found.warnings, [expected]);
    shard(root, "b.tar", &[("1.jpg", JPEG)]);
    assert!(refusal(root).contains("it holds 2 .tar shards and 1 image, which are not used together"));

    let masks = tempfile::tempdir().unwrap();
    shard(masks.path(), "a.tar", &[("1.jpg", JPEG)]);
    touch(masks.path(), &["masks/1.png", "masks/2.png"]);
    assert!(refusal(masks.path()).contains("1 .tar shard and images in masks"), "{}", refusal(masks.path()));

    let inside = tempfile::tempdir().unwrap();
    touch(inside.path(), &["cat/1.jpg", "dog/1.jpg"]);
    shard(&inside.path().join("dog"), "dog.tar", &[("1.jpg", JPEG)]);
    let found = account(inside.path());
    assert_eq!(found.to_string(), "2 used, 1 skipped: 1 .tar");
    assert!(found.warnings[0].contains("1 .tar shard is inside the folders left out; unpack"), "{found:?}");

    let shards = tempfile::tempdir().unwrap();
    shard(shards.path(), "a.tar", &[("1.jpg", JPEG)]);
    touch(shards.path(), &["b.tar.gz", "sizes.json", "lists/x.txt"]);
    let found = account(shards.path());
    assert_eq!(found.to_string(), "1 used, 3 skipped: 1 .json, 1 .tar.gz, 1 .txt");
    assert!(
        found.warnings[0]
            .contains(": 1 .tar.gz is left out; to use it, name it instead of the folder, or unpack it"),
        "{found:?}"
    );
}

#[test]
fn what_is_no_data_says_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &[u8], part: &str| {
        put(dir.path(), &[(name, bytes)]);
        let sentence = refusal(&dir.path().join(name));
        assert!(sentence.contains(part) && sentence.contains(name), "{name}: {sentence}");
    };
    check(
        "a.tar",
        b"\x1F\x8B\x08\0",
        "compressed with gzip, which cannot be read at random positions; unpack it first",
    );
    check("b.heic", b"\0\0\0\x18ftypheic", "a HEIC image cannot be decoded; convert it to PNG or JPEG");
    check("c.safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":1}", "it is a weight file");
    check("d.pth", b"PK\x03\x04", "it is a weight file");
    check("e.txt", b"a.jpg\nb.jpg\n", "it is a text file; a list of images must end in .csv");
    check("f", b"", "the file is empty");
    check("g.npy", b"\x93NUMPY\x01\0", "a NumPy array");
    check("h.mp4", b"\0\0\0\x20ftypisom", "a video; extract its frames");
    let sentence = open("https://example.org/x.tar").err().unwrap().to_string();
    assert!(
        sentence.contains("it is an address, and images are read from disk; download them"),
        "{sentence}"
    );

    let folder = |files: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), files);
        refusal(dir.path())
    };
    assert!(
        folder(&["a.heic", "b.heic"]).contains("no images in it, only 2 .heic; convert the images to PNG")
    );
    assert!(
        folder(&["model.safetensors", "config.json"]).contains("these are weights; give a folder of images")
    );
    assert!(folder(&["a.tar.gz"]).contains("only 1 .tar.gz; give a .tar.gz or .zip archive itself"));
    assert!(folder(&["x/a.tar"]).contains("only 1 .tar; give the folder that the .tar shards lie in"));
    assert!(folder(&["run.toml", "masks/1.png"]).contains("it is a run directory, and images were expected"));
    assert!(folder(&["__MACOSX/1.jpg"]).contains("only 1 hidden or system file"));
}

#[test]
fn one_image_and_a_pattern_of_images() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), &[("a", JPEG), ("b.jfif", JPEG), ("c.jpg", JPEG)]);
    let source = open(&dir.path().join("a").display().to_string()).unwrap();
    assert_eq!((source.len(), source.account().used), (1, 1));
    assert_eq!(open(&dir.path().join("*").display().to_string()).unwrap().len(), 3);
    let sentence = open(&dir.path().join("{c,c}.jpg").display().to_string()).err().unwrap().to_string();
    assert!(sentence.contains("c.jpg twice; name each file once"), "{sentence}");
}
