//! What the training commands have in common, so that there is one command and five recipes.

use std::sync::Arc;

use beit2::classify::finetune::{self, FinetuneRecipe};
use beit2::cost::{self, Cost};
use beit2::pretrain::{self, PretrainRecipe};
use beit2::segment::{self, SegmentRecipe, SegmenterConfig};
use beit2::tokenizer::teachers::{DistillRecipe, Teacher, TeacherConfig, distill};
use beit2::tokenizer::{self, TokenizerRecipe};
use beit2::train::{
    Assets, DataConfig, Env, LoggingConfig, OptimizerConfig, Outcome, Plan, ScheduleConfig, share_batch,
};
use beit2::visualize::{self, Look};
use beit2::{Error, Precision};
use beit2_bench::Size;
use beit2_data::Source;
use beit2_data::check::{self, Findings, Set};
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::report::Examples;
use burn::backend::Flex;
use burn::tensor::DType;
use clap::Command;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fit::{self, Crop, Fitted, Layers};
use crate::flags::several_devices;

/// A recipe that can be trained.
pub trait Stage: Serialize + DeserializeOwned + Default + Clone + Sync {
    /// `stage` in its recipes.
    const NAME: &'static str;
    /// Its command.
    const COMMAND: &'static str;
    /// The recipe when none is named; `None` where the paper has none.
    const DEFAULT_RECIPE: Option<&'static str>;

    /// The tables that every recipe has.
    fn tables(&self) -> Tables<'_>;

    /// Those that follow other settings.
    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig);

    /// The key of `--image-size`.
    const IMAGE_SIZE: &'static str;

    /// The key that would let weights decide the image size in its place.
    const IMAGE_SIZE_FROM_WEIGHTS: Option<&'static str> = None;

    /// Whether the recipe has a precision.
    const HAS_PRECISION: bool = true;

    /// The settings of `--size`: as in the registered models.
    fn of_size(size: Size) -> Vec<(&'static str, String)>;

    /// The weights that decide the sizes in place of `--size`.
    fn sizes_from(&self) -> Option<&str> {
        None
    }

    /// Finds contradictions.
    fn check(&self) -> Result<(), Error>;

    /// Finds settings that a run of so many steps does not reach.
    fn check_steps(&self, _total: u64) -> Result<(), Error> {
        Ok(())
    }

    /// Lets settings that only this stage has follow those that were changed.
    fn fit(&mut self, _layers: &Layers<Self>, _said: &mut Fitted) {}

    /// Settings that can mean little, one sentence each.
    fn doubts(&self) -> Vec<String> {
        Vec::new()
    }

    /// How images are cropped, where a crop is resized to the input.
    fn crop(&self) -> Option<Crop> {
        None
    }

    /// Trains or continues on one device, as one of the ranks of `env`.
    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error>;

    /// Looks at a finished run for its report; `None` where a stage has nothing to show.
    ///
    /// # Errors
    /// Weights or images that cannot be read, an interruption.
    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error>;

    /// Micro-batches that a step is divided into.
    fn micro_batches(&self) -> usize {
        1
    }

    /// Fewest images of a micro-batch.
    fn fewest_images(&self) -> usize {
        1
    }

    /// Finds what would keep a run of `steps` steps from starting on this many devices.
    fn check_run(&self, _steps: u64, devices: usize) -> Result<(), Error> {
        let batch = self.tables().schedule.batch_size;
        share_batch(batch, self.micro_batches(), devices).map(drop)
    }

    /// Evaluations of the whole validation set in a run.
    fn evaluations(&self, plan: &Plan) -> u64;

    /// Parts of the recipe that a rehearsal leaves out: what takes many images or writes outside of the run directory.
    fn leave_out(&mut self) {}

    /// `[logging]`.
    fn logging(&self) -> &LoggingConfig;

    /// `[logging]`, to change it.
    fn logging_mut(&mut self) -> &mut LoggingConfig;

    /// Most checkpoints that a run has at once: the newest ones, and the best one.
    fn most_checkpoints(&self) -> usize {
        self.logging().keep_checkpoints.max(1) + usize::from(self.tables().data.val.is_some())
    }

    /// Whether its checkpoints have averages of the weights.
    fn keeps_averages(&self) -> bool {
        false
    }

    /// Whether it has `grad_accum_steps`.
    fn has_micro_batches(&self) -> bool {
        false
    }

    /// Operands of the matmuls, where the recipe has a precision.
    fn precision(&self) -> Option<Precision>;

    /// A recipe of two steps of this many images that trains the same model in the same way.
    fn rehearsed(&self, images: usize) -> Self {
        let mut short = self.clone();
        short.leave_out();
        let logging = LoggingConfig { log_every: 1, ..LoggingConfig::default() };
        *short.logging_mut() = logging;
        let (schedule, optimizer) = short.tables_mut();
        schedule.batch_size = images;
        schedule.steps = Some(REHEARSED_STEPS);
        schedule.warmup_steps = Some(0);
        // The rate of a real batch would be scaled to nearly nothing, and below the last rate.
        optimizer.base_batch_size = None;
        optimizer.min_lr = optimizer.min_lr.min(optimizer.lr);
        short
    }

    /// Whether the images' classes matter.
    const USES_CLASSES: bool = false;

    /// Help of --data: what the training images are.
    const IMAGES: &'static str = "Training images: a folder, tar or parquet shards, a table of paths, or bundled:train; \
        repeatable, with :weight=N for how often an epoch has each image";

    /// Help of --val.
    const VALIDATION: &'static str = "Validation images, which are measured and never trained on";

    /// Fills in what other files decide.
    fn resolve(&mut self, _assets: &dyn Assets) -> Result<(), Error> {
        Ok(())
    }

    /// What a person should know before a run is started, one sentence each.
    fn notes(&self, _assets: &dyn Assets) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// What training costs, predicted from the settings and the sizes of the frozen model that they name. Nothing of it is
    /// computed; where that model does not exist yet, [`beit2::cost`] takes its sizes instead.
    ///
    /// # Errors
    /// Weights that cannot be read or are of another kind.
    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error>;

    /// What is wrong with the images: told by a bounded look at labels, masks and a few images.
    ///
    /// # Errors
    /// Images that cannot be opened, or validation images of other classes.
    fn findings(&self, assets: &dyn Assets) -> Result<Findings, Error> {
        let data = self.tables().data;
        let sources = Sources::open(self, assets)?;
        Ok(sources.of_images(&data.of_channels(self.channels())))
    }

    /// Channels of the images that the model takes.
    fn channels(&self) -> usize {
        3
    }

    /// Opens the images that `[data]` names.
    fn source(&self, assets: &dyn Assets, spec: &str) -> Result<Arc<dyn Source>, Error> {
        assets.source(spec)
    }
}

