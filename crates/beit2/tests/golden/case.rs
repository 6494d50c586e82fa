//! One recorded case: its options, its tensors, and comparisons with them.

use std::cell::Cell;
use std::collections::BTreeMap;

use beit2::params;
use beit2::train::AdamWConfig;
use beit2::vit::{DropPath, VitConfig};
use beit2_kernels::{AutodiffBackend, Backend};
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, TensorData};
use serde_json::Value;

use super::checks::{check, part};
use super::folder::{floats, ints};
use super::sizes;

/// Two codes whose similarities are nearer than this are equally near: rounding decides between them.
pub const TIE: f64 = 1e-5;

pub struct Case {
    pub name: String,
    pub config: Value,
    pub meta: Value,
    pub tensors: BTreeMap<String, TensorData>,
    /// Shape, type and noise of every tensor.
    pub noise: Value,
    /// Sum of the learning rates of the recorded steps, for the tolerance of parameters.
    pub lr_sum: f64,
    /// Element type of the computation being compared.
    pub dtype: Cell<DType>,
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
        let name = format!("{} in {dtype:?}", self.name);
        println!("-- {name}");
        self.dtype.set(dtype);
        part(&name, || test(self, dtype));
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn raw(&self, name: &str) -> &TensorData {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    pub fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("{}: the manifest has no number {key}", self.name))
    }

    pub fn number_or(&self, key: &str, or: f64) -> f64 {
        self.config[key].as_f64().unwrap_or(or)
    }

    pub fn size(&self, key: &str) -> usize {
        self.number(key) as usize
    }

    pub fn flag(&self, key: &str) -> bool {
        self.config[key].as_bool().unwrap_or(false)
    }

    /// A list of whole numbers.
    pub fn sizes(&self, key: &str) -> Vec<usize> {
        let list = self.config[key].as_array();
        let list = list.unwrap_or_else(|| panic!("{}: the manifest has no list {key}", self.name));
        list.iter().map(|v| v.as_u64().unwrap() as usize).collect()
    }

    /// The Transformer of a case: options from the manifest, and what it does not say from the weights.
    pub fn vit(&self) -> VitConfig {
        sizes::vit(&self.config, &sizes::shapes(&self.below("weight")))
    }

    /// What the manifest says of the optimiser: `betas` of the configuration, else those of its parameter groups.
    pub fn adamw(&self) -> AdamWConfig {
        let group = &self.meta["param_groups"][0];
        let default = AdamWConfig::default();
        let beta = |at: usize, or: f64| {
            self.config["betas"][at].as_f64().or(group["betas"][at].as_f64()).unwrap_or(or)
        };
        AdamWConfig {
            beta1: beta(0, default.beta1),
            beta2: beta(1, default.beta2),
            eps: group["eps"].as_f64().unwrap_or(default.eps),
        }
    }

    /// The weight decay of those parameters that decay: of the configuration, else of the recorded groups.
    pub fn weight_decay(&self) -> f64 {
        let groups = self.meta["param_groups"].as_array().into_iter().flatten();
        let largest = groups.filter_map(|group| group["weight_decay"].as_f64()).reduce(f64::max);
        self.config["wd"].as_f64().or(largest).unwrap_or_else(|| {
            panic!("{}: the manifest has neither wd nor param_groups, so no weight decay", self.name)
        })
    }

    /// Recorded draws as drop-path factors for one forward pass, one row of B per branch; `call` counts the rows used.
    pub fn drop_path<B: Backend>(&self, name: &str, rates: &[f64], call: &mut usize) -> DropPath<B> {
        if !self.has(name) {
            return DropPath::none();
        }
        let draws = self.raw(name);
        let batch = draws.shape[1];
        let draws = floats(draws);
        let calls = rates.iter().filter(|r| **r > 0.0).count() * 2;
        let mut rest = draws[*call * batch..(*call + calls) * batch].iter().copied();
        *call += calls;
        DropPath::from_uniform(rates, batch, || rest.next().unwrap(), &Default::default())
    }

    /// Compares gradients by name: those recorded and no others.
    pub fn check_gradients(&self, mut found: BTreeMap<String, TensorData>) {
        for (name, _) in self.below("grad") {
            match found.remove(&name) {
                Some(grad) => self.check(&format!("grad/{name}"), &grad),
                None => check(false, || format!("{}: no gradient for {name}", self.name)),
            }
        }
        check(found.is_empty(), || {
            format!("{}: gradients that the reference does not have: {:?}", self.name, found.keys())
        });
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

    pub fn step_ids(&self, name: &str, index: usize) -> Vec<i64> {
        floats(&self.step_data(name, index)).iter().map(|&v| v as i64).collect()
    }

    pub fn step_ints<B: Backend>(&self, name: &str, index: usize) -> Tensor<B, 1, Int> {
        let values = self.step_ids(name, index);
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

    /// Compares a value of the manifest, which has no recorded noise.
    pub fn near(&self, name: &str, expected: f64, found: f64, tolerance: f64) {
        println!("{:24} {name:56} {found}, expected {expected}", self.name);
        check((expected - found).abs() <= tolerance, || {
            format!("{}: {name} is {found}, expected {expected} within {tolerance:e}", self.name)
        });
    }

    fn compare(&self, name: &str, expected: &[f64], found: &[f64]) {
        let recorded = &self.noise[name.split('[').next().unwrap()];
        let number = |key: &str| recorded[key].as_f64().unwrap_or(0.0);
        if expected.len() != found.len() {
            let (found, expected) = (found.len(), expected.len());
            return check(false, || format!("{}: {name} has {found} values, expected {expected}", self.name));
        }
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
        check(worst <= allowed, || {
            let (case, dtype) = (&self.name, self.dtype.get());
            format!(
                "{case} in {dtype:?}: {name} differs by {worst:e} ({relative:e} of it), allowed {allowed:e}"
            )
        });
    }

    /// Compares ids that may differ only where two codes are equally near (recorded margin).
    pub fn check_ids(&self, name: &str, found: &[i64], margins: Option<&[f64]>) {
        let expected = ints(self.raw(name));
        self.compare_ids(name, &expected, found, margins);
    }

    /// As [`Case::check_ids`], with ids from elsewhere. Whether all are equal, ties too.
    pub fn compare_ids(&self, name: &str, expected: &[i64], found: &[i64], margins: Option<&[f64]>) -> bool {
        let tie = |at: usize| margins.is_some_and(|m| m[at] < TIE);
        let pairs = || expected.iter().zip(found).enumerate().filter(|(_, (e, f))| e != f);
        let wrong: Vec<usize> = pairs().map(|(at, _)| at).filter(|&at| !tie(at)).collect();
        let same = expected.len() == found.len();
        println!("{:24} {name:56} {} ids, {} ties differ", self.name, expected.len(), pairs().count());
        check(same && wrong.is_empty(), || match (same, wrong.first()) {
            (true, Some(&at)) => format!(
                "{}: {} of {} of {name} differ, the first at {at}: {}, expected {}",
                self.name,
                wrong.len(),
                expected.len(),
                found[at],
                expected[at]
            ),
            _ => format!("{}: {name} are {}, expected {}", self.name, found.len(), expected.len()),
        });
        same && pairs().count() == 0
    }
}
