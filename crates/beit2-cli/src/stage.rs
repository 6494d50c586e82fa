//! What the training commands have in common, so that there is one command and five recipes.

use std::sync::Arc;

use beit2::Error;
use beit2::classify::finetune::{self, FinetuneRecipe};
use beit2::cost::{self, Cost};
use beit2::pretrain::{self, PretrainRecipe};
use beit2::segment::{self, SegmentRecipe};
use beit2::tokenizer::teachers::{DistillRecipe, Teacher, TeacherConfig, distill};
use beit2::tokenizer::{self, TokenizerRecipe};
use beit2::train::{Assets, DataConfig, Env, OptimizerConfig, Outcome, ScheduleConfig};
use beit2::visualize::{self, Look};
use beit2_data::Source;
use beit2_data::check::{self, Findings, Set};
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::report::Examples;
use burn::backend::Flex;
use burn::tensor::DType;
use clap::Command;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::flags::several_devices;

/// A recipe that can be trained.
pub trait Stage: Serialize + DeserializeOwned + Default + Sync {
    /// `stage` in its recipes.
    const NAME: &'static str;
    /// Its command.
    const COMMAND: &'static str;
    /// The recipe when none is named; `None` where the paper has none.
    const DEFAULT_RECIPE: Option<&'static str>;

    /// The tables that every recipe has.
    fn tables(&self) -> Tables<'_>;

    /// Finds contradictions.
    fn check(&self) -> Result<(), Error>;

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
        let mut findings = check::sample(self.train(data), &data.decode_options(), data.workers);
        if let Some(val) = self.val(data) {
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

    fn check(&self) -> Result<(), Error> {
        self.validate()
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

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        Self::resolve(self, assets)
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

    fn check(&self) -> Result<(), Error> {
        self.validate()
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
