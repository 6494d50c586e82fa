//! Suite E: schedules and parameter groups.

use std::collections::BTreeMap;

use beit2::params::ParamInfo;
use beit2::train::{CosineSchedule, GroupRule};

use super::folder::json;

#[test]
fn golden_e_schedules() {
    let Some(entries) = json("E_schedules.json") else {
        return;
    };
    let mut checked = 0;
    for entry in entries.as_array().unwrap() {
        let args = &entry["args"];
        let number = |key: &str, or: f64| args[key].as_f64().unwrap_or(or);
        let per_epoch = number("niter_per_ep", 1.0) as u64;
        let total = number("epochs", 0.0) as u64 * per_epoch;
        let warmup = match number("warmup_steps", -1.0) {
            steps if steps > 0.0 => steps as u64,
            _ => (number("warmup_epochs", 0.0) * per_epoch as f64) as u64,
        };
        let (base, end) = (number("base_value", 0.0), number("final_value", 0.0));
        let schedule = CosineSchedule::new(base, end, total, warmup, number("start_warmup_value", 0.0));
        let Some(values) = entry["values"].as_object() else {
            println!("{args}: the reference raises {}; ours gives a schedule", entry["error"]);
            continue;
        };
        let schedule = schedule.unwrap();
        assert_eq!(Some(schedule.len()), entry["length"].as_u64(), "{args}");
        for (step, value) in values {
            let (found, expected) = (schedule.at(step.parse().unwrap()), value.as_f64().unwrap());
            assert!(
                (found - expected).abs() <= 1e-12 * expected.abs().max(1e-3),
                "{args} at {step}: {found} {expected}"
            );
            checked += 1;
        }
        let sum: f64 = (0..total).map(|step| schedule.at(step)).sum();
        let expected = entry["sum"].as_f64().unwrap();
        assert!(
            (sum - expected).abs() <= 1e-9 * expected.abs().max(1.0),
            "{args}: sum {sum}, expected {expected}"
        );
    }
    println!("{checked} schedule values equal");
    assert!(checked > 0);
}

#[test]
fn golden_e_param_groups() {
    let (Some(groups), Some(factories)) = (json("E_param_groups.json"), json("E_factories.json")) else {
        return;
    };
    for (title, expected) in groups.as_object().unwrap() {
        let (factory, rule) = match title.as_str() {
            "pretrain base cls_pt wd .05" => {
                ("pretrain/beit_base_patch16_224_8k_vocab_cls_pt", GroupRule::flat(0.05))
            }
            "vqkd dec3 clip wd 1e-4" => {
                ("vqkd/vqkd_encoder_base_decoder_3x768x12_clip", GroupRule::flat(1e-4))
            }
            title => {
                let depth = if title.contains("large") { 24 } else { 12 };
                let factory = if depth == 24 {
                    "finetune/beit_large_patch16_224"
                } else {
                    "finetune/beit_base_patch16_224"
                };
                let words: Vec<&str> = title.split([' ', ',']).collect();
                let decay = words
                    .iter()
                    .position(|w| *w == "layer_decay")
                    .map(|at| words[at + 1].parse::<f64>().unwrap());
                let layer_decay = decay.filter(|d| *d < 1.0).map(|d| (d, depth));
                (
                    factory,
                    GroupRule { weight_decay: 0.05, layer_decay, exempt_tables: title.contains("exempt") },
                )
            }
        };
        let infos: Vec<ParamInfo> = factories["layouts"][factory]["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| ParamInfo {
                name: key[0].as_str().unwrap().into(),
                shape: key[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect(),
                trainable: key[3].as_bool().unwrap(),
            })
            .collect();
        let found: BTreeMap<String, (f64, f64)> = rule
            .groups(&infos)
            .into_iter()
            .flat_map(|g| g.names.into_iter().map(move |n| (n, (g.weight_decay, g.lr_scale))))
            .collect();
        let mut names = 0;
        for group in expected.as_array().unwrap() {
            for name in group["names"].as_array().unwrap() {
                let (wd, scale) = found[name.as_str().unwrap()];
                assert_eq!(Some(wd), group["weight_decay"].as_f64(), "{title}: {name}");
                let expected = group["lr_scale"].as_f64().unwrap();
                assert!((scale - expected).abs() < 1e-12, "{title}: {name}: {scale} {expected}");
                names += 1;
            }
        }
        assert_eq!(names, found.len(), "{title}: number of parameters");
        println!("{title}: {names} parameters in the same groups");
    }
}
