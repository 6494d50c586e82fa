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
use common::checks::{self, check as holds, equal, skip};
use common::{Suite, each_image_suite, image_suites, max_difference};
use serde_json::Value;
use sha2::{Digest, Sha256};

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

/// What the operations put where an image has nothing.
fn fill(suite: &Suite) -> [u8; 3] {
    let fill = numbers(&suite.json["randaug"]["img_mean_fill"]);
    std::array::from_fn(|channel| fill[channel] as u8)
}

/// Prints one line and fails unless every value agrees.
fn check(name: &str, found: &Image, expected: &Image) {
    let off = found.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
    let worst = max_difference(found, expected);
    println!("{name}: worst {worst}, {off} of {} values differ", expected.data.len());
    holds(worst == 0, || format!("{name} is off by {worst} levels"));
}

#[test]
fn golden_randaugment_operations() {
    each_image_suite("randaug", |suite| {
        let input = suite.image("ops/input").unwrap();
        let fill = fill(suite);
        let records = suite.json["randaug"]["records"].as_object().unwrap();
        assert!(!records.is_empty());
        for (name, record) in records {
            let [_, operation, level] = name.split('/').collect::<Vec<_>>().try_into().unwrap();
            let (magnitude, sign) = level[1..].split_once('_').unwrap();
            let op = kind(operation).at(magnitude.parse().unwrap(), sign == "neg");
            let expected = numbers(&record["args"]);
            let arguments: Vec<f64> = argument(op).into_iter().collect();
            let near =
                arguments.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-12);
            holds(near && arguments.len() == expected.len(), || {
                format!("{name}: arguments {arguments:?}, expected {expected:?}")
            });
            let mut found = input.clone();
            op.apply(&mut found, fill).unwrap();
            if record.get("error_with_this_pillow").is_some() {
                println!("{name}: Pillow fails, ours is black");
                holds(found.data.iter().all(|&value| value == 0), || format!("{name} is not black"));
                continue;
            }
            if let Some(expected) = suite.image(name) {
                check(name, &found, &expected);
            }
            let hash: String = Sha256::digest(&found.data).iter().map(|b| format!("{b:02x}")).collect();
            println!("{name}: sha256 {}", &hash[..8]);
            equal(&format!("sha256 of {name}"), &hash.as_str(), &record["sha256"].as_str().unwrap());
        }
    });
}

#[test]
fn golden_randaugment_on_flat_and_smooth_images() {
    each_image_suite("randaug", |suite| {
        let tensors = suite.tensors();
        let names: Vec<&str> = tensors.names().into_iter().filter(|n| n.starts_with("corner/")).collect();
        for name in names.iter().filter(|name| !name.ends_with("/input")) {
            let (place, operation) = name.rsplit_once('/').unwrap();
            let mut found = suite.image(&format!("{place}/input")).unwrap();
            let (operation, magnitude) = operation.split_once("_m").unwrap();
            let op = kind(operation).at(magnitude.parse().unwrap(), false);
            op.apply(&mut found, fill(suite)).unwrap();
            check(name, &found, &suite.image(name).unwrap());
        }
    });
}

/// The draws, against 20 000 of the reference; tolerances are five standard errors of the
/// difference.
#[test]
fn golden_randaugment_statistics() {
    each_image_suite("randaug", |suite| {
        let record = &suite.json["randaug"]["policy_stats"];
        let n = record["n_images"].as_u64().unwrap();
        // The recipe's own policy: magnitude 9 with deviation 0.5, its operations in the increasing form.
        let policy = record["config"].as_str().unwrap_or_default();
        if policy != "rand-m9-mstd0.5-inc1" {
            return skip(format!("draws of {policy}, which no recipe has"));
        }
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
            holds((share - expected).abs() < allowed, || {
                format!("operation {number}: share {share}, expected {expected} within {allowed}")
            });
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
        let clip = number("fraction_at_clip");
        let (clipped, negative) = (share(&|d| d.abs() >= 30.0), share(&|d| d < 0.0));
        for (what, found, expected, spread) in [
            ("mean of magnitudes", mean, number("magnitude_mean"), 0.5),
            ("deviation of magnitudes", std, number("magnitude_std"), 0.36),
            ("share at the largest magnitude", clipped, clip, clip.sqrt()),
            ("share of negative angles", negative, 0.5, 0.5),
        ] {
            let allowed = 5.0 * spread / count.sqrt();
            holds((found - expected).abs() < allowed, || {
                format!("{what} is {found}, expected {expected} within {allowed}")
            });
        }
    });
}

