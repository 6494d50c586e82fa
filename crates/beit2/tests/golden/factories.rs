//! Suite E: key lists, shapes, counts and initialisation of the registered models.

use std::collections::BTreeMap;

use beit2::params::{self, ParamInfo};
use beit2::pretrain::{MimConfig, MimModel};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::vit::{Pooling, RelPosKind, VisionTransformer, VitConfig};
use serde_json::Value;

use super::folder::{Inner, json};

fn check_keys(factory: &str, found: &[ParamInfo], expected: &Value) {
    let mut found: BTreeMap<&str, &ParamInfo> = found.iter().map(|info| (info.name.as_str(), info)).collect();
    let mut total = 0;
    for key in expected["keys"].as_array().unwrap() {
        let name = key[0].as_str().unwrap();
        let derived = name.ends_with("relative_position_index") || name.starts_with("scaling_layer.");
        if derived || name.starts_with("teacher_model.") {
            continue; // from the grid, from the teacher's statistics; the teacher is a model of its own
        }
        let info = found.remove(name).unwrap_or_else(|| panic!("{factory}: no {name}"));
        let shape: Vec<usize> =
            key[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        assert_eq!(info.shape, shape, "{factory}: {name}");
        assert_eq!(Some(info.trainable), key[3].as_bool(), "{factory}: {name} trainable");
        if info.trainable {
            total += shape.iter().product::<usize>() as u64;
        }
    }
    assert!(found.is_empty(), "{factory}: not in the reference: {:?}", found.keys());
    assert_eq!(Some(total), expected["n_trainable"].as_u64(), "{factory}");
    println!("{factory}: keys, shapes and {total} trained values equal");
}

/// Key lists of real sizes. Weights are allocated as zeros by the operating system, so even the
/// giant costs little until it is touched; initialisation is left out here.
#[test]
fn golden_e_factories() {
    let Some(file) = json("E_factories.json") else {
        return;
    };
    let mut checked = 0;
    for (factory, expected) in file["layouts"].as_object().unwrap() {
        let (program, name) = factory.split_once('/').unwrap();
        let device = Default::default();
        let infos = match program {
            "pretrain" | "pretrain_unshared_head" => {
                let mut config = MimConfig::named(name).unwrap_or_else(|| panic!("{name} is not registered"));
                config.shared_lm_head = program == "pretrain";
                params::list(&MimModel::<Inner>::zeros(&config, &device).unwrap())
            }
            "vqkd" => {
                let config = TokenizerConfig::named(name).unwrap();
                params::list(&VqKd::<Inner>::zeros(&config, &device).unwrap())
            }
            "finetune" | "finetune_no_qkv_bias_passed" => {
                let mut config = finetune(name);
                config.qkv_bias = program == "finetune";
                params::list(&VisionTransformer::<Inner>::new(&config, Pooling::Mean, 1000, &device))
            }
            other => panic!("unknown program {other}"),
        };
        check_keys(factory, &infos, expected);
        checked += 1;
    }
    assert!(checked > 0);
}

fn finetune(name: &str) -> VitConfig {
    let rest = name.strip_prefix("beit_").unwrap();
    let (size, rest) = rest.split_once("_patch").unwrap();
    let (patch, image) = rest.split_once('_').unwrap();
    let (width, depth, heads, mlp_ratio) = match size {
        "base" => (768, 12, 12, 4.0),
        "24x544" => (544, 24, 16, 4.0),
        "large" => (1024, 24, 16, 4.0),
        "huge" => (1280, 32, 16, 4.0),
        "giant" => (1408, 40, 16, 6144.0 / 1408.0),
        other => panic!("{other}"),
    };
    VitConfig {
        image_size: image.parse().unwrap(),
        patch_size: patch.parse().unwrap(),
        width,
        depth,
        heads,
        mlp_ratio,
        rel_pos_bias: RelPosKind::PerBlock,
        ..VitConfig::default()
    }
}

/// Means and spreads of our three initialisers against the reference's, by sampling error.
#[test]
fn golden_e_init_stats() {
    let Some(file) = json("E_init_stats.json") else {
        return;
    };
    let size = |key: &str| file["config"][key].as_u64().unwrap() as usize;
    let vit = VitConfig {
        image_size: size("img"),
        patch_size: size("patch"),
        width: size("width"),
        depth: size("depth"),
        heads: size("heads"),
        ..VitConfig::default()
    };
    for (title, expected) in file["stats"].as_object().unwrap() {
        let device = Default::default();
        let has = |name: &str| expected.get(name).is_some();
        let tensors = if title.starts_with("pretrain") {
            let config = MimConfig {
                vit: VitConfig { abs_pos_emb: has("pos_embed"), ..vit.clone() },
                vocab_size: expected["lm_head.weight"]["shape"][0].as_u64().unwrap() as usize,
                intermediate_layer: 2,
                head_layers: 2,
                shared_lm_head: !has("cls_pt_lm_head.weight"),
                patch_aggregation: true,
            };
            params::export(&MimModel::<Inner>::new(&config, 1, &device).unwrap())
        } else if title.starts_with("finetune") {
            let kind = if has("blocks.0.attn.relative_position_bias_table") {
                RelPosKind::PerBlock
            } else {
                RelPosKind::None
            };
            let config = VitConfig {
                abs_pos_emb: has("pos_embed"),
                rel_pos_bias: kind,
                layer_scale_init: expected["blocks.0.gamma_1"]["mean"].as_f64().unwrap_or(0.0),
                ..vit.clone()
            };
            let outputs = expected["head.weight"]["shape"][0].as_u64().unwrap_or(0) as usize;
            let model = VisionTransformer::<Inner>::new(&config, Pooling::Mean, outputs, &device);
            let rule = beit2::init::InitRule::Finetune { head_scale: 0.001, gamma: config.layer_scale_init };
            params::export(&beit2::init::initialise(model, rule, 1))
        } else {
            let shape = |name: &str, axis: usize| expected[name]["shape"][axis].as_u64().unwrap() as usize;
            let decoder_width = shape("decoder.cls_token", 2);
            let config = TokenizerConfig {
                image_size: vit.image_size,
                patch_size: vit.patch_size,
                width: vit.width,
                depth: vit.depth,
                heads: vit.heads,
                decoder_width,
                decoder_depth: (0..).find(|i| !has(&format!("decoder.blocks.{i}.norm1.weight"))).unwrap(),
                decoder_heads: 1,
                codebook_size: shape("quantize.embedding.weight", 0),
                code_dim: shape("quantize.embedding.weight", 1),
                teacher_dim: shape("decode_task_layer.2.weight", 0),
                kmeans_init: expected["quantize.embedding.initted"]["mean"].as_f64() == Some(0.0),
                ..TokenizerConfig::default()
            };
            params::export(&VqKd::<Inner>::new(&config, 1, &device).unwrap())
        };
        let mut checked = 0;
        for (name, stats) in expected.as_object().unwrap() {
            let Some(data) = tensors.get(name) else {
                assert!(
                    name.ends_with("relative_position_index")
                        || name.starts_with("scaling_layer")
                        || name.starts_with("teacher"),
                    "{title}: no {name}"
                );
                continue;
            };
            let values = super::folder::floats(data);
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
            let number = |key: &str| stats[key].as_f64().unwrap_or(0.0);
            let spread = number("std");
            // Two independent samples: six standard errors of their difference. A constant has none.
            let error = 6.0 * spread * (2.0 / n).sqrt() + 1e-7;
            assert!(
                (mean - number("mean")).abs() <= error,
                "{title}: {name}: mean {mean}, {}",
                number("mean")
            );
            assert!((std - spread).abs() <= error, "{title}: {name}: std {std}, {spread}");
            let bound = number("max").abs().max(number("min").abs()) * 1.35 + 1e-7;
            if n > 1000.0 {
                let found = values.iter().fold(0f64, |m, v| m.max(v.abs()));
                assert!(found <= bound, "{title}: {name}: largest {found}, {bound}");
            }
            checked += 1;
        }
        println!("{title}: {checked} parameters start alike");
        assert!(checked > 0);
    }
}
