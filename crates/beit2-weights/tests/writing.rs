//! Files appear complete or not at all.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use beit2_weights::{Tensor, WeightsError, read, sha256, write_safetensors};

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_f32(vec![values.len()], values).unwrap()
}

#[test]
fn the_same_tensors_give_the_same_bytes_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, c) = (tensor(&[1.0]), Tensor::from_i64(vec![], &[7]).unwrap(), tensor(&[2.0, 3.0]));
    let metadata =
        BTreeMap::from([("format".to_string(), "pt".to_string()), ("epoch".to_string(), "3".to_string())]);
    let hash = |order: [(&str, &Tensor); 3]| {
        let path = folder.path().join("file.safetensors");
        write_safetensors(&path, order, &metadata).unwrap();
        sha256(&path).unwrap()
    };
    let first = hash([("a", &a), ("b", &b), ("c", &c)]);
    assert_eq!(first, hash([("c", &c), ("a", &a), ("b", &b)]));
    assert_eq!(first.len(), 64);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.safetensors");
    let (old, new) = (tensor(&[1.0]), tensor(&[2.0]));
    write_safetensors(&path, [("w", &old)], &BTreeMap::new()).unwrap();
    let error = write_safetensors(&path, [("w", &new), ("w", &new)], &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("`w`") && error.to_string().contains("twice"), "{error}");

    // A source that shrank after it was opened: its tensors can no longer be read, in the middle of the writing.
    let source = folder.path().join("source.safetensors");
    write_safetensors(&source, [("w", &tensor(&[0.0; 1000]))], &BTreeMap::new()).unwrap();
    let opened = read(&source).unwrap();
    std::fs::write(&source, b"short").unwrap();
    let result = write_safetensors(
        &path,
        opened.tensors.iter().map(|(name, view)| (name.as_str(), view)),
        &BTreeMap::new(),
    );
    assert!(matches!(result, Err(WeightsError::Io { .. })), "{result:?}");

    assert_eq!(read(&path).unwrap().tensor("w").unwrap(), old);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    assert!(
        write_safetensors(&folder.path().join("no/such/folder"), [("w", &old)], &BTreeMap::new()).is_err()
    );
}

#[test]
fn a_file_can_be_rewritten_from_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.safetensors");
    let values: Vec<f32> = (0..10_000).map(|i| i as f32).collect();
    write_safetensors(&path, [("w", &tensor(&values))], &BTreeMap::new()).unwrap();
    let opened = read(&path).unwrap();
    let views = opened.tensors.iter().map(|(_, view)| ("renamed", view));
    write_safetensors(&path, views, &BTreeMap::new()).unwrap();
    assert_eq!(read(&path).unwrap().tensor("renamed").unwrap().to_f32(), values);
}

#[test]
#[cfg(unix)]
fn weights_are_readable_like_any_other_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    write_safetensors(&folder.path().join("weights"), [("w", &tensor(&[1.0]))], &BTreeMap::new()).unwrap();
    std::fs::write(folder.path().join("plain"), b"").unwrap();
    assert_eq!(mode("weights"), mode("plain"));
}

#[test]
fn wrong_paths_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("a folder without model.safetensors"));
    let missing = folder.path().join("missing.pth");
    assert!(read(&missing).unwrap_err().to_string().contains("missing.pth"));
    let path = folder.path().join("file");
    for (bytes, word) in [
        (&b"{\"error\": \"Not Found\"}"[..], "JSON"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"hello", "unknown format"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains(word));
    }
    std::fs::write(&path, b"abc").unwrap();
    assert_eq!(sha256(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}
