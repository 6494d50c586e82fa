//! Shared by the golden tests: where the recorded files are, and comparison with an expected safetensors file.

// Every test file uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

#[path = "../../../../tests/checks.rs"]
pub mod checks;

use std::borrow::Cow;

use beit2_weights::convert::StateDict;
use beit2_weights::{Checkpoint, DType, TensorSource, WeightsError, read};
use indexmap::IndexMap;
use serde_json::Value;

/// A folder of golden suite H.
pub fn folder(name: &str) -> PathBuf {
    checks::root().join(name)
}

/// The entries of a folder's `index.json`; none, with a printed line, when the recording lacks the folder.
pub fn index(name: &str) -> Vec<Value> {
    let file = format!("{name}/index.json");
    golden_json(&file).map_or_else(Vec::new, |index| index.as_array().unwrap().clone())
}

/// A golden test of the entries of a folder's index, each a part of its own.
#[track_caller]
pub fn each_indexed(name: &str, test: impl Fn(&str, &Value)) {
    checks::golden(|| {
        for entry in index(name) {
            let file = text(&entry["file"]);
            checks::part(&file, || test(&file, &entry));
        }
    });
}

/// A golden test of the cases of a suite's manifest.
#[track_caller]
pub fn each_case(suite: &str, test: impl Fn(&str, &Value)) {
    checks::golden(|| {
        let manifest = golden_json(&format!("manifest_{suite}.json"));
        let entries = manifest.as_ref().and_then(|manifest| manifest["entries"].as_array());
        for entry in entries.into_iter().flatten() {
            let case = text(&entry["case"]);
            checks::part(&case, || test(&case, entry));
        }
    });
}

/// A golden test of the entries of a JSON object.
#[track_caller]
pub fn each_entry(file: &str, key: Option<&str>, test: impl Fn(&str, &Value)) {
    checks::golden(|| {
        let Some(file) = golden_json(file) else { return };
        let object = key.map_or(&file, |key| &file[key]);
        for (name, entry) in object.as_object().unwrap() {
            checks::part(name, || test(name, entry));
        }
    });
}

/// The file an index entry names under `key`; `None` with a printed line when this selection does not have it.
pub fn file(folder_name: &str, entry: &Value, key: &str) -> Option<PathBuf> {
    let name = entry.get(key)?.as_str()?;
    let path = folder(folder_name).join(name);
    if path.exists() {
        return Some(path);
    }
    checks::skip(format!("{name} is not in {}", folder(folder_name).display()));
    None
}

/// Asserts that `actual` has exactly the tensors of the file `expected`, bit for bit; `rename` maps names of `actual`.
/// The expected file is read by the official safetensors crate.
pub fn assert_equal(actual: &Checkpoint, expected: &Path, rename: impl Fn(&str) -> Option<String>) {
    let path = expected.display();
    let bytes = std::fs::read(expected).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for name in actual.tensors.keys() {
        let Some(new_name) = rename(name) else {
            continue;
        };
        let tensor = actual.tensor(name).unwrap();
        let Ok(wanted) = expected.tensor(&new_name) else {
            checks::check(false, || format!("{path} does not have {new_name}"));
            continue;
        };
        let what = |what: &str| format!("{path}: {what} of {new_name}");
        checks::equal(&what("type"), &tensor.dtype().name().to_string(), &wanted.dtype().to_string());
        checks::equal(&what("shape"), &tensor.shape(), &wanted.shape());
        checks::check(tensor.bytes() == wanted.data(), || format!("{} differ", what("values")));
        compared += 1;
    }
    checks::equal(&format!("{path}: number of tensors"), &compared, &expected.len());
}

/// Reads a file with the default options.
pub fn open(path: &Path) -> Checkpoint {
    read(path).unwrap_or_else(|error| panic!("{error}"))
}

/// A file of the golden folder itself; `None` with a printed line when this selection does not have it.
pub fn golden(name: &str) -> Option<PathBuf> {
    let path = folder(name);
    if !path.exists() {
        checks::skip(format!("{name} is not in {}", folder("").display()));
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
    // Recordings of scores hold NaN where a class has no pixels.
    let load = |(name, view): (&String, &beit2_weights::TensorView)| (name.clone(), view.load().unwrap());
    Some(open(&golden(name)?).tensors.iter().map(load).collect())
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
