//! The parts that all recipes share. A recipe is a TOML file; these types are its tables.

use beit2_data::{Background, CacheLimit, DecodeOptions, ExifOrientation, PixelRange};
use beit2_kernels::{Backend, Precision};
use beit2_run::environment::available_memory_bytes;
use beit2_run::report::Seen;
use serde::{Deserialize, Serialize};

use super::extension::Extension;
use super::{AdamWConfig, CosineSchedule};
use crate::error::{Error, config_error};

/// Checks that a stage can run in `precision` on this device.
///
/// # Errors
/// The device does not have the element type.
pub fn check_precision<B: Backend>(precision: Precision, device: &B::Device) -> Result<(), Error> {
    match precision.is_supported::<B>(device) {
        true => Ok(()),
        false => config_error(format!("precision `{precision}` is not available on this device; use `f32`")),
    }
}

/// `init.weights` of a model that starts from random numbers. It must be said: forgotten weights would otherwise cost days.
pub const SCRATCH: &str = "scratch";

/// `data.cache`: whether decoded images stay in memory. Does not change the batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageCaching {
    /// If all of a source fit into a quarter of the memory that is free, and into 4 GiB.
    #[default]
    Auto,
    /// No.
    Off,
    /// As many as fit into three quarters of the memory that is free.
    Memory,
}

/// Most memory that decoded images take without being asked to.
const AUTO_CACHE_BYTES: u64 = 4 << 30;

/// The same where the system does not say how much is free.
const UNKNOWN_CACHE_BYTES: u64 = 1 << 30;

impl ImageCaching {
    /// What all decoded images of this process may take.
    pub fn limit(self) -> CacheLimit {
        // What they take already was free before.
        let free = || available_memory_bytes().map(|free| free + beit2_data::cached_bytes());
        match self {
            Self::Off => CacheLimit::Off,
            Self::Auto => CacheLimit::IfAllFit(
                free().map_or(UNKNOWN_CACHE_BYTES, |free| (free / 4).min(AUTO_CACHE_BYTES)),
            ),
            Self::Memory => CacheLimit::UpTo(free().map_or(UNKNOWN_CACHE_BYTES, |free| free / 4 * 3)),
        }
    }
}

/// `[data]`: where images come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Training images: a folder, tar shards (`DIR`, `x.tar`, `x-{000..003}.tar`), or `bundled:train`.
    pub train: String,
    /// The validation set; absent: none.
    pub val: Option<String>,
    /// Threads that decode and augment. Does not change the batches.
    pub workers: usize,
    /// Whether decoded images stay in memory: `auto`, `off` or `memory`. Does not change the batches.
    pub cache: ImageCaching,
    /// Unusable images tolerated per epoch, as a share.
    pub max_bad_fraction: f64,
    /// Images whose shorter side has fewer pixels count as unusable; 0 accepts all (and enlarges).
    pub min_side_px: u32,
    /// How values of more than 8 bits become 8-bit values: `auto`, `full`, `8bit`, `[low, high]` or `percentile`.
    pub range: PixelRange,
    /// Whether images are turned as their EXIF orientation says: `apply` or `ignore`.
    pub exif: ExifOrientation,
    /// What transparent pixels become: `white`, `black`, or `drop` (alpha is ignored).
    pub background: Background,
    /// The bands that an RGB teacher sees as red, green and blue, counted from 1; absent: images are RGB.
    pub teacher_bands: Option<[u32; 3]>,
    /// Channels of the images. Not read from recipes: the model says it.
    #[serde(skip)]
    pub channels: u32,
}

impl DataConfig {
    /// How images are decoded.
    pub fn decode_options(&self) -> DecodeOptions {
        let Self { range, exif, background, channels, .. } = *self;
        DecodeOptions { range, exif, background, channels, ..DecodeOptions::default() }
    }

    /// Which images are looked at for the report, `images` of `of`: the validation set, without one those of training.
    pub fn seen(&self, images: u64, of: usize) -> Seen {
        let data = self.val.as_ref().unwrap_or(&self.train).clone();
        Seen { validation: self.val.is_some(), data, images, of: of as u64 }
    }

    /// The same with these options of decoding (their limits are not kept).
    pub fn decoding_by(self, options: &DecodeOptions) -> Self {
        let DecodeOptions { range, exif, background, channels, .. } = *options;
        Self { range, exif, background, channels, ..self }
    }

