//! Other names, the same bits: round trips between the official layout, timm and Hugging Face, in every float type.

#![allow(clippy::unwrap_used)]

mod support;

use beit2_weights::convert::{
    Facts, Preprocessing, SegmentationFacts, StateDict, convert, hf_config, hf_preprocessor, timm_config,
    to_canonical,
};
use beit2_weights::inspect::{Pooling, RelativeBias, inspect};
use beit2_weights::layout::{Family, Kind, account};
use beit2_weights::plan::Target;
use beit2_weights::{DType, Tensor};
use support::{golden, golden_json, golden_tensors, open, part};

/// A small model in official names, every value different, with its index buffers.
fn tiny(dtype: DType, target: &Target, extra: &[(&str, &[usize])]) -> StateDict {
    let extra = extra.iter().map(|(name, shape)| (name.to_string(), shape.to_vec()));
    let mut seed = 1u8;
    let tensors: StateDict = (target.tensors().into_iter().chain(extra))
        .map(|(name, shape)| {
            let len = shape.iter().product::<usize>() * dtype.size();
            let bytes = (0..len).map(|_| {
                seed = seed.wrapping_mul(5).wrapping_add(113);
                seed
            });
            (name, Tensor::new(dtype, shape, bytes.collect()).unwrap())
        })
        .collect();
    convert(tensors, None, Family::Official).unwrap().tensors
}

fn target() -> Target {
    let base = Target::base();
    Target { grid: 4, patch: 8, width: 16, heads: 2, mlp_width: 64, depth: 2, classes: 5, ..base }
}

const MASKED: &[(&str, &[usize])] =
    &[("mask_token", &[1, 1, 16]), ("lm_head.weight", &[11, 16]), ("lm_head.bias", &[11])];

fn round_trip(tensors: &StateDict, to: Family) -> StateDict {
    let there = convert(tensors.clone(), None, to).unwrap();
    assert_eq!(there.layout.family, to);
    // Forced, as a model without bias tables looks official after its way through timm.
    convert(there.tensors, Some(there.layout), Family::Official).unwrap().tensors
}

#[test]
fn classifiers_survive_timm_and_hugging_face_in_every_float_type() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        for (bias, abs_pos, pooling) in [
            (RelativeBias::PerBlock, false, Pooling::Mean),
            (RelativeBias::PerBlock, true, Pooling::Cls),
            (RelativeBias::Shared, false, Pooling::Mean),
            (RelativeBias::None, true, Pooling::Cls),
        ] {
            let target = Target { bias, abs_pos, pooling: Some(pooling), ..target() };
            let official = tiny(dtype, &target, &[]);
            for to in [Family::Timm, Family::HuggingFace, Family::Official] {
                assert_eq!(round_trip(&official, to), official, "{dtype} {bias:?} {to}");
            }
        }
    }
}

#[test]
fn backbones_and_plain_pretraining_survive() {
    let trunk = Target { classes: 0, ..target() };
    let official = tiny(DType::F16, &trunk, &[]);
    assert_eq!(round_trip(&official, Family::Timm), official);
    assert_eq!(round_trip(&official, Family::HuggingFace), official);

    let masked = Target { pooling: Some(Pooling::Cls), bias: RelativeBias::Shared, ..trunk };
    let official = tiny(DType::BF16, &masked, MASKED);
    assert_eq!(account(official.keys().map(String::as_str)).unwrap().layout.kind, Kind::Pretraining);
    assert_eq!(round_trip(&official, Family::HuggingFace), official);
    // timm has no such head: the rest survives, and the head is named.
    let timm = convert(official.clone(), None, Family::Timm).unwrap();
    assert_eq!(timm.layout.kind, Kind::Backbone);
    let left: Vec<&str> = timm.left_out.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["mask_token", "lm_head.weight", "lm_head.bias"] {
        assert!(left.contains(&name), "{left:?}");
    }
    let mut rest = official;
    rest.retain(|name, _| name != "mask_token" && !name.starts_with("lm_head"));
    assert_eq!(convert(timm.tensors, None, Family::Official).unwrap().tensors, rest);
}

