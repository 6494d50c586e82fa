//! Golden suite H: files written by the official code and by torch.save in many arrangements, bit for bit.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use beit2_weights::{Checkpoint, DType, Format, ReadOptions, Root, read_with, write_safetensors};
use serde_json::Value;
use support::checks::{check, equal};
use support::{assert_equal, each_indexed, file, open};

const CHECKPOINTS: &str = "checkpoints";

fn same_name(name: &str) -> Option<String> {
    Some(name.to_string())
}

/// The zip file and its legacy twin, as far as this selection has them.
fn twins(entry: &Value) -> Vec<std::path::PathBuf> {
    ["file", "legacy"].iter().filter_map(|key| file(CHECKPOINTS, entry, key)).collect()
}

#[test]
fn golden_official_checkpoints() {
    each_indexed(CHECKPOINTS, |_, entry| {
        if entry.get("expected_model").is_none() {
            return;
        }
        for path in twins(entry) {
            let checkpoint = open(&path);
            equal("root", &checkpoint.root, &Root::Model);
            let legacy = path.to_string_lossy().contains("legacy");
            equal("format", &checkpoint.format, &if legacy { Format::TorchLegacy } else { Format::TorchZip });
            if let Some(expected) = file(CHECKPOINTS, entry, "expected_model") {
                assert_equal(&checkpoint, &expected, same_name);
            }
            if let Some(expected) = file(CHECKPOINTS, entry, "expected_ema") {
                let ema =
                    read_with(&path, &ReadOptions { root: Some("model_ema"), ..Default::default() }).unwrap();
                equal("root", &ema.root, &Root::Named("model_ema".to_string()));
                assert_equal(&ema, &expected, same_name);
            }
            if let Some(expected) = file(CHECKPOINTS, entry, "expected_optimizer") {
                golden_optimizer(&path, entry, &expected);
            }
            golden_values(&checkpoint.metadata, entry);
        }
    });
}

/// `state.3.exp_avg` becomes `exp_avg/NAME`, where NAME is the third parameter of the recorded order.
fn golden_optimizer(path: &std::path::Path, entry: &Value, expected: &std::path::Path) {
    let optimizer = read_with(path, &ReadOptions { root: Some("optimizer"), ..Default::default() }).unwrap();
    let order = entry["param_order_by_group"].as_array().unwrap();
    assert_equal(&optimizer, expected, |name| {
        let [_, number, kind] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let parameter = order[number.parse::<usize>().unwrap()].as_str().unwrap();
        (kind != "step").then(|| format!("{kind}/{parameter}"))
    });
    let step = optimizer.tensor("state.0.step").unwrap();
    assert!(step.shape().is_empty());
    assert_eq!(step.to_f32(), [entry["optimizer_step"].as_f64().unwrap() as f32]);
}

/// Arguments, scaler and learning rates, as text.
fn golden_values(values: &BTreeMap<String, String>, entry: &Value) {
    assert_eq!(values["epoch"], entry["epoch"].to_string());
    for (name, value) in entry["args"].as_object().unwrap() {
        // The record holds Python's repr, which quotes texts; values by themselves are not quoted here.
        assert_eq!(values[&format!("args.{name}")], value.as_str().unwrap().trim_matches('\''), "{name}");
    }
    for (name, value) in entry["scaler"].as_object().unwrap() {
        assert_eq!(values[&format!("scaler.{name}")], value.to_string(), "{name}");
    }
    for (group, lr) in entry["group_lr"].as_array().unwrap().iter().enumerate() {
        // The official code leaves NumPy scalars there.
        let value: f64 = values[&format!("optimizer.param_groups.{group}.lr")].parse().unwrap();
        assert_eq!(value, lr.as_f64().unwrap());
        let wd: f64 = values[&format!("optimizer.param_groups.{group}.weight_decay")].parse().unwrap();
        assert_eq!(wd, entry["group_wd"][group].as_f64().unwrap());
        let parameters = &values[&format!("optimizer.param_groups.{group}.params")];
        assert_eq!(parameters.split(',').count() as u64, entry["group_lens"][group].as_u64().unwrap());
    }
}

