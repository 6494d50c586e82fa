//! Suite I: models written by timm and by Hugging Face transformers, opened from their own files and names.

use beit2::params;
use beit2::pretrain::{MimConfig, MimModel, PatchMask};
use beit2::vit::{DropPath, Pooling, VisionTransformer, VitConfig, plan_weights};
use beit2::weights::{self, StateFile, WeightFile};
use beit2_weights::inspect;
use beit2_weights::plan::PlanOptions;
use burn::tensor::{DType, Tensor, TensorData};

use super::checks::{equal, skip};
use super::folder::{Case, Inner, cases_with, each_case, floats, json, root};
use super::sizes;

/// The case's file: in the golden tensors for timm, beside them for transformers.
fn file(case: &Case) -> Option<WeightFile> {
    let Some(folder) = case.meta["files"].as_str() else {
        return Some(WeightFile { tensors: case.below("weight"), ..WeightFile::default() });
    };
    let path = root().join(folder).join("model.safetensors");
    if !path.is_file() {
        skip(format!("{} is not in this folder", path.display()));
        return None;
    }
    Some(weights::read(&path).unwrap())
}

fn tensors(plan: beit2_weights::plan::Plan) -> weights::Tensors {
    let data = |tensor: beit2_weights::Tensor| TensorData::new(tensor.to_f32(), tensor.shape().to_vec());
    plan.tensors.into_iter().map(|(name, tensor)| (name, data(tensor))).collect()
}

/// The sizes that the file alone gives, which must be those of the manifest, and how a layer norm is computed, which the
/// configuration beside it says.
fn vit(case: &Case, state: &StateFile) -> VitConfig {
    let vit = if state.summary.heads.is_some() {
        VitConfig::from_shapes(state).unwrap()
    } else {
        // Only a bias table shows the heads; other files are taken to have published models' heads of 64.
        skip(format!("{}: how many heads the file shows", case.name));
        let shape =
            |(name, tensor): (&String, &beit2_weights::Tensor)| (name.clone(), tensor.shape().to_vec());
        sizes::vit(&case.config, &state.tensors.iter().map(shape).collect())
    };
    let recorded = ["depth", "heads", "img", "patch", "width"].map(|key| case.size(key));
    let found = [vit.depth, vit.heads, vit.image_size, vit.patch_size, vit.width];
    equal(&format!("{}: depth, heads, image, patch and width", case.name), &found, &recorded);
    let config = case.meta["files"].as_str().and_then(|folder| json(&format!("{folder}/config.json")));
    if let Some(eps) = config.as_ref().and_then(|config| config["layer_norm_eps"].as_f64()) {
        equal(&format!("{}: the eps of layer norms", case.name), &vit.norm_eps, &eps);
    }
    vit
}

/// The file as a Vision Transformer with `outputs` classes; sizes come from the file alone.
fn transformer(case: &Case, file: WeightFile, outputs: usize, dtype: DType) -> VisionTransformer<Inner> {
    let state = StateFile::new(file, &case.name).unwrap();
    let config = vit(case, &state);
    let pooling = match state.summary.pooling {
        Some(inspect::Pooling::Mean) => Pooling::Mean,
        _ => Pooling::Cls,
    };
    // timm says `pool`, transformers `mean_pool`.
    let mean = case.config["pool"].as_str().map(|pool| pool == "avg").or(case.config["mean_pool"].as_bool());
    if let Some(mean) = mean {
        equal(&format!("{}: mean pooling", case.name), &(pooling == Pooling::Mean), &mean);
    }
    let plan = plan_weights(state, &config, pooling, outputs, &PlanOptions::default()).unwrap();
    let zeros = VisionTransformer::new(&config, pooling, outputs, &Default::default());
    params::load_strict(zeros, tensors(plan), dtype, |_| false).unwrap()
}

/// Embedded tokens and each block's output.
fn hidden(
    case: &Case,
    trunk: &beit2::vit::Trunk<Inner>,
    embedded: Tensor<Inner, 3>,
) -> Vec<Tensor<Inner, 3>> {
    let (bias, mut found) = (trunk.shared_bias(), vec![embedded]);
    for block in 0..case.size("depth") {
        let x = found[block].clone();
        found.push(trunk.run(x, block..block + 1, None, bias.as_ref(), &DropPath::none()));
    }
    found
}