#[test]
fn golden_patch_aggregation_is_left_out_with_its_reason() {
    let Some(path) = golden("checkpoints/official_pretrain.expected.safetensors") else { return };
    let official = open(&path).load_all().unwrap();
    for to in [Family::Timm, Family::HuggingFace] {
        let there = convert(official.clone(), None, to).unwrap();
        let back = convert(there.tensors, None, Family::Official).unwrap().tensors;
        let lost: Vec<&String> = official.keys().filter(|name| !back.contains_key(*name)).collect();
        assert!(lost.iter().all(|name| there.left_out.iter().any(|(left, _)| left == *name)), "{lost:?}");
        assert!(lost.iter().any(|name| name.starts_with("cls_pt_layers.")));
        assert!(back.iter().all(|(name, tensor)| official[name] == *tensor));
    }
}

#[test]
fn golden_checkpoints_survive() {
    for (name, to) in [
        ("official_finetune.expected", Family::Timm),
        ("official_finetune.expected", Family::HuggingFace),
        ("layout_module_deepspeed_half.expected", Family::HuggingFace),
        ("layout_state_dict_bf16.expected", Family::HuggingFace),
        ("layout_state_dict_bf16.expected", Family::Timm),
    ] {
        let Some(path) = golden(&format!("checkpoints/{name}.safetensors")) else { continue };
        let file = open(&path).load_all().unwrap();
        let has_index = file.keys().any(|name| name.ends_with("relative_position_index"));
        let back = round_trip(&file, to);
        assert!(file.iter().all(|(name, tensor)| back[name] == *tensor), "{name}");
        assert_eq!(back.len() == file.len(), has_index, "{name}");
    }
}

#[test]
fn golden_classifiers_survive() {
    for case in ["C_mean_pool", "C_cls_pool_mix", "C_shared_bias_droppath", "C_abs_pos_noscale_accum"] {
        let Some(tensors) = golden_tensors(&format!("{case}.safetensors")) else { continue };
        let weights = part(&tensors, "weight/");
        let normal = convert(weights.clone(), None, Family::Official).unwrap().tensors;
        assert!(weights.iter().all(|(name, tensor)| normal[name] == *tensor), "{case}");
        assert_eq!(round_trip(&weights, Family::Timm), normal, "{case}");
        if weights.contains_key("blocks.0.attn.q_bias") {
            assert_eq!(round_trip(&weights, Family::HuggingFace), normal, "{case}");
        } else {
            assert!(convert(weights, None, Family::HuggingFace).is_err(), "{case}");
        }
    }
}

#[test]
fn golden_hugging_face_files_survive_and_have_their_config() {
    for name in ["cls", "mim", "model"] {
        let Some(tensors) = golden_tensors(&format!("hf/{name}/model.safetensors")) else { continue };
        let official = convert(tensors.clone(), None, Family::Official).unwrap();
        assert_eq!(official.left_out, []);
        let back = convert(official.tensors.clone(), None, Family::HuggingFace).unwrap();
        assert_eq!(back.tensors, tensors, "{name}");
        assert!(back.left_out.iter().all(|(name, _)| name.ends_with("relative_position_index")));

        // Rows of the fused weight: query, key, value.
        let prefix = if name == "model" { "" } else { "beit." };
        let attention = format!("{prefix}encoder.layer.1.attention.attention");
        let parts =
            ["query", "key", "value"].map(|part| tensors[&format!("{attention}.{part}.weight")].bytes());
        assert_eq!(official.tensors["blocks.1.attn.qkv.weight"].bytes(), parts.concat());

        let config = hf_config(&inspect(&official.tensors).unwrap(), &Facts::default()).unwrap();
        let expected = golden_json(&format!("hf/{name}/config.json")).unwrap();
        for (key, value) in config.as_object().unwrap() {
            if key == "layer_norm_eps" {
                assert_eq!(value, 1e-6); // the recorded one is Hugging Face's default
            } else {
                assert_eq!(value, &expected[key], "{name}: {key}");
            }
        }
        // It may be read from either side.
        assert_eq!(hf_config(&inspect(&tensors).unwrap(), &Facts::default()).unwrap(), config, "{name}");
    }
}