    /// The same for a model that takes images of this many channels.
    #[must_use]
    pub fn of_channels(&self, channels: usize) -> Self {
        Self { channels: channels as u32, ..self.clone() }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: String::new(),
            val: None,
            workers: 2,
            cache: ImageCaching::Auto,
            max_bad_fraction: 0.01,
            min_side_px: 0,
            range: PixelRange::Auto,
            exif: ExifOrientation::Apply,
            background: Background::Drop,
            teacher_bands: None,
            channels: 3,
        }
    }
}

/// `[optimizer]`: AdamW and what feeds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate, for a batch of `base_batch_size` images.
    pub lr: f64,
    /// Batch that `lr` is meant for; the rate scales with the batch. Absent: `lr` is absolute.
    pub base_batch_size: Option<usize>,
    /// Last learning rate (never scaled).
    pub min_lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight decay at the end, by a cosine; absent: constant.
    pub weight_decay_end: Option<f64>,
    /// Largest global gradient norm; absent: gradients are not clipped.
    pub clip_grad: Option<f64>,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1.5e-3,
            base_batch_size: None,
            min_lr: 1e-5,
            weight_decay: 0.05,
            weight_decay_end: None,
            clip_grad: None,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        }
    }
}

impl OptimizerConfig {
    /// The peak learning rate for this batch.
    pub fn peak_lr(&self, batch: usize) -> f64 {
        match self.base_batch_size {
            Some(base) => self.lr * batch as f64 / base as f64,
            None => self.lr,
        }
    }

    /// AdamW's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig { beta1: self.beta1, beta2: self.beta2, eps: self.eps }
    }

    fn validate(&self) -> Result<(), Error> {
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return config_error(format!("optimizer.lr {} must be above 0", self.lr));
        }
        for (name, value) in [
            ("min_lr", self.min_lr),
            ("weight_decay", self.weight_decay),
            ("weight_decay_end", self.weight_decay_end.unwrap_or_default()),
            ("eps", self.eps),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return config_error(format!("optimizer.{name} {value} must be 0 or more"));
            }
        }
        if let Some(limit) = self.clip_grad.filter(|limit| !(*limit > 0.0 && limit.is_finite())) {
            return config_error(format!(
                "optimizer.clip_grad {limit} must be above 0; `none` turns clipping off"
            ));
        }
        if self.base_batch_size == Some(0) {
            return config_error("optimizer.base_batch_size is 0; `none` makes optimizer.lr absolute");
        }
        for (name, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return config_error(format!("optimizer.{name} {value} must lie in [0, 1)"));
            }
        }
        Ok(())
    }
}

/// Keys of `[schedule]` of which the second decides where both are given. Someone who sets the first over a recipe that
/// gives the second means the first (see [`beit2_run::recipe::resolve`]).
pub const SCHEDULE_ALTERNATIVES: [(&str, &str); 3] = [
    ("schedule.epochs", "schedule.steps"),
    ("schedule.warmup_epochs", "schedule.warmup_steps"),
    ("schedule.grad_accum_steps", "schedule.max_micro_batch"),
];

/// `[schedule]`: how long, and the images of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Passes over the training images.
    pub epochs: u64,
    /// Optimiser steps in all, instead of `epochs`.
    pub steps: Option<u64>,
    /// Epochs in which the learning rate rises from 0.
    pub warmup_epochs: f64,
    /// Steps in which the learning rate rises from 0, instead of `warmup_epochs`.
    pub warmup_steps: Option<u64>,
    /// Images per optimiser step, on all devices and in all micro-batches together.
    pub batch_size: usize,
    /// Equal micro-batches that each device takes its images of a step in, one after the other, to save memory.
    pub grad_accum_steps: usize,
    /// Most images of a micro-batch on a device, instead of `grad_accum_steps`: the fewest equal ones are taken.
    pub max_micro_batch: Option<usize>,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            epochs: 300,
            steps: None,
            warmup_epochs: 10.0,
            warmup_steps: None,
            batch_size: 2048,
            grad_accum_steps: 1,
            max_micro_batch: None,
        }
    }
}

impl ScheduleConfig {
    /// Steps of the warm-up.
    pub fn warmup_over(&self, steps_per_epoch: u64) -> u64 {
        self.warmup_steps.unwrap_or((self.warmup_epochs * steps_per_epoch as f64) as u64)
    }
}

