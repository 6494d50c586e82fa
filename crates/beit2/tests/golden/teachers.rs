//! Suite T: patch features of published teachers' architectures, from files as their libraries save them.

use beit2::tokenizer::teachers::{Teacher, TeacherConfig, TeacherKind};
use beit2::weights::{self, WeightFile};
use beit2_kernels::{Backend, Precision};
use burn::tensor::{DType, Tensor};
use serde_json::json;

use super::checks::check;
use super::folder::{Case, Inner, cases, each_case, root};

/// The case's weights with what lies beside them. timm writes its configuration only when a model goes to a hub; then it is
/// this.
fn file(case: &Case) -> WeightFile {
    let folder = root().join(case.meta["folder"].as_str().unwrap());
    if case.meta["timm_name"].is_null() {
        return weights::read(&folder.join("model.safetensors")).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    let config = json!({ "architecture": case.meta["timm_name"], "model_args": case.meta["overrides"] });
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(folder.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    weights::read(&copy.path().join("model.safetensors")).unwrap()
}

/// Names of a plain Vision Transformer do not tell that it is DINO's.
fn kind(case: &Case) -> Option<TeacherKind> {
    let name = case.meta["class"].as_str().or(case.meta["timm_name"].as_str()).unwrap();
    let tells = ["CLIP", "Siglip", "Dino", "DINO", "clip", "siglip", "dinov2", "dinov3"];
    (!tells.iter().any(|family| name.contains(family))).then_some(TeacherKind::Dino)
}

fn teacher<B: Backend>(case: &Case, layer: Option<usize>, dtype: DType) -> Teacher<B> {
    let config = TeacherConfig { kind: kind(case), layer, ..TeacherConfig::default() };
    Teacher::from_file(&config, file(case), dtype, &Default::default()).unwrap()
}

#[test]
fn golden_t_features() {
    each_case(|| cases("T"), |case| case.in_both_types(features::<Inner>));
}

pub fn features<B: Backend>(case: &Case, dtype: DType) {
    let images: Tensor<B, 4> = case.tensor("input/images", dtype);
    let model = teacher::<B>(case, None, dtype);
    let patches = model.features(images.clone());
    case.check("output/patches", &patches.to_data());
    let prefix = case.meta["prefix_tokens"].as_u64().unwrap();
    check((prefix > 0) == model.has_cls(), || format!("{}: a CLS token among {prefix} tokens", case.name));
    let tokens = model.tokens(images.clone());
    let expected = patches.dims()[1] + usize::from(model.has_cls());
    check(tokens.dims()[1] == expected, || format!("{}: registers among the tokens", case.name));
    // CLIP's is recorded after the projection, which features of images do not have.
    if case.has("output/cls") && model.dim() == model.width() {
        case.check("output/cls", &tokens.narrow(1, 0, 1).to_data());
    }
    for layer in (0..).take_while(|layer| case.has(&format!("output/hidden{layer}"))) {
        let model = teacher::<B>(case, Some(layer + 1), dtype);
        case.check(&format!("output/hidden{layer}"), &model.all_tokens(images.clone()).to_data());
    }
}

/// Frozen, the form in which every command runs a teacher, and in bf16.
#[test]
fn golden_t_frozen_and_bf16() {
    each_case(
        || cases("T"),
        |case| {
            let images: Tensor<Inner, 4> = case.tensor("input/images", DType::F32);
            let model = teacher::<Inner>(case, None, DType::F32);
            let plain = model.features(images.clone()).into_data();
            let frozen = model.clone().freeze().features(images.clone()).into_data();
            check(plain == frozen, || format!("{}: a frozen teacher computes something else", case.name));
            let mut half = model;
            half.set_precision(Precision::Bf16);
            let found = half.freeze().features(images).into_data();
            let largest = plain.iter::<f32>().fold(0f32, |largest, value| largest.max(value.abs()));
            let worst = plain.iter::<f32>().zip(found.iter::<f32>()).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0f32, f32::max);
            println!("{:24} bf16 differs by {worst:.2e} of {largest:.2e}", case.name);
            check(worst < 0.05 * largest, || format!("{}: bf16 differs by {worst} of {largest}", case.name));
        },
    );
}
