//! Suite E: schedules and parameter groups.

use std::collections::BTreeMap;

use beit2::params::ParamInfo;
use beit2::train::{CosineSchedule, GroupRule};

use serde_json::Value;

use super::checks::{self, check, equal, skip};
use super::folder::{each_entry, json};
use super::sizes::{self, Shapes};

#[test]
fn golden_e_schedules() {
    checks::golden(|| {
        let entries = json("E_schedules.json").map(|file| file.as_array().unwrap().clone());
        entries.into_iter().flatten().for_each(|entry| schedule(&entry));
    });
}

fn schedule(entry: &Value) {
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
        return skip(format!("{args}: the reference raises {}; ours gives a schedule", entry["error"]));
    };
    let schedule = schedule.unwrap();
    equal(&format!("{args}: length"), &Some(schedule.len()), &entry["length"].as_u64());
    for (step, value) in values {
        let (found, expected) = (schedule.at(step.parse().unwrap()), value.as_f64().unwrap());
        check((found - expected).abs() <= 1e-12 * expected.abs().max(1e-3), || {
            format!("{args} at {step} is {found}, expected {expected}")
        });
    }
    let sum: f64 = (0..total).map(|step| schedule.at(step)).sum();
    let expected = entry["sum"].as_f64().unwrap();
    check((sum - expected).abs() <= 1e-9 * expected.abs().max(1.0), || {
        format!("{args}: the sum is {sum}, expected {expected}")
    });
}

#[test]
fn golden_e_param_groups() {
    let (groups, factories) = (json("E_param_groups.json"), json("E_factories.json"));
    let Some(factories) = factories else {
        return skip("parameter groups: they need the models of E_factories.json");
    };
    each_entry(groups, |title, groups| parameter_groups(title, &groups, &factories["layouts"]));
}

/// The options of the groups and their model are in the title, for people. What follows takes them from the recorded
/// groups: the model is one with these parameters, the decay is the largest, and the last block's rate is scaled once.
fn parameter_groups(title: &str, groups: &Value, factories: &Value) {
    // Name, decay and scale of each parameter.
    let mut recorded: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for group in groups.as_array().unwrap() {
        let numbers = ["weight_decay", "lr_scale"].map(|key| group[key].as_f64().unwrap());
        let names = group["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        recorded.extend(names.map(|name| (name, (numbers[0], numbers[1]))));
    }
    let model = factories.as_object().unwrap().iter().find_map(|(factory, layout)| {
        let infos: Vec<ParamInfo> = layout["keys"].as_array().unwrap().iter().map(info).collect();
        let trainable = infos.iter().filter(|info| info.trainable).map(|info| info.name.as_str());
        let same = trainable.collect::<std::collections::BTreeSet<_>>() == recorded.keys().copied().collect();
        same.then_some((factory, infos))
    });
    let Some((factory, infos)) = model else {
        return skip(format!("{title}: no model of E_factories.json has these parameters"));
    };
    let shapes: Shapes = infos.iter().map(|info| (info.name.clone(), info.shape.clone())).collect();
    let depth = sizes::blocks(&shapes, "blocks");
    let last_block = format!("blocks.{}.norm1.weight", depth.saturating_sub(1));
    let layer_decay = recorded.get(last_block.as_str()).map(|(_, scale)| *scale).filter(|scale| *scale < 1.0);
    let table = recorded.get("blocks.0.attn.relative_position_bias_table");
    let rule = GroupRule {
        weight_decay: recorded.values().map(|(decay, _)| *decay).fold(0.0, f64::max),
        layer_decay: layer_decay.map(|decay| (decay, depth)),
        exempt_tables: table.is_some_and(|(decay, _)| *decay == 0.0),
    };
    println!("{title}: {factory}, {rule:?}");
    let found: BTreeMap<String, (f64, f64)> = rule
        .groups(&infos)
        .into_iter()
        .flat_map(|g| g.names.into_iter().map(move |n| (n, (g.weight_decay, g.lr_scale))))
        .collect();
    equal(&format!("{title}: number of parameters"), &found.len(), &recorded.len());
    for (name, expected) in recorded {
        let near = found
            .get(name)
            .is_some_and(|found| found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-12);
        check(near, || {
            format!("{title}: decay and scale of {name} are {:?}, expected {expected:?}", found.get(name))
        });
    }
}

/// A parameter from `[name, shape, type, trainable]`.
fn info(key: &Value) -> ParamInfo {
    ParamInfo {
        name: key[0].as_str().unwrap().into(),
        shape: serde_json::from_value(key[1].clone()).unwrap(),
        trainable: key[3].as_bool().unwrap(),
    }
}
