//! Decoding, cropping, resizing, jitter and evaluation view against Pillow and torchvision (suite
//! J).
#![allow(clippy::unwrap_used)]

mod common;

use beit2_data::transform::{
    CropConfig, crop_resize, eval_resize_side, eval_view, flip_horizontal, jitter, resize,
};
use beit2_data::{
    CropBox, DecodeOptions, Image, Interpolation, JitterOp, JitterParams, Key, RngStream, decode,
};
use common::checks::{self, check as holds, skip};
use common::{Suite, each_image_suite, max_difference};

fn photo(suite: &Suite, name: &str) -> Image {
    let path = suite.dir.join("photos").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    decode(&bytes, &DecodeOptions::reference()).unwrap()
}

/// Every photograph of a suite, with its record.
fn each_photo(test: impl Fn(&Suite, &str, &Image, &serde_json::Value)) {
    each_image_suite("photos", |suite| {
        for (name, record) in suite.json["photos"].as_object().unwrap() {
            checks::part(name, || test(suite, name, &photo(suite, name), record));
        }
    });
}

fn filter(name: &str) -> Interpolation {
    match name {
        "bilinear" => Interpolation::Bilinear,
        "bicubic" => Interpolation::Bicubic,
        "lanczos" => Interpolation::Lanczos,
        other => panic!("unknown filter {other}"),
    }
}

/// Prints one line per comparison and fails when a value is off by more than `tolerance` levels.
fn check(name: &str, found: &Image, expected: &Image, tolerance: u8) {
    let worst = max_difference(found, expected);
    let off = found.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
    println!("{name}: worst {worst}, {off} of {} values differ", expected.data.len());
    holds(worst <= tolerance, || format!("{name} is off by {worst} levels, allowed {tolerance}"));
}

#[test]
fn golden_crop_and_resize() {
    each_photo(|suite, name, image, record| {
        let boxes = record["boxes_top_left_height_width"].as_array().unwrap();
        for (number, b) in boxes.iter().enumerate() {
            let [top, left, height, width] = std::array::from_fn(|i| b[i].as_u64().unwrap() as u32);
            let prefix = format!("crop/{name}/box{number}/");
            for key in suite.tensors().names().into_iter().filter(|key| key.starts_with(&prefix)) {
                let (kind, size) = key[prefix.len()..].split_once('_').unwrap();
                let size: u32 = size.parse().unwrap();
                let area = CropBox { top, left, height, width };
                let found = crop_resize(image, area, size, size, filter(kind)).unwrap();
                check(key, &found, &suite.image(key).unwrap(), 1);
            }
        }
    });
}

#[test]
fn golden_evaluation_view_and_flip() {
    each_photo(|suite, name, image, record| {
        // `eval/NAME/resize256_crop224` and the like.
        let prefix = format!("eval/{name}/resize");
        for key in suite.tensors().names().into_iter().filter(|key| key.starts_with(&prefix)) {
            let (side, size) = key[prefix.len()..].split_once("_crop").unwrap();
            let (side, size): (u32, u32) = (side.parse().unwrap(), size.parse().unwrap());
            if eval_resize_side(size) != side {
                skip(format!("{key}: the recipe resizes to {} for {size}", eval_resize_side(size)));
                continue;
            }
            let found = eval_view(image, size, Interpolation::Bicubic).unwrap();
            check(key, &found, &suite.image(key).unwrap(), 1);
        }
        // The other results are recorded as channel means only.
        for (key, result) in record.as_object().unwrap() {
            let Some(means) = result["channel_mean"].as_array() else { continue };
            let found = if key == "hflip" {
                let mut flipped = image.clone();
                flip_horizontal(&mut flipped);
                flipped
            } else if let Some(size) = key.strip_prefix("eval_") {
                eval_view(image, size.parse().unwrap(), Interpolation::Bicubic).unwrap()
            } else {
                continue;
            };
            for (channel, mean) in means.iter().enumerate() {
                let values = found.data.iter().skip(channel).step_by(3);
                let own = values.clone().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
                holds((own - mean.as_f64().unwrap()).abs() < 0.01, || {
                    format!("{name} {key}: the mean of channel {channel} is {own}, expected {mean}")
                });
            }
        }
        if let Some(wh) = record["resize256_wh"].as_array() {
            let [w, h] = [0, 1].map(|at| wh[at].as_u64().unwrap() as u32);
            let resized = resize(image, w, h, Interpolation::Bicubic);
            holds(resized.is_ok(), || format!("{name}: cannot be resized to {w} x {h}"));
        }
    });
}

