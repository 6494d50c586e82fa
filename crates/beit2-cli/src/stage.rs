//! What the training commands have in common, so that there is one command and three recipes.

use beit2::Error;
use beit2::pretrain::{self, PretrainRecipe};
use beit2::tokenizer::teachers::{DistillRecipe, distill};
use beit2::tokenizer::{self, TokenizerRecipe};
use beit2::train::{DataConfig, Env, OptimizerConfig, Outcome, ScheduleConfig};
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

    /// Finds contradictions.
    fn check(&self) -> Result<(), Error>;

    /// `[data]`.
    fn data(&self) -> &DataConfig;

    /// `[schedule]`.
    fn schedule(&self) -> &ScheduleConfig;

    /// `[optimizer]`.
    fn optimizer(&self) -> &OptimizerConfig;

    /// The setting that names the weights that it starts from, and its value.
    fn weights(&self) -> (&'static str, &str);

    /// Trains or continues.
    fn train<B: AutodiffBackend>(
        &self,
        run_toml: &str,
        env: Env<'_>,
        device: &B::Device,
    ) -> Result<Outcome, Error>;
}

/// The command that trains recipes of a stage.
pub fn command_of(stage: &str) -> Option<&'static str> {
    [
        (TokenizerRecipe::NAME, TokenizerRecipe::COMMAND),
        (PretrainRecipe::NAME, PretrainRecipe::COMMAND),
        (DistillRecipe::NAME, DistillRecipe::COMMAND),
    ]
    .into_iter()
    .find(|(name, _)| *name == stage)
    .map(|(_, command)| command)
}

impl Stage for TokenizerRecipe {
    const NAME: &'static str = "tokenizer";
    const COMMAND: &'static str = "tokenizer train";
    const DEFAULT_RECIPE: &'static str = "vqkd_base_clip_100e";

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn data(&self) -> &DataConfig {
        &self.data
    }

    fn schedule(&self) -> &ScheduleConfig {
        &self.schedule
    }

    fn optimizer(&self) -> &OptimizerConfig {
        &self.optimizer
    }

    fn weights(&self) -> (&'static str, &str) {
        ("teacher.weights", &self.teacher.weights)
    }

    fn train<B: AutodiffBackend>(
        &self,
        run_toml: &str,
        env: Env<'_>,
        device: &B::Device,
    ) -> Result<Outcome, Error> {
        tokenizer::train::<B>(self, run_toml, env, device)
    }
}

impl Stage for PretrainRecipe {
    const NAME: &'static str = "pretrain";
    const COMMAND: &'static str = "pretrain";
    const DEFAULT_RECIPE: &'static str = "mim_base_1600e";

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn data(&self) -> &DataConfig {
        &self.data
    }

    fn schedule(&self) -> &ScheduleConfig {
        &self.schedule
    }

    fn optimizer(&self) -> &OptimizerConfig {
        &self.optimizer
    }

    fn weights(&self) -> (&'static str, &str) {
        ("tokenizer.weights", &self.tokenizer.weights)
    }

    fn train<B: AutodiffBackend>(
        &self,
        run_toml: &str,
        env: Env<'_>,
        device: &B::Device,
    ) -> Result<Outcome, Error> {
        pretrain::train::<B>(self, run_toml, env, device)
    }
}

impl Stage for DistillRecipe {
    const NAME: &'static str = "distill";
    const COMMAND: &'static str = "teacher distill";
    // There is no paper behind this stage; a recipe must be named.
    const DEFAULT_RECIPE: &'static str = "";

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn data(&self) -> &DataConfig {
        &self.data
    }

    fn schedule(&self) -> &ScheduleConfig {
        &self.schedule
    }

    fn optimizer(&self) -> &OptimizerConfig {
        &self.optimizer
    }

    fn weights(&self) -> (&'static str, &str) {
        ("teacher.weights", &self.teacher.weights)
    }

    fn train<B: AutodiffBackend>(
        &self,
        run_toml: &str,
        env: Env<'_>,
        device: &B::Device,
    ) -> Result<Outcome, Error> {
        distill::<B>(self, run_toml, env, device)
    }
}
