//! Suite G: UPerNet – maps of the backbone, logits, losses, gradients, running statistics, scores, schedule, groups.

use std::collections::BTreeMap;

use beit2::params;
use beit2::segment::{
    Confusion, HeadDropout, SegmenterConfig, TrainLogits, UperNet, label_tensor, pixel_losses,
};
use beit2::train::{GroupRule, PolySchedule, Rank, gradients};
use beit2::vit::{DropPath, RelPosKind, VitConfig};
use beit2_kernels::{Backend, bilinear};
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};

use super::folder::{Auto, Case, cases, floats, ints, json};

fn config(case: &Case) -> SegmenterConfig {
    let list = |key: &str| -> Vec<usize> {
        case.config[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
    };
    SegmenterConfig {
        vit: VitConfig {
            image_size: case.size("img"),
            patch_size: case.size("patch"),
            width: case.size("width"),
            depth: case.size("depth"),
            heads: case.size("heads"),
            mlp_ratio: case.number("mlp_ratio"),
            layer_scale_init: case.number("init_values"),
            abs_pos_emb: case.flag("abs_pos"),
            rel_pos_bias: match (case.flag("shared"), case.flag("rel_pos")) {
                (true, _) => RelPosKind::Shared,
                (_, true) => RelPosKind::PerBlock,
                _ => RelPosKind::None,
            },
            ..VitConfig::default()
        },
        out_indices: list("out_indices").try_into().unwrap(),
        channels: case.size("channels"),
        pool_scales: list("pool_scales"),
        aux_channels: case.size("aux_channels"),
        classes: Some(case.size("classes")),
        dropout: 0.0,
        ..SegmenterConfig::default()
    }
}

pub fn model(case: &Case, dtype: DType) -> UperNet<Auto> {
    let zeros = UperNet::zeros(&config(case), &Default::default()).unwrap();
    params::load_strict(zeros, case.below("weight"), dtype, |name| name.ends_with("relative_position_index"))
        .unwrap()
}

/// Cases with a model; the suite has others.
pub fn models() -> Vec<Case> {
    let mut models = cases("G");
    models.retain(|case| case.has("input/crop"));
    models
}

/// A map with the channels where PyTorch has them.
fn channels_first<B: Backend>(map: Tensor<B, 4>) -> TensorData {
    map.permute([0, 3, 1, 2]).into_data()
}

#[test]
fn golden_g_maps_and_logits() {
    for case in models() {
        case.in_both_types(maps_and_logits);
    }
}

fn maps_and_logits(case: &Case, dtype: DType) {
    let model = model(case, dtype).valid();
    let x = case.tensor("input/crop", dtype);
    for (level, map) in model.features(x.clone()).unwrap().into_iter().enumerate() {
        case.check(&format!("eval/feature{level}"), &channels_first(map));
    }
    let auxiliary = model.auxiliary(x.clone()).unwrap().unwrap();
    case.check("eval/aux_logits", &channels_first(auxiliary));
    let logits = model.forward(x).unwrap();
    case.check("eval/decode_logits", &channels_first(logits.clone()));
    let side = case.size("img");
    case.check("eval/encode_decode", &channels_first(bilinear(logits, side, side)));
}

#[test]
fn golden_g_losses_gradients_and_statistics() {
    for case in models() {
        case.in_both_types(losses_gradients_and_statistics);
    }
}

fn losses_gradients_and_statistics(case: &Case, dtype: DType) {
    let model = model(case, dtype);
    let config = config(case);
    let x = case.tensor("input/crop", dtype);
    let labels = case.raw("input/label");
    let ids = ints(labels).into_iter().map(|id| u8::try_from(id).unwrap()).collect();
    let size = [labels.shape[0], labels.shape[2], labels.shape[3]];
    let labels = label_tensor::<Auto>(ids, size, config.class_count(), &Default::default()).unwrap();
    let logits: TrainLogits<Auto> =
        model.forward_train(x, &DropPath::none(), &HeadDropout::none(), &Rank::alone()).unwrap();
    let losses = pixel_losses(&logits, labels, config.aux_weight);
    let percent = |share: Tensor<Auto, 1>| share.mul_scalar(100.0).into_data();
    let auxiliary = losses.auxiliary.unwrap().mul_scalar(config.aux_weight);
    case.check("train/decode.loss_seg", &losses.decode.into_data());
    case.check("train/decode.acc_seg", &percent(losses.decode_acc));
    case.check("train/aux.loss_seg", &auxiliary.into_data());
    case.check("train/aux.acc_seg", &percent(losses.auxiliary_acc.unwrap()));
    case.check("train/total", &losses.total.to_data());
    case.check_gradients(gradients(&model, &losses.total.backward()));
    let state = params::export(&model.record(&logits.statistics).unwrap());
    let mut counted = 0;
    for (name, _) in case.below("after_train") {
        case.check(&format!("after_train/{name}"), &state[&name]);
        if let Some(norm) = name.strip_suffix("running_mean") {
            let count =
                |state: &BTreeMap<String, TensorData>| ints(&state[&format!("{norm}num_batches_tracked")])[0];
            assert_eq!(count(&state), count(&case.below("weight")) + 1);
            counted += 1;
        }
    }
    assert_eq!(counted, logits.statistics.len());
}

#[test]
fn golden_g_scores() {
    for case in cases("G").iter().filter(|case| case.has("iou")) {
        let mut confusion = Confusion::new(case.size("classes"));
        let bytes = |name: String| -> Vec<u8> {
            ints(case.raw(&name)).into_iter().map(|id| u8::try_from(id).unwrap()).collect()
        };
        for image in (0..).take_while(|image| case.has(&format!("gt{image}"))) {
            confusion.add(&bytes(format!("pred{image}")), &bytes(format!("gt{image}"))).unwrap();
        }
        let scores = confusion.scores();
        let near = |name: &str, found: f64, expected: f64, tolerance: f64| {
            let both_nothing = found.is_nan() && expected.is_nan();
            assert!(
                both_nothing || (found - expected).abs() <= tolerance,
                "{}: {name} is {found}, expected {expected}",
                case.name
            );
        };
        // Recorded in float32, means in float64.
        near("aAcc", scores.aacc, floats(case.raw("aAcc"))[0], 1e-7);
        for (class, (acc, iou)) in
            floats(case.raw("acc")).into_iter().zip(floats(case.raw("iou"))).enumerate()
        {
            near(&format!("acc of {class}"), scores.acc[class], acc, 1e-7);
            near(&format!("iou of {class}"), scores.iou[class], iou, 1e-7);
        }
        near("mIoU", scores.miou, case.meta["mIoU_nanmean"].as_f64().unwrap(), 1e-12);
        near("mAcc", scores.macc, case.meta["mAcc_nanmean"].as_f64().unwrap(), 1e-12);
        println!("{}: {scores:?}", case.name);
    }
}

#[test]
fn golden_g_schedule() {
    let Some(manifest) = json("manifest_G.json") else { return };
    let mut checked = 0;
    let entries = manifest["entries"].as_array().unwrap();
    for case in entries.iter().filter(|entry| entry["case"] == "lr_policy") {
        for recorded in case["meta"].as_array().unwrap() {
            let number = |key: &str| recorded["args"][key].as_f64().unwrap();
            let (total, warmup) = (number("total") as u64, number("warm") as u64);
            let schedule = PolySchedule::new(number("base"), 0.0, 1.0, total, warmup, 1e-6).unwrap();
            for (step, value) in recorded["values"].as_object().unwrap() {
                let (found, expected) = (schedule.at(step.parse().unwrap()), value.as_f64().unwrap());
                assert!(
                    (found - expected).abs() <= 1e-12 * expected.max(1e-5),
                    "{step}: {found}, expected {expected}"
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 0);
    println!("{checked} rates equal");
}

#[test]
fn golden_g_parameter_groups() {
    for case in models() {
        let rule = GroupRule {
            weight_decay: 0.05,
            layer_decay: Some((case.number("layer_decay"), case.size("depth"))),
            exempt_tables: false,
        };
        let infos = params::list(&model(&case, DType::F32));
        let infos: BTreeMap<_, _> =
            infos.into_iter().filter(|info| info.trainable).map(|info| (info.name.clone(), info)).collect();
        let mut seen = 0;
        for group in case.meta["param_groups"].as_array().unwrap() {
            for name in group["param_names"].as_array().unwrap() {
                let info = &infos[name.as_str().unwrap()];
                let (scale, decay) = (rule.lr_scale_of(&info.name), rule.weight_decay_of(info));
                assert_eq!(Some(scale), group["lr_scale"].as_f64(), "{name}");
                assert_eq!(Some(decay), group["weight_decay"].as_f64(), "{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, infos.len(), "{}", case.name);
        println!("{}: {seen} parameters in their groups", case.name);
    }
}

#[test]
fn golden_g_names_and_shapes() {
    let Some(layouts) = json("G_segmentor_layouts.json") else { return };
    for (name, expected) in layouts.as_object().unwrap() {
        // Zeros that nobody touches take no memory.
        let config = SegmenterConfig { classes: Some(150), ..SegmenterConfig::named(name).unwrap() };
        let model = UperNet::<Auto>::zeros(&config, &Default::default()).unwrap();
        assert_eq!(Some(params::count(&model) as u64), expected["n"].as_u64(), "{name}");
        let mut infos: BTreeMap<_, _> =
            params::list(&model).into_iter().map(|info| (info.name, info.shape)).collect();
        for key in expected["keys"].as_array().unwrap() {
            let key_name = key[0].as_str().unwrap();
            if key_name.ends_with("relative_position_index") {
                continue;
            }
            let shape: Vec<usize> = serde_json::from_value(key[1].clone()).unwrap();
            assert_eq!(infos.remove(key_name), Some(shape), "{name}: {key_name}");
        }
        assert!(infos.is_empty(), "{name}: {:?}", infos.keys());
        println!("{name}: {} parameters", params::count(&model));
    }
}
