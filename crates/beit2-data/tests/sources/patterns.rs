//! Patterns of images: which files they name, and which classes these have.

use super::*;

fn names(dir: &Path, pattern: &str) -> Vec<String> {
    let source = open(&dir.join(pattern).display().to_string()).unwrap();
    listing(source.as_ref(), dir)
}

fn error(dir: &Path, pattern: &str) -> String {
    open(&dir.join(pattern).display().to_string()).err().unwrap().to_string()
}

#[test]
fn images_of_one_folder_have_no_classes_and_other_files_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["p/1.jpg", "p/2.jpg", "p/10.JPG", "p/3.png", "p/notes.txt"]);
    assert_eq!(names(dir.path(), "p/*.jpg"), ["p/1.jpg=-", "p/2.jpg=-"]);
    assert_eq!(names(dir.path(), "p/[13].*"), ["p/1.jpg=-", "p/3.png=-"]);
    assert_eq!(names(dir.path(), "p/{1.jpg,3.png}"), ["p/1.jpg=-", "p/3.png=-"]);
    let all = open(&dir.path().join("p/*").display().to_string()).unwrap();
    assert_eq!((all.len(), all.classes().len()), (4, 0));
    assert!(all.account().to_string().contains(".txt"), "{}", all.account());
}

#[test]
fn the_folders_that_a_pattern_leaves_open_are_classes() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["dog/1.jpg", "cat/1.jpg", "cat/2.png", "cow/1.jpg", "stray.jpg"]);
    assert_eq!(names(dir.path(), "*/*.jpg"), ["cat/1.jpg=0", "cow/1.jpg=1", "dog/1.jpg=2"]);
    assert_eq!(names(dir.path(), "c*/1.jpg"), ["cat/1.jpg=0", "cow/1.jpg=1"]);
    assert_eq!(names(dir.path(), "{dog,cat}/*.jpg"), ["cat/1.jpg=0", "dog/1.jpg=1"]);
    // One folder is one class, as in another collection there would be more.
    assert_eq!(names(dir.path(), "ca*/*"), ["cat/1.jpg=0", "cat/2.png=0"]);
    let source = open(&dir.path().join("*/*.jpg").display().to_string()).unwrap();
    assert_eq!(source.classes(), ["cat", "cow", "dog"]);
    // The same images as a folder are the same data.
    fs::remove_file(dir.path().join("stray.jpg")).unwrap();
    fs::remove_file(dir.path().join("cat/2.png")).unwrap();
    let folder = FolderSource::open(dir.path()).unwrap();
    assert_eq!(source.fingerprint(), folder.fingerprint());
}

#[test]
fn folders_that_match_are_classes_with_all_that_is_below() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["all/dog/deep/1.jpg", "all/cat/1.jpg", "all/cow/1.jpg"]);
    assert_eq!(names(dir.path(), "all/[cd]o*"), ["all/cow/1.jpg=0", "all/dog/deep/1.jpg=1"]);
    assert_eq!(names(dir.path(), "all/{cat,dog}"), ["all/cat/1.jpg=0", "all/dog/deep/1.jpg=1"]);
    assert_eq!(names(dir.path(), "a*"), ["all/cat/1.jpg=0", "all/cow/1.jpg=1", "all/dog/deep/1.jpg=2"]);
    assert_eq!(names(dir.path(), "all/{cat}"), ["all/cat/1.jpg=-"]);
    touch(dir.path(), &["data/train/cat/1.jpg", "data/val/cat/1.jpg"]);
    let sentence = error(dir.path(), "data/*");
    assert!(sentence.contains("splits of the data, not classes"), "{sentence}");
}

#[test]
fn patterns_that_name_nothing_say_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["p/1.png", "p/2.png", "t/a.txt", "t/b.txt", "s/a.txt"]);
    shard(dir.path(), "s/1.tar", &[]);
    let says = |pattern: &str, words: &[&str]| {
        let sentence = error(dir.path(), pattern);
        words.iter().for_each(|word| assert!(sentence.contains(word), "{pattern}: {sentence}"));
    };
    says("p/*.jpg", &["matches no file", "/p holds 1.png and 2.png"]);
    says("gone/*.jpg", &["/gone", "No such file"]);
    says("x*/*.jpg", &["matches no file"]);
    says("p/**/*.png", &["** is not known", "give the folder", "/p itself"]);
    says("t/*", &["2 files and none of them is an image", "t/a.txt"]);
    says("s/*", &["names shards and also", "s/a.txt", "*.tar"]);
}
