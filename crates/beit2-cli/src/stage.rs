//! What the training commands have in common, so that there is one command and three recipes.

use std::sync::Arc;

use beit2::Error;
use beit2::classify::finetune::{self, FinetuneRecipe};
use beit2::pretrain::{self, PretrainRecipe};
use beit2::segment::{self, SegmentRecipe};
use beit2::tokenizer::teachers::{DistillRecipe, distill};
use beit2::tokenizer::{self, TokenizerRecipe};
use beit2::train::{Assets, DataConfig, Env, OptimizerConfig, Outcome, ScheduleConfig, on_devices};
use beit2_data::Source;
use beit2_kernels::AutodiffBackend;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A recipe that can be trained.
pub trait Stage: Serialize + DeserializeOwned + Default {
    /// `stage` in its recipes.
    const NAME: &'static str;
    /// Its command.
    const COMMAND: &'static str;
    /// The recipe when none is named.
    const DEFAULT_RECIPE: &'static str;

    /// Whether the images' classes matter.
    const USES_CLASSES: bool;

    /// Fills in what other files decide.
    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error>;

    /// Finds contradictions.
    fn check(&self) -> Result<(), Error>;

    /// `[data]`.
    fn data(&self) -> &DataConfig;

    /// Opens the images that `[data]` names.
    fn source(&self, assets: &dyn Assets, spec: &str) -> Result<Arc<dyn Source>, Error>;

    /// `[schedule]`.
    fn schedule(&self) -> &ScheduleConfig;

    /// `[optimizer]`.
    fn optimizer(&self) -> &OptimizerConfig;

    /// The setting that names the weights that it starts from, and its value.
    fn weights(&self) -> (&'static str, &str);

    /// Trains or continues, on all devices.
    fn train<B: AutodiffBackend>(&self, env: Env<'_>, devices: &[B::Device]) -> Result<Outcome, Error>;
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

/// A recipe type whose tables have the usual names. `weights` is where its starting weights are named.
macro_rules! stage {
    ($recipe:ty, $name:literal, $command:literal, $default:literal, $classes:literal, $resolve:expr,
     images $open:expr, weights $table:ident, train $train:path) => {
        impl Stage for $recipe {
            const NAME: &'static str = $name;
            const COMMAND: &'static str = $command;
            const DEFAULT_RECIPE: &'static str = $default;
            const USES_CLASSES: bool = $classes;

            fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
                $resolve(self, assets)
            }

            fn check(&self) -> Result<(), Error> {
                self.validate()
            }

            fn data(&self) -> &DataConfig {
                &self.data
            }

            fn source(&self, assets: &dyn Assets, spec: &str) -> Result<Arc<dyn Source>, Error> {
                $open(self, assets, spec)
            }

            fn schedule(&self) -> &ScheduleConfig {
                &self.schedule
            }

            fn optimizer(&self) -> &OptimizerConfig {
                &self.optimizer
            }

            fn weights(&self) -> (&'static str, &str) {
                (concat!(stringify!($table), ".weights"), &self.$table.weights)
            }

            fn train<B: AutodiffBackend>(
                &self,
                env: Env<'_>,
                devices: &[B::Device],
            ) -> Result<Outcome, Error> {
                on_devices::<B>(devices, env, |env, device| $train(self, env, device))
            }
        }
    };
}

fn complete<S>(_: &mut S, _: &dyn Assets) -> Result<(), Error> {
    Ok(())
}

fn plain<S>(_: &S, assets: &dyn Assets, spec: &str) -> Result<Arc<dyn Source>, Error> {
    assets.source(spec)
}

fn with_masks(recipe: &SegmentRecipe, assets: &dyn Assets, spec: &str) -> Result<Arc<dyn Source>, Error> {
    Ok(assets.segment_source(spec, &recipe.masks.options())?)
}

stage!(TokenizerRecipe, "tokenizer", "tokenizer train", "vqkd_base_clip_100e", false, complete,
    images plain, weights teacher, train tokenizer::train::<B>);
stage!(PretrainRecipe, "pretrain", "pretrain", "mim_base_1600e", false, complete,
    images plain, weights tokenizer, train pretrain::train::<B>);
stage!(FinetuneRecipe, "finetune", "finetune", "finetune_base_1600e", true, FinetuneRecipe::resolve,
    images plain, weights init, train finetune::train::<B>);
stage!(SegmentRecipe, "segment", "segment train", "segment_base_ade20k", true, SegmentRecipe::resolve,
    images with_masks, weights init, train segment::train::<B>);
// There is no paper behind this stage; a recipe must be named.
stage!(DistillRecipe, "distill", "teacher distill", "", false, complete,
    images plain, weights teacher, train distill::<B>);
