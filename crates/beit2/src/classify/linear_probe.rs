//! A linear classifier on frozen features (BEiT v1's linear evaluation, on features computed once).

use beit2_kernels::{self as kernels, AutodiffBackend, Backend, Precision};
use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use super::multi_label::{binary_cross_entropy, multi_hot};
use super::{Features, MultiLabelEvaluation};
use crate::error::{Error, config_error};
use crate::init::generator;
use crate::train::CosineSchedule;

/// How the classifier is trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearProbeConfig {
    /// Passes over the features.
    pub epochs: u64,
    /// Images of a step.
    pub batch: usize,
    /// Learning rate for a batch of 256; falls to 0 by a cosine.
    pub lr: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Seed of the order and the initial weights.
    pub seed: u64,
}

impl Default for LinearProbeConfig {
    fn default() -> Self {
        Self { epochs: 100, batch: 128, lr: 1e-3, weight_decay: 1e-4, seed: 0 }
    }
}

/// Top-1 accuracy on `val` of a linear classifier trained on `train`, in [0, 1]; of multi-label features, trained with
/// binary cross entropy, the mean average precision ([`MultiLabelEvaluation`]).
///
/// Features are first brought to mean 0 and deviation 1 with `train`'s statistics, so that one learning
/// rate serves features of any scale.
///
/// # Errors
/// Features of different width or none.
pub fn linear_probe<B: AutodiffBackend>(
    train: &Features,
    val: &Features,
    config: LinearProbeConfig,
    device: &B::Device,
) -> Result<f64, Error> {
    // ---- inputs -------------------------------------------------------------------------------
    if train.dim != val.dim || train.is_empty() || val.is_empty() {
        return config_error("a linear probe needs images in both sets and features of one width");
    }
    if val.sets.is_some() && train.sets.is_none() {
        return config_error(
            "the validation images have several classes, but the training images have one each",
        );
    }
    let (train_x, val_x) = standardised::<B::InnerBackend>(train, val, device);
    let classes = train.classes;
    let batch = config.batch.clamp(1, train.len());
    let steps_per_epoch = train.len() / batch;
    let peak = config.lr * batch as f64 / 256.0;
    let schedule = CosineSchedule::new(peak, 0.0, config.epochs * steps_per_epoch as u64, 0, 0.0)?;

    // ---- model and optimiser ------------------------------------------------------------------
    let mut rng = generator(config.seed, "linear probe");
    let init: Vec<f32> =
        (0..classes * train.dim).map(|_| 0.01 * rng.sample::<f32, _>(StandardNormal)).collect();
    let mut weight: Tensor<B::InnerBackend, 2> =
        Tensor::from_data(TensorData::new(init, [classes, train.dim]), device);
    let mut bias = Tensor::<B::InnerBackend, 1>::zeros([classes], device);
    let mut weight_moments = (weight.zeros_like(), weight.zeros_like());
    let mut bias_moments = (bias.zeros_like(), bias.zeros_like());

    // ---- steps --------------------------------------------------------------------------------
    let mut order: Vec<i32> = (0..train.len() as i32).collect();
    for step in 0..schedule.len() {
        let at = step as usize % steps_per_epoch;
        if at == 0 {
            order.shuffle(&mut rng);
        }
        let picked = &order[at * batch..(at + 1) * batch];
        let indices = Tensor::from_data(TensorData::new(picked.to_vec(), [batch]), device);
        let x = Tensor::<B, 2>::from_inner(train_x.clone().select(0, indices));
        let w = Tensor::<B, 2>::from_inner(weight.clone()).require_grad();
        let b = Tensor::<B, 1>::from_inner(bias.clone()).require_grad();
        let logits = kernels::linear(x, w.clone(), Some(b.clone()), Precision::F32);
        let loss = match &train.sets {
            Some(sets) => {
                let sets: Vec<&[u32]> = picked.iter().map(|&image| sets[image as usize].as_slice()).collect();
                binary_cross_entropy(logits, multi_hot(&sets, classes, device))
            }
            None => {
                let labels: Vec<i32> =
                    picked.iter().map(|&image| train.labels[image as usize] as i32).collect();
                kernels::cross_entropy(logits, Tensor::from_data(TensorData::new(labels, [batch]), device))
            }
        };
        let mut grads = loss.backward();

        let options = kernels::AdamwStep {
            lr: schedule.at(step),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: config.weight_decay,
            step: step + 1,
            grad_scale: 1.0,
        };
        if let Some(grad) = w.grad_remove(&mut grads) {
            let (m, v) = weight_moments;
            let (new, m, v) = kernels::adamw(weight, grad, m, v, options);
            (weight, weight_moments) = (new, (m, v));
        }
        if let Some(grad) = b.grad_remove(&mut grads) {
            let (m, v) = bias_moments;
            let options = kernels::AdamwStep { weight_decay: 0.0, ..options };
            let (new, m, v) = kernels::adamw(bias, grad, m, v, options);
            (bias, bias_moments) = (new, (m, v));
        }
    }

    // ---- validation ---------------------------------------------------------------------------
    let logits = kernels::linear(val_x, weight, Some(bias), Precision::F32);
    if train.sets.is_some() {
        // A validation set of single labels is one of sets with one class each.
        let single = || val.labels.iter().map(|&label| vec![label]).collect();
        let sets = val.sets.clone().unwrap_or_else(single);
        let logits = logits.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
        return Ok(MultiLabelEvaluation::new(&logits, &sets, classes)?.map);
    }
    let predicted: Vec<u32> = logits.argmax(1).into_data().iter::<i64>().map(|class| class as u32).collect();
    Ok(super::accuracy(&predicted, &val.labels))
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
mod tests {
    use super::*;
    use burn::backend::{Autodiff, Flex};

    #[test]
    fn separates_what_a_line_can_separate() {
        let mut rng = generator(3, "test");
        let mut set = |n: usize| {
            let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
            let values = labels
                .iter()
                .flat_map(|&l| (0..3).map(move |d| if d == l { 1.0 } else { 0.0 }))
                .map(|center| center * 1000.0 + 100.0 * rng.sample::<f32, _>(StandardNormal))
                .collect();
            Features { values, dim: 3, labels, sets: None, classes: 3 }
        };
        let (train, val) = (set(300), set(90));
        let config = LinearProbeConfig { epochs: 20, lr: 0.02, ..LinearProbeConfig::default() };
        let found = linear_probe::<Autodiff<Flex>>(&train, &val, config, &Default::default()).unwrap();
        assert!(found > 0.97, "{found}");
        let again = linear_probe::<Autodiff<Flex>>(&train, &val, config, &Default::default()).unwrap();
        assert_eq!(found, again);

        // The same as sets of classes, every fourth image with none: what is left can still be told.
        let several = |features: &Features| {
            let sets =
                (0..features.len()).map(|at| if at % 4 == 0 { vec![] } else { vec![features.labels[at]] });
            let mut features = Features { sets: Some(sets.collect()), ..features.clone() };
            features.values.chunks_mut(12).for_each(|rows| rows[..3].fill(0.0));
            features
        };
        let (train, val) = (several(&train), several(&val));
        let found = linear_probe::<Autodiff<Flex>>(&train, &val, config, &Default::default()).unwrap();
        assert!(found > 0.97, "{found}");
    }
}
