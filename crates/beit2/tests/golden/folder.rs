//! Reading a golden folder.

use std::cell::Cell;
use std::collections::BTreeMap;

use beit2_kernels::simd;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, TensorData};
use serde_json::Value;

pub use super::case::Case;
use super::checks::{self, each, skip};

/// The backend of the tests with `#[test]`; those that `devices` repeats elsewhere are functions of it.
pub type Inner = Flex;
pub type Auto = Autodiff<Inner>;

/// Keeps the process at the instruction set that `BEIT2_TEST_SIMD` names, if it names one: CI runs these tests at the
/// machine's level and below it.
fn limit_level() {
    if let Some(name) = std::env::var_os("BEIT2_TEST_SIMD") {
        let level = name.to_str().and_then(simd::Level::named);
        simd::limit(
            level.unwrap_or_else(|| panic!("BEIT2_TEST_SIMD: no instruction set {}", name.display())),
        );
    }
}

/// The folder of the recordings.
pub fn root() -> std::path::PathBuf {
    limit_level();
    checks::root()
}

/// A JSON file of the folder; `None` with a printed line when the folder does not hold it.
pub fn json(name: &str) -> Option<Value> {
    let path = root().join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).unwrap()),
        Err(error) => {
            skip(format!("{}: {error}", path.display()));
            None
        }
    }
}

/// The entries of a suite's manifest; none, with a printed line, when the folder lacks the suite.
pub fn entries(suite: &str) -> Vec<Value> {
    let Some(manifest) = json(&format!("manifest_{suite}.json")) else {
        return Vec::new();
    };
    manifest["entries"].as_array().unwrap_or_else(|| panic!("manifest_{suite}.json has no entries")).clone()
}

/// All cases of a suite whose files the folder holds; the others are named.
///
/// # Panics
/// When the manifest is there and none of its files.
pub fn cases(suite: &str) -> Vec<Case> {
    let entries = entries(suite);
    let mut cases = Vec::new();
    for entry in &entries {
        // Entries without tensors hold their numbers in the manifest itself.
        let Some(file) = entry["file"].as_str() else { continue };
        let path = root().join(file);
        let Ok(bytes) = std::fs::read(&path) else {
            skip(format!("{} is not in this folder", path.display()));
            continue;
        };
        cases.push(case(entry, read(&bytes)));
    }
    assert!(entries.is_empty() || !cases.is_empty(), "suite {suite} has a manifest but no file");
    cases
}

/// The cases of a suite that hold a tensor of this name; the others are left out, and named.
pub fn cases_with(suite: &str, tensor: &str) -> Vec<Case> {
    let (with, without): (Vec<_>, Vec<_>) = cases(suite).into_iter().partition(|case| case.has(tensor));
    let without: Vec<&str> = without.iter().map(|case| case.name.as_str()).collect();
    if !without.is_empty() {
        println!("not of this test, without {tensor}: {}", without.join(", "));
    }
    with
}

/// A golden test of cases. One of them failing leaves the others running.
#[track_caller]
pub fn each_case(cases: impl FnOnce() -> Vec<Case>, test: impl Fn(&Case)) {
    checks::golden(|| {
        for case in cases() {
            checks::part(&case.name, || test(&case));
        }
    });
}

/// A golden test of the entries of a JSON object, which may be missing.
#[track_caller]
pub fn each_entry(file: Option<Value>, test: impl Fn(&str, Value)) {
    let object = file.map(|file| file.as_object().expect("an object").clone());
    each(object.into_iter().flatten(), test);
}

fn case(entry: &Value, tensors: BTreeMap<String, TensorData>) -> Case {
    // Fine-tuning records one rate per step and parameter group; the largest is the head's.
    let lr_sum = match (tensors.get("traj/lr"), tensors.get("traj/group_lr")) {
        (Some(lr), _) => floats(lr).iter().sum(),
        (None, Some(groups)) => {
            let largest = |row: &[f64]| row.iter().fold(0.0, |m: f64, lr| m.max(*lr));
            floats(groups).chunks(groups.shape[1]).map(largest).sum()
        }
        (None, None) => 0.0,
    };
    Case {
        name: entry["case"].as_str().unwrap().to_owned(),
        config: entry["config"].clone(),
        meta: entry["meta"].clone(),
        tensors,
        noise: entry["tensors"].clone(),
        lr_sum,
        dtype: Cell::new(DType::F32),
    }
}

fn read(bytes: &[u8]) -> BTreeMap<String, TensorData> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::I64 => DType::I64,
            safetensors::Dtype::F64 => DType::F64,
            safetensors::Dtype::U8 => DType::U8,
            safetensors::Dtype::I32 => DType::I32,
            safetensors::Dtype::BOOL => DType::U8,
            other => panic!("{name}: {other:?}"),
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        tensors.insert(name.to_owned(), data);
    }
    tensors
}

pub fn floats(data: &TensorData) -> Vec<f64> {
    data.clone().convert_dtype(DType::F64).into_vec::<f64>().unwrap()
}

pub fn ints(data: &TensorData) -> Vec<i64> {
    data.clone().convert_dtype(DType::I64).into_vec::<i64>().unwrap()
}

/// The suites that some crate's tests read, and the JSON files that stand for themselves.
const KNOWN: [&str; 10] = ["A", "B", "C", "D", "G", "H", "I", "J", "L", "T"];

/// What the folder holds and no test reads, and what tests would read and the folder lacks.
#[test]
fn golden_folder_is_read_as_a_whole() {
    checks::golden(|| {
        let mut suites: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(root()).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            let suite = name.strip_prefix("manifest_").and_then(|rest| rest.strip_suffix(".json"));
            suites.extend(suite.map(str::to_owned));
        }
        suites.sort();
        for suite in suites.iter().filter(|suite| !KNOWN.contains(&suite.as_str())) {
            skip(format!("suite {suite}: no test reads it ({} cases)", entries(suite).len()));
        }
        // Suites H and J have no manifest, E and F are JSON files.
        for suite in KNOWN.iter().filter(|suite| !["H", "J"].contains(suite)) {
            if !suites.iter().any(|found| found == suite) {
                skip(format!("suite {suite} is not in this folder"));
            }
        }
        println!("suites: {}", suites.join(", "));
    });
}

/// Such a folder once passed all golden tests.
#[test]
fn golden_a_folder_without_a_manifest_fails() {
    let empty = tempfile::tempdir().unwrap();
    let mut test = std::process::Command::new(std::env::current_exe().unwrap());
    let run = test.arg("golden_b_five_steps").env("BEIT2_GOLDEN", empty.path()).output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(!run.status.success() && text.contains("not a golden folder"), "{text}");
}
