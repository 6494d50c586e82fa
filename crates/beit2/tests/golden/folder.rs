//! Reading a golden folder, and the tolerances.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use beit2::params;
use beit2::vit::{DropPath, RelPosKind, VitConfig};
use beit2_kernels::{AutodiffBackend, Backend, simd};
use burn::backend::{Autodiff, Flex};
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, TensorData};
use serde_json::Value;

/// The backend of the tests with `#[test]`; those that `devices` repeats elsewhere are functions of it.
pub type Inner = Flex;
pub type Auto = Autodiff<Inner>;

/// Keeps the process at the instruction set that `BEIT2_TEST_SIMD` names, if it names one: CI runs these tests at the
/// machine's level and at AVX2.
fn limit_level() {
    if let Some(name) = std::env::var_os("BEIT2_TEST_SIMD") {
        let level = name.to_str().and_then(simd::Level::named);
        simd::limit(
            level.unwrap_or_else(|| panic!("BEIT2_TEST_SIMD: no instruction set {}", name.display())),
        );
    }
}

pub fn root() -> PathBuf {
    limit_level();
    match std::env::var_os("BEIT2_GOLDEN") {
        Some(path) => path.into(),
        // Where it was built; else it was carried elsewhere, and the folder with it.
        None => [concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"), "tests/golden"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.is_dir())
            .unwrap_or_default(),
    }
}

/// A JSON file of the folder; `None` with a printed line when the folder does not hold it.
pub fn json(name: &str) -> Option<Value> {
    let path = root().join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).unwrap()),
        Err(error) => {
            println!("skipped: {}: {error}", path.display());
            None
        }
    }
}

/// One recorded case.
pub struct Case {
    pub name: String,
    pub config: Value,
    pub meta: Value,
    tensors: BTreeMap<String, TensorData>,
    noise: Value,
    /// Sum of the learning rates of the recorded steps, for the tolerance of parameters.
    lr_sum: f64,
    /// Element type of the computation being compared.
    dtype: Cell<DType>,
}

/// All cases of a suite whose files the folder holds.
///
/// # Panics
/// When the folder holds no manifest at all, or this one but none of its files: a test of nothing must not pass.
pub fn cases(suite: &str) -> Vec<Case> {
    let Some(manifest) = json(&format!("manifest_{suite}.json")) else {
        let manifest = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("manifest_"))
        };
        let any = std::fs::read_dir(root()).is_ok_and(|mut entries| entries.any(manifest));
        assert!(any, "{} holds no manifest_*.json: not a golden folder", root().display());
        return Vec::new();
    };
    let mut cases = Vec::new();
    for entry in manifest["entries"].as_array().unwrap() {
        // Entries without tensors hold their numbers in the manifest itself.
        let Some(file) = entry["file"].as_str() else { continue };
        let path = root().join(file);
        let Ok(bytes) = std::fs::read(&path) else {
            println!("skipped: {} is not in this folder", path.display());
            continue;
        };
        let tensors = read(&bytes);
        // Fine-tuning records one rate per step and parameter group; the largest is the head's.
        let lr_sum = match (tensors.get("traj/lr"), tensors.get("traj/group_lr")) {
            (Some(lr), _) => floats(lr).iter().sum(),
            (None, Some(groups)) => {
                let largest = |row: &[f64]| row.iter().fold(0.0, |m: f64, lr| m.max(*lr));
                floats(groups).chunks(groups.shape[1]).map(largest).sum()
            }
            (None, None) => 0.0,
        };
        cases.push(Case {
            name: entry["case"].as_str().unwrap().to_owned(),
            config: entry["config"].clone(),
            meta: entry["meta"].clone(),
            tensors,
            noise: entry["tensors"].clone(),
            lr_sum,
            dtype: Cell::new(DType::F32),
        });
    }
    assert!(!cases.is_empty(), "suite {suite} has a manifest but no file");
    cases
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

impl Case {
    /// Runs a comparison in f32 and in f64.
    pub fn in_both_types(&self, test: impl Fn(&Case, DType)) {
        for dtype in [DType::F32, DType::F64] {
            self.in_type(dtype, &test);
        }
    }

