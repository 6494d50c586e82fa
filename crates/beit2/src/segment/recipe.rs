//! A segmentation experiment as data.

use beit2_data::DecodeOptions;
use beit2_data::segment::{IGNORE, IdMap, ReduceZeroLabel, SegmentDataOptions, SegmentTrainConfig};
use beit2_kernels::Precision;
use beit2_weights::layout::Kind;
use serde::{Deserialize, Serialize};

use super::{InferConfig, SegmenterConfig};
use crate::classify::pretrained_sizes;
use crate::error::{Error, config_error};
use crate::train::{
    Assets, DataConfig, GroupRule, LoggingConfig, OptimizerConfig, SCRATCH, ScheduleConfig, TrainConfig,
    check_interval,
};
use crate::weights::StateFile;

/// `[init]`: what the backbone starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentInit {
    /// A run or weight file of a pretrained model, a classifier, a tokenizer (whose encoder is taken) or a segmentation
    /// model (whose pyramid and heads are taken too, where they fit), or [`SCRATCH`].
    pub weights: String,
    /// Take width, depth, heads and patch size from those weights instead of `model.vit`, and the heads' sizes from a
    /// segmentation model.
    pub sizes_from_weights: bool,
}

impl Default for SegmentInit {
    fn default() -> Self {
        Self { weights: String::new(), sizes_from_weights: true }
    }
}

/// `[masks]`: how masks are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MasksConfig {
    /// Whether class 0 means "nothing" and all others move down by one: `auto` (ADE20K's folders), `yes`, `no`.
    pub reduce_zero_label: ReduceZeroLabel,
    /// Number in the masks of pixels that do not count.
    pub ignore: u8,
    /// Mask values that stand for other numbers, applied first: `"255=1"` for masks of 0 and 255.
    pub map: IdMap,
}

impl Default for MasksConfig {
    fn default() -> Self {
        Self { reduce_zero_label: ReduceZeroLabel::Auto, ignore: IGNORE, map: IdMap::default() }
    }
}

impl MasksConfig {
    /// The settings of the data crate, for images that are decoded like this.
    pub fn options(&self, decode: DecodeOptions) -> SegmentDataOptions {
        SegmentDataOptions {
            decode,
            reduce_zero_label: self.reduce_zero_label,
            ignore: self.ignore,
            map: self.map.clone(),
            ..SegmentDataOptions::default()
        }
    }
}

/// `[groups]`: parameters that learn differently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentGroups {
    /// Layer-wise decay of the learning rate: each layer of the backbone learns this much slower than the one above; 1:
    /// all alike. Necks and heads have the full rate.
    pub layer_decay: f64,
}

impl Default for SegmentGroups {
    fn default() -> Self {
        Self { layer_decay: 0.75 }
    }
}

/// `[eval]`: when the validation set is segmented during training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentEval {
    /// Steps between evaluations; absent: only at the end.
    pub every: Option<u64>,
}

/// A complete segmentation experiment. Defaults: the paper's base model on ADE20K after pretraining (docs/method.md §5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentRecipe {
    /// Always `segment`.
    pub stage: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Operands of the trunk's matmuls; pyramid and heads are in f32.
    pub precision: Precision,
    /// What the backbone starts from.
    pub init: SegmentInit,
    /// Sizes and classes.
    pub model: SegmenterConfig,
    /// Images.
    pub data: DataConfig,
    /// Masks.
    pub masks: MasksConfig,
    /// Augmentation of images and masks.
    pub augment: SegmentTrainConfig,
    /// Optimiser. The learning rate rises during the warm-up and then falls in a straight line.
    pub optimizer: OptimizerConfig,
    /// Parameter groups.
    pub groups: SegmentGroups,
    /// Length.
    pub schedule: ScheduleConfig,
    /// How a step is computed.
    pub train: TrainConfig,
    /// Evaluation.
    pub eval: SegmentEval,
    /// How images are seen in an evaluation, and later by `segment predict`.
    pub infer: InferConfig,
    /// Records and checkpoints.
    pub logging: LoggingConfig,
}

impl Default for SegmentRecipe {
    fn default() -> Self {
        Self {
            stage: "segment".into(),
            seed: 0,
            precision: Precision::F32,
            init: SegmentInit::default(),
            model: SegmenterConfig::default(),
            data: DataConfig::default(),
            masks: MasksConfig::default(),
            augment: SegmentTrainConfig::default(),
            optimizer: OptimizerConfig { lr: 5e-5, min_lr: 0.0, ..OptimizerConfig::default() },
            groups: SegmentGroups::default(),
            schedule: ScheduleConfig {
                // As many of ADE20K's 20,210 images as the steps take.
                epochs: 127,
                steps: Some(160_000),
                warmup_epochs: 1.2,
                warmup_steps: Some(1500),
                batch_size: 16,
                ..ScheduleConfig::default()
            },
            eval: SegmentEval { every: Some(16_000) },
            infer: InferConfig::default(),
            train: TrainConfig::default(),
            logging: LoggingConfig { checkpoint_every: Some(16_000), ..LoggingConfig::default() },
        }
    }
}

