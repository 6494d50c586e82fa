//! A tokenizer experiment as data.

use beit2_data::TwoViewConfig;
use beit2_kernels::Precision;
use serde::{Deserialize, Serialize};

use super::teachers::TeacherConfig;
use super::{TokenizerConfig, start};
use crate::error::{Error, config_error};
use crate::monitor::MonitorConfig;
use crate::train::{
    Assets, DataConfig, InitWeights, LoggingConfig, OptimizerConfig, ScheduleConfig, TrainConfig,
    check_interval,
};

/// `[augment]` of the tokenizer: one crop and a flip, no colours by default (as the reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerAugment {
    /// Smallest crop, as a share of the image.
    pub min_crop_scale: f64,
    /// Strength of brightness, contrast and saturation jitter; 0: none.
    pub color_jitter: f64,
    /// Probability of a flip.
    pub hflip: f64,
}

impl Default for TokenizerAugment {
    fn default() -> Self {
        Self { min_crop_scale: 0.08, color_jitter: 0.0, hflip: 0.5 }
    }
}

/// `[targets]`: what this software adds to the features that are rebuilt; off by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetOptions {
    /// Rebuild whitened features: centred, uncorrelated and of the same variance in every direction, by mean and covariance over
    /// the first training crops. A few strong directions otherwise make up most of the loss. Not in the reference.
    pub whiten: bool,
}

/// `[codebook]`: what this software adds to the reference's codebook; all off by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CodebookOptions {
    /// Steps trained without quantization before the k-means start, so that k-means sees vectors that
    /// differ by content. 0: k-means on the first batch, as the reference.
    pub kmeans_warmup_steps: u64,
    /// Vectors per code that k-means wants; further batches are read until there are as many.
    pub kmeans_rows_per_code: usize,
    /// Replace codes unused for this many steps by vectors of the batch; absent: never, as the reference.
    pub revive_after_steps: Option<u32>,
}

impl Default for CodebookOptions {
    fn default() -> Self {
        Self { kmeans_warmup_steps: 0, kmeans_rows_per_code: 1, revive_after_steps: None }
    }
}

/// A complete tokenizer experiment. Defaults: the paper's, on ImageNet-1k with CLIP ViT-B/16.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerRecipe {
    /// Always `tokenizer`.
    pub stage: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Operands of the matmuls; everything else, and everything about codes, is f32.
    pub precision: Precision,
    /// Start.
    pub init: InitWeights,
    /// Sizes.
    pub model: TokenizerConfig,
    /// What is rebuilt.
    pub teacher: TeacherConfig,
    /// In which form.
    pub targets: TargetOptions,
    /// Images.
    pub data: DataConfig,
    /// Augmentation.
    pub augment: TokenizerAugment,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Length.
    pub schedule: ScheduleConfig,
    /// How a step is computed.
    pub train: TrainConfig,
    /// Codebook extras.
    pub codebook: CodebookOptions,
    /// Records and checkpoints.
    pub logging: LoggingConfig,
    /// What is measured of the encoder's features meanwhile.
    pub monitor: MonitorConfig,
}

impl Default for TokenizerRecipe {
    fn default() -> Self {
        Self {
            stage: "tokenizer".into(),
            seed: 0,
            precision: Precision::F32,
            init: InitWeights::default(),
            model: TokenizerConfig::default(),
            teacher: TeacherConfig::default(),
            targets: TargetOptions::default(),
            data: DataConfig::default(),
            augment: TokenizerAugment::default(),
            optimizer: OptimizerConfig {
                lr: 5e-5,
                base_batch_size: Some(128),
                min_lr: 1e-5,
                weight_decay: 1e-4,
                beta2: 0.99,
                ..OptimizerConfig::default()
            },
            schedule: ScheduleConfig { epochs: 100, batch_size: 512, ..ScheduleConfig::default() },
            codebook: CodebookOptions::default(),
            train: TrainConfig::default(),
            logging: LoggingConfig { eval_every_epochs: Some(1), ..LoggingConfig::default() },
            monitor: MonitorConfig::default(),
        }
    }
}

impl TokenizerRecipe {
    /// Fills in what the weights decide that training starts from: their sizes, where the recipe says so, and that a codebook
    /// that comes with them is not started anew. Doing it twice changes nothing.
    ///
    /// # Errors
    /// Weights that are no tokenizer of the recipe's sizes.
    pub fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        start::resolve(self, assets)
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        if self.stage != "tokenizer" {
            return config_error(format!(
                "this recipe's stage is `{}`; `tokenizer train` needs `tokenizer`",
                self.stage
            ));
        }
        self.init.validate()?;
        self.logging.validate()?;
        self.monitor.validate(self.data.val.is_some())?;
        check_interval("codebook.revive_after_steps", self.codebook.revive_after_steps.map(u64::from))?;
        self.model.validate()?;
        self.views(self.model.image_size).validate()?;
        check_bands(self.model.in_chans, self.data.teacher_bands)?;
        if self.codebook.kmeans_warmup_steps > 0 && !self.model.kmeans_init {
            return config_error("codebook.kmeans_warmup_steps needs model.kmeans_init = true");
        }
        Ok(())
    }

    /// Checks the settings that count steps against a run of `total` steps.
    ///
    /// # Errors
    /// A k-means start that the run does not reach.
    pub fn check_steps(&self, total: u64) -> Result<(), Error> {
        let warmup = self.codebook.kmeans_warmup_steps;
        match warmup < total {
            true => Ok(()),
            false => config_error(format!(
                "codebook.kmeans_warmup_steps {warmup} leaves no steps with a codebook in a run of {total} steps; use fewer \
                 than {total}, such as {}",
                total / 5
            )),
        }
    }

    /// The views for the encoder (`input_size`) and a teacher that wants `teacher_px` pixels.
    pub fn views(&self, teacher_px: usize) -> TwoViewConfig {
        TwoViewConfig {
            input_size: self.model.image_size as u32,
            second_size: teacher_px as u32,
            min_crop_scale: self.augment.min_crop_scale,
            color_jitter: self.augment.color_jitter,
            hflip: self.augment.hflip,
            ..TwoViewConfig::default()
        }
    }
}

/// Checks that an RGB teacher can look at images of `channels` channels.
fn check_bands(channels: usize, bands: Option<[u32; 3]>) -> Result<(), Error> {
    match bands {
        None if channels == 3 => Ok(()),
        None => config_error(format!(
            "the teacher sees RGB, and model.in_chans is {channels}; name the bands that it sees as red, green and blue, \
             counted from 1: data.teacher_bands = [3, 2, 1]"
        )),
        Some(bands) => match bands.iter().find(|&&band| band == 0 || band as usize > channels) {
            None => Ok(()),
            Some(band) => config_error(format!(
                "data.teacher_bands names band {band}, but images have {channels} (model.in_chans), counted from 1"
            )),
        },
    }
}
