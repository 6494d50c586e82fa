//! Linear classifiers trained side by side on the same features, one for each learning rate.

use std::time::{Duration, Instant};

use beit2_kernels::{self as kernels, AutodiffBackend, Backend, Precision};
use beit2_run::StopFlag;
use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_distr::StandardNormal;

use super::LinearProbeConfig;
use crate::classify::Features;
use crate::classify::multi_label::{binary_cross_entropy, multi_hot};
use crate::error::Error;
use crate::init::generator;
use crate::train::{CosineSchedule, Event, Observer, scalar};

/// Parts of training whose mean losses are kept.
const LOSSES: u64 = 20;
/// A probe that is done sooner shows no progress.
const QUIET: Duration = Duration::from_secs(2);

/// Features on a device, with the classes of their images.
pub(super) struct Set<'a, I: Backend> {
    /// `[n, D]`, standardised.
    pub x: Tensor<I, 2>,
    pub features: &'a Features,
}

/// Whom to tell how far training is, and who may stop it.
pub(super) struct Watch<'a> {
    pub observer: &'a mut dyn Observer,
    pub stop: &'a StopFlag,
    started: Instant,
    done: u64,
    total: u64,
}

impl<'a> Watch<'a> {
    /// Of `total` epochs.
    pub fn new(observer: &'a mut dyn Observer, stop: &'a StopFlag, total: u64) -> Self {
        Self { observer, stop, started: Instant::now(), done: 0, total }
    }

    fn epoch_done(&mut self) {
        self.done += 1;
        if self.started.elapsed() > QUIET {
            let what = "linear probe: epochs".to_owned();
            self.observer.event(Event::Progress { what, done: self.done, total: self.total });
        }
    }
}

/// A trained classifier: `[C, D]` and `[C]`.
pub(super) struct Linear<I: Backend> {
    pub weight: Tensor<I, 2>,
    pub bias: Tensor<I, 1>,
}

/// The same, in training.
struct Trained<I: Backend> {
    weight: Tensor<I, 2>,
    bias: Tensor<I, 1>,
    weight_moments: [Tensor<I, 2>; 2],
    bias_moments: [Tensor<I, 1>; 2],
    schedule: CosineSchedule,
}

/// Gradients `[R·C, D]` and `[R·C]` of R classifiers.
type Gradients<I> = (Option<Tensor<I, 2>>, Option<Tensor<I, 1>>);

impl<I: Backend> Trained<I> {
    /// After one more step, by the gradients whose rows begin at `from`.
    fn step(
        self,
        gradients: &Gradients<I>,
        from: usize,
        step: u64,
        grad_scale: f64,
        config: &LinearProbeConfig,
    ) -> Self {
        let Self { mut weight, mut bias, mut weight_moments, mut bias_moments, schedule } = self;
        let classes = bias.dims()[0];
        let options = kernels::AdamwStep {
            lr: schedule.at(step),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: config.weight_decay,
            step: step + 1,
            grad_scale,
        };
        if let Some(grad) = &gradients.0 {
            let (grad, [m, v]) = (grad.clone().narrow(0, from, classes), weight_moments);
            let (new, m, v) = kernels::adamw(weight, grad, m, v, options);
            (weight, weight_moments) = (new, [m, v]);
        }
        if let Some(grad) = &gradients.1 {
            let (grad, [m, v]) = (grad.clone().narrow(0, from, classes), bias_moments);
            let (new, m, v) =
                kernels::adamw(bias, grad, m, v, kernels::AdamwStep { weight_decay: 0.0, ..options });
            (bias, bias_moments) = (new, [m, v]);
        }
        Self { weight, bias, weight_moments, bias_moments, schedule }
    }
}

/// Tensors one after the other along their first dimension.
fn stacked<'a, I: Backend, const D: usize>(
    mut tensors: impl ExactSizeIterator<Item = &'a Tensor<I, D>>,
) -> Tensor<I, D> {
    match (tensors.len(), tensors.next()) {
        (1, Some(only)) => only.clone(),
        (_, first) => Tensor::cat(first.into_iter().chain(tensors).cloned().collect(), 0),
    }
}

/// Trained classifiers, and the training loss in each [`LOSSES`]th of the steps: the mean over the classifiers.
type Fitted<I> = (Vec<Linear<I>>, Vec<f64>);

