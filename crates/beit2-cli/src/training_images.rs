//! The images of training as training sees them, without training: for other programs' loaders.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use beit2::classify::finetune::{FinetuneRecipe, training_samples};
use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::{Assets, Item, TrainingData};
use beit2_data::{Samples, Source};
use beit2_run::recipe;
use burn::backend::Flex;
use toml::{Table, Value};

use crate::assets::AssetStore;
use crate::errors::usage;
use crate::recipes::{self, fitted};
use crate::stage::Stage;

/// Tables of `run.toml` that are no settings.
const NO_SETTINGS: [&str; 3] = ["fingerprint", "environment", "extension"];

/// Settings that say all about the images of a training, ready for another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingImages {
    /// The complete recipe, as TOML.
    pub settings: String,
    /// Side of the tokenizer's view in pixels, in pretraining.
    pub token_px: Option<u32>,
}

/// Opened images of a training.
pub struct OpenedImages {
    /// Of which images.
    pub source: Arc<dyn Source>,
    /// What training sees of them.
    pub samples: Samples<Item>,
    /// Patches of a side, where patches are masked.
    pub grid: Option<usize>,
    /// `pretrain`, `tokenizer` or `finetune`.
    pub stage: &'static str,
    /// Images of a batch.
    pub batch_size: usize,
    /// Seed of order, augmentation and masks.
    pub seed: u64,
}

impl TrainingImages {
    /// Those of a run, or of a recipe by name or path. `overrides` are `key=value` as of `--set`; `data.train` is one of them.
    ///
    /// # Errors
    /// No run or recipe, another stage, settings that a run would refuse.
    pub fn find(what: &str, overrides: &[(String, String)], assets: &AssetStore) -> anyhow::Result<Self> {
        let file = Path::new(what).join("run.toml");
        let is_run = file.is_file();
        let found = match is_run {
            true => {
                let text = std::fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                let mut table: Table =
                    text.parse().with_context(|| format!("{} is not valid TOML", file.display()))?;
                NO_SETTINGS.iter().for_each(|part| drop(table.remove(*part)));
                let name = what.to_owned();
                recipes::Recipe { name, origin: file.display().to_string(), text: toml::to_string(&table)? }
            }
            false => recipes::find(what)?,
        };
        match found.stage().as_deref() {
            Some(PretrainRecipe::NAME) => {
                let recipe: PretrainRecipe = settings(&found, overrides, assets, is_run)?;
                let named = !recipe.tokenizer.weights.is_empty();
                let token_px = match named {
                    true => recipe.tokenizer.open::<Flex>(assets, &Default::default())?.0.image_size,
                    false => recipe.model.vit.image_size,
                };
                Ok(Self { settings: recipe::to_toml(&recipe)?, token_px: Some(token_px as u32) })
            }
            Some(TokenizerRecipe::NAME) => {
                let recipe: TokenizerRecipe = settings(&found, overrides, assets, is_run)?;
                Ok(Self { settings: recipe::to_toml(&recipe)?, token_px: None })
            }
            Some(FinetuneRecipe::NAME) => {
                let recipe: FinetuneRecipe = settings(&found, overrides, assets, is_run)?;
                Ok(Self { settings: recipe::to_toml(&recipe)?, token_px: None })
            }
            stage => usage(format!(
                "{} is of stage `{}`; images are given for pretrain, tokenizer and finetune",
                found.origin,
                stage.unwrap_or_default()
            )),
        }
    }

    /// Opens them.
    ///
    /// # Errors
    /// Images that cannot be read, settings out of range.
    pub fn open(&self, assets: &AssetStore) -> anyhow::Result<OpenedImages> {
        let table: Table = self.settings.parse()?;
        Ok(match table.get("stage").and_then(Value::as_str) {
            Some(PretrainRecipe::NAME) => {
                let recipe: PretrainRecipe = self.parsed()?;
                let source = assets.source(&named(&recipe.data.train)?)?;
                let config = recipe.data.of_channels(recipe.model.vit.in_chans);
                let data = TrainingData {
                    source: source.clone(),
                    config: &config,
                    batch_size: recipe.schedule.batch_size,
                    views: recipe.views(self.token_px.map_or(recipe.model.vit.image_size, |px| px as usize)),
                    mask: Some(recipe.block_mask()),
                    seed: recipe.seed,
                };
                let grid = Some(recipe.model.vit.grid());
                opened(PretrainRecipe::NAME, source, data.samples()?, grid, data.batch_size, recipe.seed)
            }
            Some(TokenizerRecipe::NAME) => {
                let recipe: TokenizerRecipe = self.parsed()?;
                let source = assets.source(&named(&recipe.data.train)?)?;
                let config = recipe.data.of_channels(recipe.model.in_chans);
                let data = TrainingData {
                    source: source.clone(),
                    config: &config,
                    batch_size: recipe.schedule.batch_size,
                    // Only the tokenizer's own: the teacher, whose weights say its size, may not be here.
                    views: recipe.views(recipe.model.image_size),
                    mask: None,
                    seed: recipe.seed,
                };
                opened(TokenizerRecipe::NAME, source, data.samples()?, None, data.batch_size, recipe.seed)
            }
            _ => {
                let recipe: FinetuneRecipe = self.parsed()?;
                let source = assets.source(&named(&recipe.data.train)?)?;
                let samples = training_samples(source.clone(), &recipe)?;
                let batch = recipe.schedule.batch_size;
                opened(FinetuneRecipe::NAME, source, samples, None, batch, recipe.seed)
            }
        })
    }

    fn parsed<S: Stage>(&self) -> anyhow::Result<S> {
        Ok(recipe::resolve(&self.settings, "settings", &[], &[])?)
    }
}

/// A run's settings as they are, a recipe's as a run would have them.
fn settings<S: Stage>(
    found: &recipes::Recipe,
    overrides: &[(String, String)],
    assets: &AssetStore,
    is_run: bool,
) -> anyhow::Result<S> {
    match is_run {
        true => recipes::resolve(found, overrides),
        false => Ok(fitted(found, overrides, assets)?.0),
    }
}

fn named(data: &str) -> anyhow::Result<String> {
    match data.is_empty() {
        true => usage("the recipe names no images; say which with data"),
        false => Ok(data.to_owned()),
    }
}

fn opened(
    stage: &'static str,
    source: Arc<dyn Source>,
    samples: Samples<Item>,
    grid: Option<usize>,
    batch_size: usize,
    seed: u64,
) -> OpenedImages {
    OpenedImages { source, samples, grid, stage, batch_size, seed }
}
