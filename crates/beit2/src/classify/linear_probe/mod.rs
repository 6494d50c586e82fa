//! A linear classifier on frozen features (BEiT v1's linear evaluation, on features computed once).
//!
//! [`linear_probe`] chooses the learning rate on a part of the training images, trains on all of them, and looks at the
//! validation images once. `fit` trains, `split` holds images out, `score` evaluates, `convergence` says when to doubt it.

mod convergence;
mod fit;
mod score;
mod split;

use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::StopFlag;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::fit::{Set, Watch, fit};
use self::score::Score;
use self::split::split;
use super::Features;
use super::bootstrap::{self, Estimate};
use crate::error::{Error, config_error};
use crate::train::Observer;

/// How the classifier is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearProbeConfig {
    /// Passes over the features.
    pub epochs: u64,
    /// Images of a step.
    pub batch: usize,
    /// Learning rates for a batch of 256, each falling to 0 by a cosine. One is used as it is; of several, the one that
    /// scores highest on training images that are held out from training.
    pub rates: Vec<f64>,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Seed of the order, the initial weights and the images that are held out.
    pub seed: u64,
}

impl LinearProbeConfig {
    /// The rates that are tried, half a decade apart.
    pub const RATES: [f64; 7] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1];
    /// The rate where none can be chosen, if it is among those to choose from: BEiT v1's.
    pub const DEFAULT_RATE: f64 = 1e-3;
}

impl Default for LinearProbeConfig {
    fn default() -> Self {
        Self { epochs: 100, batch: 128, rates: Self::RATES.to_vec(), weight_decay: 1e-4, seed: 0 }
    }
}

/// Values of features times classes that a sweep's training goes through with each rate: more epochs than that are not spent
/// on it, beyond [`SWEEP_EPOCHS`].
const SWEEP_WORK: u64 = 10_000_000_000;
/// Epochs that a sweep has in any case, if the probe has as many.
const SWEEP_EPOCHS: u64 = 5;
/// Weights of the classifiers that are trained side by side.
const SIDE_BY_SIDE: usize = 16 << 20;

/// What a linear probe found.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbe {
    /// The learning rate that it was trained with.
    pub lr: f64,
    /// How that rate was chosen.
    pub choice: RateChoice,
    /// Top-1 accuracy on the training images, or their mean average precision.
    pub train: f64,
    /// The same on the validation images.
    pub val: Estimate,
    /// Mean training loss in each twentieth of the steps, as far as there are so many.
    pub losses: Vec<f64>,
    /// Passes over the features.
    pub epochs: u64,
    /// Steps.
    pub steps: u64,
}

/// How a learning rate was chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum RateChoice {
    /// It was the only one.
    Given,
    /// No class has two training images, so that nothing could be held out.
    NoSplit,
    /// By the score on training images that were held out.
    Sweep {
        /// Each rate with its score there; `None` if training with it diverged.
        scores: Vec<(f64, Option<f64>)>,
        /// Images that were held out.
        held_out: usize,
        /// Passes over the other images.
        epochs: u64,
    },
}

