//! A distillation as data.

use serde::{Deserialize, Serialize};

use super::TeacherConfig;
use crate::error::{Error, config_error};
use crate::train::{DataConfig, LoggingConfig, OptimizerConfig, ScheduleConfig, TrainConfig, check_interval};
use crate::vit::{RelPosKind, VitConfig};

/// A complete distillation: a small teacher that learns from a large one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillRecipe {
    /// Always `distill`.
    pub stage: String,
    /// Seed of everything random.
    pub seed: u64,
    /// The student's sizes.
    pub model: VitConfig,
    /// The large teacher.
    pub teacher: TeacherConfig,
    /// Unlabelled images.
    pub data: DataConfig,
    /// Bring every channel of the large teacher's features to mean 0 and deviation 1 first. A ViT's raw
    /// features share a large constant part, and cosine similarity would see little else.
    pub standardise: bool,
    /// Smallest crop, as a share of the image.
    pub min_crop_scale: f64,
    /// Epochs after which the same crops come again; absent: never. The large teacher then runs in the first of these
    /// epochs only; its features are kept in the run directory (`targets.f16`, 2 bytes per value).
    pub view_epochs: Option<u64>,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Length.
    pub schedule: ScheduleConfig,
    /// How a step is computed.
    pub train: TrainConfig,
    /// Records and checkpoints.
    pub logging: LoggingConfig,
}

impl Default for DistillRecipe {
    fn default() -> Self {
        Self {
            stage: "distill".into(),
            seed: 0,
            model: VitConfig {
                image_size: 64,
                patch_size: 8,
                width: 192,
                depth: 6,
                heads: 3,
                layer_scale_init: 0.0,
                abs_pos_emb: true,
                rel_pos_bias: RelPosKind::None,
                ..VitConfig::default()
            },
            teacher: TeacherConfig::default(),
            data: DataConfig::default(),
            standardise: true,
            min_crop_scale: 0.3,
            view_epochs: None,
            optimizer: OptimizerConfig { lr: 1e-3, clip_grad: Some(3.0), ..OptimizerConfig::default() },
            schedule: ScheduleConfig {
                epochs: 10,
                warmup_epochs: 1.0,
                batch_size: 64,
                ..ScheduleConfig::default()
            },
            train: TrainConfig::default(),
            logging: LoggingConfig { checkpoint_every: Some(200), ..LoggingConfig::default() },
        }
    }
}

impl DistillRecipe {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        if self.stage != "distill" {
            return config_error(format!(
                "this recipe's stage is `{}`; `teacher distill` needs `distill`",
                self.stage
            ));
        }
        self.logging.validate()?;
        check_interval("view_epochs", self.view_epochs)?;
        self.model.validate()?;
        if self.model.rel_pos_bias != RelPosKind::None || !self.model.abs_pos_emb {
            return config_error(
                "a distilled teacher has absolute positions and no relative bias; set model.abs_pos_emb = true and \
                 model.rel_pos_bias = \"none\"",
            );
        }
        Ok(())
    }
}
