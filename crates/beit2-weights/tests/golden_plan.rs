//! The loading plan against the official fine-tuning program: its fresh model, its loaded model and the lists it printed
//! (golden suite D), and the loading of a segmentation backbone (suite G).

#![allow(clippy::unwrap_used)]

mod support;

use beit2_weights::convert::StateDict;
use beit2_weights::inspect::{Pooling, RelativeBias};
use beit2_weights::plan::{IMAGENET_R, Plan, PlanOptions, Source, Target, Unused, plan};
use serde_json::Value;
use support::{golden_json, golden_tensors, number, part};

const TINY: Target = Target {
    grid: 4,
    patch: 8,
    channels: 3,
    width: 16,
    heads: 2,
    mlp_width: 32,
    depth: 3,
    classes: 5,
    bias: RelativeBias::PerBlock,
    abs_pos: false,
    pooling: Some(Pooling::Mean),
    layer_scale: true,
    qkv_bias: true,
};

/// Names out of printed Python lists, index buffers left aside.
fn printed(lists: &Value) -> Vec<String> {
    let lists = lists.as_array().unwrap().iter().map(|list| list.as_str().unwrap());
    let names = lists.flat_map(|list| list.trim_matches(['[', ']']).split(", "));
    let names = names.map(|name| name.trim_matches('\'').to_string());
    names.filter(|name| !name.is_empty() && !name.ends_with("relative_position_index")).collect()
}

/// Compares a plan with what the official program loaded; returns the worst difference of resized tensors.
fn compare(plan: &Plan, loaded: &StateDict, fresh: &StateDict) -> f32 {
    let mut worst = 0f32;
    for (name, expected) in loaded {
        let Some(found) = plan.tensors.get(name) else {
            assert_eq!(expected, &fresh[name], "{name} was loaded by the official program");
            continue;
        };
        assert_eq!(found.shape(), expected.shape(), "{name}");
        if matches!(plan.used[name], Source::Resized { .. }) {
            let pairs = found.to_f32().into_iter().zip(expected.to_f32());
            worst = pairs.map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
        } else {
            assert_eq!(found, expected, "{name}");
        }
    }
    worst
}

#[test]
fn golden_finetuning_loads_what_the_official_program_loads() {
    let Some(manifest) = golden_json("manifest_D.json") else { return };
    let mut tested = 0;
    for entry in manifest["entries"].as_array().unwrap() {
        let case = support::text(&entry["case"]);
        if entry["meta"].get("log_not_initialised").is_none() {
            continue;
        }
        let Some(tensors) = golden_tensors(&support::text(&entry["file"])) else { continue };
        let (checkpoint, fresh, loaded) =
            (part(&tensors, "checkpoint/"), part(&tensors, "fresh/"), part(&tensors, "loaded/"));
        let tokenizer = entry["config"]["src"]["kind"] == "vqkd";
        let target = Target {
            grid: number(&entry["config"]["img"]) / number(&entry["config"]["patch"]),
            bias: if tokenizer { RelativeBias::None } else { RelativeBias::PerBlock },
            abs_pos: tokenizer,
            layer_scale: !tokenizer,
            ..TINY
        };
        // The target has the tensors of the official model.
        let mut names: Vec<(String, Vec<usize>)> = target.tensors();
        names.sort();
        let mut expected: Vec<(String, Vec<usize>)> = fresh
            .iter()
            .filter(|(name, _)| !name.ends_with("relative_position_index"))
            .map(|(name, tensor)| (name.clone(), tensor.shape().to_vec()))
            .collect();
        expected.sort();
        assert_eq!(names, expected, "{case}");

        let options = PlanOptions { tokenizer_encoder: tokenizer, ..Default::default() };
        let plan = plan(checkpoint, &target, &options).unwrap();
        let worst = compare(&plan, &loaded, &fresh);
        println!("{case}: resized tensors differ by {worst:.1e}\n{plan}");
        assert!(worst < 1e-6, "{case}: {worst:e}");
        assert_eq!(plan.fresh, printed(&entry["meta"]["log_not_initialised"]), "{case}");
        let mut unused: Vec<String> = plan
            .unused
            .iter()
            .filter(|(_, why)| matches!(why, Unused::NotInModel(_)))
            .map(|(name, _)| name.clone())
            .collect();
        let mut expected = printed(&entry["meta"]["log_not_used"]);
        unused.sort();
        expected.sort();
        assert_eq!(unused, expected, "{case}");
        tested += 1;
    }
    println!("{tested} cases");
}

#[test]
fn golden_head_rows_for_imagenet_r() {
    let Some(tensors) = golden_tensors("D_robust_head_rows.safetensors") else { return };
    let rows: Vec<i64> = IMAGENET_R.iter().map(|row| *row as i64).collect();
    assert_eq!(tensors["mask_indices"].to_i64().unwrap(), rows);
    let target = Target { width: 8, classes: 200, ..TINY };
    let checkpoint = part(&tensors, "checkpoint/");
    let options = PlanOptions { head_rows: Some(&IMAGENET_R), ..Default::default() };
    let selected = plan(checkpoint.clone(), &target, &options).unwrap();
    for (name, expected) in part(&tensors, "loaded/") {
        assert_eq!(selected.tensors[&name], expected);
        assert_eq!(selected.used[&name], Source::HeadRows);
    }
    // Rows that are not there, and a head for other classes without a list.
    let options = PlanOptions { head_rows: Some(&[5, 1000]), ..Default::default() };
    let error = plan(checkpoint.clone(), &target, &options).unwrap_err();
    assert!(error.to_string().contains("row 1000"), "{error}");
    assert!(plan(checkpoint, &target, &PlanOptions::default()).is_err(), "nothing fits");
}

#[test]
fn golden_segmentation_backbone_loads_the_shared_table() {
    let Some(tensors) = golden_tensors("G_load_shared_4to6.safetensors") else { return };
    let target = Target { grid: 6, depth: 2, pooling: None, classes: 0, ..TINY };
    let plan = plan(part(&tensors, "checkpoint/"), &target, &PlanOptions::default()).unwrap();
    assert!(plan.fresh.is_empty(), "{plan}");
    let worst = compare(&plan, &part(&tensors, "loaded/"), &part(&tensors, "fresh/"));
    println!("segmentation backbone: resized tensors differ by {worst:.1e}");
    assert!(worst < 1e-6);
    let expected = Source::Resized { from: 4, to: 6, shared: true };
    assert_eq!(plan.used["blocks.1.attn.relative_position_bias_table"], expected);
}
