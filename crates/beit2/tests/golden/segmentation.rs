//! Suite G: UPerNet – maps of the backbone, logits, losses, gradients, running statistics, scores, schedule, groups.

use std::collections::BTreeMap;

use beit2::params;
use beit2::segment::{
    Confusion, HeadDropout, SegmenterConfig, TrainLogits, UperNet, label_tensor, pixel_losses,
};
use beit2::train::{GroupRule, PolySchedule, Rank, gradients};
use beit2::vit::DropPath;
use beit2_kernels::{AutodiffBackend, Backend, bilinear};
use burn::module::AutodiffModule;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::checks::{self, check, equal, skip};
use super::folder::{Auto, Case, cases_with, each_case, each_entry, entries, floats, ints, json};
use super::sizes;

pub fn config(case: &Case) -> SegmenterConfig {
    let backbone = sizes::below(&sizes::shapes(&case.below("weight")), "backbone.");
    let default = SegmenterConfig::default();
    SegmenterConfig {
        vit: sizes::vit(&case.config, &backbone),
        out_indices: case.sizes("out_indices").try_into().unwrap(),
        channels: case.size("channels"),
        pool_scales: case.sizes("pool_scales"),
        aux_channels: case.size("aux_channels"),
        classes: Some(case.size("classes")),
        dropout: 0.0,
        aux_weight: case.number_or("aux_weight", default.aux_weight),
        ..default
    }
}

pub fn model<B: AutodiffBackend>(case: &Case, dtype: DType) -> UperNet<B> {
    let zeros = UperNet::zeros(&config(case), &Default::default()).unwrap();
    params::load_strict(zeros, case.below("weight"), dtype, |name| name.ends_with("relative_position_index"))
        .unwrap()
}

/// Cases with a model; the suite has others.
pub fn models() -> Vec<Case> {
    cases_with("G", "input/crop")
}

/// A map with the channels where PyTorch has them.
pub fn channels_first<B: Backend>(map: Tensor<B, 4>) -> TensorData {
    map.permute([0, 3, 1, 2]).into_data()
}

#[test]
fn golden_g_maps_and_logits() {
    each_case(models, |case| case.in_both_types(maps_and_logits));
}

fn maps_and_logits(case: &Case, dtype: DType) {
    let model = model::<Auto>(case, dtype).valid();
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
    each_case(models, |case| case.in_both_types(losses_gradients_and_statistics));
}

/// Classes of the pixels.
pub fn labels<B: AutodiffBackend>(case: &Case) -> Tensor<B, 3, Int> {
    let labels = case.raw("input/label");
    let ids = ints(labels).into_iter().map(|id| u8::try_from(id).unwrap()).collect();
    let size = [labels.shape[0], labels.shape[2], labels.shape[3]];
    label_tensor(ids, size, config(case).class_count(), &Default::default()).unwrap()
}

fn losses_gradients_and_statistics(case: &Case, dtype: DType) {
    let model = model::<Auto>(case, dtype);
    let config = config(case);
    let x = case.tensor("input/crop", dtype);
    let labels = labels::<Auto>(case);
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
            equal(&format!("batches of {norm}"), &count(&state), &(count(&case.below("weight")) + 1));
            counted += 1;
        }
    }
    equal("number of batch norms", &counted, &logits.statistics.len());
}

#[test]
fn golden_g_scores() {
    each_case(|| cases_with("G", "iou"), scores);
}

fn scores(case: &Case) {
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
        check(both_nothing || (found - expected).abs() <= tolerance, || {
            format!("{}: {name} is {found}, expected {expected}", case.name)
        });
    };
    // Recorded in float32, means in float64.
    near("aAcc", scores.aacc, floats(case.raw("aAcc"))[0], 1e-7);
    for (class, (acc, iou)) in floats(case.raw("acc")).into_iter().zip(floats(case.raw("iou"))).enumerate() {
        near(&format!("acc of {class}"), scores.acc[class], acc, 1e-7);
        near(&format!("iou of {class}"), scores.iou[class], iou, 1e-7);
    }
    near("mIoU", scores.miou, case.meta["mIoU_nanmean"].as_f64().unwrap(), 1e-12);
    near("mAcc", scores.macc, case.meta["mAcc_nanmean"].as_f64().unwrap(), 1e-12);
    println!("{}: {scores:?}", case.name);
}

