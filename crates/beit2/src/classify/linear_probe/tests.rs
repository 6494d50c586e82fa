#![allow(clippy::unwrap_used)]

use burn::backend::{Autodiff, Flex};
use rand::RngExt;
use rand_distr::StandardNormal;

use super::*;
use crate::init::generator;
use crate::train::Silent;

type B = Autodiff<Flex>;

/// `n` images of three classes around three centres, `noise` apart.
fn images(n: usize, noise: f32, seed: u64) -> Features {
    let mut rng = generator(seed, "test");
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    let values = labels
        .iter()
        .flat_map(|&l| (0..3).map(move |d| if d == l { 1000.0 } else { 0.0 }))
        .map(|center| center + noise * rng.sample::<f32, _>(StandardNormal))
        .collect();
    Features { values, dim: 3, labels, sets: None, classes: 3 }
}

fn probe(train: &Features, val: &Features, config: &LinearProbeConfig) -> LinearProbe {
    linear_probe::<B>(train, val, config, &mut Silent, &StopFlag::new(), &Default::default()).unwrap()
}

fn fixed(lr: f64) -> LinearProbeConfig {
    LinearProbeConfig { epochs: 20, rates: vec![lr], ..LinearProbeConfig::default() }
}

#[test]
fn separates_what_a_line_can_separate() {
    let (train, val) = (images(300, 100.0, 3), images(90, 100.0, 4));
    let found = probe(&train, &val, &fixed(0.02));
    assert!(found.val.value > 0.97 && found.train > 0.97, "{found:?}");
    assert_eq!((found.lr, &found.choice, found.losses.len()), (0.02, &RateChoice::Given, 20));
    assert_eq!(found, probe(&train, &val, &fixed(0.02)));

    // The same as sets of classes, every fourth image with none: what is left can still be told.
    let several = |features: &Features| {
        let sets = (0..features.len()).map(|at| if at % 4 == 0 { vec![] } else { vec![features.labels[at]] });
        let mut features = Features { sets: Some(sets.collect()), ..features.clone() };
        features.values.chunks_mut(12).for_each(|rows| rows[..3].fill(0.0));
        features
    };
    let (train, val) = (several(&train), several(&val));
    let found = probe(&train, &val, &fixed(0.02));
    assert!(found.val.value > 0.97 && found.train > 0.97, "{found:?}");
    let swept = probe(&train, &val, &LinearProbeConfig { epochs: 20, ..LinearProbeConfig::default() });
    assert!(swept.val.value > 0.97 && swept.lr >= 3e-3, "{swept:?}");
}

/// A rate so low that nothing is learned loses on held-out training images. Validation labels decide nothing: the same rate,
/// table and training accuracy come of any.
#[test]
fn the_rate_is_chosen_on_training_images_alone() {
    let (train, val) = (images(300, 300.0, 3), images(90, 300.0, 4));
    let config = LinearProbeConfig { epochs: 20, rates: vec![3e-2, 1e-9], ..LinearProbeConfig::default() };
    let found = probe(&train, &val, &config);
    let RateChoice::Sweep { scores, held_out, epochs } = &found.choice else { panic!("{found:?}") };
    assert_eq!((found.lr, *held_out, *epochs), (3e-2, 60, 20));
    assert_eq!((scores[0].0, scores[1].0), (1e-9, 3e-2));
    assert!(scores[0].1.unwrap() + 0.1 < scores[1].1.unwrap(), "{scores:?}");
    // The chosen rate trains on all images as it does alone.
    let alone = probe(&train, &val, &fixed(3e-2));
    assert_eq!((found.val, found.train, &found.losses), (alone.val, alone.train, &alone.losses));

    let mut permuted = val.clone();
    permuted.labels.rotate_left(1);
    let other = probe(&train, &permuted, &config);
    assert!(other.val.value < 0.2, "{other:?}");
    assert_eq!((other.lr, &other.choice, other.train), (found.lr, &found.choice, found.train));
}

/// Classifiers that are trained side by side are those that are trained alone.
#[test]
fn side_by_side_as_alone() {
    let train = images(150, 500.0, 5);
    let device = Default::default();
    let (x, _) = standardised::<Flex>(&train, &train, &device);
    let set = Set { x, features: &train };
    let rows: Vec<i32> = (0..150).collect();
    let config = fixed(1.0);
    let stop = StopFlag::new();
    let weights = |rates: &[f64]| {
        let mut silent = Silent;
        let mut watch = Watch::new(&mut silent, &stop, 1);
        let (models, losses) = fit::<B>(&set, rows.clone(), rates, 20, &config, &mut watch).unwrap();
        let values = models.into_iter().map(|m| m.weight.into_data().into_vec::<f32>().unwrap());
        (values.collect::<Vec<_>>(), losses)
    };
    let rates = [1e-3, 1e-2, 1e-1];
    let (together, mean) = weights(&rates);
    let alone: Vec<_> = rates.iter().map(|rate| weights(&[*rate])).collect();
    for (together, (alone, _)) in together.iter().zip(&alone) {
        for (a, b) in together.iter().zip(&alone[0]) {
            assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{together:?} and {alone:?}");
        }
    }
    let last = alone.iter().map(|(_, losses)| losses[19]).sum::<f64>() / 3.0;
    assert!((mean[19] - last).abs() < 1e-4, "{} and {last}", mean[19]);
}

#[test]
fn tiny_sets_have_a_rate_all_the_same() {
    let val = images(3, 10.0, 4);
    for n in [2, 3] {
        let found = probe(&images(n, 10.0, 3), &val, &LinearProbeConfig::default());
        assert_eq!((found.lr, &found.choice), (1e-3, &RateChoice::NoSplit), "{n} images");
        let config = LinearProbeConfig { rates: vec![0.3, 0.1, 0.2], ..LinearProbeConfig::default() };
        assert_eq!(probe(&images(n, 10.0, 3), &val, &config).lr, 0.2);
    }
    // One class has two images, so one of them can be held out.
    let found = probe(&images(4, 10.0, 3), &val, &LinearProbeConfig::default());
    assert!(matches!(found.choice, RateChoice::Sweep { held_out: 1, .. }), "{found:?}");
}

#[test]
fn what_cannot_be_is_said() {
    let (train, val) = (images(30, 100.0, 3), images(9, 100.0, 4));
    let error = |train: &Features, val: &Features, rates: Vec<f64>| {
        let config = LinearProbeConfig { epochs: 3, rates, ..LinearProbeConfig::default() };
        linear_probe::<B>(train, val, &config, &mut Silent, &StopFlag::new(), &Default::default())
            .unwrap_err()
            .to_string()
    };
    assert!(error(&train, &val, vec![]).contains("learning rates above 0"));
    assert!(error(&train, &val, vec![1e-3, f64::NAN]).contains("learning rates above 0"));
    assert!(error(&train, &val, vec![1e300]).contains("diverged with learning rate 1e300"));
    let mut broken = train.clone();
    broken.values[7] = f32::NAN;
    assert!(error(&broken, &val, vec![1e-3]).contains("image 2"), "{}", error(&broken, &val, vec![1e-3]));
    // Of several rates those that diverge lose.
    let config = LinearProbeConfig { epochs: 3, rates: vec![1e-2, 1e300], ..LinearProbeConfig::default() };
    let found = probe(&train, &val, &config);
    let RateChoice::Sweep { scores, .. } = &found.choice else { panic!("{found:?}") };
    assert_eq!((found.lr, scores[1]), (1e-2, (1e300, None)));
}