#[test]
fn golden_timm_weights_survive() {
    let Some(tensors) = golden_tensors("I_timm_rel.safetensors") else { return };
    let timm = part(&tensors, "weight/");
    let official = convert(timm.clone(), None, Family::Official).unwrap();
    let index = &official.tensors["blocks.1.attn.relative_position_index"];
    assert_eq!((index.dtype(), index.shape()), (DType::I64, &[17, 17][..]));
    assert_eq!(convert(official.tensors, None, Family::Timm).unwrap().tensors, timm);
    let config = timm_config(&inspect(&timm).unwrap(), &Facts::default()).unwrap();
    assert_eq!(config["model_args"]["mlp_ratio"], 4.0);
    assert_eq!(config["global_pool"], "avg");
}

#[test]
fn golden_tokenizers_keep_everything_but_the_teacher() {
    let Some(path) = golden("checkpoints/official_vqkd.pth") else { return };
    let tensors = open(&path).load_all().unwrap();
    let official = convert(tensors.clone(), None, Family::Official).unwrap();
    let kept =
        tensors.keys().filter(|name| !name.starts_with("teacher_model.") && !name.starts_with("scaling"));
    assert_eq!(official.tensors.keys().collect::<Vec<_>>(), kept.collect::<Vec<_>>());
    for to in [Family::Timm, Family::HuggingFace] {
        let error = convert(tensors.clone(), None, to).unwrap_err().to_string();
        assert_eq!(error, format!("{to} has no tokenizer model; keep it in the official layout"));
    }
}

#[test]
fn wrong_names_and_shapes_are_one_sentence() {
    let official = tiny(DType::F32, &target(), &[]);
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = official.clone();
        let len = shape.iter().product();
        tensors.insert(name.to_string(), Tensor::from_f32(shape.to_vec(), &vec![0.0; len]).unwrap());
        tensors
    };
    let message = |tensors, to| convert(tensors, None, to).unwrap_err().to_string();
    assert_eq!(
        message(with("blocks.1.attn.qkv.weigth", &[1]), Family::Timm),
        "tensor `blocks.1.attn.qkv.weigth` is not part of the layout official classifier; the nearest known name is \
         `blocks.1.attn.qkv.weight`"
    );
    let error = message(with("blocks.1.attn.qkv.weight", &[47, 16]), Family::HuggingFace);
    assert!(error.contains("[47, 16], expected [3·width, width]"), "{error}");
    let error = message(with("blocks.1.attn.relative_position_bias_table", &[51, 2]), Family::Official);
    assert!(error.contains("[51, 2]") && error.contains("square grid"), "{error}");
    let unbiased = tiny(DType::F32, &Target { qkv_bias: false, ..target() }, &[]);
    assert!(message(unbiased, Family::HuggingFace).contains("query and value biases"));

    let mut hf = convert(official.clone(), None, Family::HuggingFace).unwrap().tensors;
    hf.shift_remove("beit.encoder.layer.1.attention.attention.key.weight");
    assert!(message(hf.clone(), Family::Official).contains("query, key or value"));
    let twice = Tensor::from_f32(vec![16], &[0.0; 16]).unwrap();
    hf.insert("beit.layers.0.attention.q_proj.bias".to_string(), twice);
    assert!(message(hf, Family::Official).contains("are both `blocks.0.attn.q_bias`"));

    let abs = tiny(DType::F32, &Target { bias: RelativeBias::None, abs_pos: true, ..target() }, &[]);
    let summary = inspect(&abs).unwrap();
    let heads = |count| Facts { heads: Some(count), ..Facts::default() };
    assert!(
        hf_config(&summary, &Facts::default()).unwrap_err().to_string().contains("number of attention heads")
    );
    assert!(timm_config(&summary, &heads(3)).unwrap_err().to_string().contains("do not divide"));
    assert_eq!(hf_config(&summary, &heads(4)).unwrap()["num_attention_heads"], 4);

    let mut holes = official;
    holes.retain(|name, _| name != "blocks.1.norm2.bias");
    assert!(inspect(&holes).unwrap_err().to_string().contains("`blocks.1.norm2.bias` is missing"));
    assert!(to_canonical(StateDict::new()).unwrap_err().to_string().contains("there are none"));
}

