//! A fine-tuning experiment as data.

use beit2_data::classes::{ClassMatch, ClassesBy, Target, match_classes};
use beit2_data::{FinetuneConfig, MixConfig, Source};
use beit2_kernels::Precision;
use beit2_weights::layout::Kind;
use serde::{Deserialize, Serialize};

use super::HeadRows;
use crate::classify::{ClassifierConfig, EvalTable, pretrained_sizes};
use crate::error::{Error, config_error};
use crate::pixels;
use crate::train::{
    Assets, DataConfig, Division, GroupRule, LoggingConfig, OptimizerConfig, SCRATCH, ScheduleConfig,
    TrainConfig, fill_normalization,
};
use crate::weights::StateFile;

/// `[init]`: what training starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// A run or weight file of a pretrained model, a classifier or a tokenizer (whose encoder is taken), or [`SCRATCH`].
    pub weights: String,
    /// Take width, depth, heads and patch size from those weights instead of `model.vit`.
    pub sizes_from_weights: bool,
    /// Take the image size from them too, instead of `model.vit.image_size`.
    pub image_size_from_weights: bool,
    /// Which row of the head of a classifier belongs to which class of the images.
    pub classes_by: HeadRows,
    /// Factor on the fresh head, which starts training close to equal logits.
    pub head_scale: f64,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self {
            weights: String::new(),
            sizes_from_weights: true,
            image_size_from_weights: false,
            classes_by: HeadRows::Name,
            head_scale: 0.001,
        }
    }
}

/// `[groups]`: parameters that are treated differently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupsConfig {
    /// Layer-wise decay of the learning rate: each layer learns this much slower than the one above; 1: all alike.
    pub layer_decay: f64,
    /// Whether the blocks' relative position tables take weight decay, as in the reference.
    pub decay_rel_pos_bias: bool,
}

impl Default for GroupsConfig {
    fn default() -> Self {
        Self { layer_decay: 0.65, decay_rel_pos_bias: true }
    }
}

/// A complete fine-tuning experiment. Defaults: the paper's base model after 300 epochs of pretraining (docs/method.md §4.6).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneRecipe {
    /// Always `finetune`.
    pub stage: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Operands of the matmuls; everything else is f32.
    pub precision: Precision,
    /// Decay of the moving average of the parameters, which is evaluated and saved beside them; absent: none.
    pub ema_decay: Option<f64>,
    /// ε of label smoothing.
    pub label_smoothing: f64,
    /// Start.
    pub init: InitConfig,
    /// Sizes and classes.
    pub model: ClassifierConfig,
    /// Images.
    pub data: DataConfig,
    /// Augmentation of single images.
    pub augment: FinetuneConfig,
    /// Mixup and CutMix.
    pub mix: MixConfig,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Parameter groups.
    pub groups: GroupsConfig,
    /// Length.
    pub schedule: ScheduleConfig,
    /// How a step is computed.
    pub train: TrainConfig,
    /// Evaluation.
    pub eval: EvalTable,
    /// Records and checkpoints.
    pub logging: LoggingConfig,
}

impl Default for FinetuneRecipe {
    fn default() -> Self {
        let mut model = ClassifierConfig::default();
        model.vit.drop_path = 0.1;
        Self {
            stage: "finetune".into(),
            seed: 0,
            precision: Precision::F32,
            ema_decay: None,
            label_smoothing: 0.1,
            init: InitConfig::default(),
            model,
            data: DataConfig::default(),
            augment: FinetuneConfig::default(),
            mix: MixConfig::default(),
            optimizer: OptimizerConfig { lr: 5e-4, min_lr: 1e-6, ..OptimizerConfig::default() },
            groups: GroupsConfig::default(),
            schedule: ScheduleConfig {
                epochs: 100,
                warmup_epochs: 20.0,
                batch_size: 1024,
                ..ScheduleConfig::default()
            },
            eval: EvalTable::default(),
            train: TrainConfig::default(),
            logging: LoggingConfig { eval_every_epochs: Some(1), ..LoggingConfig::default() },
        }
    }
}