#[test]
fn golden_g_schedule() {
    checks::golden(|| {
        let entries = entries("G");
        let mut policies = entries.iter().filter(|entry| entry["case"] == "lr_policy").peekable();
        if policies.peek().is_none() {
            skip("suite G has no lr_policy");
        }
        for recorded in policies.flat_map(|policy| policy["meta"].as_array().unwrap()) {
            let args = &recorded["args"];
            let number = |key: &str| args[key].as_f64().unwrap_or_else(|| panic!("lr_policy has no {key}"));
            let or = |key: &str, value: f64| args[key].as_f64().unwrap_or(value);
            // What the recording leaves out is what all the reference's segmentation configurations say.
            let (power, end, ratio) = (or("power", 1.0), or("min_lr", 0.0), or("warmup_ratio", 1e-6));
            let (total, warmup) = (number("total") as u64, number("warm") as u64);
            let schedule = PolySchedule::new(number("base"), end, power, total, warmup, ratio).unwrap();
            for (step, value) in recorded["values"].as_object().unwrap() {
                let (found, expected) = (schedule.at(step.parse().unwrap()), value.as_f64().unwrap());
                check((found - expected).abs() <= 1e-12 * expected.max(1e-5), || {
                    format!("{args}: the rate of step {step} is {found}, expected {expected}")
                });
            }
        }
    });
}

#[test]
fn golden_g_parameter_groups() {
    each_case(models, parameter_groups);
}

fn parameter_groups(case: &Case) {
    let config = config(case);
    let rule = GroupRule {
        weight_decay: case.weight_decay(),
        layer_decay: Some((case.number("layer_decay"), config.vit.depth)),
        exempt_tables: case.flag("no_wd_rel_pos"),
    };
    let infos = params::list(&model::<Auto>(case, DType::F32));
    let infos: BTreeMap<_, _> =
        infos.into_iter().filter(|info| info.trainable).map(|info| (info.name.clone(), info)).collect();
    let mut seen = 0;
    for group in case.meta["param_groups"].as_array().unwrap() {
        for name in group["param_names"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            let Some(info) = infos.get(name) else {
                check(false, || format!("{}: no parameter {name}", case.name));
                continue;
            };
            let (scale, decay) = (rule.lr_scale_of(&info.name), rule.weight_decay_of(info));
            let expected = ["lr_scale", "weight_decay"].map(|key| group[key].as_f64().unwrap());
            equal(&format!("{}: scale and decay of {name}", case.name), &[scale, decay], &expected);
            seen += 1;
        }
    }
    equal(&format!("{}: parameters in groups", case.name), &seen, &infos.len());
}

#[test]
fn golden_g_names_and_shapes() {
    each_entry(json("G_segmentor_layouts.json"), |name, expected| {
        let Some(named) = SegmenterConfig::named(name) else {
            return skip(format!("no segmentation model is called {name} here"));
        };
        let mut keys = sizes::listed(&expected["keys"]);
        keys.retain(|key, _| !key.ends_with("relative_position_index"));
        // Zeros that nobody touches take no memory.
        let config = SegmenterConfig { classes: Some(keys["decode_head.conv_seg.weight"][0]), ..named };
        let model = UperNet::<Auto>::zeros(&config, &Default::default()).unwrap();
        equal(
            &format!("{name}: parameters"),
            &(params::count(&model) as u64),
            &expected["n"].as_u64().unwrap(),
        );
        let found: sizes::Shapes =
            params::list(&model).into_iter().map(|info| (info.name, info.shape)).collect();
        for key in keys.keys().chain(found.keys()).collect::<std::collections::BTreeSet<_>>() {
            equal(&format!("{name}: shape of {key}"), &found.get(key), &keys.get(key));
        }
    });
}