#[test]
fn golden_erasing() {
    each_image_suite("erasing_stats", |suite| {
        let record = &suite.json["erasing_stats"];
        let n = record["n"].as_u64().unwrap();
        let config = EraseConfig { prob: record["prob"].as_f64().unwrap(), ..EraseConfig::default() };
        // The statistics do not name their size; shares of an area hold at each.
        let size = record["size"].as_u64().unwrap_or(224) as u32;
        let draw = |index| {
            let key = Key { seed: 3, epoch: 0, index, stream: RngStream::Augment };
            EraseParams::draw(&config, size, size, &key)
        };
        let boxes: Vec<CropBox> = (0..n).filter_map(draw).map(|params| params.area).collect();
        let applied = boxes.len() as f64 / n as f64;
        let expected = record["applied"].as_f64().unwrap();
        println!("applied {applied:.4}, reference {expected:.4}");
        let allowed = 5.0 * (2.0 * expected * (1.0 - expected) / n as f64).sqrt();
        holds((applied - expected).abs() < allowed, || {
            format!("applied to {applied}, expected {expected} within {allowed}")
        });
        let levels = [0.05, 0.25, 0.5, 0.75, 0.95];
        let area = |b: &CropBox| f64::from(b.width * b.height) / f64::from(size * size);
        let aspect = |b: &CropBox| f64::from(b.height) / f64::from(b.width);
        check_quantiles("area", &boxes, &levels, &numbers(&record["area_quantiles"]), area);
        check_quantiles("aspect", &boxes, &levels, &numbers(&record["aspect_h_over_w_quantiles"]), aspect);

        let [top, left, height, width] =
            std::array::from_fn(|i| numbers(&suite.json["erasing_example_box_top_left_h_w"])[i] as u32);
        let mut found = suite.f32s("erase/input");
        let area = CropBox { top, left, height, width };
        let shape = suite.shape("erase/input");
        let (rows, columns) = (shape[1] as u32, shape[2] as u32);
        paste_chw(&mut found, (columns, rows), area, &suite.f32s("erase/noise")).unwrap();
        holds(found == suite.f32s("erase/output"), || "erase/output differs".into());
    });
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
        holds(below - allowed <= *level && *level <= upto + allowed, || {
            format!(
                "{what}: {below} to {upto} lie below the quantile of {level}, allowed {allowed} more or less"
            )
        });
    }
}

#[test]
fn golden_mixing() {
    each_image_suite("mix_mixup", |suite| {
        let shape = suite.shape("mix/input");
        let (batch, height, width) = (shape[0], shape[2] as u32, shape[3] as u32);
        let input = suite.f32s("mix/input");
        let labels: Vec<u32> = suite.i64s("mix/target").iter().map(|&v| v as u32).collect();
        let mut cases = 0;
        for (name, record) in suite.json.as_object().unwrap() {
            let Some(case) = name.strip_prefix("mix_") else { continue };
            cases += 1;
            let classes = suite.shape(&format!("mix/{case}/targets"))[1];
            let drawn = record["lam_drawn"].as_f64().unwrap();
            let params = if record["box_yl_yh_xl_xh"].is_null() {
                MixParams { lambda: drawn, cut: None }
            } else {
                find_center(width, height, drawn, &numbers(&record["box_yl_yh_xl_xh"]))
            };
            let used = record["lam_used"].as_f64().unwrap();
            holds((params.lambda - used).abs() < 1e-12, || {
                format!("{case}: lambda is {}, expected {used}", params.lambda)
            });
            let targets =
                soft_targets(&labels, classes, record["smoothing"].as_f64().unwrap(), params.lambda).unwrap();
            compare(case, &targets, &suite.f32s(&format!("mix/{case}/targets")));
            let found = mix(&input, batch, (width, height), &params);
            compare(case, &found, &suite.f32s(&format!("mix/{case}/output")));
        }
        holds(cases > 0, || "no mix_* in the file".into());
    });
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
    equal(&format!("number of values of {name}"), &found.len(), &expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}: worst {worst:e}");
    holds(worst < 1e-6, || format!("{name} is off by {worst}"));
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
    checks::golden(|| {
        for suite in image_suites() {
            // `rand_bbox_examples_lam_A_B_…_xN`: N boxes for each weight.
            let examples = suite.json.as_object().unwrap().iter().find_map(|(key, boxes)| {
                Some((key.strip_prefix("rand_bbox_examples_lam_")?.split_once("_x")?, boxes))
            });
            let Some(((lambdas, _), boxes)) = examples else {
                skip(format!("no rand_bbox_examples in {}", suite.dir.display()));
                continue;
            };
            let lambdas: Vec<f64> = lambdas.split('_').map(|lambda| lambda.parse().unwrap()).collect();
            let boxes: Vec<Vec<f64>> = boxes.as_array().unwrap().iter().map(numbers).collect();
            // Of which size they are is not recorded, but one of them touches the far side.
            let side = boxes.iter().flatten().copied().fold(0.0, f64::max) as u32;
            for (number, bounds) in boxes.iter().enumerate() {
                let lambda = lambdas[number * lambdas.len() / boxes.len()];
                checks::part(&format!("box {number}"), || {
                    find_center(side, side, lambda, bounds);
                });
            }
        }
    });
}
