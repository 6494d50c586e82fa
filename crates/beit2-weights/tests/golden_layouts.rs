//! Layout detection, accounts and facts against the recorded key lists of the official code, timm and transformers
//! (golden suites A, B, C, E, G, H, I) and the parameter counts of docs/method.md §10.1.

#![allow(clippy::unwrap_used)]

mod support;

use beit2_weights::inspect::{Facts, Pooling, RelativeBias, TokenizerFacts, inspect};
use beit2_weights::layout::{Family, Fate, Kind, account};
use beit2_weights::plan::Target;
use beit2_weights::published::PUBLISHED;
use support::{golden_json, golden_tensors, part, shapes};

fn target_of(facts: &Facts) -> Target {
    Target {
        grid: facts.grid.unwrap(),
        patch: facts.patch,
        channels: facts.channels,
        width: facts.width,
        heads: facts.heads.unwrap(),
        mlp_width: facts.mlp_width,
        depth: facts.depth,
        classes: facts.classes.unwrap_or(0),
        bias: facts.bias,
        abs_pos: facts.abs_pos,
        pooling: facts.pooling,
        layer_scale: facts.layer_scale,
        qkv_bias: facts.qkv_bias,
    }
}

#[test]
fn golden_factories_are_recognised_and_counted() {
    let Some(factories) = golden_json("E_factories.json") else { return };
    for (name, factory) in factories["layouts"].as_object().unwrap() {
        let shapes = shapes(&factory["keys"]);
        let facts = inspect(&shapes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let kind = match name.split(['/', '_']).next().unwrap() {
            "pretrain" => Kind::Pretraining,
            "finetune" => Kind::Classifier,
            _ => Kind::Tokenizer,
        };
        assert_eq!((facts.layout.family, facts.layout.kind), (Family::Official, kind), "{name}");
        assert_eq!(facts.parameters, factory["n_trainable"].as_u64().unwrap(), "{name}");
        let large = name.contains("large") || name.contains("24x544");
        let blocks = if large { 24 } else { facts.depth };
        assert_eq!(facts.depth, blocks, "{name}");
        assert_eq!(facts.aggregation.is_some(), name.contains("cls_pt"), "{name}");
        if let Some(aggregation) = facts.aggregation {
            let expected = (2, !name.contains("unshared"), Some(if large { 21 } else { 9 }));
            let found = (aggregation.head_layers, aggregation.shared_head, aggregation.early_layer);
            assert_eq!(found, expected, "{name}");
        }
        match kind {
            Kind::Tokenizer => {
                let teacher_width = if name.contains("clip") { 512 } else { 768 };
                let decoder_depth = if name.contains("3x768") { 3 } else { 1 };
                let expected = TokenizerFacts {
                    codes: 8192,
                    code_dim: 32,
                    decoder_depth,
                    decoder_width: 768,
                    teacher_width,
                };
                assert_eq!(facts.tokenizer, Some(expected), "{name}");
                assert_eq!((facts.grid, facts.image_px(), facts.heads), (Some(14), Some(224), None));
            }
            Kind::Pretraining => {
                assert_eq!((facts.vocabulary, facts.pooling), (Some(8192), Some(Pooling::Cls)), "{name}");
                assert_eq!((facts.bias, facts.mask_token), (RelativeBias::Shared, true), "{name}");
            }
            _ => {
                assert_eq!((facts.classes, facts.pooling), (Some(1000), Some(Pooling::Mean)), "{name}");
                assert_eq!(facts.bias, RelativeBias::PerBlock, "{name}");
                // The description of a target gives the same tensors in the same order.
                let learned = factory["keys"].as_array().unwrap().iter().filter(|key| key[3] == true);
                let learned: Vec<_> = learned
                    .map(|key| (support::text(&key[0]), serde_json::from_value(key[1].clone()).unwrap()))
                    .collect();
                assert_eq!(target_of(&facts).tensors(), learned, "{name}");
            }
        }
        let size: usize = name.rsplit('_').find_map(|word| word.parse().ok()).unwrap_or(224);
        if kind != Kind::Tokenizer && [192, 224, 256, 384].contains(&size) {
            assert_eq!(facts.image_px(), Some(size), "{name}");
        }
    }
}

#[test]
fn parameter_counts_of_spec_10_1() {
    let count = |target: &Target| {
        let tensors = target.tensors().into_iter().map(|(name, shape)| (name, support::Shape(shape)));
        inspect(&tensors.collect()).unwrap().parameters
    };
    let (base, large) = (Target::base(), Target::large());
    for (target, expected) in [
        (base.clone(), 86_530_984),
        (Target { classes: 21_841, ..base.clone() }, 102_557_713),
        (Target { classes: 200, ..base.clone() }, 85_915_784),
        (Target { grid: 16, ..base.clone() }, 86_564_392),
        (Target { grid: 24, ..base.clone() }, 86_744_104),
        (Target { qkv_bias: false, ..base }, 86_512_552),
        (large.clone(), 304_430_568),
        (Target { classes: 21_841, ..large.clone() }, 325_792_593),
        (Target { grid: 24, ..large.clone() }, 304_998_888),
        (Target { grid: 32, ..large }, 305_674_728),
    ] {
        assert_eq!(count(&target), expected);
    }
}

#[test]
fn golden_counts_of_the_published_files() {
    let (Some(factories), Some(segmentors)) =
        (golden_json("E_factories.json"), golden_json("G_segmentor_layouts.json"))
    else {
        return;
    };
    for published in &PUBLISHED {
        let size = if published.file.contains("large") { "large" } else { "base" };
        let expected = match published.kind {
            Kind::Tokenizer => {
                let name = published.file.split('-').next().unwrap();
                &factories["layouts"][format!("vqkd/{name}")]["n_trainable"]
            }
            Kind::Pretraining => {
                let name = format!("pretrain/beit_{size}_patch16_224_8k_vocab_cls_pt");
                &factories["layouts"][name]["n_trainable"]
            }
            Kind::Segmentation => &segmentors[size]["n"],
            _ if published.classes == 1000 => {
                &factories["layouts"][format!("finetune/beit_{size}_patch16_224")]["n_trainable"]
            }
            _ => continue,
        };
        assert_eq!(published.parameters, expected.as_u64().unwrap(), "{}", published.file);
    }
}

#[test]
fn golden_segmentation_models() {
    let Some(layouts) = golden_json("G_segmentor_layouts.json") else { return };
    for (name, layout) in layouts.as_object().unwrap() {
        let facts = inspect(&shapes(&layout["keys"])).unwrap();
        assert_eq!((facts.layout.family, facts.layout.kind), (Family::Official, Kind::Segmentation));
        assert_eq!(facts.parameters, layout["n"].as_u64().unwrap(), "{name}");
        assert_eq!((facts.classes, facts.grid, facts.pooling), (Some(150), Some(32), None));
    }
}

#[test]
fn golden_timm_models() {
    let Some(layouts) = golden_json("I_timm_layouts.json") else { return };
    for (name, layout) in layouts.as_object().unwrap() {
        let facts = inspect(&shapes(&layout["keys"])).unwrap();
        assert_eq!((facts.layout.family, facts.layout.kind), (Family::Timm, Kind::Classifier), "{name}");
        assert_eq!(facts.parameters, layout["n_params"].as_u64().unwrap(), "{name}");
        assert_eq!(facts.classes, Some(1000));
        let config = beit2_weights::convert::timm_config(&facts, None).unwrap();
        assert_eq!(config["architecture"], *name);
        for key in ["mean", "std", "interpolation", "input_size", "num_classes"] {
            assert_eq!(config["pretrained_cfg"][key], layout["cfg"][key], "{name}: {key}");
        }
    }
}

#[test]
fn golden_hugging_face_models_in_files_and_in_memory() {
    let cases = golden_json("manifest_I.json");
    for (name, kind) in [("cls", Kind::Classifier), ("mim", Kind::Pretraining), ("model", Kind::Backbone)] {
        let Some(tensors) = golden_tensors(&format!("hf/{name}/model.safetensors")) else { continue };
        let facts = inspect(&tensors).unwrap();
        assert_eq!((facts.layout.family, facts.layout.kind), (Family::HuggingFace, kind));
        assert_eq!((facts.depth, facts.width, facts.heads, facts.grid), (4, 16, Some(2), Some(4)));
        let in_files = account(tensors.keys().map(String::as_str)).unwrap();
        let Some(cases) = &cases else { continue };
        let case = cases["entries"].as_array().unwrap().iter().find(|e| e["case"] == format!("hf_{name}"));
        let keys: Vec<&str> =
            case.unwrap()["meta"]["keys"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
        let in_memory = account(keys).unwrap();
        let sorted = |account: &beit2_weights::layout::Account| {
            let mut names: Vec<String> = account.canonical_names().iter().map(|n| n.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(in_memory.layout, in_files.layout);
        assert_eq!(sorted(&in_memory), sorted(&in_files));
    }
}

#[test]
fn golden_weights_of_all_suites_are_explained() {
    let mut tested = 0;
    for (suite, kind) in [
        ("A", Kind::Tokenizer),
        ("B", Kind::Pretraining),
        ("C", Kind::Classifier),
        ("G", Kind::Segmentation),
        ("I", Kind::Classifier),
    ] {
        let Ok(folder) = std::fs::read_dir(support::folder("")) else { continue };
        for file in folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
            if !file.starts_with(&format!("{suite}_")) || !file.ends_with(".safetensors") {
                continue;
            }
            let weights = part(&golden_tensors(&file).unwrap(), "weight/");
            if !weights.contains_key("quantize.embedding.weight") && kind == Kind::Tokenizer
                || weights.is_empty()
            {
                continue; // only a part of a model
            }
            let account = account(weights.keys().map(String::as_str)).unwrap();
            assert_eq!(account.layout.kind, kind, "{file}");
            assert_eq!(account.entries.len(), weights.len());
            let ignored = account.entries.iter().filter(|entry| matches!(entry.fate, Fate::Ignored(_)));
            assert!(kind == Kind::Tokenizer || ignored.count() == 0, "{file}");
            inspect(&weights).unwrap();
            tested += 1;
        }
    }
    println!("{tested} models explained");
}

#[test]
fn golden_checkpoints_are_recognised_behind_their_wrappers() {
    let Some(index) = golden_json("checkpoints/index.json") else { return };
    for entry in index.as_array().unwrap() {
        let name = support::text(&entry["file"]);
        let kind = match name.as_str() {
            "official_vqkd.pth" => Kind::Tokenizer,
            "official_pretrain.pth" => Kind::Pretraining,
            "odd_storages.pth" => continue,
            _ => Kind::Classifier,
        };
        let Some(path) = support::file("checkpoints", entry, "file") else { continue };
        let options = beit2_weights::ReadOptions { keep_ddp_prefix: true, ..Default::default() };
        let checkpoint = beit2_weights::read_with(&path, &options).unwrap();
        let account = account(checkpoint.tensors.keys().map(String::as_str)).unwrap();
        assert_eq!(account.layout.kind, kind, "{name}");
        assert_eq!(account.prefix, if name.contains("ddp") { "module." } else { "" });
        let facts = inspect(&checkpoint.tensors).unwrap();
        assert_eq!(facts.dtypes.len(), 1, "{name}: {facts}");
        println!("{name}: {account}{facts}");
    }
}
