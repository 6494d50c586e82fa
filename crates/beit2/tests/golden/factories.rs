//! Suite E: key lists, shapes, counts and initialisation of the registered models.

use std::collections::BTreeMap;

use beit2::init::{InitRule, initialise};
use beit2::params::{self, ParamInfo};
use beit2::pretrain::{MimConfig, MimModel};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::vit::{Pooling, VisionTransformer, VitConfig};
use burn::tensor::TensorData;
use serde_json::Value;

use super::checks::{check, equal, skip};
use super::folder::{Inner, each_entry, floats, json};
use super::sizes::{self, Shapes};

/// From the grid, from the teacher's statistics, or the teacher, which is a model of its own.
fn is_derived(name: &str) -> bool {
    name.ends_with("relative_position_index")
        || name.starts_with("scaling_layer.")
        || name.starts_with("teacher_model.")
}

fn check_keys(factory: &str, found: &[ParamInfo], expected: &Value) {
    let mut found: BTreeMap<&str, &ParamInfo> = found.iter().map(|info| (info.name.as_str(), info)).collect();
    let mut total = 0;
    for key in expected["keys"].as_array().unwrap() {
        let name = key[0].as_str().unwrap();
        if is_derived(name) {
            continue;
        }
        let Some(info) = found.remove(name) else {
            check(false, || format!("{factory}: no {name}"));
            continue;
        };
        let shape: Vec<usize> = serde_json::from_value(key[1].clone()).unwrap();
        equal(&format!("{factory}: shape of {name}"), &info.shape, &shape);
        equal(&format!("{factory}: {name} is trained"), &Some(info.trainable), &key[3].as_bool());
        if info.trainable {
            total += shape.iter().product::<usize>() as u64;
        }
    }
    check(found.is_empty(), || format!("{factory}: not in the reference: {:?}", found.keys()));
    equal(&format!("{factory}: trained values"), &Some(total), &expected["n_trainable"].as_u64());
    println!("{factory}: keys, shapes and {total} trained values");
}

/// Key lists of real sizes. Weights are allocated as zeros by the operating system, so even the
/// giant costs little until it is touched; initialisation is left out here.
#[test]
fn golden_e_factories() {
    let layouts = json("E_factories.json").map(|file| file["layouts"].clone());
    each_entry(layouts, |factory, expected| {
        let name = factory.split_once('/').map_or(factory, |(_, name)| name);
        let keys = sizes::listed(&expected["keys"]);
        let device = Default::default();
        // What kind of model it is shows in its keys; what it is called decides only where we register the name.
        let infos = if keys.contains_key("quantize.embedding.weight") {
            let Some(config) = TokenizerConfig::named(name) else {
                return skip(format!("no tokenizer is called {name} here"));
            };
            params::list(&VqKd::<Inner>::zeros(&config, &device).unwrap())
        } else if keys.contains_key("mask_token") {
            let Some(mut config) = MimConfig::named(name) else {
                return skip(format!("no masked image model is called {name} here"));
            };
            config.shared_lm_head = !keys.contains_key("cls_pt_lm_head.weight");
            params::list(&MimModel::<Inner>::zeros(&config, &device).unwrap())
        } else {
            // Fine-tuned models have no names here: any size can be fine-tuned.
            let (config, pooling, outputs) = classifier(&Value::Null, &keys);
            params::list(&VisionTransformer::<Inner>::new(&config, pooling, outputs, &device))
        };
        check_keys(factory, &infos, &expected);
    });
}

/// A classifier's options from its keys.
fn classifier(config: &Value, keys: &Shapes) -> (VitConfig, Pooling, usize) {
    let pooling = if keys.contains_key("fc_norm.weight") { Pooling::Mean } else { Pooling::Cls };
    (sizes::vit(config, keys), pooling, keys.get("head.weight").map_or(0, |shape| shape[0]))
}

/// Means and spreads of our three initialisers against the reference's, by sampling error.
#[test]
fn golden_e_init_stats() {
    let file = json("E_init_stats.json");
    let config = file.as_ref().map(|file| file["config"].clone()).unwrap_or_default();
    each_entry(file.map(|file| file["stats"].clone()), |title, expected| {
        check_statistics(title, &initial(title, &config, &expected), &expected);
    });
}