/// Trains a linear classifier on `train` and evaluates it once on `val`: top-1 accuracy, or of multi-label features, trained
/// with binary cross entropy, the mean average precision ([`super::MultiLabelEvaluation`]).
///
/// Features are first brought to mean 0 and deviation 1 with `train`'s statistics, so that one learning
/// rate serves features of any scale.
///
/// # Errors
/// Features of different width or none, no rate or one that is not above 0, rates with which training diverges, an
/// interruption.
pub fn linear_probe<B: AutodiffBackend>(
    train: &Features,
    val: &Features,
    config: &LinearProbeConfig,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    device: &B::Device,
) -> Result<LinearProbe, Error> {
    // ---- inputs -------------------------------------------------------------------------------
    if train.dim != val.dim || train.is_empty() || val.is_empty() {
        return config_error("a linear probe needs images in both sets and features of one width");
    }
    if val.sets.is_some() && train.sets.is_none() {
        return config_error(
            "the validation images have several classes, but the training images have one each",
        );
    }
    let mut rates = config.rates.clone();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    if rates.is_empty() || rates.iter().any(|rate| !(*rate > 0.0 && rate.is_finite())) {
        return config_error("a linear probe needs learning rates above 0");
    }
    train.check_finite()?;
    val.check_finite()?;
    let several = train.sets.is_some();
    let (train_x, val_x) = standardised::<B::InnerBackend>(train, val, device);
    let train = Set { x: train_x, features: train };

    // ---- learning rate ------------------------------------------------------------------------
    let parts = if rates.len() > 1 { split(train.features, config.seed) } else { None };
    let sweep_epochs = match &parts {
        Some([kept, _]) => {
            let work = (kept.len() * train.features.dim * train.features.classes).max(1) as u64;
            config.epochs.min((SWEEP_WORK / work).max(SWEEP_EPOCHS))
        }
        None => 0,
    };
    let together = (SIDE_BY_SIDE / (train.features.classes * train.features.dim).max(1)).max(1);
    let passes = rates.len().div_ceil(together) as u64;
    let mut watch = Watch::new(observer, stop, sweep_epochs * passes + config.epochs);
    let (lr, choice) = match parts {
        Some([kept, held_out]) => {
            let mut scores = Vec::with_capacity(rates.len());
            for rates in rates.chunks(together) {
                let (models, _) = fit::<B>(&train, kept.clone(), rates, sweep_epochs, config, &mut watch)?;
                for (rate, model) in rates.iter().zip(&models) {
                    scores.push((*rate, Score::of(model, &train, Some(&held_out), several)?));
                }
            }
            let lr = best(&scores)?;
            let scores =
                scores.into_iter().map(|(rate, found)| (rate, found.loss.is_finite().then_some(found.score)));
            (
                lr,
                RateChoice::Sweep {
                    scores: scores.collect(),
                    held_out: held_out.len(),
                    epochs: sweep_epochs,
                },
            )
        }
        None => match rates.as_slice() {
            [only] => (*only, RateChoice::Given),
            rates if rates.contains(&LinearProbeConfig::DEFAULT_RATE) => {
                (LinearProbeConfig::DEFAULT_RATE, RateChoice::NoSplit)
            }
            rates => (rates[rates.len() / 2], RateChoice::NoSplit),
        },
    };

    // ---- training on all images, then validation ----------------------------------------------
    let rows = (0..train.features.len() as i32).collect();
    let steps = config.epochs * (train.features.len() / config.batch.clamp(1, train.features.len())) as u64;
    let (models, losses) = fit::<B>(&train, rows, &[lr], config.epochs, config, &mut watch)?;
    let Some(model) = models.first() else { return config_error("a linear probe needs a learning rate") };
    let on_train = Score::of(model, &train, None, several)?;
    let found = Score::of(model, &Set { x: val_x, features: val }, None, several)?;
    if !(on_train.loss.is_finite() && found.loss.is_finite()) {
        return diverged(&[lr]);
    }
    let val = match found.right {
        Some(right) => bootstrap::of_share(right, val.len()),
        None => bootstrap::of_map(&found.logits, &found.sets, train.features.classes)
            .unwrap_or(Estimate { value: found.score, interval: [found.score; 2] }),
    };
    Ok(LinearProbe { lr, choice, train: on_train.score, val, losses, epochs: config.epochs, steps })
}

/// The rate with the highest score; of equal ones that with the lowest loss.
fn best(scores: &[(f64, Score)]) -> Result<f64, Error> {
    let sound = scores.iter().filter(|(_, found)| found.loss.is_finite());
    let order = |a: &&(f64, Score), b: &&(f64, Score)| {
        a.1.score.total_cmp(&b.1.score).then(b.1.loss.total_cmp(&a.1.loss))
    };
    match sound.max_by(order) {
        Some((rate, _)) => Ok(*rate),
        None => diverged(&scores.iter().map(|(rate, _)| *rate).collect::<Vec<_>>()),
    }
}

fn diverged<T>(rates: &[f64]) -> Result<T, Error> {
    let rates: Vec<String> = rates.iter().map(|rate| format!("{rate:e}")).collect();
    config_error(format!(
        "the linear probe diverged with learning rate {}; use a smaller one, such as 1e-3",
        rates.join(", ")
    ))
}

/// The features of both sets `[n, D]`, each channel brought to mean 0 and deviation 1 with the statistics of `train`.
fn standardised<I: Backend>(
    train: &Features,
    val: &Features,
    device: &I::Device,
) -> (Tensor<I, 2>, Tensor<I, 2>) {
    let (train, val) = (train.tensor::<I>(device), val.tensor::<I>(device));
    let mean = train.clone().mean_dim(0);
    let deviation = (train.clone() - mean.clone()).powi_scalar(2).mean_dim(0).sqrt().add_scalar(1e-6);
    ((train - mean.clone()) / deviation.clone(), (val - mean) / deviation)
}

#[cfg(test)]
mod tests;
