//! Suites A, B and C with bf16 products, against the same recorded f32 tensors.
//!
//! Tolerances are relative, by Euclidean norm. A product whose operands are rounded to 8 bits has an error of about
//! 0.3 % of its size, whatever its length, because the errors of its terms are independent; residual streams and
//! norms neither add to it nor average it away. So a forward pass of 2 to 4 blocks stays within a few such errors:
//! 1 % (worst recorded tensor 0.7 %). A gradient has passed twice as many products, and reads rounded
//! activations: 3 % (worst 2.1 %). A gradient far smaller than the others of its model is a difference of large terms,
//! so each is measured against a hundredth of the norm of all at least. Losses average over many values: 0.1 %
//! (worst 0.07 %).

use std::collections::BTreeMap;

use beit2::finetune::soft_cross_entropy;
use beit2::pretrain::MimModel;
use beit2::train::gradients;
use beit2::vit::DropPath;
use beit2_kernels::Precision;
use burn::tensor::{DType, Tensor, TensorData};

use super::folder::{Auto, Case, cases, floats};
use super::{classification, pretraining, tokenizer};

const FORWARD: f64 = 0.01;
const GRADIENT: f64 = 0.03;
const LOSS: f64 = 1e-3;
/// Most ids that may move to another code: those whose two nearest codes are closer than the rounding.
const MOVED_IDS: f64 = 0.1;

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Distance of two tensors, relative to the norm of `expected` or `least`.
fn distance(expected: &[f64], found: &[f64], least: f64) -> f64 {
    assert_eq!(expected.len(), found.len());
    let difference: Vec<f64> = expected.iter().zip(found).map(|(e, f)| e - f).collect();
    norm(&difference) / norm(expected).max(least)
}

fn check(case: &Case, name: &str, found: &TensorData, allowed: f64) {
    check_against(case, name, &floats(case.raw(name)), found, 0.0, allowed);
}

fn check_against(case: &Case, name: &str, expected: &[f64], found: &TensorData, least: f64, allowed: f64) {
    let d = distance(expected, &floats(found), least);
    println!("{:24} {name:56} {:7.3} %  allowed {:.1} %", case.name, 100.0 * d, 100.0 * allowed);
    // Not `d > allowed`: a NaN must fail.
    assert!(d <= allowed, "{}: {name} differs by {d:e} of its size, allowed {allowed:e}", case.name);
}

fn check_gradients(case: &Case, found: &BTreeMap<String, TensorData>) {
    let recorded = case.below("grad");
    let all: Vec<f64> = recorded.values().flat_map(floats).collect();
    for (name, expected) in &recorded {
        let expected = floats(expected);
        check_against(case, &format!("grad/{name}"), &expected, &found[name], 0.01 * norm(&all), GRADIENT);
    }
}

#[test]
fn golden_b_in_bf16() {
    for case in &cases("B") {
        let mut model = pretraining::model(case, DType::F32);
        model.set_precision(Precision::Bf16);
        let x: Tensor<Auto, 4> = case.step("input/patch_view", 0, DType::F32);
        let mask = pretraining::mask(case, 0);
        let labels = pretraining::labels(case, 0, &mask);
        let suffixes: &[&str] = if case.flag("cls") { &["_1", "_2"] } else { &[""] };
        let tokens = model.patch_tokens(x.clone(), Some(&mask));
        for (suffix, tokens) in suffixes.iter().zip(&tokens) {
            check(case, &format!("eval/patch_tokens{suffix}"), &tokens.to_data(), FORWARD);
        }
        let drop = case.drop_path("droppath/uniform", &pretraining::config(case).drop_path_rates(), &mut 0);
        let logits = model.forward(x, &mask, &drop);
        for (suffix, logits) in suffixes.iter().zip(std::iter::once(&logits.last).chain(&logits.aggregated)) {
            check(case, &format!("train/logits{suffix}"), &logits.to_data(), FORWARD);
        }
        let loss = MimModel::loss(logits, labels);
        check(case, "train/loss", &loss.total.to_data(), LOSS);
        check_gradients(case, &gradients(&model, &loss.total.backward()));
    }
}

#[test]
fn golden_c_in_bf16() {
    for case in &cases("C") {
        let mut model = classification::model(case, DType::F32);
        model.set_precision(Precision::Bf16);
        let x: Tensor<Auto, 4> = case.step("input/images", 0, DType::F32);
        check(case, "eval/logits", &model.forward(x, &DropPath::none()).to_data(), FORWARD);
        let (x, targets) = classification::inputs(case, 0, DType::F32);
        let drop = case.drop_path("droppath/uniform", &classification::rates(case), &mut 0);
        let logits = model.forward(x, &drop);
        check(case, "train/logits", &logits.to_data(), FORWARD);
        let loss = soft_cross_entropy(logits, targets);
        check(case, "train/loss", &loss.to_data(), LOSS);
        check_gradients(case, &gradients(&model, &loss.backward()));
    }
}

#[test]
fn golden_a_in_bf16() {
    for case in cases("A").iter().filter(|case| case.has("train/loss") && case.has("eval/id_margin")) {
        let (mut model, mut teacher) =
            (tokenizer::model(case, DType::F32), tokenizer::teacher(case, DType::F32));
        model.set_precision(Precision::Bf16);
        teacher.set_precision(Precision::Bf16);
        if case.has("kmeans/codebook") {
            let codes = case.tensor("kmeans/codebook", DType::F32);
            let members = case.tensor("kmeans/cluster_size", DType::F32);
            model.quantize = model.quantize.set_codes(codes, members);
        }
        let x = model.preprocess(tokenizer::image_step(case, 0, DType::F32));
        let target = teacher.forward(x.clone());
        check(case, "eval/teacher_target", &target.to_data(), FORWARD);
        check(case, "eval/z", &model.encode(x.clone()).to_data(), FORWARD);
        let loss = model.forward(x, target);
        let (expected, found) = (floats(case.raw("eval/ids")), floats(&loss.quantized.ids.to_data()));
        let moved = expected.iter().zip(&found).filter(|(e, f)| e != f).count();
        println!("{:24} {moved} of {} ids moved", case.name, expected.len());
        assert!(moved as f64 <= MOVED_IDS * expected.len() as f64, "{}: {moved} ids moved", case.name);
        check(case, "eval/loss", &loss.total.to_data(), LOSS);
        if moved == 0 {
            check(case, "eval/rec", &loss.decoded.to_data(), FORWARD);
            check_gradients(case, &gradients(&model, &loss.total.backward()));
        }
    }
}