/// Steps of a rehearsal: the first one takes memory and starts threads, the second one is timed.
const REHEARSED_STEPS: u64 = 2;

/// Evaluations at epochs' ends, and at the end.
fn at_epochs(logging: &LoggingConfig, plan: &Plan) -> u64 {
    let epochs = plan.total_steps.div_ceil(plan.steps_per_epoch.max(1));
    logging.eval_every_epochs.map_or(1, |every| epochs.div_ceil(every))
}

/// Tables of a recipe that have the same names in every stage.
pub struct Tables<'a> {
    /// `[data]`.
    pub data: &'a DataConfig,
    /// `[schedule]`.
    pub schedule: &'a ScheduleConfig,
    /// `[optimizer]`.
    pub optimizer: &'a OptimizerConfig,
    /// The setting that names the weights that training needs, and its value.
    pub weights: (&'static str, &'a str),
}

/// Help that is the same flag's in every training command and not the same sentence.
pub fn fitting_help<S: Stage>(command: Command) -> Command {
    let recipe = match S::DEFAULT_RECIPE {
        Some(name) => format!("[default: {name}]"),
        None => "(there is no default)".to_owned(),
    };
    let recipe = format!("Recipe: a name from `beit2 recipes` or a .toml file {recipe}");
    command
        .mut_arg("recipe", |arg| arg.help(recipe))
        .mut_arg("data", |arg| arg.help(S::IMAGES))
        .mut_arg("val", |arg| arg.help(S::VALIDATION))
        .mut_arg("device", several_devices)
}

/// Training and validation images.
struct Sources {
    train: Arc<dyn Source>,
    val: Option<Arc<dyn Source>>,
}

impl Sources {
    fn open<S: Stage>(stage: &S, assets: &dyn Assets) -> Result<Self, Error> {
        let data = stage.tables().data;
        let train = stage.source(assets, &data.train)?;
        let val = data.val.as_deref().map(|spec| stage.source(assets, spec)).transpose()?;
        Ok(Self { train, val })
    }

    fn train<'a>(&'a self, data: &'a DataConfig) -> Set<'a, dyn Source> {
        Set { name: &data.train, source: &self.train }
    }

    fn val<'a>(&'a self, data: &'a DataConfig) -> Option<Set<'a, dyn Source>> {
        Some(Set { name: data.val.as_deref()?, source: self.val.as_ref()? })
    }

