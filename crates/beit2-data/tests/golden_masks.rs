//! Block masks against the statistics of 20 000 masks of the reference (suite F), per configuration
//! in the file.
//!
//! Two random samples never agree exactly, so every comparison is in units of the standard error of
//! the difference of two samples, and allows five of them. With about 500 comparisons a correct
//! generator passes with probability 0.9997, and since our seed is fixed the verdict never changes
//! from run to run; a wrong rounding or bound shifts cells by 10 to 100 standard errors.
#![allow(clippy::unwrap_used)]

mod common;

use beit2_data::{BlockMaskConfig, Key, Mask, RngStream, sample_block_mask};
use common::Suite;
use common::checks::{self, check, equal};

const STANDARD_ERRORS: f64 = 5.0;
const OWN_MASKS: u64 = 20_000;

fn config(record: &serde_json::Value) -> BlockMaskConfig {
    let c = &record["config"];
    let size = |i: usize| c["input_size"].as_u64().or(c["input_size"][i].as_u64()).unwrap() as usize;
    let number = |name: &str| c[name].as_u64().map(|v| v as usize);
    let defaults = BlockMaskConfig::default();
    BlockMaskConfig {
        grid_h: size(0),
        grid_w: size(1),
        masked: number("num_masking_patches").unwrap(),
        min_patches: number("min_num_patches").unwrap_or(defaults.min_patches),
        max_patches: number("max_num_patches"),
        min_aspect: c["min_aspect"].as_f64().unwrap_or(defaults.min_aspect),
    }
}

/// A golden test of every configuration in the file.
fn each_record(test: impl Fn(&Suite, usize, &serde_json::Value)) {
    checks::golden(|| {
        let Some(suite) = Suite::load(&checks::root(), "F_masks") else { return };
        for (number, record) in suite.json.as_array().unwrap().iter().enumerate() {
            checks::part(&format!("configuration {number}"), || test(&suite, number, record));
        }
    });
}

#[test]
fn golden_mask_statistics() {
    each_record(statistics);
}

fn statistics(suite: &Suite, number: usize, record: &serde_json::Value) {
    let config = config(record);
    config.validate().unwrap();
    let masks: Vec<Mask> = (0..OWN_MASKS)
        .map(|index| {
            sample_block_mask(&mut Key { seed: 2, epoch: 0, index, stream: RngStream::Mask }.rng(), &config)
        })
        .collect();
    let ones = record["ones_per_mask"].as_u64().unwrap() as usize;
    let other = masks.iter().find(|mask| mask.masked_indices().len() != ones);
    check(other.is_none(), || format!("configuration {number}: a mask without {ones} patches"));

    let n = record["n"].as_f64().unwrap();
    let names = ["cell", "rectangles", "top-up", "pairs"];
    let worst = [
        cell_frequencies(&masks, &suite.f32s(&format!("cfg{number}/frequency")), n),
        histogram(masks.iter().map(|m| m.rectangles as usize), &record["rectangles_hist"]),
        histogram(masks.iter().map(|m| m.topped_up as usize), &record["topup_hist"]),
        neighbour_pairs(&masks, &record["mean_adjacent_pairs"], n),
    ];
    for (name, errors) in names.iter().zip(worst) {
        println!("configuration {number}, {name}: worst {errors:.2} standard errors");
        check(errors < STANDARD_ERRORS, || {
            format!("configuration {number}, {name}: {errors:.2} standard errors")
        });
    }
}

/// The recorded sample masks belong to our model of the generator: the same number of ones in each.
#[test]
fn golden_mask_samples_have_the_recorded_number() {
    each_record(samples);
}

fn samples(suite: &Suite, number: usize, record: &serde_json::Value) {
    let config = config(record);
    let tensors = suite.tensors();
    let samples = tensors.tensor(&format!("cfg{number}/samples")).unwrap();
    for mask in samples.data().chunks(config.patches()) {
        equal("masked patches", &mask.iter().filter(|&&b| b == 1).count(), &config.masked);
    }
}

/// Each cell is a binomial share `p` in both samples: standard error `sqrt(p (1 - p) (1/n + 1/m))`.
fn cell_frequencies(masks: &[Mask], reference: &[f32], n: f64) -> f64 {
    let m = masks.len() as f64;
    let error = |cell: usize| {
        let own = masks.iter().filter(|mask| mask.bits[cell]).count() as f64 / m;
        let p = (own * m + f64::from(reference[cell]) * n) / (m + n);
        let deviation = (own - f64::from(reference[cell])).abs();
        if deviation == 0.0 { 0.0 } else { deviation / (p * (1.0 - p) * (1.0 / n + 1.0 / m)).sqrt() }
    };
    assert_eq!(masks[0].bits.len(), reference.len());
    (0..reference.len()).map(error).fold(0.0, f64::max)
}

/// Two-sample chi-square over bins merged to at least ten expected counts, as (chi2 - df) / sqrt(2
/// df).
fn histogram(own: impl Iterator<Item = usize>, reference: &serde_json::Value) -> f64 {
    let mut reference: Vec<f64> = reference.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let mut counts = vec![0.0; reference.len()];
    for value in own {
        if value >= counts.len() {
            counts.resize(value + 1, 0.0);
            reference.resize(value + 1, 0.0);
        }
        counts[value] += 1.0;
    }
    let (m, n): (f64, f64) = (counts.iter().sum(), reference.iter().sum());
    let (mut chi2, mut bins, mut a, mut b) = (0.0, 0.0, 0.0, 0.0);
    for (own, reference) in counts.iter().zip(&reference) {
        a += own;
        b += reference;
        if a + b >= 20.0 {
            chi2 += (a * (n / m).sqrt() - b * (m / n).sqrt()).powi(2) / (a + b);
            bins += 1.0;
            (a, b) = (0.0, 0.0);
        }
    }
    let df = (bins - 1.0_f64).max(1.0);
    (chi2 - df) / (2.0 * df).sqrt()
}

/// Mean number of masked pairs at fixed offsets; the variance is taken from our masks.
fn neighbour_pairs(masks: &[Mask], reference: &serde_json::Value, n: f64) -> f64 {
    let offsets = [("horizontal", 0, 1), ("vertical", 1, 0), ("horizontal_gap2", 0, 2), ("diagonal", 1, 1)];
    let error = |&(name, down, right): &(&str, usize, usize)| {
        let Some(expected) = reference[name].as_f64() else {
            return 0.0;
        };
        let counts: Vec<f64> = masks.iter().map(|mask| pairs(mask, down, right) as f64).collect();
        let m = counts.len() as f64;
        let mean = counts.iter().sum::<f64>() / m;
        let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / (m - 1.0);
        println!("  {name}: {mean:.4}, reference {expected:.4}");
        (mean - expected).abs() / (variance * (1.0 / n + 1.0 / m)).sqrt().max(1e-12)
    };
    offsets.iter().map(error).fold(0.0, f64::max)
}

fn pairs(mask: &Mask, down: usize, right: usize) -> usize {
    let masked = |row: usize, column: usize| mask.bits[row * mask.grid_w + column];
    let cells =
        (0..mask.grid_h - down).flat_map(|row| (0..mask.grid_w - right).map(move |column| (row, column)));
    cells.filter(|&(row, column)| masked(row, column) && masked(row + down, column + right)).count()
}