    /// Runs a comparison in one of them.
    pub fn in_type(&self, dtype: DType, test: impl Fn(&Case, DType)) {
        println!("-- {} in {dtype:?}", self.name);
        self.dtype.set(dtype);
        test(self, dtype);
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn raw(&self, name: &str) -> &TensorData {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    pub fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("{}: no number {key}", self.name))
    }

    pub fn size(&self, key: &str) -> usize {
        self.number(key) as usize
    }

    pub fn flag(&self, key: &str) -> bool {
        self.config[key].as_bool().unwrap_or(false)
    }

    /// The Transformer's sizes by the reference's option names, which suites B and C share.
    pub fn vit(&self) -> VitConfig {
        let mlp_ratio = self.config["mlp_ratio"].as_f64().unwrap_or(VitConfig::default().mlp_ratio);
        VitConfig {
            image_size: self.size("img"),
            patch_size: self.size("patch"),
            width: self.size("width"),
            depth: self.size("depth"),
            heads: self.size("heads"),
            mlp_ratio,
            qkv_bias: self.config["qkv_bias"].as_bool().unwrap_or(true),
            layer_scale_init: self.number("init_values"),
            abs_pos_emb: self.flag("abs_pos"),
            rel_pos_bias: match (self.flag("shared_rel_pos"), self.flag("rel_pos")) {
                (true, _) => RelPosKind::Shared,
                (_, true) => RelPosKind::PerBlock,
                _ => RelPosKind::None,
            },
            drop_path: self.number("drop_path"),
            ..VitConfig::default()
        }
    }

    /// Recorded draws as drop-path factors for one forward pass, one row of B per branch; `call` counts the rows used.
    pub fn drop_path<B: Backend>(&self, name: &str, rates: &[f64], call: &mut usize) -> DropPath<B> {
        if !self.has(name) {
            return DropPath::none();
        }
        let batch = self.size("batch");
        let draws = floats(self.raw(name));
        let calls = rates.iter().filter(|r| **r > 0.0).count() * 2;
        let mut rest = draws[*call * batch..(*call + calls) * batch].iter().copied();
        *call += calls;
        DropPath::from_uniform(rates, batch, || rest.next().unwrap(), &Default::default())
    }

    /// Compares gradients by name: those recorded and no others.
    pub fn check_gradients(&self, mut found: BTreeMap<String, TensorData>) {
        for (name, _) in self.below("grad") {
            let grad = found.remove(&name).unwrap_or_else(|| panic!("no gradient for {name}"));
            self.check(&format!("grad/{name}"), &grad);
        }
        assert!(
            found.is_empty(),
            "{}: gradients that the reference does not have: {:?}",
            self.name,
            found.keys()
        );
    }

    /// Compares the parameters after a number of optimiser steps.
    pub fn check_params<B: AutodiffBackend, M: Module<B>>(&self, steps: usize, model: &M) {
        let params = params::export(model);
        for (name, _) in self.below(&format!("step{steps}/param")) {
            self.check(&format!("step{steps}/param/{name}"), &params[&name]);
        }
    }

    /// Tensors below `prefix/`, by the rest of their names.
    pub fn below(&self, prefix: &str) -> BTreeMap<String, TensorData> {
        let prefix = format!("{prefix}/");
        let pick = |(name, data): (&String, &TensorData)| {
            Some((name.strip_prefix(&prefix)?.to_owned(), data.clone()))
        };
        self.tensors.iter().filter_map(pick).collect()
    }

    pub fn tensor<B: Backend, const D: usize>(&self, name: &str, dtype: DType) -> Tensor<B, D> {
        Tensor::from_data(self.raw(name).clone(), (&Default::default(), dtype))
    }

    /// Row `index` of the first axis.
    pub fn step<B: Backend, const D: usize>(&self, name: &str, index: usize, dtype: DType) -> Tensor<B, D> {
        let data = self.step_data(name, index);
        Tensor::from_data(data, (&Default::default(), dtype))
    }