impl SegmentRecipe {
    /// Fills in what other files decide: the sizes of the weights that the backbone starts from, and the classes of the
    /// masks. Doing it twice changes nothing.
    ///
    /// # Errors
    /// Weights that hold no such model, masks without classes or with others than the recipe says.
    pub fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        let given = !self.init.weights.is_empty() && !self.is_from_scratch();
        if given && !self.init.sizes_from_weights {
            let state = StateFile::new(assets.weights(&self.init.weights)?, &self.init.weights)?;
            self.model.vit.normalization = self.model.vit.normalization.take().or(state.normalization());
        } else if given {
            let state = StateFile::new(assets.weights(&self.init.weights)?, &self.init.weights)?;
            let sizes = if state.summary.layout.kind == Kind::Segmentation {
                // Its pyramid and heads are taken too, as far as the classes allow.
                let found = SegmenterConfig::of_file(&state)?;
                let model = &mut self.model;
                (model.out_indices, model.pool_scales) = (found.out_indices, found.pool_scales);
                (model.channels, model.aux_channels) = (found.channels, found.aux_channels);
                model.aux_index = found.aux_index;
                found.vit
            } else {
                pretrained_sizes(&state)?
            };
            self.model.vit.take_sizes(sizes);
        }
        if self.data.train.is_empty() {
            return Ok(());
        }
        let source =
            assets.segment_source(&self.data.train, &self.masks.options(self.data.decode_options()))?;
        let (names, palette) = (source.class_names(), source.palette());
        let (given, found) = (*self.model.classes.get_or_insert(names.len()), names.len());
        if given != found {
            return config_error(format!(
                "model.classes is {given}, but {} has {found} classes; set it to {found} or leave it out",
                self.data.train
            ));
        }
        (self.model.class_names, self.model.palette) = (names.to_vec(), palette.to_vec());
        Ok(())
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        if self.stage != "segment" {
            return config_error(format!(
                "this recipe's stage is `{}`; `segment train` needs `segment`",
                self.stage
            ));
        }
        self.logging.validate()?;
        check_interval("eval.every", self.eval.every)?;
        if self.init.weights.is_empty() {
            return config_error(format!(
                "init.weights is empty; name a pretrained run or weight file, or `{SCRATCH}` to start from random numbers"
            ));
        }
        if self.optimizer.min_lr != 0.0 {
            return config_error(format!(
                "optimizer.min_lr is {}; the learning rate of segmentation falls to 0 in a straight line",
                self.optimizer.min_lr
            ));
        }
        if self.model.vit.in_chans != 3 {
            return config_error(format!(
                "model.vit.in_chans is {}, but segmentation takes RGB images (in_chans = 3)",
                self.model.vit.in_chans
            ));
        }
        self.model.validate()?;
        if !(self.groups.layer_decay > 0.0 && self.groups.layer_decay <= 1.0) {
            return config_error(format!(
                "groups.layer_decay {} must be above 0 and at most 1 (1 turns it off)",
                self.groups.layer_decay
            ));
        }
        let division = self.schedule.division(1, 1)?;
        if division.micro_batch() < 2 {
            return config_error(format!(
                "schedule.batch_size {} in {} micro-batches leaves one crop to each; averaged to one pixel it has no variance \
                 for batch norm, so a micro-batch needs at least 2",
                self.schedule.batch_size, division.micro_batches
            ));
        }
        self.augmentation().validate()?;
        self.infer.validate(self.model.vit.image_size)
    }

    /// Whether no weights are loaded.
    pub fn is_from_scratch(&self) -> bool {
        self.init.weights == SCRATCH
    }

    /// The augmentation at the model's input size.
    pub fn augmentation(&self) -> SegmentTrainConfig {
        SegmentTrainConfig { crop_size: self.model.vit.image_size as u32, ..self.augment }
    }

    /// The parameter groups.
    pub fn group_rule(&self) -> GroupRule {
        let decay = self.groups.layer_decay;
        GroupRule {
            layer_decay: (decay < 1.0).then_some((decay, self.model.vit.depth)),
            ..GroupRule::flat(self.optimizer.weight_decay)
        }
    }
}