    /// A few images decoded, and images that are in both sets.
    fn of_images(&self, data: &DataConfig) -> Findings {
        let look =
            |set| check::sample(set, &data.decode_options(), data.workers, Some(data.max_bad_fraction));
        let mut findings = look(self.train(data));
        if let Some(val) = self.val(data) {
            findings.extend(look(val));
            findings.extend(check::shared(self.train(data), val, data.workers));
        }
        findings
    }

    /// Labels that cannot teach anything. Of the validation set, its matching by name says it.
    fn of_labels(&self, data: &DataConfig) -> Findings {
        check::labels(self.train(data), None)
    }
}

/// A teacher on the CPU, to ask it for its sizes.
fn teacher(config: &TeacherConfig, assets: &dyn Assets) -> Result<Teacher<Flex>, Error> {
    Teacher::from_file(config, assets.weights(&config.weights)?, DType::F32, &Default::default())
}

/// The command that trains recipes of a stage.
pub fn command_of(stage: &str) -> Option<&'static str> {
    [
        (TokenizerRecipe::NAME, TokenizerRecipe::COMMAND),
        (PretrainRecipe::NAME, PretrainRecipe::COMMAND),
        (FinetuneRecipe::NAME, FinetuneRecipe::COMMAND),
        (DistillRecipe::NAME, DistillRecipe::COMMAND),
        (SegmentRecipe::NAME, SegmentRecipe::COMMAND),
    ]
    .into_iter()
    .find(|(name, _)| *name == stage)
    .map(|(_, command)| command)
}

/// Width, depth, heads and layer scale of `[model.vit]`.
fn vit_of_size(size: Size, layer_scale: f64) -> Vec<(&'static str, String)> {
    let vit = size.student().vit;
    vec![
        ("model.vit.width", vit.width.to_string()),
        ("model.vit.depth", vit.depth.to_string()),
        ("model.vit.heads", vit.heads.to_string()),
        ("model.vit.layer_scale_init", format!("{layer_scale:?}")),
    ]
}