    pub fn step_data(&self, name: &str, index: usize) -> TensorData {
        let data = self.raw(name);
        let shape = data.shape.to_vec();
        let row: usize = shape[1..].iter().product();
        let values = floats(data)[index * row..(index + 1) * row].to_vec();
        TensorData::new(values, shape[1..].to_vec())
    }

    pub fn step_ints<B: Backend>(&self, name: &str, index: usize) -> Tensor<B, 1, Int> {
        let values: Vec<i64> = floats(&self.step_data(name, index)).iter().map(|&v| v as i64).collect();
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &Default::default())
    }

    /// Compares all of a recorded tensor, by the tolerance that its name asks for.
    pub fn check(&self, name: &str, found: &TensorData) {
        self.compare(name, &floats(self.raw(name)), &floats(found));
    }

    /// Compares row `index` of a recorded tensor.
    pub fn check_step(&self, name: &str, index: usize, found: &TensorData) {
        self.compare(&format!("{name}[{index}]"), &floats(&self.step_data(name, index)), &floats(found));
    }

    pub fn check_number(&self, name: &str, expected: f64, found: f64) {
        self.compare(name, &[expected], &[found]);
    }

    fn compare(&self, name: &str, expected: &[f64], found: &[f64]) {
        let recorded = &self.noise[name.split('[').next().unwrap()];
        let number = |key: &str| recorded[key].as_f64().unwrap_or(0.0);
        assert_eq!(expected.len(), found.len(), "{}: {name}: number of values", self.name);
        let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        let worst = expected.iter().zip(found).map(|(e, f)| (e - f).abs());
        // A NaN must fail, so it must not get lost in a max.
        let worst = worst.fold(0f64, |m, v| if v.is_nan() { f64::INFINITY } else { m.max(v) });
        let relative = if largest > 0.0 { worst / largest } else { worst };
        let zero_by_maths = recorded["zero_by_maths"].as_bool().unwrap_or(false);
        let mut allowed = 20.0 * number("noise_abs");
        allowed = allowed.max(1e-5 * if zero_by_maths { 1.0 } else { largest });
        let mut outliers = 0;
        if name.starts_with("step") || name.starts_with("ema/") {
            // Adam divides by √v: where a gradient is nearly 0 its rounding decides the size of the step.
            allowed = allowed.max(1e-3 * self.lr_sum);
            // In f32 that can exceed any such bound for a single element: with |g| near ε = 1e-8 an error of
            // 1e-10 in g moves the step by 1 %. So one value in a thousand (at least one) may be off by up to
            // a twentieth of the steps' length. The same comparison in f64 grants no exception.
            let beyond = expected.iter().zip(found).filter(|(e, f)| (*e - *f).abs() > allowed).count();
            if self.dtype.get() == DType::F32 && (1..=expected.len().div_ceil(1000)).contains(&beyond) {
                (outliers, allowed) = (beyond, allowed.max(0.05 * self.lr_sum));
            }
        }
        let note =
            if outliers > 0 { format!("  ({outliers} of {} beyond)", expected.len()) } else { String::new() };
        println!(
            "{:24} {name:56} abs {worst:9.2e}  rel {relative:9.2e}  allowed {allowed:9.2e}{note}",
            self.name
        );
        assert!(worst <= allowed, "{}: {name} differs by {worst:e}, allowed {allowed:e}", self.name);
    }

    /// Compares ids that may differ only where two codes are equally near (recorded margin).
    pub fn check_ids(&self, name: &str, found: &[i64], margins: Option<&[f64]>) {
        let expected = ints(self.raw(name));
        self.compare_ids(name, &expected, found, margins);
    }

    pub fn compare_ids(&self, name: &str, expected: &[i64], found: &[i64], margins: Option<&[f64]>) {
        assert_eq!(expected.len(), found.len(), "{}: {name}: number of ids", self.name);
        for (at, (e, f)) in expected.iter().zip(found).enumerate() {
            let tie = margins.is_some_and(|m| m[at] < 1e-5);
            assert!(e == f || tie, "{}: {name}[{at}] is {f}, expected {e}", self.name);
        }
        println!("{:24} {name:56} {} ids equal", self.name, expected.len());
    }
}
