//! Which settings an adaptation has: those of the weights' own run, or the bundled recipe's for published weights.
//!
//! Of an own run everything stays but the learning rate, which is divided by [`SLOWER`], the length and the data.

use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2::train::TrainState;
use beit2_run::checkpoint;
use toml::{Table, Value};

use super::bundled;
use crate::recipes::{self, Recipe};
use crate::stage::Stage;

/// The peak learning rate is the one that the weights were trained with divided by this.
const SLOWER: f64 = 3.0;

/// Images that a published student sees: 10,000 steps of 256, about as many steps as domain-adaptive pretraining takes in
/// language (12,500 in arXiv 2004.10964).
const IMAGES: u64 = 2_560_000;

/// Few images are not seen more often than this, many at least so often.
const EPOCHS: (u64, u64) = (10, 300);

/// An own student sees this share of the images of its first training.
const SHARE: u64 = 4;

/// The warm-up, as a share of the run.
const WARM_UP: f64 = 0.05;

/// What training starts from, and its settings.
pub struct Start {
    /// Settings as a recipe's text has them.
    table: Table,
    name: &'static str,
    origin: String,
    /// `None` where the images are not known.
    epochs: Option<u64>,
    /// Whether the settings are those of the weights' own run.
    is_own: bool,
    weights: String,
}

impl Start {
    /// Of weights for a stage, with `images` training images.
    ///
    /// # Errors
    /// A run whose record cannot be read.
    pub fn of<S: Stage>(weights: &str, images: Option<usize>) -> anyhow::Result<Self> {
        let per_epoch = |seen: u64, images: usize| seen.div_ceil(images.max(1) as u64);
        let name = bundled::<S>();
        let weights = weights.to_owned();
        let Some((run, table)) = own_run::<S>(Path::new(&weights))? else {
            let recipe = recipes::find(name)?;
            let epochs = images.map(|images| per_epoch(IMAGES, images).clamp(EPOCHS.0, EPOCHS.1));
            let table = recipe.text.parse()?;
            return Ok(Self { table, name, origin: recipe.origin, epochs, is_own: false, weights });
        };
        let seen =
            checkpoint::latest(&run)?.checkpoint.map(|newest| newest.state::<TrainState>()).transpose()?;
        let seen = seen.map_or(0, |state| state.images);
        let epochs = images.map(|images| per_epoch(seen / SHARE, images).clamp(1, EPOCHS.1));
        let origin = format!("recipe {name} (settings of {})", run.display());
        Ok(Self { table: slower(table), name, origin, epochs, is_own: true, weights })
    }

    /// The same with another number of epochs, if there is one.
    pub fn with_epochs(self, epochs: Option<u64>) -> Self {
        Self { epochs: epochs.or(self.epochs), ..self }
    }

    /// The epochs of the run when flags say `given`.
    pub fn epochs(&self, given: Option<u64>) -> Option<u64> {
        given.or(self.epochs)
    }

    /// The recipe.
    ///
    /// # Errors
    /// Settings that are no text any more.
    pub fn recipe(&self) -> anyhow::Result<Recipe> {
        let Self { name, origin, .. } = self;
        let mut table = self.table.clone();
        if let Some(epochs) = self.epochs {
            change(&mut table, "schedule", |schedule| {
                schedule.remove("steps");
                schedule.remove("warmup_steps");
                schedule.insert("epochs".into(), Value::Integer(epochs as i64));
                schedule.insert("warmup_epochs".into(), Value::Float(WARM_UP * epochs as f64));
            });
        }
        let text =
            toml::to_string(&table).with_context(|| format!("{origin} cannot be written as a recipe"))?;
        Ok(Recipe { name: (*name).to_owned(), origin: origin.clone(), text })
    }

    /// The tokenizer of a student's own run.
    pub fn tokenizer(&self) -> Option<String> {
        self.own_weights("tokenizer")
    }

    /// The teacher of a tokenizer: of its own run, or of the published one.
    pub fn teacher(&self) -> Option<String> {
        if self.is_own {
            return self.own_weights("teacher");
        }
        let name = super::weights::last_part(&self.weights).to_lowercase();
        match () {
            () if name.contains("_clip") => Some("ViT-B-16.pt".to_owned()),
            () if name.contains("_dino") => Some("dino_vitbase16_pretrain.pth".to_owned()),
            () => None,
        }
    }

    fn own_weights(&self, table: &str) -> Option<String> {
        let weights = self.table.get(table)?.get("weights")?.as_str()?;
        (self.is_own && !weights.is_empty()).then(|| weights.to_owned())
    }
}