#[test]
fn golden_layouts() {
    each_indexed(CHECKPOINTS, |_, entry| {
        for path in twins(entry) {
            let Some(expected) = file(CHECKPOINTS, entry, "expected_raw") else {
                continue;
            };
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let checkpoint = open(&path);
            // Their names say how they are wrapped.
            let root = match name.strip_prefix("layout_").unwrap_or_default() {
                layout if layout.starts_with("bare") => Root::Bare,
                layout if layout.starts_with("module") => Root::Module,
                layout if layout.starts_with("state_dict") => Root::StateDict,
                _ => Root::Model,
            };
            equal("root", &checkpoint.root, &root);
            let ddp = name.contains("ddp");
            equal("the prefix was removed", &checkpoint.ddp_prefix_removed, &ddp);
            assert_equal(&checkpoint, &expected, |name| {
                Some(if ddp { format!("module.{name}") } else { name.to_string() })
            });
            let raw = read_with(&path, &ReadOptions { keep_ddp_prefix: true, ..Default::default() }).unwrap();
            assert_equal(&raw, &expected, same_name);
        }
    });
}

#[test]
fn golden_safetensors_are_written_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    each_indexed(CHECKPOINTS, |_, entry| {
        for key in ["expected_model", "expected_ema", "expected_optimizer", "expected_raw"] {
            let Some(path) = file(CHECKPOINTS, entry, key) else {
                continue;
            };
            let checkpoint =
                read_with(&path, &ReadOptions { keep_ddp_prefix: true, ..Default::default() }).unwrap();
            assert_equal(&checkpoint, &path, same_name);
            let copy = folder.path().join("copy.safetensors");
            write_safetensors(
                &copy,
                checkpoint.tensors.iter().map(|(name, view)| (name.as_str(), view)),
                &checkpoint.metadata,
            )
            .unwrap();
            let same = std::fs::read(&copy).unwrap() == std::fs::read(&path).unwrap();
            check(same, || format!("{} is written in other bytes", path.display()));
        }
    });
}

#[test]
fn golden_conversion_keeps_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    each_indexed(CHECKPOINTS, |_, entry| {
        for path in twins(entry) {
            let Some(expected) = file(CHECKPOINTS, entry, "expected_raw")
                .or_else(|| file(CHECKPOINTS, entry, "expected_model"))
            else {
                continue;
            };
            let checkpoint =
                read_with(&path, &ReadOptions { keep_ddp_prefix: true, ..Default::default() }).unwrap();
            let copy = folder.path().join("copy.safetensors");
            write_safetensors(
                &copy,
                checkpoint.tensors.iter().map(|(name, view)| (name.as_str(), view)),
                &BTreeMap::new(),
            )
            .unwrap();
            let same = std::fs::read(&copy).unwrap() == std::fs::read(&expected).unwrap();
            check(same, || format!("{} is converted to other bytes", path.display()));
        }
    });
}

#[test]
fn golden_odd_storages_have_their_types() {
    each_indexed(CHECKPOINTS, |name, entry| {
        if name == "odd_storages.pth" {
            twins(entry).iter().for_each(|path| odd_storages(&open(path)));
        }
    });
}

fn odd_storages(checkpoint: &Checkpoint) {
    for (name, dtype) in [
        ("f16", DType::F16),
        ("bf16", DType::BF16),
        ("f64", DType::F64),
        ("i16", DType::I16),
        ("bool", DType::Bool),
    ] {
        assert_eq!(checkpoint.tensors[name].dtype(), dtype);
    }
    assert!(checkpoint.tensors["scalar"].shape().is_empty());
    assert_eq!(checkpoint.tensors["empty"].shape(), [0, 3]);
    assert!(checkpoint.tensor("nan_inf").unwrap().count_non_finite() > 0);
    // The legacy twin holds the tensors only.
    if checkpoint.format == Format::TorchZip {
        assert_eq!(checkpoint.metadata["note"], "x");
        assert_eq!(checkpoint.metadata["nested.neg"], "-7");
        assert_eq!(checkpoint.metadata["nested.big"], "0x400000000000000000");
        assert_eq!(checkpoint.metadata["nested.list"], "[1, 2.5, None, True, (3, 'a')]");
    }
}
