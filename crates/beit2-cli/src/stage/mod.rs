//! What the training commands have in common, so that there is one command and five recipes.

mod distill;
mod finetune;
mod pretrain;
mod segment;
mod tokenizer;

use std::sync::Arc;

use beit2::classify::finetune::FinetuneRecipe;
use beit2::cost::Cost;
use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::tokenizer::teachers::{DistillRecipe, Teacher, TeacherConfig};
use beit2::train::{
    ActivationCheckpointing, Assets, DataConfig, Division, Env, LoggingConfig, OptimizerConfig, Outcome,
    Plan, ScheduleConfig, TrainConfig,
};
use beit2::visualize::Look;
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

use crate::fit::{Crop, Fitted, Layers};
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

    /// `[train]`, to change it.
    fn train_mut(&mut self) -> &mut TrainConfig;

    /// The key of `--image-size`.
    const IMAGE_SIZE: &'static str;

    /// The key that would let weights decide the image size in its place.
    const IMAGE_SIZE_FROM_WEIGHTS: Option<&'static str> = None;

    /// Whether a finished run can be made longer.
    const CAN_BE_EXTENDED: bool = true;

    /// Whether the recipe has a precision.
    const HAS_PRECISION: bool = true;

    /// Whether features are measured while it trains (`[monitor]`).
    const HAS_MONITORS: bool = false;

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

    /// How this many devices divide a step.
    ///
    /// # Errors
    /// A batch that does not divide evenly.
    fn division(&self, devices: usize) -> Result<Division, Error> {
        self.tables().schedule.division(devices, 1)
    }

    /// Fewest images of a micro-batch.
    fn fewest_images(&self) -> usize {
        1
    }

    /// Finds what would keep a run of `steps` steps from starting on this many devices.
    fn check_run(&self, _steps: u64, devices: usize) -> Result<(), Error> {
        self.division(devices).map(drop)
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
        (schedule.grad_accum_steps, schedule.max_micro_batch) = (1, None);
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

    /// The same with blocks that are computed again in the backward pass; `None` where they are so anyway.
    ///
    /// # Errors
    /// As [`Stage::cost`].
    fn recomputing_cost(&self, assets: &dyn Assets) -> Result<Option<Cost>, Error> {
        let mut other = self.clone();
        let train = other.train_mut();
        if train.recomputes_blocks() {
            return Ok(None);
        }
        train.activation_checkpointing = ActivationCheckpointing::Blocks;
        other.cost(assets).map(Some)
    }

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
    /// The weights that training goes on from, of stages that need none: `init.weights`.
    pub init: Option<&'a str>,
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

/// What becomes of every tensor of the initial weights, for a rehearsal.
fn init_table(plan: &beit2_weights::plan::Plan) -> String {
    format!("init: {}", plan.to_string().trim_end())
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