/// Trains one classifier for each of `rates` on the rows `rows` of `train`; all start from the same weights and see the same
/// batches.
pub(super) fn fit<B: AutodiffBackend>(
    train: &Set<'_, B::InnerBackend>,
    mut rows: Vec<i32>,
    rates: &[f64],
    epochs: u64,
    config: &LinearProbeConfig,
    watch: &mut Watch<'_>,
) -> Result<Fitted<B::InnerBackend>, Error> {
    let device = &train.x.device();
    let (features, classes, count) = (train.features, train.features.classes, rates.len());
    let batch = config.batch.clamp(1, rows.len());
    let steps_per_epoch = rows.len() / batch;
    let total = epochs * steps_per_epoch as u64;

    // ---- models and optimisers ----------------------------------------------------------------
    let mut rng = generator(config.seed, "linear probe");
    let init: Vec<f32> =
        (0..classes * features.dim).map(|_| 0.01 * rng.sample::<f32, _>(StandardNormal)).collect();
    let mut models = Vec::with_capacity(count);
    for rate in rates {
        let weight = Tensor::from_data(TensorData::new(init.clone(), [classes, features.dim]), device);
        let bias = Tensor::zeros([classes], device);
        models.push(Trained {
            weight_moments: [weight.zeros_like(), weight.zeros_like()],
            bias_moments: [bias.zeros_like(), bias.zeros_like()],
            schedule: CosineSchedule::new(rate * batch as f64 / 256.0, 0.0, total, 0, 0.0)?,
            weight,
            bias,
        });
    }

    // ---- steps --------------------------------------------------------------------------------
    let parts = LOSSES.min(total);
    let end_of = |part: u64| (part + 1) * total / parts.max(1);
    let (mut losses, mut part_start) = (Vec::with_capacity(parts as usize), 0);
    let mut part_loss: Option<Tensor<B::InnerBackend, 1>> = None;
    for step in 0..total {
        if watch.stop.is_set() {
            return Err(Error::Interrupted);
        }
        let at = step as usize % steps_per_epoch;
        if at == 0 {
            rows.shuffle(&mut rng);
        }
        let picked = &rows[at * batch..(at + 1) * batch];
        let indices = kernels::upload_ints(TensorData::new(picked.to_vec(), [batch]), device);
        let x = Tensor::<B, 2>::from_inner(train.x.clone().select(0, indices));
        let w = Tensor::<B, 2>::from_inner(stacked(models.iter().map(|m| &m.weight))).require_grad();
        let b = Tensor::<B, 1>::from_inner(stacked(models.iter().map(|m| &m.bias))).require_grad();
        // One row of logits for each image and classifier: the classifiers of an image follow one another.
        let logits = kernels::linear(x, w.clone(), Some(b.clone()), Precision::F32);
        let logits = logits.reshape([batch * count, classes]);
        let of_rows = picked.iter().flat_map(|&image| std::iter::repeat_n(image as usize, count));
        let loss = match &features.sets {
            Some(sets) => {
                let sets: Vec<&[u32]> = of_rows.map(|image| sets[image].as_slice()).collect();
                binary_cross_entropy(logits, multi_hot(&sets, classes, device))
            }
            None => {
                let labels: Vec<i32> = of_rows.map(|image| features.labels[image] as i32).collect();
                kernels::cross_entropy(
                    logits,
                    kernels::upload_ints(TensorData::new(labels, [batch * count]), device),
                )
            }
        };
        let mut grads = loss.backward();
        let gradients = (w.grad_remove(&mut grads), b.grad_remove(&mut grads));
        // The loss is the mean over the classifiers, each of which should see its own.
        let step_of = |model, at| Trained::step(model, &gradients, at * classes, step, count as f64, config);
        models = models.into_iter().zip(0..).map(|(model, at)| step_of(model, at)).collect();
        let loss = loss.inner();
        part_loss = Some(match part_loss {
            Some(sum) => sum + loss,
            None => loss,
        });
        // Read seldom: a device that computes asynchronously waits here.
        if step + 1 == end_of(losses.len() as u64) {
            let sum = part_loss.take().map_or(f64::NAN, scalar);
            losses.push(sum / (step + 1 - part_start) as f64);
            part_start = step + 1;
        }
        if at + 1 == steps_per_epoch {
            watch.epoch_done();
        }
    }
    let trained = models.into_iter().map(|model| Linear { weight: model.weight, bias: model.bias });
    Ok((trained.collect(), losses))
}
