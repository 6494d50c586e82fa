//! A pretraining experiment as data.

use beit2_data::{BlockMaskConfig, TwoViewConfig};
use beit2_kernels::{Backend, Precision};
use serde::{Deserialize, Serialize};

use super::{MimConfig, start};
use crate::error::{Error, config_error};
use crate::monitor::MonitorConfig;
use crate::pixels;
use crate::tokenizer::{self, TokenizerConfig, VqKd};
use crate::train::{
    Assets, DataConfig, InitWeights, LoggingConfig, OptimizerConfig, ScheduleConfig, TrainConfig,
    fill_normalization,
};

/// `[mask]`: block masking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// Masked patches per image: 75 of 196 in the paper.
    pub patches: usize,
    /// Smallest block, in patches.
    pub min_block: usize,
    /// Largest block, in patches; absent: `patches`.
    pub max_block: Option<usize>,
    /// Narrowest aspect ratio of a block; the widest is its inverse.
    pub min_aspect: f64,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self { patches: 75, min_block: 16, max_block: None, min_aspect: 0.3 }
    }
}

/// `[augment]` of pretraining.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainAugment {
    /// Smallest crop, as a share of the image.
    pub min_crop_scale: f64,
    /// Strength of brightness, contrast and saturation jitter.
    pub color_jitter: f64,
    /// Probability of a flip.
    pub hflip: f64,
}

impl Default for PretrainAugment {
    fn default() -> Self {
        Self { min_crop_scale: 0.2, color_jitter: 0.4, hflip: 0.5 }
    }
}

/// `[tokenizer]`: who gives the targets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerSource {
    /// A tokenizer's run directory, checkpoint folder or weight file.
    pub weights: String,
    /// A registered variant, for weight files that do not carry their sizes (published ones); absent:
    /// the file says.
    pub variant: Option<String>,
    /// A folder that keeps the token ids of training batches for later runs; absent: none. Does not change the result.
    pub cache: Option<String>,
}

impl TokenizerSource {
    /// The tokenizer, for inference, with its sizes.
    ///
    /// # Errors
    /// As [`tokenizer::load`], and when no weights are named.
    pub fn open<B: Backend>(
        &self,
        assets: &dyn Assets,
        device: &B::Device,
    ) -> Result<(TokenizerConfig, VqKd<B>), Error> {
        if self.weights.is_empty() {
            return config_error(
                "tokenizer.weights is empty; name a tokenizer's run directory or weight file",
            );
        }
        let variant = self.variant.as_deref();
        tokenizer::load(assets.weights(&self.weights)?, &self.weights, variant, device)
    }
}

/// A complete pretraining experiment. Defaults: the paper's base model, 1600 epochs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainRecipe {
    /// Always `pretrain`.
    pub stage: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Operands of the matmuls; everything else is f32.
    pub precision: Precision,
    /// Start.
    pub init: InitWeights,
    /// Sizes.
    pub model: MimConfig,
    /// Targets.
    pub tokenizer: TokenizerSource,
    /// Masks.
    pub mask: MaskConfig,
    /// Images.
    pub data: DataConfig,
    /// Augmentation.
    pub augment: PretrainAugment,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Length.
    pub schedule: ScheduleConfig,
    /// How a step is computed.
    pub train: TrainConfig,
    /// Records and checkpoints.
    pub logging: LoggingConfig,
    /// What is measured of the features meanwhile.
    pub monitor: MonitorConfig,
}

impl Default for PretrainRecipe {
    fn default() -> Self {
        let mut model = MimConfig::default();
        model.vit.drop_path = 0.1;
        Self {
            stage: "pretrain".into(),
            seed: 0,
            precision: Precision::F32,
            init: InitWeights::default(),
            model,
            tokenizer: TokenizerSource::default(),
            mask: MaskConfig::default(),
            data: DataConfig::default(),
            augment: PretrainAugment::default(),
            optimizer: OptimizerConfig { clip_grad: Some(3.0), ..OptimizerConfig::default() },
            schedule: ScheduleConfig { epochs: 1600, ..ScheduleConfig::default() },
            train: TrainConfig::default(),
            logging: LoggingConfig { eval_every_epochs: Some(1), ..LoggingConfig::default() },
            monitor: MonitorConfig::default(),
        }
    }
}

impl PretrainRecipe {
    /// Fills in what other files decide: the sizes of the weights that training starts from, where the recipe says so, and
    /// the statistics of images that are not RGB, from the training images. Doing it twice changes nothing.
    ///
    /// # Errors
    /// Weights that are no student of the recipe's sizes; images that cannot be opened or decoded.
    pub fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        start::resolve(self, assets)?;
        fill_normalization(&mut self.model.vit, &self.data, assets)
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        if self.stage != "pretrain" {
            return config_error(format!(
                "this recipe's stage is `{}`; `pretrain` needs `pretrain`",
                self.stage
            ));
        }
        self.init.validate()?;
        self.logging.validate()?;
        self.monitor.validate(self.data.val.is_some())?;
        if let Some(name) = self.monitor.best.as_ref().filter(|name| name.contains("codebook")) {
            return config_error(format!(
                "monitor.best is {name}, but the tokenizer does not change in pretraining; follow another metric"
            ));
        }
        self.model.validate()?;
        if self.mask.patches == 0 {
            return config_error(
                "mask.patches is 0, so nothing would be predicted; use at least 1 (75 of 196 in the paper)",
            );
        }
        self.block_mask().validate()?;
        self.views(self.model.vit.image_size).validate()?;
        pixels::check_normalization(self.model.vit.in_chans, self.model.vit.normalization.as_ref())?;
        Ok(())
    }

    /// The mask generator's settings.
    pub fn block_mask(&self) -> BlockMaskConfig {
        let grid = self.model.vit.grid();
        BlockMaskConfig {
            grid_h: grid,
            grid_w: grid,
            masked: self.mask.patches,
            min_patches: self.mask.min_block,
            max_patches: self.mask.max_block,
            min_aspect: self.mask.min_aspect,
        }
    }

    /// The views of the model and of a tokenizer that wants `token_px` pixels.
    pub fn views(&self, token_px: usize) -> TwoViewConfig {
        TwoViewConfig {
            input_size: self.model.vit.image_size as u32,
            second_size: token_px as u32,
            min_crop_scale: self.augment.min_crop_scale,
            color_jitter: self.augment.color_jitter,
            hflip: self.augment.hflip,
            ..TwoViewConfig::default()
        }
    }
}
