//! Layout detection, accounts and summaries against the recorded key lists of the official code, timm and transformers
//! (golden suites A, B, C, E, G, H, I) and the parameter counts of docs/method.md §10.1.

#![allow(clippy::unwrap_used)]

mod support;

use beit2_weights::convert::{Facts, timm_config};
use beit2_weights::inspect::{ModelSummary, Pooling, RelativeBias, TokenizerSummary, inspect};
use beit2_weights::layout::{Family, Fate, Kind, account};
use beit2_weights::plan::Target;
use beit2_weights::published::PUBLISHED;
use indexmap::IndexMap;
use support::checks::{self, check, equal, skip};
use support::{
    Shape, each_case, each_entry, each_indexed, golden_json, golden_tensors, number, part, shapes,
};

type Shapes = IndexMap<String, Shape>;

fn target_of(summary: &ModelSummary) -> Target {
    Target {
        grid: summary.grid.unwrap(),
        patch: summary.patch,
        channels: summary.channels,
        width: summary.width,
        heads: summary.heads.unwrap(),
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

/// The number of `{list}.0.…`, `{list}.1.…`
fn blocks(shapes: &Shapes, list: &str) -> usize {
    (0..).find(|block| !shapes.contains_key(&format!("{list}.{block}.norm1.weight"))).unwrap()
}

/// What is expected comes from the recorded shapes of single tensors, read here by themselves.
#[test]
fn golden_factories_are_recognised_and_counted() {
    each_entry("E_factories.json", Some("layouts"), |_, factory| {
        let shapes = shapes(&factory["keys"]);
        let size = |tensor: &str, axis: usize| shapes[tensor].0[axis];
        let summary = inspect(&shapes).unwrap();
        let kind = if shapes.contains_key("quantize.embedding.weight") {
            Kind::Tokenizer
        } else if shapes.contains_key("mask_token") {
            Kind::Pretraining
        } else {
            Kind::Classifier
        };
        equal("layout", &(summary.layout.family, summary.layout.kind), &(Family::Official, kind));
        equal("parameters", &summary.parameters, &factory["n_trainable"].as_u64().unwrap());
        let trunk = if kind == Kind::Tokenizer { "encoder.blocks" } else { "blocks" };
        equal("depth", &summary.depth, &blocks(&shapes, trunk));
        let head_layers = blocks(&shapes, "cls_pt_layers");
        let aggregation = summary.patch_aggregation.map(|head| (head.head_layers, head.shared_lm_head));
        let shared = !shapes.contains_key("cls_pt_lm_head.weight");
        equal("aggregation head", &aggregation, &(head_layers > 0).then_some((head_layers, shared)));
        if let Some(head) = summary.patch_aggregation {
            // No shape shows it: the published models of 12 and 24 blocks have it behind block 9 and 21.
            let published = match summary.depth {
                12 => Some(9),
                24 => Some(21),
                _ => None,
            };
            equal("block of the aggregation head", &head.intermediate_layer, &published);
        }
        match kind {
            Kind::Tokenizer => {
                let expected = TokenizerSummary {
                    codebook_size: size("quantize.embedding.weight", 0),
                    code_dim: size("quantize.embedding.weight", 1),
                    decoder_depth: blocks(&shapes, "decoder.blocks"),
                    decoder_width: size("decoder.cls_token", 2),
                    teacher_dim: size("decode_task_layer.2.weight", 0),
                };
                equal("tokenizer", &summary.tokenizer, &Some(expected));
                let grid = (size("encoder.pos_embed", 1) - 1).isqrt();
                let image = grid * size("encoder.patch_embed.proj.weight", 2);
                equal(
                    "grid, image, heads",
                    &(summary.grid, summary.image_px(), summary.heads),
                    &(Some(grid), Some(image), None),
                );
            }
            Kind::Pretraining => {
                let codes = size("lm_head.weight", 0);
                let found = (summary.vocab_size, summary.pooling, summary.bias, summary.mask_token);
                equal(
                    "vocab_size, pooling, bias, mask token",
                    &found,
                    &(Some(codes), Some(Pooling::Cls), bias(&shapes), true),
                );
            }
            _ => {
                let pooling =
                    if shapes.contains_key("fc_norm.weight") { Pooling::Mean } else { Pooling::Cls };
                let found = (summary.classes, summary.pooling, summary.bias);
                equal(
                    "classes, pooling, bias",
                    &found,
                    &(Some(size("head.weight", 0)), Some(pooling), bias(&shapes)),
                );
                // The description of a target gives the same tensors in the same order.
                let learned = factory["keys"].as_array().unwrap().iter().filter(|key| key[3] == true);
                let learned: Vec<_> = learned
                    .map(|key| (support::text(&key[0]), serde_json::from_value(key[1].clone()).unwrap()))
                    .collect();
                equal("tensors of the target", &target_of(&summary).tensors(), &learned);
            }
        }
        // The index of pairs has a row for each token: the grid and one.
        let index = shapes.iter().find(|(name, _)| name.ends_with("relative_position_index"));
        if let Some((_, Shape(index))) = index {
            let grid = (index[0] - 1).isqrt();
            equal("image", &summary.image_px(), &Some(grid * size("patch_embed.proj.weight", 2)));
        }
    });
}

fn bias(shapes: &Shapes) -> RelativeBias {
    match ["rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"]
        .map(|name| shapes.contains_key(name))
    {
        [true, _] => RelativeBias::Shared,
        [_, true] => RelativeBias::PerBlock,
        _ => RelativeBias::None,
    }
}

#[test]
fn parameter_counts_of_method_10_1() {
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
    checks::golden(|| {
        let (Some(factories), Some(segmentors)) =
            (golden_json("E_factories.json"), golden_json("G_segmentor_layouts.json"))
        else {
            return;
        };
        for published in &PUBLISHED {
            // Published files have names of their own; these are the reference's models for them.
            let size = if published.file.contains("large") { "large" } else { "base" };
            let name = match published.kind {
                Kind::Tokenizer => format!("vqkd/{}", published.file.split('-').next().unwrap()),
                Kind::Pretraining => format!("pretrain/beit_{size}_patch16_224_8k_vocab_cls_pt"),
                Kind::Segmentation => size.to_owned(),
                _ if published.classes == 1000 => format!("finetune/beit_{size}_patch16_224"),
                _ => continue,
            };
            let layout = match published.kind {
                Kind::Segmentation => &segmentors[&name]["n"],
                _ => &factories["layouts"][&name]["n_trainable"],
            };
            match layout.as_u64() {
                Some(expected) => equal(published.file, &published.parameters, &expected),
                None => skip(format!("{}: no {name} in this folder", published.file)),
            }
        }
    });
}

#[test]
fn golden_segmentation_models() {
    each_entry("G_segmentor_layouts.json", None, |_, layout| {
        let shapes = shapes(&layout["keys"]);
        let summary = inspect(&shapes).unwrap();
        equal(
            "layout",
            &(summary.layout.family, summary.layout.kind),
            &(Family::Official, Kind::Segmentation),
        );
        equal("parameters", &summary.parameters, &layout["n"].as_u64().unwrap());
        let classes = shapes["decode_head.conv_seg.weight"].0[0];
        // A table of a grid g has (2g − 1)² + 3 rows.
        let rows = shapes["backbone.blocks.0.attn.relative_position_bias_table"].0[0];
        let grid = (rows - 3).isqrt().div_ceil(2);
        equal(
            "classes, grid, pooling",
            &(summary.classes, summary.grid, summary.pooling),
            &(Some(classes), Some(grid), None),
        );
    });
}

#[test]
fn golden_timm_models() {
    each_entry("I_timm_layouts.json", None, |name, layout| {
        let summary = inspect(&shapes(&layout["keys"])).unwrap();
        equal("layout", &(summary.layout.family, summary.layout.kind), &(Family::Timm, Kind::Classifier));
        equal("parameters", &summary.parameters, &layout["n_params"].as_u64().unwrap());
        equal("classes", &summary.classes.map(|n| n as u64), &layout["cfg"]["num_classes"].as_u64());
        let config = timm_config(&summary, &Facts::default()).unwrap();
        equal("architecture", &config["architecture"].as_str(), &Some(name));
        for key in ["mean", "std", "interpolation", "input_size", "num_classes"] {
            equal(key, &config["pretrained_cfg"][key], &layout["cfg"][key]);
        }
    });
}

#[test]
fn golden_hugging_face_models_in_files_and_in_memory() {
    each_case("I", |case, entry| {
        let Some(folder) = entry["meta"]["files"].as_str() else { return };
        let Some(tensors) = golden_tensors(&format!("{folder}/model.safetensors")) else { return };
        let Some(config) = golden_json(&format!("{folder}/config.json")) else { return };
        let kind = match config["architectures"][0].as_str() {
            Some("BeitForImageClassification") => Kind::Classifier,
            Some("BeitForMaskedImageModeling") => Kind::Pretraining,
            Some("BeitModel") => Kind::Backbone,
            other => return skip(format!("{case}: a {other:?} is not read here")),
        };
        let size = |key: &str| number(&config[key]);
        let summary = inspect(&tensors).unwrap();
        equal("layout", &(summary.layout.family, summary.layout.kind), &(Family::HuggingFace, kind));
        let grid = size("image_size") / size("patch_size");
        equal(
            "depth, width, grid",
            &(summary.depth, summary.width, summary.grid),
            &(size("num_hidden_layers"), size("hidden_size"), Some(grid)),
        );
        // Only a bias table shows the heads.
        let table = ["use_relative_position_bias", "use_shared_relative_position_bias"]
            .iter()
            .any(|key| config[*key] == true);
        equal("heads", &summary.heads, &table.then(|| size("num_attention_heads")));
        let in_files = account(tensors.keys().map(String::as_str)).unwrap();
        let keys: Vec<&str> =
            entry["meta"]["keys"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
        let in_memory = account(keys).unwrap();
        let sorted = |account: &beit2_weights::layout::Account| {
            let mut names: Vec<String> = account.canonical_names().iter().map(|n| n.to_string()).collect();
            names.sort();
            names
        };
        equal("layout in memory", &in_memory.layout, &in_files.layout);
        equal("names in memory", &sorted(&in_memory), &sorted(&in_files));
    });
}

#[test]
fn golden_weights_of_all_suites_are_explained() {
    checks::golden(|| {
        for (suite, kind) in [
            ("A", Kind::Tokenizer),
            ("B", Kind::Pretraining),
            ("C", Kind::Classifier),
            ("G", Kind::Segmentation),
            ("I", Kind::Classifier),
        ] {
            let folder = std::fs::read_dir(support::folder("")).unwrap();
            let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            for file in names.filter(|n| n.starts_with(&format!("{suite}_")) && n.ends_with(".safetensors")) {
                checks::part(&file, || explained(&file, kind));
            }
        }
    });
}

fn explained(file: &str, kind: Kind) {
    let weights = part(&golden_tensors(file).unwrap(), "weight/");
    // Where a file holds only a part of a model: the quantizer, inputs and outputs.
    if !weights.keys().any(|name| name.ends_with("patch_embed.proj.weight")) {
        return println!("{file} holds no whole model");
    }
    let account = account(weights.keys().map(String::as_str)).unwrap();
    equal("kind", &account.layout.kind, &kind);
    equal("entries", &account.entries.len(), &weights.len());
    let ignored = account.entries.iter().filter(|entry| matches!(entry.fate, Fate::Ignored(_))).count();
    check(kind == Kind::Tokenizer || ignored == 0, || format!("{ignored} tensors are ignored"));
    inspect(&weights).unwrap();
}

#[test]
fn golden_checkpoints_are_recognised_behind_their_wrappers() {
    each_indexed("checkpoints", |name, entry| {
        let Some(path) = support::file("checkpoints", entry, "file") else { return };
        let options = beit2_weights::ReadOptions { keep_ddp_prefix: true, ..Default::default() };
        let checkpoint = beit2_weights::read_with(&path, &options).unwrap();
        let names = || checkpoint.tensors.keys().map(String::as_str);
        let holds = |end: &str| names().any(|name| name.ends_with(end));
        let kind = if holds("quantize.embedding.weight") {
            Kind::Tokenizer
        } else if holds("lm_head.weight") {
            Kind::Pretraining
        } else if holds("patch_embed.proj.weight") {
            Kind::Classifier
        } else {
            return println!("{name} is no model");
        };
        let prefix = if names().all(|name| name.starts_with("module.")) { "module." } else { "" };
        let account = account(names()).unwrap();
        equal("kind", &account.layout.kind, &kind);
        equal("prefix", &account.prefix.as_ref(), &prefix);
        let summary = inspect(&checkpoint.tensors).unwrap();
        equal("types of numbers", &summary.dtypes.len(), &1);
        println!("{name}: {account}{summary}");
    });
}
