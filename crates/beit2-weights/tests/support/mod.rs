//! Shared by the golden tests: where the recorded files are, and comparison with an expected safetensors file.

// Every test file uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use std::borrow::Cow;

use beit2_weights::convert::StateDict;
use beit2_weights::{Checkpoint, DType, TensorSource, WeightsError, read};
use indexmap::IndexMap;
use serde_json::Value;

/// A folder of golden suite H: under `BEIT2_GOLDEN` when that is set, else in the workspace (a selection).
pub fn folder(name: &str) -> PathBuf {
    match std::env::var_os("BEIT2_GOLDEN") {
        Some(root) => PathBuf::from(root).join(name),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name),
    }
}

/// The entries of a folder's `index.json`.
pub fn index(name: &str) -> Vec<Value> {
    let path = folder(name).join("index.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The file an index entry names under `key`; `None` with a printed line when this selection does not have it.
pub fn file(folder_name: &str, entry: &Value, key: &str) -> Option<PathBuf> {
    let name = entry.get(key)?.as_str()?;
    let path = folder(folder_name).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {name} is not in {}", folder(folder_name).display());
    None
}

/// Asserts that `actual` has exactly the tensors of the file `expected`, bit for bit; `rename` maps names of `actual`.
/// The expected file is read by the official safetensors crate.
pub fn assert_equal(actual: &Checkpoint, expected: &Path, rename: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(expected).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for name in actual.tensors.keys() {
        let Some(new_name) = rename(name) else {
            continue;
        };
        let tensor = actual.tensor(name).unwrap();
        let wanted = expected.tensor(&new_name).unwrap_or_else(|_| panic!("unexpected tensor {new_name}"));
        assert_eq!(tensor.dtype().name(), wanted.dtype().to_string(), "{new_name}: type");
        assert_eq!(tensor.shape(), wanted.shape(), "{new_name}: shape");
        assert!(tensor.bytes() == wanted.data(), "{new_name}: values differ");
        compared += 1;
    }
    assert_eq!(compared, expected.len(), "tensors are missing");
}

/// Reads a file with the default options.
pub fn open(path: &Path) -> Checkpoint {
    read(path).unwrap_or_else(|error| panic!("{error}"))
}

/// A file of the golden folder itself; `None` with a printed line when this selection does not have it.
pub fn golden(name: &str) -> Option<PathBuf> {
    let path = folder(name);
    if !path.exists() {
        println!("skipped: {name} is not in {}", folder("").display());
        return None;
    }
    Some(path)
}

/// A golden JSON file.
pub fn golden_json(name: &str) -> Option<Value> {
    let text = std::fs::read_to_string(golden(name)?).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// A golden safetensors file, in memory.
pub fn golden_tensors(name: &str) -> Option<StateDict> {
    Some(open(&golden(name)?).load_all().unwrap())
}

/// The tensors whose names start with `prefix`, without it.
pub fn part(tensors: &StateDict, prefix: &str) -> StateDict {
    let own = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
    own.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
}

/// A shape without data, for models that are too large to be in memory.
pub struct Shape(pub Vec<usize>);

impl TensorSource for Shape {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0
    }

    fn data(&self) -> Result<Cow<'_, [u8]>, WeightsError> {
        panic!("only shapes are needed")
    }
}

/// Shapes from a JSON list of `[name, shape, …]`.
pub fn shapes(keys: &Value) -> IndexMap<String, Shape> {
    let shape = |key: &Value| serde_json::from_value(key[1].clone()).unwrap();
    keys.as_array().unwrap().iter().map(|key| (text(&key[0]), Shape(shape(key)))).collect()
}

/// A JSON text.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap().to_string()
}

/// A JSON number.
pub fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}