/// The run of stage `S` that weights belong to, with its settings.
fn own_run<S: Stage>(weights: &Path) -> anyhow::Result<Option<(PathBuf, Table)>> {
    // A run, one of its links or checkpoints, or a file in a checkpoint.
    let runs = weights.ancestors().take(4).filter(|path| path.join("checkpoints").is_dir());
    let Some(run) = runs.map(Path::to_owned).find(|path| path.join("run.toml").is_file()) else {
        return Ok(None);
    };
    let file = run.join("run.toml");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let table: Table = text.parse().with_context(|| format!("{} is not valid TOML", file.display()))?;
    let is_of_stage = table.get("stage").and_then(Value::as_str) == Some(S::NAME);
    Ok(is_of_stage.then_some((run, table)))
}

/// The settings of a run as those of its adaptation.
fn slower(mut table: Table) -> Table {
    // What monitors look at, and what follows from it, belongs to the images of that run.
    for part in ["fingerprint", "environment", "extension", "monitor"] {
        table.remove(part);
    }
    change(&mut table, "optimizer", |optimizer| {
        if let Some(rate) = optimizer.get("lr").and_then(Value::as_float) {
            // As one would type it: what is printed is what is used.
            let rate = format!("{:.3e}", rate / SLOWER).parse().unwrap_or(rate / SLOWER);
            optimizer.insert("lr".into(), Value::Float(rate));
        }
    });
    change(&mut table, "init", |init| {
        init.remove("weights");
        init.insert("sizes_from_weights".into(), Value::Boolean(true));
        init.insert("image_size_from_weights".into(), Value::Boolean(true));
    });
    change(&mut table, "data", |data| {
        data.remove("train");
        data.remove("val");
    });
    // The cache holds the ids of other images.
    change(&mut table, "tokenizer", |tokenizer| drop(tokenizer.remove("cache")));
    table
}

/// Changes a part of the settings that is there or is made.
fn change(table: &mut Table, name: &str, work: impl FnOnce(&mut Table)) {
    let mut part = match table.remove(name) {
        Some(Value::Table(part)) => part,
        _ => Table::new(),
    };
    work(&mut part);
    if !part.is_empty() {
        table.insert(name.to_owned(), Value::Table(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beit2::pretrain::PretrainRecipe;

    #[test]
    fn the_length_follows_the_images() {
        let epochs = |images| Start::of::<PretrainRecipe>("beitv2.pth", Some(images)).unwrap().epochs(None);
        assert_eq!(epochs(500), Some(300));
        assert_eq!(epochs(10_000), Some(256));
        assert_eq!(epochs(100_000), Some(26));
        assert_eq!(epochs(5_000_000), Some(10));
        let recipe = Start::of::<PretrainRecipe>("beitv2.pth", Some(10_000)).unwrap().recipe().unwrap();
        let settings: PretrainRecipe = recipes::resolve(&recipe, &[]).unwrap();
        assert_eq!((settings.schedule.epochs, settings.schedule.warmup_epochs), (256, 12.8));
        assert!(settings.init.sizes_from_weights && settings.init.image_size_from_weights);
    }

    #[test]
    fn an_own_run_keeps_its_settings_and_learns_slower() {
        let table = "stage = 'pretrain'\nseed = 4\n[optimizer]\nlr = 3e-3\nbase_batch_size = 16\n[data]\ntrain = 'a'\n\
                     val = 'b'\nworkers = 3\n[tokenizer]\nweights = 'tok'\ncache = 'c'\n[monitor]\nfolder = 'd'\npatience = 2\n[fingerprint]\ntrain = 'x'\n";
        let start = Start {
            table: slower(table.parse().unwrap()),
            name: "adapt",
            origin: "recipe adapt".into(),
            epochs: Some(20),
            is_own: true,
            weights: "runs/mim".into(),
        };
        assert_eq!(start.tokenizer().as_deref(), Some("tok"));
        let settings: PretrainRecipe = recipes::resolve(&start.recipe().unwrap(), &[]).unwrap();
        assert_eq!((settings.seed, settings.optimizer.lr, settings.schedule.epochs), (4, 1e-3, 20));
        assert_eq!((settings.optimizer.base_batch_size, settings.data.workers), (Some(16), 3));
        assert_eq!((settings.monitor.folder, settings.monitor.patience), (None, None));
        assert_eq!(
            (settings.data.train.as_str(), settings.data.val, settings.tokenizer.cache),
            ("", None, None)
        );
    }
}