/// Our model of these parameters, freshly initialised.
fn initial(title: &str, config: &Value, stats: &Value) -> BTreeMap<String, TensorData> {
    let shape = |stats: &Value| serde_json::from_value(stats["shape"].clone()).unwrap();
    let shapes: Shapes =
        stats.as_object().unwrap().iter().map(|(name, stats)| (name.clone(), shape(stats))).collect();
    let number = |name: &str, key: &str| stats[name][key].as_f64();
    let device = Default::default();
    if shapes.contains_key("mask_token") {
        // No shape shows behind which block the aggregation head stands; the title does: `… (early 2, head 2)`.
        let early =
            || title.split_once("early ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        let early = config["early"].as_u64().or_else(early);
        let head_layers = sizes::blocks(&shapes, "cls_pt_layers");
        let patch_aggregation = head_layers > 0;
        let config = MimConfig {
            vit: VitConfig {
                layer_scale_init: number("blocks.0.gamma_1", "mean").unwrap_or(0.0),
                ..sizes::vit(config, &shapes)
            },
            vocab_size: shapes["lm_head.weight"][0],
            intermediate_layer: match early {
                Some(early) => early as usize,
                None if patch_aggregation => {
                    panic!("neither the configuration nor the title tells the early block")
                }
                None => MimConfig::default().intermediate_layer,
            },
            head_layers,
            shared_lm_head: !shapes.contains_key("cls_pt_lm_head.weight"),
            patch_aggregation,
        };
        return params::export(&MimModel::<Inner>::new(&config, 1, &device).unwrap());
    }
    if !shapes.contains_key("quantize.embedding.weight") {
        let (vit, pooling, outputs) = classifier(config, &shapes);
        let gamma = number("blocks.0.gamma_1", "mean").unwrap_or(0.0);
        let model = VisionTransformer::<Inner>::new(&vit, pooling, outputs, &device);
        // The default of the reference's `init_scale`.
        let head_scale = config["init_scale"].as_f64().unwrap_or(0.001);
        return params::export(&initialise(model, InitRule::Finetune { head_scale, gamma }, 1));
    }
    let vit = sizes::vit(config, &sizes::below(&shapes, "encoder."));
    let config = TokenizerConfig {
        image_size: vit.image_size,
        patch_size: vit.patch_size,
        width: vit.width,
        depth: vit.depth,
        heads: vit.heads,
        decoder_width: shapes["decoder.cls_token"][2],
        decoder_depth: sizes::blocks(&shapes, "decoder.blocks"),
        // First values do not depend on it.
        decoder_heads: 1,
        codebook_size: shapes["quantize.embedding.weight"][0],
        code_dim: shapes["quantize.embedding.weight"][1],
        teacher_dim: shapes["decode_task_layer.2.weight"][0],
        kmeans_init: number("quantize.embedding.initted", "mean") == Some(0.0),
        ..TokenizerConfig::default()
    };
    params::export(&VqKd::<Inner>::new(&config, 1, &device).unwrap())
}

fn check_statistics(title: &str, tensors: &BTreeMap<String, TensorData>, expected: &Value) {
    let mut compared = 0;
    for (name, stats) in expected.as_object().unwrap() {
        let Some(data) = tensors.get(name) else {
            check(is_derived(name), || format!("{title}: no {name}"));
            continue;
        };
        let values = floats(data);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
        let number = |key: &str| stats[key].as_f64().unwrap_or(0.0);
        let spread = number("std");
        // Two independent samples: six standard errors of their difference. A constant has none.
        let error = 6.0 * spread * (2.0 / n).sqrt() + 1e-7;
        for (what, found, expected) in [("mean", mean, number("mean")), ("std", std, spread)] {
            check((found - expected).abs() <= error, || {
                format!("{title}: {what} of {name} is {found}, expected {expected} within {error:e}")
            });
        }
        let bound = number("max").abs().max(number("min").abs()) * 1.35 + 1e-7;
        if n > 1000.0 {
            let found = values.iter().fold(0f64, |m, v| m.max(v.abs()));
            check(found <= bound, || format!("{title}: largest of {name} is {found}, allowed {bound}"));
        }
        compared += 1;
    }
    println!("{title}: {compared} parameters start alike");
    check(compared > 0, || format!("{title}: no parameter was compared"));
}
