//! Whatever names, types and shapes: a result or an error, never a panic.

#![allow(clippy::unwrap_used)]

use beit2_weights::convert::{Facts, StateDict, convert, hf_config, timm_config, to_canonical};
use beit2_weights::inspect::{RelativeBias, inspect};
use beit2_weights::layout::{Family, account};
use beit2_weights::plan::{IMAGENET_A, PlanOptions, Target, plan};
use beit2_weights::{DType, Tensor};
use proptest::prelude::*;

/// Names that get far, with a few that do not.
const NAMES: [&str; 34] = [
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "cls_token",
    "pos_embed",
    "mask_token",
    "lm_head.weight",
    "norm.weight",
    "fc_norm.weight",
    "head.weight",
    "head.bias",
    "rel_pos_bias.relative_position_bias_table",
    "rel_pos_bias.relative_position_index",
    "blocks.0.attn.relative_position_bias_table",
    "blocks.0.attn.qkv.weight",
    "blocks.0.attn.q_bias",
    "blocks.0.mlp.fc1.weight",
    "blocks.1.attn.relative_position_bias_table",
    "blocks.99999.norm1.weight",
    "cls_pt_layers.0.norm1.weight",
    "encoder.patch_embed.proj.weight",
    "encoder.blocks.0.mlp.fc1.weight",
    "encoder.pos_embed",
    "quantize.embedding.weight",
    "decode_task_layer.2.weight",
    "teacher_model.é",
    "backbone.patch_embed.proj.weight",
    "backbone.blocks.0.mlp.fc1.weight",
    "decode_head.conv_seg.weight",
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.0.intermediate.dense.weight",
    "encoder.layer.0.attention.attention.query.weight",
    "encoder.layer.0.attention.attention.key.weight",
    "encoder.layer.0.attention.attention.value.weight",
    "module.é",
];

fn state_dicts() -> impl Strategy<Value = StateDict> {
    let dim = prop::sample::select(vec![0usize, 1, 2, 3, 4, 5, 6, 7, 12, 28, 52]);
    let dtype = prop::sample::select(vec![DType::F64, DType::F32, DType::F16, DType::I64, DType::Bool]);
    let tensor = (dtype, prop::collection::vec(dim, 0..5)).prop_filter_map("too large", |(dtype, shape)| {
        let len = shape.iter().product::<usize>() * dtype.size();
        (len < 100_000).then(|| Tensor::new(dtype, shape, vec![1; len]).unwrap())
    });
    let name =
        prop_oneof![9 => prop::sample::select(NAMES.to_vec()).prop_map(str::to_string), 1 => ".{0,12}"];
    let prefix = prop::sample::select(vec!["", "", "module.", "model.module.", "beit."]);
    (prefix, prop::collection::vec((name, tensor), 0..20)).prop_map(|(prefix, list)| {
        list.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
    })
}

/// A dictionary with the few tensors that every trunk needs, so that the checks behind them are reached too.
fn nearly_sound() -> impl Strategy<Value = StateDict> {
    state_dicts().prop_map(|mut tensors| {
        let zeros = |shape: &[usize]| {
            Tensor::new(DType::F32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()]).unwrap()
        };
        tensors.retain(|name, _| {
            NAMES.contains(&name.as_str()) && !name.contains("layer.") && !name.contains("é")
        });
        tensors.entry("patch_embed.proj.weight".to_string()).or_insert_with(|| zeros(&[4, 3, 2, 2]));
        tensors.entry("blocks.0.mlp.fc1.weight".to_string()).or_insert_with(|| zeros(&[8, 4]));
        tensors
    })
}

fn try_all(tensors: StateDict, grid: usize) {
    if let Ok(account) = account(tensors.keys().map(String::as_str)) {
        assert_eq!(account.entries.len(), tensors.len());
        let _ = account.to_string();
    }
    if let Ok(summary) = inspect(&tensors) {
        let facts = Facts { heads: Some(1), ..Facts::default() };
        let _ = (summary.to_string(), hf_config(&summary, &facts), timm_config(&summary, &Facts::default()));
    }
    for to in [Family::Official, Family::Timm, Family::HuggingFace] {
        let _ = convert(tensors.clone(), None, to);
    }
    let base =
        Target { grid, patch: 2, width: 4, heads: 2, mlp_width: 8, depth: 2, classes: 5, ..Target::base() };
    for bias in [RelativeBias::None, RelativeBias::Shared, RelativeBias::PerBlock] {
        for (tokenizer_encoder, head_rows) in [(false, None), (true, Some(&IMAGENET_A[..]))] {
            let target = Target { bias, abs_pos: true, ..base.clone() };
            let options = PlanOptions { head_rows, tokenizer_encoder, ..PlanOptions::default() };
            if let Ok(plan) = plan(tensors.clone(), &target, &options) {
                assert_eq!(plan.used.len() + plan.fresh.len(), target.tensors().len());
                let _ = plan.to_string();
            }
        }
    }
    let _ = to_canonical(tensors);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..Default::default() })]

    #[test]
    fn any_state_dict_is_answered(tensors in state_dicts(), grid in 0usize..6) {
        try_all(tensors, grid);
    }

    #[test]
    fn any_trunk_is_answered(tensors in nearly_sound(), grid in prop::sample::select(vec![0, 1, 4, 5, usize::MAX])) {
        try_all(tensors, grid);
    }
}