impl Stage for TokenizerRecipe {
    const NAME: &'static str = "tokenizer";
    const COMMAND: &'static str = "tokenizer train";
    const DEFAULT_RECIPE: Option<&'static str> = Some("vqkd_base_clip_100e");

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, teacher, .. } = self;
        Tables { data, schedule, optimizer, weights: ("teacher.weights", &teacher.weights) }
    }

    fn channels(&self) -> usize {
        self.model.in_chans
    }

    const IMAGE_SIZE: &'static str = "model.image_size";

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        // The decoder is as wide as the encoder, as in the registered tokenizers; its depth stays the recipe's.
        let vit = size.student().vit;
        vec![
            ("model.width", vit.width.to_string()),
            ("model.depth", vit.depth.to_string()),
            ("model.heads", vit.heads.to_string()),
            ("model.decoder_width", vit.width.to_string()),
            ("model.decoder_heads", vit.heads.to_string()),
        ]
    }

    fn check_steps(&self, total: u64) -> Result<(), Error> {
        Self::check_steps(self, total)
    }

    fn fit(&mut self, layers: &Layers<Self>, said: &mut Fitted) {
        fit::kmeans_start(self, layers, said);
    }

    fn crop(&self) -> Option<Crop> {
        Some(Crop {
            input: self.model.image_size,
            patch: self.model.patch_size,
            min_scale: self.augment.min_crop_scale,
            key: "augment.min_crop_scale",
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn evaluations(&self, plan: &Plan) -> u64 {
        at_epochs(&self.logging, plan)
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    fn check_run(&self, steps: u64, devices: usize) -> Result<(), Error> {
        self.check_steps(steps)?;
        share_batch(self.schedule.batch_size, 1, devices).map(drop)
    }

    /// K-means needs more vectors than a few images have.
    fn leave_out(&mut self) {
        self.model.kmeans_init = false;
        self.codebook.kmeans_warmup_steps = 0;
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        let teacher = teacher(&self.teacher, assets)?;
        Ok(cost::tokenizer(self, &teacher.cost(self.model.grid())))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        tokenizer::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_tokenizer::<B>(self, look, device).map(Some)
    }
}

impl Stage for PretrainRecipe {
    const NAME: &'static str = "pretrain";
    const COMMAND: &'static str = "pretrain";
    const DEFAULT_RECIPE: Option<&'static str> = Some("mim_base_1600e");

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, tokenizer, .. } = self;
        Tables { data, schedule, optimizer, weights: ("tokenizer.weights", &tokenizer.weights) }
    }

    fn channels(&self) -> usize {
        self.model.vit.in_chans
    }

    const IMAGE_SIZE: &'static str = "model.vit.image_size";

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        let model = size.student();
        let mut all = vit_of_size(size, model.vit.layer_scale_init);
        all.push(("model.intermediate_layer", model.intermediate_layer.to_string()));
        all
    }

    fn fit(&mut self, layers: &Layers<Self>, said: &mut Fitted) {
        fit::masks(self, layers, said);
    }

    fn doubts(&self) -> Vec<String> {
        fit::odd_mask(self).into_iter().collect()
    }

    fn crop(&self) -> Option<Crop> {
        Some(Crop {
            input: self.model.vit.image_size,
            patch: self.model.vit.patch_size,
            min_scale: self.augment.min_crop_scale,
            key: "augment.min_crop_scale",
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        Self::resolve(self, assets)
    }

    fn evaluations(&self, plan: &Plan) -> u64 {
        at_epochs(&self.logging, plan)
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    fn leave_out(&mut self) {
        self.tokenizer.cache = None;
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        let (tokenizer, _) = self.tokenizer.open::<Flex>(assets, &Default::default())?;
        Ok(cost::pretrain(self, &tokenizer))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        pretrain::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_masked_image_model::<B>(self, look, device).map(Some)
    }
}

impl Stage for FinetuneRecipe {
    const NAME: &'static str = "finetune";
    const COMMAND: &'static str = "finetune";
    const DEFAULT_RECIPE: Option<&'static str> = Some("finetune_base_1600e");
    const USES_CLASSES: bool = true;
    const IMAGES: &'static str = "Labelled training images: a folder with one sub-folder per class, tar or parquet shards, \
        a table of paths and labels, IDX files, or bundled:train; repeatable, with :weight=N for how often an epoch has \
        each image";
    const VALIDATION: &'static str = "Labelled validation images, with classes of the same names";

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, init, .. } = self;
        Tables { data, schedule, optimizer, weights: ("init.weights", &init.weights) }
    }

    fn channels(&self) -> usize {
        self.model.vit.in_chans
    }

    const IMAGE_SIZE: &'static str = "model.vit.image_size";
    const IMAGE_SIZE_FROM_WEIGHTS: Option<&'static str> = Some("init.image_size_from_weights");

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        vit_of_size(size, size.student().vit.layer_scale_init)
    }

    fn sizes_from(&self) -> Option<&str> {
        let Self { init, .. } = self;
        (init.sizes_from_weights && !init.weights.is_empty() && !self.is_from_scratch())
            .then_some(&init.weights)
    }

    fn crop(&self) -> Option<Crop> {
        let augment = self.augmentation();
        (!augment.is_padded()).then_some(Crop {
            input: self.model.vit.image_size,
            patch: self.model.vit.patch_size,
            min_scale: augment.min_crop_scale,
            key: "augment.min_crop_scale",
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        Self::resolve(self, assets)
    }

    fn notes(&self, assets: &dyn Assets) -> Result<Vec<String>, Error> {
        let mut notes: Vec<String> = self
            .validation(assets)?
            .into_iter()
            .flat_map(|val| val.warnings)
            .map(|warning| format!("warning: {warning}"))
            .collect();
        if !self.is_from_scratch() {
            let classes = assets.source(&self.data.train)?.classes().to_vec();
            let head = finetune::load_plan(self, &classes, assets)?.head;
            notes.extend(head.map(|head| format!("head: {}", head.summary)));
        }
        Ok(notes)
    }

    fn findings(&self, assets: &dyn Assets) -> Result<Findings, Error> {
        let sources = Sources::open(self, assets)?;
        let mut findings = sources.of_labels(&self.data);
        findings.extend(sources.of_images(&self.data.of_channels(self.channels())));
        Ok(findings)
    }

    fn micro_batches(&self) -> usize {
        self.grad_accum_steps
    }

    fn evaluations(&self, plan: &Plan) -> u64 {
        at_epochs(&self.logging, plan)
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    fn check_run(&self, _steps: u64, devices: usize) -> Result<(), Error> {
        self.micro_batch(devices).map(drop)
    }

    fn leave_out(&mut self) {
        self.grad_accum_steps = 1;
    }

    fn fewest_images(&self) -> usize {
        1 + usize::from(self.mix.is_on())
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn has_micro_batches(&self) -> bool {
        true
    }

    fn keeps_averages(&self) -> bool {
        self.ema_decay.is_some()
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        Ok(cost::finetune(self, assets.source(&self.data.train)?.classes().len()))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        finetune::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_classifier::<B>(self, look, device).map(Some)
    }
}

impl Stage for SegmentRecipe {
    const NAME: &'static str = "segment";
    const COMMAND: &'static str = "segment train";
    const DEFAULT_RECIPE: Option<&'static str> = Some("segment_base_ade20k");
    const USES_CLASSES: bool = true;
    const IMAGES: &'static str = "Training images with masks: a folder with images/, masks/ and classes.txt, or a split of \
        ADE20K such as ADEChallengeData2016/images/training";
    const VALIDATION: &'static str = "Validation images with masks, in the same layout";

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, init, .. } = self;
        Tables { data, schedule, optimizer, weights: ("init.weights", &init.weights) }
    }

    const IMAGE_SIZE: &'static str = "model.vit.image_size";

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        let model =
            SegmenterConfig::named(if size == Size::Large { "large" } else { "base" }).unwrap_or_default();
        let vit = size.student().vit;
        let mut all = vit_of_size(size, model.vit.layer_scale_init);
        all.push(("model.channels", vit.width.to_string()));
        all.push(("model.out_indices", format!("{:?}", SegmenterConfig::taps(vit.depth))));
        all
    }

    fn sizes_from(&self) -> Option<&str> {
        let Self { init, .. } = self;
        (init.sizes_from_weights && !init.weights.is_empty() && !self.is_from_scratch())
            .then_some(&init.weights)
    }

    fn fit(&mut self, layers: &Layers<Self>, said: &mut Fitted) {
        fit::stride(self, layers, said);
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        Self::resolve(self, assets)
    }

    fn source(&self, assets: &dyn Assets, spec: &str) -> Result<Arc<dyn Source>, Error> {
        Ok(assets.segment_source(spec, &self.masks.options(self.data.decode_options()))?)
    }

    fn findings(&self, assets: &dyn Assets) -> Result<Findings, Error> {
        let options = self.masks.options(self.data.decode_options());
        let train = assets.segment_source(&self.data.train, &options)?;
        let val = self.data.val.as_deref().map(|spec| assets.segment_source(spec, &options)).transpose()?;
        let set = Set { name: &self.data.train, source: &train };
        let val = self.data.val.as_deref().zip(val.as_ref()).map(|(name, source)| Set { name, source });
        let (mut findings, _) = check::masks(set, val, self.data.workers);
        findings.extend(Sources::open(self, assets)?.of_images(&self.data));
        Ok(findings)
    }

    fn micro_batches(&self) -> usize {
        self.grad_accum_steps
    }

    fn evaluations(&self, plan: &Plan) -> u64 {
        self.eval.every.map_or(1, |every| plan.total_steps.div_ceil(every))
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    fn leave_out(&mut self) {
        self.grad_accum_steps = 1;
        self.eval.every = None;
    }

    /// One crop has no variance for batch norm.
    fn fewest_images(&self) -> usize {
        2
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn has_micro_batches(&self) -> bool {
        true
    }

    fn cost(&self, _assets: &dyn Assets) -> Result<Cost, Error> {
        Ok(cost::segment(self))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        segment::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_segmenter::<B>(self, look, device).map(Some)
    }
}

impl Stage for DistillRecipe {
    const NAME: &'static str = "distill";
    const COMMAND: &'static str = "teacher distill";
    const DEFAULT_RECIPE: Option<&'static str> = None;

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, teacher, .. } = self;
        Tables { data, schedule, optimizer, weights: ("teacher.weights", &teacher.weights) }
    }

    const IMAGE_SIZE: &'static str = "model.image_size";
    const HAS_PRECISION: bool = false;

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        let vit = size.student().vit;
        vec![
            ("model.width", vit.width.to_string()),
            ("model.depth", vit.depth.to_string()),
            ("model.heads", vit.heads.to_string()),
        ]
    }

    fn crop(&self) -> Option<Crop> {
        Some(Crop {
            input: self.model.image_size,
            patch: self.model.patch_size,
            min_scale: self.min_crop_scale,
            key: "min_crop_scale",
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn evaluations(&self, _plan: &Plan) -> u64 {
        0
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    /// The kept targets are a file of the run, and statistics need many images.
    fn leave_out(&mut self) {
        self.view_epochs = None;
        self.standardise = false;
    }

    fn precision(&self) -> Option<Precision> {
        None
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        let teacher = teacher(&self.teacher, assets)?;
        Ok(cost::distill(self, &teacher.cost(self.model.grid()), teacher.dim()))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        distill::<B>(self, env, device)
    }

    fn examples<B: Backend>(&self, _: &mut Look<'_>, _: &B::Device) -> Result<Option<Examples>, Error> {
        Ok(None)
    }
}