#[test]
fn a_small_hostile_table_does_not_make_a_huge_index() {
    let mut official = tiny(DType::F32, &target(), &[]);
    let rows = 1023 * 1023 + 3;
    let table = Tensor::new(DType::F16, vec![rows, 1], vec![0; rows * 2]).unwrap();
    official.insert("blocks.0.attn.relative_position_bias_table".to_string(), table);
    let error = convert(official, None, Family::Official).unwrap_err().to_string();
    assert!(error.contains("a grid of 512"), "{error}");
}

/// A recorded segmentation model with patches of 16 px, and what its tensors do not show.
fn segmentation() -> Option<(StateDict, Facts)> {
    let tensors = part(&golden_tensors("G_patch16_grid4.safetensors")?, "weight/");
    let width = |name: &str| tensors[name].shape()[1];
    let own = SegmentationFacts {
        out_indices: [0, 1, 2, 3],
        channels: width("decode_head.conv_seg.weight"),
        pool_scales: vec![1, 2, 3, 6],
        aux_channels: Some(width("auxiliary_head.conv_seg.weight")),
        aux_index: 2,
        aux_weight: 0.4,
    };
    Some((tensors, Facts { segmentation: Some(own), ..Facts::default() }))
}

#[test]
fn golden_segmentation_models_survive_hugging_face() {
    let Some((official, facts)) = segmentation() else { return };
    let there = convert(official.clone(), None, Family::HuggingFace).unwrap();
    let depth = inspect(&official).unwrap().depth;
    // One block of zeros more, which the model does not have.
    let spare = format!("beit.encoder.layer.{depth}.");
    let added: Vec<&Tensor> =
        there.tensors.iter().filter(|(name, _)| name.starts_with(&spare)).map(|(_, tensor)| tensor).collect();
    assert!(added.len() > 10 && added.iter().all(|tensor| tensor.bytes().iter().all(|byte| *byte == 0)));
    let summary = inspect(&there.tensors).unwrap();
    assert_eq!((summary.layout, summary.depth), (there.layout, depth));
    assert_eq!(summary.parameters, inspect(&official).unwrap().parameters);
    let config = hf_config(&summary, &facts).unwrap();
    assert_eq!(config["num_hidden_layers"], depth + 1);
    assert_eq!(config["out_indices"], serde_json::json!([2, 3, 4, 5]));
    assert_eq!(config["architectures"][0], "BeitForSemanticSegmentation");
    let counter = &there.tensors["decode_head.bottleneck.bn.num_batches_tracked"];
    assert_eq!((counter.dtype(), counter.shape()), (DType::I64, &[][..]));

    let back = convert(there.tensors.clone(), None, Family::Official).unwrap().tensors;
    let normal = convert(official, None, Family::Official).unwrap().tensors;
    assert!(normal.iter().all(|(name, tensor)| back[name] == *tensor) && back.len() == normal.len());

    // Without the block somebody else has written it.
    let mut foreign = there.tensors;
    foreign.retain(|name, _| !name.starts_with(&spare));
    for error in
        [inspect(&foreign).unwrap_err(), convert(foreign.clone(), None, Family::Official).unwrap_err()]
    {
        assert!(error.to_string().contains("that beit2 has not written cannot be read"), "{error}");
    }
}

