//! Suite D: checkpoints loaded into fine-tuned models, by the logits of the result. (The tensors themselves are compared in
//! the weights crate.)

use std::collections::BTreeMap;

use beit2::params;
use beit2::vit::{DropPath, Pooling, VisionTransformer, plan_weights};
use beit2::weights::{StateFile, WeightFile};
use beit2_weights::layout::Kind;
use beit2_weights::plan::PlanOptions;
use burn::tensor::{DType, TensorData};

use super::folder::{Case, Inner, cases_with, each_case};
use super::sizes;

#[test]
fn golden_d_loaded_models_give_the_logits() {
    each_case(|| cases_with("D", "output/logits"), |case| case.in_both_types(loaded_model));
}

fn loaded_model(case: &Case, dtype: DType) {
    // The options are command-line arguments there; the program's fresh model shows what they made.
    let fresh = sizes::shapes(&case.below("fresh"));
    let config = sizes::vit(&case.config, &fresh);
    let pooling = if fresh.contains_key("fc_norm.weight") { Pooling::Mean } else { Pooling::Cls };
    let classes = fresh["head.weight"][0];
    let wide = |tensors: BTreeMap<String, TensorData>| -> BTreeMap<String, TensorData> {
        let float = |data: &TensorData| matches!(data.dtype, DType::F32 | DType::F64);
        let cast = |data: TensorData| if float(&data) { data.convert_dtype(dtype) } else { data };
        tensors.into_iter().map(|(name, data)| (name, cast(data))).collect()
    };
    let checkpoint = WeightFile { tensors: wide(case.below("checkpoint")), ..WeightFile::default() };
    let state = StateFile::new(checkpoint, &case.name).unwrap();
    let options = PlanOptions {
        tokenizer_encoder: state.summary.layout.kind == Kind::Tokenizer,
        ..PlanOptions::default()
    };
    let plan = plan_weights(state, &config, pooling, classes, &options).unwrap();
    // What the checkpoint does not have comes from the official program's fresh model.
    let mut fresh = wide(case.below("fresh"));
    fresh.retain(|name, _| !name.ends_with("relative_position_index"));
    for (name, tensor) in plan.tensors {
        let dtype = match tensor.dtype() {
            beit2_weights::DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let shape = tensor.shape().to_vec();
        fresh.insert(name, TensorData::from_bytes_vec(tensor.into_bytes(), shape, dtype));
    }
    let zeros = VisionTransformer::<Inner>::new(&config, pooling, classes, &Default::default());
    let model = params::load_strict(zeros, fresh, dtype, |_| false).unwrap();
    let logits = model.forward(case.tensor("input/images", dtype), &DropPath::none());
    case.check("output/logits", &logits.to_data());
}