/// All tokens of the last block after the final norm, which mean pooling has behind the mean instead.
fn normed(model: &VisionTransformer<Inner>, hidden: &[Tensor<Inner, 3>]) -> Tensor<Inner, 3> {
    let last = hidden[hidden.len() - 1].clone();
    match &model.norm {
        Some(norm) => norm.forward(last),
        None => last,
    }
}

#[test]
fn golden_i_timm() {
    each_case(|| cases_with("I", "output/pre_logits"), |case| case.in_both_types(timm));
}

fn timm(case: &Case, dtype: DType) {
    let Some(file) = file(case) else { return };
    let model = transformer(case, file, case.size("classes"), dtype);
    let x: Tensor<Inner, 4> = case.tensor("input/images", dtype);
    case.check("output/logits", &model.forward(x.clone(), &DropPath::none()).to_data());
    let tokens = hidden(case, &model.trunk, model.trunk.embed(x.clone(), None));
    case.check("output/features", &normed(&model, &tokens).to_data());
    for (block, tokens) in tokens[1..].iter().enumerate() {
        let name = format!("output/intermediate{block}");
        if case.has(&name) {
            let [batch, count, width] = tokens.dims();
            let side = (count - 1).isqrt();
            let patches = tokens.clone().narrow(1, 1, count - 1).swap_dims(1, 2);
            case.check(&name, &patches.reshape([batch, width, side, side]).to_data());
        }
    }
    let headless = VisionTransformer { head: None, ..model };
    case.check("output/pre_logits", &headless.forward(x, &DropPath::none()).to_data());
}

#[test]
fn golden_i_hugging_face() {
    each_case(|| cases_with("I", "output/hidden0"), |case| case.in_both_types(hugging_face));
}

fn hugging_face(case: &Case, dtype: DType) {
    let Some(file) = file(case) else { return };
    let x: Tensor<Inner, 4> = case.tensor("input/images", dtype);
    let check_hidden = |trunk: &beit2::vit::Trunk<Inner>, embedded: Tensor<Inner, 3>| {
        for (at, tokens) in hidden(case, trunk, embedded).iter().enumerate() {
            case.check(&format!("output/hidden{at}"), &tokens.to_data());
        }
    };
    if case.has("input/mask") {
        let state = StateFile::new(file, &case.name).unwrap();
        let vit = vit(case, &state);
        let config = MimConfig {
            vit,
            vocab_size: state.summary.vocab_size.unwrap(),
            patch_aggregation: false,
            ..MimConfig::default()
        };
        let values = state.tensors.into_iter();
        let values =
            values.map(|(name, t)| (name, TensorData::new(t.to_f32(), t.shape().to_vec()))).collect();
        let zeros = MimModel::<Inner>::zeros(&config, &Default::default()).unwrap();
        let model = params::load_strict(zeros, values, dtype, |_| false).unwrap();
        let mask = floats(case.raw("input/mask"));
        let (batch, patches) = (x.dims()[0], config.vit.patches());
        let rows: Vec<Vec<u32>> = mask
            .chunks(patches)
            .map(|row| (0..patches as u32).filter(|at| row[*at as usize] != 0.0).collect())
            .collect();
        // Our masks have one size; where the recording's differ, each image is a batch of its own.
        let mut logits = Vec::new();
        for (at, row) in rows.iter().enumerate().take(batch) {
            let mask = PatchMask::new(row, 1, patches, &Default::default());
            let tokens = model.patch_tokens(x.clone().narrow(0, at, 1), Some(&mask));
            logits.push(model.logits_all(&tokens).remove(0));
        }
        case.check("output/logits", &Tensor::cat(logits, 0).to_data());
    } else if case.has("output/logits") {
        let model = transformer(case, file, case.size("classes"), dtype);
        check_hidden(&model.trunk, model.trunk.embed(x.clone(), None));
        case.check("output/logits", &model.forward(x, &DropPath::none()).to_data());
    } else {
        let model = transformer(case, file, 0, dtype);
        check_hidden(&model.trunk, model.trunk.embed(x.clone(), None));
        let hidden = hidden(case, &model.trunk, model.trunk.embed(x.clone(), None));
        case.check("output/last_hidden_state", &normed(&model, &hidden).to_data());
        case.check("output/pooler_output", &model.forward(x, &DropPath::none()).to_data());
    }
}
