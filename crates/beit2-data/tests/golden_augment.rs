//! RandAugment, random erasing and mixing against timm 0.4.12 on Pillow 13 (suite J): images to
//! the bit, draws by their statistics.
#![allow(clippy::unwrap_used)]

mod common;

use beit2_data::transform::erase::paste_chw;
use beit2_data::transform::mix::soft_targets;
use beit2_data::transform::{AugmentKind, cut_box};
use beit2_data::{
    AugmentOp, CropBox, EraseConfig, EraseParams, Image, Key, MixParams, RandAugmentConfig, RngStream,
};
use common::{Suite, image_suites, max_difference};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The suites that hold what a test is about; the others are named.
fn suites_with(key: &str) -> Vec<Suite> {
    let (with, without): (Vec<_>, Vec<_>) =
        image_suites().into_iter().partition(|suite| !suite.json[key].is_null());
    without.iter().for_each(|suite| println!("skipped: no {key} in {}", suite.dir.display()));
    with
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// timm's name of each operation.
fn kind(name: &str) -> AugmentKind {
    let names = [
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "PosterizeIncreasing",
        "SolarizeIncreasing",
        "SolarizeAdd",
        "ColorIncreasing",
        "ContrastIncreasing",
        "BrightnessIncreasing",
        "SharpnessIncreasing",
        "ShearX",
        "ShearY",
        "TranslateXRel",
        "TranslateYRel",
    ];
    AugmentKind::ALL[names.iter().position(|n| *n == name).unwrap()]
}

/// The operation's argument as the reference passes it.
fn argument(op: AugmentOp) -> Option<f64> {
    match op {
        AugmentOp::AutoContrast | AugmentOp::Equalize | AugmentOp::Invert => None,
        AugmentOp::Rotate { degrees } => Some(degrees),
        AugmentOp::Posterize { bits } => Some(bits.into()),
        AugmentOp::Solarize { threshold } => Some(threshold.into()),
        AugmentOp::SolarizeAdd { add } => Some(add.into()),
        AugmentOp::Color { factor }
        | AugmentOp::Contrast { factor }
        | AugmentOp::Brightness { factor }
        | AugmentOp::Sharpness { factor }
        | AugmentOp::ShearX { factor }
        | AugmentOp::ShearY { factor } => Some(factor),
        AugmentOp::TranslateX { share } | AugmentOp::TranslateY { share } => Some(share),
    }
}

/// Prints one line and fails unless every value agrees.
fn check(name: &str, found: &Image, expected: &Image) {
    let off = found.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
    let worst = max_difference(found, expected);
    println!("{name}: worst {worst}, {off} of {} values differ", expected.data.len());
    assert_eq!(worst, 0, "{name}");
}

#[test]
fn golden_randaugment_operations() {
    for suite in suites_with("randaug") {
        let input = suite.image("ops/input").unwrap();
        let fill: Vec<u8> =
            numbers(&suite.json["randaug"]["img_mean_fill"]).iter().map(|&v| v as u8).collect();
        let fill: [u8; 3] = fill.try_into().unwrap();
        assert_eq!(fill, RandAugmentConfig::default().fill);
        let records = suite.json["randaug"]["records"].as_object().unwrap();
        assert!(!records.is_empty());
        for (name, record) in records {
            let [_, operation, level] = name.split('/').collect::<Vec<_>>().try_into().unwrap();
            let (magnitude, sign) = level[1..].split_once('_').unwrap();
            let op = kind(operation).at(magnitude.parse().unwrap(), sign == "neg");
            let expected = numbers(&record["args"]);
            assert_eq!(argument(op).is_some(), !expected.is_empty());
            if let Some(value) = argument(op) {
                assert!((value - expected[0]).abs() < 1e-12, "{name}: {value}, expected {}", expected[0]);
            }
            let mut found = input.clone();
            op.apply(&mut found, fill).unwrap();
            if record.get("error_with_this_pillow").is_some() {
                println!("{name}: Pillow fails, ours is black");
                assert!(found.data.iter().all(|&value| value == 0));
                continue;
            }
            if let Some(expected) = suite.image(name) {
                check(name, &found, &expected);
            }
            let hash: String = Sha256::digest(&found.data).iter().map(|b| format!("{b:02x}")).collect();
            println!("{name}: sha256 {}", &hash[..8]);
            assert_eq!(hash, record["sha256"].as_str().unwrap(), "{name}");
        }
    }
}

#[test]
fn golden_randaugment_on_flat_and_smooth_images() {
    for suite in suites_with("randaug") {
        let tensors = suite.tensors();
        let names: Vec<&str> = tensors.names().into_iter().filter(|n| n.starts_with("corner/")).collect();
        for name in names.iter().filter(|name| !name.ends_with("/input")) {
            let (place, operation) = name.rsplit_once('/').unwrap();
            let mut found = suite.image(&format!("{place}/input")).unwrap();
            let op = kind(operation.strip_suffix("_m9").unwrap()).at(9.0, false);
            op.apply(&mut found, [124, 116, 104]).unwrap();
            check(name, &found, &suite.image(name).unwrap());
        }
    }
}

/// The draws, against 20 000 of the reference; tolerances are five standard errors of the
/// difference.
#[test]
fn golden_randaugment_statistics() {
    for suite in suites_with("randaug") {
        let record = &suite.json["randaug"]["policy_stats"];
        let n = record["n_images"].as_u64().unwrap();
        let config = RandAugmentConfig::default();
        let mut drawn = Vec::new();
        for index in 0..n {
            let key = Key { seed: 2, epoch: 0, index, stream: RngStream::Augment };
            drawn.extend(config.sample(&mut key.rng()));
        }
        let n = n as f64;
        for (number, expected) in numbers(&record["applied_fraction_per_op_slot"]).into_iter().enumerate() {
            let same = |op: &AugmentOp| {
                let reference = AugmentKind::ALL[number].at(9.0, false);
                std::mem::discriminant(op) == std::mem::discriminant(&reference)
            };
            let share = drawn.iter().filter(|op| same(op)).count() as f64 / n;
            let allowed = 5.0 * (2.0 * expected / n).sqrt();
            println!("{:?}: {share:.4}, reference {expected:.4}", AugmentKind::ALL[number]);
            assert!((share - expected).abs() < allowed);
        }
        // The magnitude shows in the rotation's angle, which is 3 degrees per unit.
        let angles = drawn.iter().filter_map(|op| match op {
            AugmentOp::Rotate { degrees } => Some(*degrees),
            _ => None,
        });
        let angles: Vec<f64> = angles.collect();
        let count = angles.len() as f64;
        let share = |test: &dyn Fn(f64) -> bool| angles.iter().filter(|&&d| test(d)).count() as f64 / count;
        let magnitudes: Vec<f64> = angles.iter().map(|d| d.abs() / 3.0).collect();
        let mean = magnitudes.iter().sum::<f64>() / count;
        let std = (magnitudes.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / count).sqrt();
        let number = |key: &str| record[key].as_f64().unwrap();
        println!("magnitude {mean:.3} +- {std:.3}, at clip {:.4}", share(&|d| d.abs() >= 30.0));
        assert!((mean - number("magnitude_mean")).abs() < 5.0 * 0.5 / count.sqrt());
        assert!((std - number("magnitude_std")).abs() < 5.0 * 0.36 / count.sqrt());
        let clip = number("fraction_at_clip");
        assert!((share(&|d| d.abs() >= 30.0) - clip).abs() < 5.0 * (clip / count).sqrt());
        assert!((share(&|d| d < 0.0) - 0.5).abs() < 5.0 * 0.5 / count.sqrt());
    }
}

#[test]
fn golden_erasing() {
    for suite in suites_with("erasing_stats") {
        let record = &suite.json["erasing_stats"];
        let n = record["n"].as_u64().unwrap();
        let config = EraseConfig { prob: record["prob"].as_f64().unwrap(), ..EraseConfig::default() };
        let draw = |index| {
            let key = Key { seed: 3, epoch: 0, index, stream: RngStream::Augment };
            EraseParams::draw(&config, 224, 224, &key)
        };
        let boxes: Vec<CropBox> = (0..n).filter_map(draw).map(|params| params.area).collect();
        let applied = boxes.len() as f64 / n as f64;
        let expected = record["applied"].as_f64().unwrap();
        println!("applied {applied:.4}, reference {expected:.4}");
        assert!((applied - expected).abs() < 5.0 * (2.0 * expected * (1.0 - expected) / n as f64).sqrt());
        let levels = [0.05, 0.25, 0.5, 0.75, 0.95];
        let area = |b: &CropBox| f64::from(b.width * b.height) / (224.0 * 224.0);
        let aspect = |b: &CropBox| f64::from(b.height) / f64::from(b.width);
        check_quantiles("area", &boxes, &levels, &numbers(&record["area_quantiles"]), area);
        check_quantiles("aspect", &boxes, &levels, &numbers(&record["aspect_h_over_w_quantiles"]), aspect);

        let [top, left, height, width] =
            std::array::from_fn(|i| numbers(&suite.json["erasing_example_box_top_left_h_w"])[i] as u32);
        let mut found = suite.f32s("erase/input");
        let area = CropBox { top, left, height, width };
        paste_chw(&mut found, (32, 32), area, &suite.f32s("erase/noise")).unwrap();
        assert_eq!(found, suite.f32s("erase/output"));
    }
}

/// The share of our boxes below the reference's quantile, within five standard errors and the
/// share that ties with it.
fn check_quantiles(
    what: &str,
    boxes: &[CropBox],
    levels: &[f64],
    quantiles: &[f64],
    value: impl Fn(&CropBox) -> f64,
) {
    let n = boxes.len() as f64;
    for (level, quantile) in levels.iter().zip(quantiles) {
        let below = boxes.iter().filter(|b| value(b) < quantile - 1e-9).count() as f64 / n;
        let upto = boxes.iter().filter(|b| value(b) <= quantile + 1e-9).count() as f64 / n;
        let allowed = 5.0 * (2.0 * level * (1.0 - level) / n).sqrt();
        println!("{what} quantile {level}: {below:.4} to {upto:.4}");
        assert!(below - allowed <= *level && *level <= upto + allowed, "{what} {level}: {below} to {upto}");
    }
}

#[test]
fn golden_mixing() {
    for suite in suites_with("mix_mixup") {
        let (batch, width, height, classes) = (6, 17, 13, 9);
        let input = suite.f32s("mix/input");
        let labels: Vec<u32> = suite.i64s("mix/target").iter().map(|&v| v as u32).collect();
        let mut cases = 0;
        for case in ["mixup", "cutmix", "cutmix2"] {
            let record = &suite.json[format!("mix_{case}")];
            if record.is_null() {
                continue;
            }
            cases += 1;
            let drawn = record["lam_drawn"].as_f64().unwrap();
            let params = if record["box_yl_yh_xl_xh"].is_null() {
                MixParams { lambda: drawn, cut: None }
            } else {
                find_center(width, height, drawn, &numbers(&record["box_yl_yh_xl_xh"]))
            };
            let used = record["lam_used"].as_f64().unwrap();
            assert!((params.lambda - used).abs() < 1e-12, "{case}: {} against {used}", params.lambda);
            let targets =
                soft_targets(&labels, classes, record["smoothing"].as_f64().unwrap(), params.lambda).unwrap();
            compare(case, &targets, &suite.f32s(&format!("mix/{case}/targets")));
            let found = mix(&input, batch, (width, height), &params);
            compare(case, &found, &suite.f32s(&format!("mix/{case}/output")));
        }
        assert!(cases > 0);
    }
}

/// Mixing as the module describes it, on a batch `[B, 3, height, width]`.
fn mix(input: &[f32], batch: usize, (width, height): (u32, u32), params: &MixParams) -> Vec<f32> {
    let sample = input.len() / batch;
    let other = |at: usize| input[(batch - 1 - at / sample) * sample + at % sample];
    let in_box = |at: usize, area: CropBox| {
        let (x, y) = (at as u32 % width, at as u32 / width % height);
        (area.left..area.left + area.width).contains(&x) && (area.top..area.top + area.height).contains(&y)
    };
    let lambda = params.lambda as f32;
    let value = |at: usize| match params.cut {
        Some(area) if in_box(at, area) => other(at),
        Some(_) => input[at],
        None => lambda * input[at] + (1.0 - lambda) * other(at),
    };
    (0..input.len()).map(value).collect()
}

fn compare(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}: worst {worst:e}");
    assert!(worst < 1e-6, "{name} is off by {worst}");
}

/// The draw whose box is the recorded one (`[top, bottom, left, right]`); the centre was not
/// recorded.
fn find_center(width: u32, height: u32, lambda: f64, bounds: &[f64]) -> MixParams {
    let [top, bottom, left, right] = std::array::from_fn(|i| bounds[i] as u32);
    let area = CropBox { top, left, height: bottom - top, width: right - left };
    let mut centers = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let center = centers.find(|&center| cut_box(width, height, lambda, center) == Some(area));
    let center = center.unwrap_or_else(|| panic!("no centre gives {area:?} at lambda {lambda}"));
    MixParams::cutmix(width, height, lambda, center)
}

#[test]
fn golden_cut_boxes() {
    const KEY: &str = "rand_bbox_examples_lam_0.3_0.5_0.9_x3";
    for suite in suites_with(KEY) {
        let boxes = suite.json[KEY].as_array().unwrap();
        assert_eq!(boxes.len(), 9);
        for (number, bounds) in boxes.iter().enumerate() {
            // Three boxes for each weight.
            find_center(224, 224, [0.3, 0.5, 0.9][number / 3], &numbers(bounds));
        }
    }
}