#[test]
fn golden_segmentation_models_that_would_compute_otherwise_are_refused() {
    let Some((official, facts)) = segmentation() else { return };
    let summary = inspect(&official).unwrap();
    let refused = |change: &dyn Fn(&mut SegmentationFacts)| {
        let mut facts = facts.clone();
        change(facts.segmentation.as_mut().unwrap());
        hf_config(&summary, &facts).unwrap_err().to_string()
    };
    for (error, part) in [
        (refused(&|own| own.channels = 7), "7 channels"),
        (refused(&|own| own.aux_index = 1), "takes map 1"),
        (refused(&|own| own.out_indices[3] = 9), "[0, 1, 2, 9]"),
    ] {
        assert!(error.contains(part) && error.contains("would give other numbers"), "{error}");
    }
    let Some(small) = golden_tensors("G_patch8.safetensors").map(|tensors| part(&tensors, "weight/")) else {
        return;
    };
    let error = hf_config(&inspect(&small).unwrap(), &facts).unwrap_err().to_string();
    assert!(error.contains("patches have 8 px"), "{error}");
    let error = hf_config(&summary, &Facts::default()).unwrap_err().to_string();
    assert!(error.contains("after which blocks"), "{error}");
    assert!(timm_config(&summary, &facts).unwrap_err().to_string().contains("no segmentation model"));
}

#[test]
fn configurations_say_what_the_tensors_do_not_show() {
    let official = tiny(DType::F16, &target(), &[]);
    let summary = inspect(&official).unwrap();
    let names: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
    let view = Preprocessing { crop_pct: 0.9, resized: 35, ..Preprocessing::of_size(32) };
    let facts = Facts {
        class_names: names.clone(),
        norm_eps: 1e-5,
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
        preprocessing: Some(view),
        ..Facts::default()
    };
    let config = hf_config(&summary, &facts).unwrap();
    assert_eq!((&config["layer_norm_eps"], &config["dtype"]), (&1e-5.into(), &"float16".into()));
    assert_eq!((&config["id2label"]["4"], &config["label2id"]["b"]), (&"e".into(), &1.into()));
    assert!(config.get("problem_type").is_none());
    let several = hf_config(&summary, &Facts { multi_label: true, ..facts.clone() }).unwrap();
    assert_eq!(several["problem_type"], "multi_label_classification");
    let processor = hf_preprocessor(&summary, &facts).unwrap();
    assert_eq!(processor["size"]["shortest_edge"], 35);
    assert_eq!((&processor["crop_size"]["height"], &processor["image_std"][2]), (&32.into(), &0.25.into()));

    // timm has one epsilon.
    let error = timm_config(&summary, &facts).unwrap_err().to_string();
    assert!(error.contains("epsilon of 1e-5"), "{error}");
    let config = timm_config(&summary, &Facts { norm_eps: 1e-6, ..facts.clone() }).unwrap();
    assert_eq!(config["label_names"], serde_json::json!(names));
    assert_eq!(config["pretrained_cfg"]["crop_pct"], 0.9);
    assert_eq!(config["pretrained_cfg"]["mean"], serde_json::json!([0.5, 0.5, 0.5]));
    assert_eq!(config["model_args"]["global_pool"], "avg");

    // A trunk without its final norm would get one that nobody has trained.
    let mut bare = tiny(DType::F32, &Target { classes: 0, ..target() }, &[]);
    bare.retain(|name, _| !name.starts_with("fc_norm."));
    let summary = inspect(&bare).unwrap();
    for error in [hf_config(&summary, &Facts::default()), timm_config(&summary, &Facts::default())] {
        assert!(error.unwrap_err().to_string().contains("no final norm"));
    }
    let bands = Facts { mean: vec![0.5; 5], std: vec![0.5; 5], ..facts };
    assert!(hf_preprocessor(&summary, &bands).unwrap_err().to_string().contains("5 means"));
}
