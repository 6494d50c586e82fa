//! The loading plan against the official fine-tuning program: its fresh model, its loaded model and the lists it printed
//! (golden suite D), and the loading of a segmentation backbone (suite G).

#![allow(clippy::unwrap_used)]

mod support;

use beit2_weights::Tensor;
use beit2_weights::convert::StateDict;
use beit2_weights::inspect::{RelativeBias, inspect};
use beit2_weights::plan::{IMAGENET_A, IMAGENET_R, Plan, PlanOptions, Source, Target, Unused, plan};
use serde_json::Value;
use support::checks::{check, equal, skip};
use support::{each_case, golden_tensors, number, part};

/// The model that the official program made, by the shapes of its tensors; no shape but a table's shows the heads.
fn target(fresh: &StateDict, heads: Option<usize>) -> Target {
    let summary = inspect(fresh).unwrap();
    Target {
        grid: summary.grid.unwrap(),
        patch: summary.patch,
        channels: summary.channels,
        width: summary.width,
        heads: summary.heads.or(heads).expect("neither a bias table nor the manifest tells the heads"),
        mlp_width: summary.mlp_width,
        depth: summary.depth,
        classes: summary.classes.unwrap_or(0),
        bias: summary.bias,
        abs_pos: summary.abs_pos,
        pooling: summary.pooling,
        layer_scale: summary.layer_scale,
        qkv_bias: summary.qkv_bias,
    }
}

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
            check(expected == &fresh[name], || format!("{name} was loaded by the official program"));
            continue;
        };
        equal(&format!("shape of {name}"), &found.shape(), &expected.shape());
        if matches!(plan.used[name], Source::Resized { .. }) {
            let pairs = found.to_f32().into_iter().zip(expected.to_f32());
            worst = pairs.map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
        } else {
            check(found == expected, || format!("{name} differs from what the official program loaded"));
        }
    }
    worst
}

#[test]
fn golden_finetuning_loads_what_the_official_program_loads() {
    each_case("D", |case, entry| {
        if entry["meta"].get("log_not_initialised").is_none() {
            return println!("{case} records no loading");
        }
        let Some(tensors) = golden_tensors(&support::text(&entry["file"])) else { return };
        let (checkpoint, fresh, loaded) =
            (part(&tensors, "checkpoint/"), part(&tensors, "fresh/"), part(&tensors, "loaded/"));
        let tokenizer = entry["config"]["src"]["kind"] == "vqkd";
        let target = target(&fresh, Some(number(&entry["config"]["heads"])));
        let (grid, config) = (target.grid, &entry["config"]);
        equal("grid", &grid, &(number(&config["img"]) / number(&config["patch"])));
        // The target has the tensors of the official model.
        let mut names: Vec<(String, Vec<usize>)> = target.tensors();
        names.sort();
        let mut expected: Vec<(String, Vec<usize>)> = fresh
            .iter()
            .filter(|(name, _)| !name.ends_with("relative_position_index"))
            .map(|(name, tensor)| (name.clone(), tensor.shape().to_vec()))
            .collect();
        expected.sort();
        equal("tensors of the model", &names, &expected);

        let options = PlanOptions { tokenizer_encoder: tokenizer, ..Default::default() };
        let plan = plan(checkpoint, &target, &options).unwrap();
        let worst = compare(&plan, &loaded, &fresh);
        println!("{case}: resized tensors differ by {worst:.1e}\n{plan}");
        check(worst < 1e-6, || format!("{case}: resized tensors differ by {worst:e}"));
        equal("not initialised", &plan.fresh, &printed(&entry["meta"]["log_not_initialised"]));
        let mut unused: Vec<String> = plan
            .unused
            .iter()
            .filter(|(_, why)| matches!(why, Unused::NotInModel(_)))
            .map(|(name, _)| name.clone())
            .collect();
        let mut expected = printed(&entry["meta"]["log_not_used"]);
        unused.sort();
        expected.sort();
        equal("not used", &unused, &expected);
    });
}

#[test]
fn golden_head_rows_of_the_robustness_sets() {
    each_case("D", |case, entry| {
        let rows: &[usize] = match entry["config"]["kind"].as_str() {
            Some("imagenet_r") => &IMAGENET_R,
            Some("imagenet_a") => &IMAGENET_A,
            Some(other) => return skip(format!("{case}: no classes of {other} here")),
            None => return,
        };
        let Some(tensors) = golden_tensors(&support::text(&entry["file"])) else { return };
        let expected: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        equal("classes", &tensors["mask_indices"].to_i64().unwrap(), &expected);
        let checkpoint = part(&tensors, "checkpoint/");
        let (all, width) = (checkpoint["head.weight"].shape()[0], checkpoint["head.weight"].shape()[1]);
        let target = Target { width, classes: rows.len(), ..Target::base() };
        let options = PlanOptions { head_rows: Some(rows), ..Default::default() };
        let selected = plan(checkpoint.clone(), &target, &options).unwrap();
        for (name, expected) in part(&tensors, "loaded/") {
            check(selected.tensors[&name] == expected, || format!("{name} differs"));
            equal(&format!("source of {name}"), &selected.used[&name], &Source::HeadRows);
        }
        // Rows that are not there, and a head for other classes without a list.
        let options = PlanOptions { head_rows: Some(&[5, all]), ..Default::default() };
        let error = plan(checkpoint.clone(), &target, &options).unwrap_err();
        assert!(error.to_string().contains(&format!("row {all}")), "{error}");
        assert!(plan(checkpoint, &target, &PlanOptions::default()).is_err(), "nothing fits");
    });
}

#[test]
fn golden_segmentation_backbone_loads_the_shared_table() {
    each_case("G", |case, entry| {
        let config = &entry["config"];
        let Some(source) = config["src_img"].as_u64() else { return };
        let Some(tensors) = golden_tensors(&support::text(&entry["file"])) else { return };
        let fresh = part(&tensors, "fresh/");
        // The pyramid is not the backbone's, and no checkpoint of pretraining has it.
        let is_trunk = |(name, _): &(&String, &Tensor)| !name.starts_with("fpn");
        let trunk =
            fresh.iter().filter(is_trunk).map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        let target = target(&trunk, Some(number(&config["heads"])));
        let plan = plan(part(&tensors, "checkpoint/"), &target, &PlanOptions::default()).unwrap();
        check(plan.fresh.is_empty(), || format!("{case}: not loaded: {plan}"));
        let worst = compare(&plan, &part(&tensors, "loaded/"), &fresh);
        println!("{case}: resized tensors differ by {worst:.1e}");
        check(worst < 1e-6, || format!("{case}: resized tensors differ by {worst:e}"));
        let (from, to) = (source as usize / target.patch, target.grid);
        if from != to && target.bias != RelativeBias::None {
            // The shared table of the checkpoint becomes a table of every block.
            let name = format!("blocks.{}.attn.relative_position_bias_table", target.depth - 1);
            equal(&name, &plan.used[&name], &Source::Resized { from, to, shared: true });
        }
    });
}
