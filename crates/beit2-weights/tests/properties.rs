//! Whatever the bytes: a result or an error, never a panic; and what is written is read back.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use beit2_weights::{DType, Tensor, read, write_safetensors};
use proptest::prelude::*;

/// Reads bytes as a file, and every tensor of it.
fn try_all(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    let Ok(checkpoint) = read(&path) else {
        return false;
    };
    checkpoint.tensors.values().for_each(|view| {
        let _ = view.load();
    });
    true
}

/// Small recorded files to damage, of all three formats.
fn seeds() -> Vec<Vec<u8>> {
    let small = ["odd_storages.pth", "odd_storages_legacy.pth", "odd_storages.expected.safetensors"];
    let paths: Vec<PathBuf> = small
        .iter()
        .map(|name| support::folder("checkpoints").join(name))
        .filter(|path| path.exists())
        .collect();
    assert!(!paths.is_empty(), "no golden file to damage");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn dtypes() -> impl Strategy<Value = DType> {
    use DType::*;
    prop::sample::select(vec![F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool])
}

fn tensors() -> impl Strategy<Value = BTreeMap<String, Tensor>> {
    let tensor =
        (dtypes(), prop::collection::vec(0usize..5, 0..4), any::<u8>()).prop_map(|(dtype, shape, fill)| {
            let len = shape.iter().product::<usize>() * dtype.size();
            Tensor::new(dtype, shape, vec![fill; len]).unwrap()
        });
    prop::collection::btree_map("[a-z0-9._é\"\\\\]{0,12}", tensor, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..Default::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), magic in 0usize..4) {
        let magic: &[u8] = [&b""[..], b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", b"\x90\0\0\0\0\0\0\0{"][magic];
        try_all(&[magic, &bytes].concat());
    }

    #[test]
    fn golden_files_with_damage_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        which in any::<prop::sample::Index>(),
    ) {
        let seeds = seeds();
        let mut bytes = which.get(&seeds).clone();
        for (at, value) in &edits {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        try_all(&bytes);
    }

    #[test]
    fn golden_files_cut_anywhere_are_refused(at in any::<prop::sample::Index>(), which in any::<prop::sample::Index>()) {
        let seeds = seeds();
        let bytes = which.get(&seeds);
        prop_assert!(!try_all(&bytes[..at.index(bytes.len())]));
    }

    #[test]
    fn what_is_written_is_read_back(tensors in tensors(), metadata in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.safetensors");
        write_safetensors(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &metadata).unwrap();

        let ours = read(&path).unwrap();
        prop_assert_eq!(&ours.metadata, &metadata);
        prop_assert_eq!(ours.tensors.len(), tensors.len());
        // The official crate reads it too.
        let bytes = std::fs::read(&path).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in &tensors {
            prop_assert_eq!(&ours.tensor(name).unwrap(), tensor);
            prop_assert_eq!(theirs.tensor(name).unwrap().data(), tensor.bytes());
        }
    }

    #[test]
    fn golden_headers_that_the_official_crate_refuses_are_refused(at in 0usize..1800, value in any::<u8>()) {
        let path = support::folder("checkpoints").join("odd_storages.expected.safetensors");
        let Ok(mut bytes) = std::fs::read(path) else { return Ok(()) };
        let at = at % bytes.len();
        bytes[at] = value;
        if safetensors::SafeTensors::deserialize(&bytes).is_err() {
            prop_assert!(!try_all(&bytes));
        }
    }
}