#[test]
fn golden_jitter() {
    each_image_suite("jitter_chain_factors", |suite| {
        let input = suite.image("ops/input").unwrap();
        let factor = |name: &str| suite.json["jitter_chain_factors"][name].as_f64().unwrap();
        let letter = |c| match c {
            'b' => (JitterOp::Brightness, factor("b")),
            'c' => (JitterOp::Contrast, factor("c")),
            's' => (JitterOp::Saturation, factor("s")),
            other => panic!("unknown operation {other}"),
        };
        for key in suite.tensors().names().into_iter().filter(|key| key.starts_with("jitter/")) {
            let (op, argument) = key["jitter/".len()..].split_once('_').unwrap();
            let mut found = input.clone();
            if op == "chain" {
                let ops: Vec<_> = argument.chars().map(letter).collect();
                let params = JitterParams { ops: ops.try_into().unwrap() };
                params.prepare(&input).apply(&mut found.data);
            } else {
                let op = match op {
                    "brightness" => JitterOp::Brightness,
                    "contrast" => JitterOp::Contrast,
                    "saturation" => JitterOp::Saturation,
                    _ => continue, // hue is 0 in the recipe and not offered
                };
                jitter::apply_op(&mut found, op, argument.parse().unwrap());
            }
            check(key, &found, &suite.image(key).unwrap(), 0);
        }
    });
}

#[test]
fn golden_formats() {
    each_image_suite("formats", |suite| {
        for (name, record) in suite.json["formats"].as_object().unwrap() {
            let path = suite.dir.join("formats").join(name);
            let Ok(bytes) = std::fs::read(&path) else {
                skip(format!("{} is not in this folder", path.display()));
                continue;
            };
            let found = decode(&bytes, &DecodeOptions::reference());
            if record.get("loader").is_some() {
                holds(found.is_err(), || format!("{name}: the reference cannot read it, we do"));
                println!("{name}: {:?}", found.err());
                continue;
            }
            let (found, expected) = (found.unwrap(), suite.image(&format!("formats/{name}")).unwrap());
            // The record allows other JPEG decoders a level or two; ours has libjpeg-turbo's arithmetic.
            check(name, &found, &expected, 0);
        }
    });
}

/// Statistics of 20 000 boxes of the reference against as many of ours.
#[test]
fn golden_crop_box_statistics() {
    each_image_suite("rrc_stats", |suite| {
        for record in suite.json["rrc_stats"].as_array().unwrap() {
            let n = record["n"].as_u64().unwrap();
            let pair = |key: &str| [record[key][0].as_f64().unwrap(), record[key][1].as_f64().unwrap()];
            let list = |key: &str| {
                record[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>()
            };
            let ([w, h], [min_scale, max_scale]) = (pair("image_wh"), pair("scale"));
            let config = CropConfig { min_scale, max_scale, ..CropConfig::default() };
            let mut rng = Key { seed: 1, epoch: 0, index: 0, stream: RngStream::Augment }.rng();
            let boxes: Vec<CropBox> = (0..n).map(|_| config.sample(&mut rng, w as u32, h as u32)).collect();
            let levels = list("quantiles");
            check_quantiles("area", &boxes, &levels, &list("area_quantiles"), |b| {
                f64::from(b.width * b.height) / (w * h)
            });
            let aspect = |b: &CropBox| f64::from(b.width) / f64::from(b.height);
            check_quantiles("aspect", &boxes, &levels, &list("aspect_w_over_h_quantiles"), aspect);
            check_mean("top", &boxes, record["top_mean"].as_f64().unwrap(), |b| f64::from(b.top));
            check_mean("left", &boxes, record["left_mean"].as_f64().unwrap(), |b| f64::from(b.left));
            check_mean("full width", &boxes, record["full_width_fraction"].as_f64().unwrap(), |b| {
                f64::from(u8::from(f64::from(b.width) == w))
            });
        }
    });
}

/// Ours at the reference's quantile: the share of boxes below it must be the level, within five
/// standard errors of the difference of two samples of this size (plus the share that ties with it,
/// since sizes are whole pixels).
fn check_quantiles(
    what: &str,
    boxes: &[CropBox],
    levels: &[f64],
    expected: &[f64],
    value: impl Fn(&CropBox) -> f64,
) {
    let n = boxes.len() as f64;
    for (level, quantile) in levels.iter().zip(expected) {
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

/// Means agree within five standard errors of the difference; the floor covers an event seen once
/// or never.
fn check_mean(what: &str, boxes: &[CropBox], expected: f64, value: impl Fn(&CropBox) -> f64) {
    let n = boxes.len() as f64;
    let mean = boxes.iter().map(&value).sum::<f64>() / n;
    let variance = boxes.iter().map(|b| (value(b) - mean).powi(2)).sum::<f64>() / n;
    let allowed = 5.0 * (2.0 * variance / n).sqrt() + 5.0 / n;
    println!("{what} mean: {mean:.5}, reference {expected:.5}, allowed {allowed:.5}");
    holds((mean - expected).abs() <= allowed, || {
        format!("{what}: mean {mean}, expected {expected} within {allowed}")
    });
}