/// `train.activation_checkpointing`: what is computed again in the backward pass instead of being kept for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationCheckpointing {
    /// Nothing.
    #[default]
    None,
    /// Each Transformer block, of which only the input is kept.
    Blocks,
}

/// `[train]`: how a step is computed. Does not change the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// What is computed again in the backward pass: `none`, or `blocks` for less memory and more time.
    pub activation_checkpointing: ActivationCheckpointing,
}

impl TrainConfig {
    /// Whether blocks are computed again in the backward pass.
    pub fn recomputes_blocks(self) -> bool {
        self.activation_checkpointing == ActivationCheckpointing::Blocks
    }

    /// What the start of a run says about it.
    pub(crate) fn summary(self) -> Option<(String, String)> {
        let told = "blocks are computed again in the backward pass (train.activation_checkpointing)";
        self.recomputes_blocks().then(|| ("activations".into(), told.into()))
    }
}

/// `[logging]`: how often. Does not change the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoggingConfig {
    /// Steps between records.
    pub log_every: u64,
    /// Steps between checkpoints; absent: one at the end of every epoch.
    pub checkpoint_every: Option<u64>,
    /// Newest checkpoints that are kept.
    pub keep_checkpoints: usize,
    /// Epochs between evaluations on the validation set; absent: only at the end.
    pub eval_every_epochs: Option<u64>,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { log_every: 10, checkpoint_every: None, keep_checkpoints: 2, eval_every_epochs: None }
    }
}

impl LoggingConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first interval that is 0.
    pub fn validate(&self) -> Result<(), Error> {
        check_interval("logging.checkpoint_every", self.checkpoint_every)?;
        check_interval("logging.eval_every_epochs", self.eval_every_epochs)
    }
}

/// Refuses an optional interval of 0, which could be taken for "never" as well as for "always".
pub(crate) fn check_interval(key: &str, every: Option<u64>) -> Result<(), Error> {
    match every {
        Some(0) => config_error(format!("{key} is 0; it must be at least 1, and \"none\" takes it away")),
        _ => Ok(()),
    }
}

/// A resolved schedule: numbers of steps and the curves.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Training images.
    pub images: usize,
    /// Images of a step, on all devices.
    pub batch_size: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// Learning rate by step.
    pub lr: CosineSchedule,
    /// Weight decay by step.
    pub weight_decay: CosineSchedule,
    /// Of a finished run that is made longer ([`Plan::in_run`]).
    pub(super) extension: Option<Extension>,
}

impl Plan {
    /// Lays out a run over `images` training images.
    ///
    /// # Errors
    /// A batch that no epoch fills, a warm-up longer than the run, a run of no steps.
    pub fn new(schedule: &ScheduleConfig, optimizer: &OptimizerConfig, images: usize) -> Result<Self, Error> {
        optimizer.validate()?;
        let batch = schedule.batch_size;
        if batch == 0 || images < batch {
            if images == 1 {
                return config_error(format!(
                    "batch_size {batch} is more than the one training image; use a batch of 1, or more images"
                ));
            }
            return config_error(format!(
                "batch_size {batch} does not fit {images} training images; use a batch from 1 to {images}"
            ));
        }
        let steps_per_epoch = (images / batch) as u64;
        let total_steps = schedule.steps.unwrap_or(schedule.epochs * steps_per_epoch);
        if total_steps == 0 {
            return config_error("the schedule has no steps; set schedule.epochs or schedule.steps");
        }
        let warmup = schedule.warmup_over(steps_per_epoch);
        if optimizer.min_lr > optimizer.peak_lr(batch) {
            return config_error(format!(
                "optimizer.min_lr {:e} is above the peak learning rate {:e} for batch {batch}; lower min_lr or raise lr",
                optimizer.min_lr,
                optimizer.peak_lr(batch)
            ));
        }
        let lr = CosineSchedule::new(optimizer.peak_lr(batch), optimizer.min_lr, total_steps, warmup, 0.0)?;
        let end = optimizer.weight_decay_end.unwrap_or(optimizer.weight_decay);
        let weight_decay = CosineSchedule::new(optimizer.weight_decay, end, total_steps, 0, 0.0)?;
        Ok(Self {
            images,
            batch_size: batch,
            steps_per_epoch,
            total_steps,
            lr,
            weight_decay,
            extension: None,
        })
    }
}