impl FinetuneRecipe {
    /// Fills in what other files decide: the sizes of the weights that training starts from, and the number of classes
    /// of the images. Doing it twice changes nothing.
    ///
    /// # Errors
    /// Weights that hold no such model, images without classes or with others than the recipe says.
    pub fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        let given = !self.init.weights.is_empty() && !self.is_from_scratch();
        if given {
            let state = StateFile::new(assets.weights(&self.init.weights)?, &self.init.weights)?;
            state.check_whole()?;
            if state.summary.layout.kind == Kind::Segmentation {
                return config_error(format!(
                    "{} holds a segmentation model; fine-tuning cannot start from one",
                    self.init.weights
                ));
            }
            if self.init.sizes_from_weights {
                let found = pretrained_sizes(&state)?;
                if self.init.image_size_from_weights {
                    self.model.vit.image_size = found.image_size;
                }
                self.model.vit.take_sizes(found);
            } else {
                self.model.vit.normalization = self.model.vit.normalization.take().or(state.normalization());
            }
        }
        fill_normalization(&mut self.model.vit, &self.data, assets)?;
        if self.data.train.is_empty() {
            return Ok(());
        }
        let source = assets.source(&self.data.train)?;
        let classes = source.classes().len();
        self.model.multi_label = source.is_multi_label();
        // With several labels an image, one class is a decision too.
        if classes < if self.model.multi_label { 1 } else { 2 } {
            return config_error(format!(
                "{} has {classes} classes; fine-tuning needs at least 2, one sub-folder each",
                self.data.train
            ));
        }
        let given = *self.model.classes.get_or_insert(classes);
        if given != classes {
            return config_error(format!(
                "model.classes is {given}, but {} has {classes} classes; set it to {classes} or leave it out",
                self.data.train
            ));
        }
        Ok(())
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        if self.stage != "finetune" {
            return config_error(format!(
                "this recipe's stage is `{}`; `finetune` needs `finetune`",
                self.stage
            ));
        }
        self.logging.validate()?;
        if self.init.weights.is_empty() {
            return config_error(format!(
                "init.weights is empty; name a pretrained run or weight file, or `{SCRATCH}` to start from random numbers"
            ));
        }
        self.model.vit.validate()?;
        pixels::check_normalization(self.model.vit.in_chans, self.model.vit.normalization.as_ref())?;
        for (name, value) in
            [("label_smoothing", self.label_smoothing), ("ema_decay", self.ema_decay.unwrap_or_default())]
        {
            if !(0.0..1.0).contains(&value) {
                return config_error(format!("{name} {value} must lie in [0, 1)"));
            }
        }
        if !(self.groups.layer_decay > 0.0 && self.groups.layer_decay <= 1.0) {
            return config_error(format!(
                "groups.layer_decay {} must be above 0 and at most 1 (1 turns it off)",
                self.groups.layer_decay
            ));
        }
        self.mix.validate()?;
        self.division(1)?;
        self.augmentation().validate()?;
        self.eval.view(self.model.vit.image_size).validate()?;
        Ok(())
    }

    /// The validation images with the class numbers of the training images, matched by name; `None` without a
    /// validation set.
    ///
    /// # Errors
    /// A class of the validation set that the training images do not have; images without a class in either set.
    pub fn validation(&self, assets: &dyn Assets) -> Result<Option<ClassMatch>, Error> {
        let train = assets.source(&self.data.train)?;
        train.check_labels()?;
        all_labelled(&self.data.train, train.as_ref())?;
        let Some(spec) = &self.data.val else { return Ok(None) };
        let val = assets.source(spec)?;
        val.check_labels()?;
        if val.classes().is_empty() {
            return config_error(format!(
                "{spec} has no classes; a validation set needs those of {}",
                self.data.train
            ));
        }
        all_labelled(spec, val.as_ref())?;
        if val.is_multi_label() && !train.is_multi_label() {
            return config_error(format!(
                "images of {spec} have several classes, but those of {} have one each; both need the same kind of labels",
                self.data.train
            ));
        }
        let target = Target { owner: &self.data.train, count: train.classes().len(), names: train.classes() };
        match_classes(spec, val, target, ClassesBy::Auto)
            .map(Some)
            .map_err(|error| Error::Config(error.to_string()))
    }

    /// How this many devices divide a step.
    ///
    /// # Errors
    /// A batch that does not divide evenly, or not into pairs where images are mixed.
    pub fn division(&self, devices: usize) -> Result<Division, Error> {
        let pairs = self.mix.is_on();
        let division = self.schedule.division(devices, if pairs { 2 } else { 1 })?;
        let micro_batch = division.micro_batch();
        if pairs && !micro_batch.is_multiple_of(2) {
            let each = if devices > 1 { format!(" on each of {devices} devices") } else { String::new() };
            return config_error(format!(
                "mixing pairs the images of a micro-batch, and {micro_batch}{each} is odd; change schedule.batch_size or \
                 schedule.grad_accum_steps"
            ));
        }
        Ok(division)
    }

    /// Whether no weights are loaded.
    pub fn is_from_scratch(&self) -> bool {
        self.init.weights == SCRATCH
    }

    /// The augmentation at the model's input size.
    pub fn augmentation(&self) -> FinetuneConfig {
        FinetuneConfig { input_size: self.model.vit.image_size as u32, ..self.augment }
    }

    /// The parameter groups.
    pub fn group_rule(&self) -> GroupRule {
        let decay = self.groups.layer_decay;
        GroupRule {
            weight_decay: self.optimizer.weight_decay,
            layer_decay: (decay < 1.0).then_some((decay, self.model.vit.depth)),
            exempt_tables: !self.groups.decay_rel_pos_bias,
        }
    }

    /// Images of an evaluation batch beside training on this many devices.
    pub fn eval_batch(&self, devices: usize) -> usize {
        let beside = self.division(devices).map_or(1, |division| division.micro_batch()) * 3 / 2;
        self.eval.images_per_batch.unwrap_or(beside).max(1)
    }
}

/// Refuses a set in which an image has no class, before training has begun.
fn all_labelled(spec: &str, source: &dyn Source) -> Result<(), Error> {
    let mut without = (0..source.len()).filter(|&index| source.labels(index).is_none());
    match without.next() {
        None => Ok(()),
        Some(first) => config_error(format!(
            "{spec}: {} of {} images have no class, the first is {}; fine-tuning needs classes for all",
            1 + without.count(),
            source.len(),
            source.name(first)
        )),
    }
}
