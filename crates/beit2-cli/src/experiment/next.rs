//! The command that comes after a complete run, whole and quoted: pasted as it is, it works.

use std::path::{Path, PathBuf};

use beit2::classify::finetune::FinetuneRecipe;
use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::tokenizer::teachers::DistillRecipe;
use beit2::train::{DataConfig, Plan};
use beit2::weights;
use beit2_data::Source;
use beit2_run::checkpoint;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::inputs::Inputs;
use super::provenance::command_line;
use crate::assets::AssetStore;
use crate::device::DeviceSpec;
use crate::recipes::{self, Recipe};
use crate::stage::Stage;

/// A run that is complete.
pub(super) struct Ran<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) dir: &'a Path,
    pub(super) inputs: &'a Inputs,
    pub(super) assets: &'a AssetStore,
    pub(super) device: &'a DeviceSpec,
}

/// Key and value.
type Change = (String, String);

/// The next command; `None` where none is known to work.
pub(super) fn next<S: Stage>(settings: &S, ran: &Ran<'_>) -> Option<String> {
    let table = Table::try_from(settings).ok()?;
    let args = match S::NAME {
        TokenizerRecipe::NAME => ran.pretrain(&concrete(table)?),
        PretrainRecipe::NAME => ran.finetune(&concrete(table)?).or_else(|| ran.embed()),
        FinetuneRecipe::NAME => ran.predict(&["predict"], &[]),
        SegmentRecipe::NAME => {
            let out = ran.dir.join("predictions").display().to_string();
            ran.predict(&["segment", "predict"], &["--out", &out])
        }
        DistillRecipe::NAME => ran.tokenizer(&concrete(table)?),
        _ => None,
    }?;
    Some(command_line(args))
}

fn concrete<T: DeserializeOwned>(table: Table) -> Option<T> {
    table.try_into().ok()
}

fn change(key: &str, value: impl ToString) -> Change {
    (key.to_owned(), value.to_string())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A recipe that a command may name, with what must be changed in it.
struct Candidate<T> {
    recipe: Recipe,
    /// It lies beside the recipe of this run, or has its name: they were made for each other.
    belongs: bool,
    settings: T,
    sizes: Vec<Change>,
}

impl Ran<'_> {
    fn weights(&self) -> String {
        self.dir.display().to_string()
    }

    /// Masked image modeling with the tokenizer's ids.
    fn pretrain(&self, tokenizer: &TokenizerRecipe) -> Option<Vec<String>> {
        let model = &tokenizer.model;
        let basic = [change("tokenizer.weights", self.weights())];
        let fit = |recipe: &PretrainRecipe| {
            let (vit, mut sizes) = (&recipe.model.vit, Vec::new());
            if recipe.model.vocab_size != model.codebook_size {
                sizes.push(change("model.vocab_size", model.codebook_size));
            }
            if (vit.image_size, vit.patch_size) != (model.image_size, model.patch_size) {
                sizes.push(change("model.vit.image_size", model.image_size));
                sizes.push(change("model.vit.patch_size", model.patch_size));
            }
            if vit.in_chans != model.in_chans {
                sizes.push(change("model.vit.in_chans", model.in_chans));
            }
            sizes
        };
        let distance = |recipe: &PretrainRecipe| ratio(recipe.model.vit.width, model.width);
        let (seed, precision) = (tokenizer.seed, tokenizer.precision.to_string());
        let given = Given { data: &tokenizer.data, batch: tokenizer.schedule.batch_size, seed, precision };
        let flags = ["--tokenizer".to_owned(), self.weights()];
        self.train::<PretrainRecipe>(&basic, &flags, &given, fit, distance)
    }

    /// A classifier from the pretrained model, if the images have classes.
    fn finetune(&self, pretrain: &PretrainRecipe) -> Option<Vec<String>> {
        let train = self.source("train")?;
        if (train.classes().len() < 2 && !train.is_multi_label()) || train.check_labels().is_err() {
            return None;
        }
        let vit = &pretrain.model.vit;
        let basic = [change("init.weights", self.weights())];
        // Other sizes come from the weights.
        let fit = |recipe: &FinetuneRecipe| match recipe.init.image_size_from_weights
            || recipe.model.vit.image_size == vit.image_size
        {
            true => Vec::new(),
            false => vec![change("model.vit.image_size", vit.image_size)],
        };
        let distance = |recipe: &FinetuneRecipe| ratio(recipe.model.vit.width, vit.width);
        let (seed, precision) = (pretrain.seed, pretrain.precision.to_string());
        let given = Given { data: &pretrain.data, batch: pretrain.schedule.batch_size, seed, precision };
        let flags = ["--init".to_owned(), self.weights()];
        self.train::<FinetuneRecipe>(&basic, &flags, &given, fit, distance)
    }

    /// A tokenizer with the distilled teacher.
    fn tokenizer(&self, distilled: &DistillRecipe) -> Option<Vec<String>> {
        let last = checkpoint::latest(self.dir).ok()?.checkpoint?;
        let teacher = weights::read(&last.file("model.safetensors")).ok()?.tensors;
        let teacher_dim = *teacher.get("head.weight")?.shape.first()?;
        let model = &distilled.model;
        let basic = [change("teacher.kind", "distilled"), change("teacher.weights", self.weights())];
        let fit = |recipe: &TokenizerRecipe| {
            let mut sizes = Vec::new();
            if recipe.model.teacher_dim != teacher_dim {
                sizes.push(change("model.teacher_dim", teacher_dim));
            }
            if (recipe.model.image_size, recipe.model.patch_size) != (model.image_size, model.patch_size) {
                sizes.push(change("model.image_size", model.image_size));
                sizes.push(change("model.patch_size", model.patch_size));
            }
            for (key, given) in [
                ("teacher.layer", recipe.teacher.layer.is_some()),
                ("teacher.heads", recipe.teacher.heads.is_some()),
            ] {
                if given {
                    sizes.push(change(key, "none"));
                }
            }
            sizes
        };
        let distance = |recipe: &TokenizerRecipe| ratio(recipe.model.width, model.width);
        let (seed, precision) = (distilled.seed, "f32".to_owned());
        let given = Given { data: &distilled.data, batch: distilled.schedule.batch_size, seed, precision };
        let flags: Vec<String> = basic.iter().flat_map(set).collect();
        self.train::<TokenizerRecipe>(&basic, &flags, &given, fit, distance)
    }

    /// A training command of stage `T`: a recipe, `flags` with what `basic` sets, the images of this run, and what has
    /// to be changed in the recipe.
    fn train<T: Stage>(
        &self,
        basic: &[Change],
        flags: &[String],
        given: &Given<'_>,
        fit: impl Fn(&T) -> Vec<Change>,
        distance: impl Fn(&T) -> f64,
    ) -> Option<Vec<String>> {
        let candidates = self.recipes::<T>().into_iter().filter_map(|(recipe, belongs)| {
            let settings: T = recipes::resolve(&recipe, basic).ok()?;
            let sizes = fit(&settings);
            Some(Candidate { recipe, belongs, settings, sizes })
        });
        // The one that was made for this run, else one of the same sizes, else the nearest; then the name decides.
        let alike = |name: &str| {
            name.split('_').filter(|part| self.recipe.name.split('_').any(|p| p == *part)).count()
        };
        let cost = |c: &Candidate<T>| {
            (!c.belongs, !c.sizes.is_empty(), distance(&c.settings), usize::MAX - alike(&c.recipe.name))
        };
        let best =
            candidates.min_by(|a, b| cost(a).partial_cmp(&cost(b)).unwrap_or(std::cmp::Ordering::Equal))?;
        let Candidate { recipe, settings, mut sizes, .. } = best;

        let images = self.source("train")?.epoch_len();
        let mut named = Vec::new();
        let mut overrides = basic.to_vec();
        self.same_images(given.data, settings.tables().data, &mut named, &mut sizes, &mut overrides);
        let table = Table::try_from(&settings).ok()?;
        if table.get("precision").and_then(Value::as_str).is_some_and(|other| other != given.precision) {
            sizes.push(change("precision", &given.precision));
        }
        if settings.tables().schedule.batch_size > images {
            sizes.push(change("schedule.batch_size", given.batch.min(images)));
        }
        let seed = table.get("seed").and_then(Value::as_integer) != i64::try_from(given.seed).ok();
        if seed {
            named.extend(["--seed".to_owned(), given.seed.to_string()]);
        }
        overrides.extend(sizes.iter().cloned());

        // What would not start is not told.
        let (settings, _) = recipes::fitted::<T>(&recipe, &overrides, self.assets).ok()?;
        settings.check().ok()?;
        let tables = settings.tables();
        Plan::new(tables.schedule, tables.optimizer, images).ok()?;

        let mut args: Vec<String> = T::COMMAND.split(' ').map(str::to_owned).collect();
        args.push(recipe.origin.trim_start_matches("recipe ").to_owned());
        args.extend(named);
        args.extend_from_slice(flags);
        args.extend(sizes.iter().flat_map(set));
        args.extend(self.device());
        args.extend(self.out(&recipe.name, basic));
        Some(args)
    }

    /// Recipes of a stage: those beside this run's recipe or named like it come first.
    fn recipes<T: Stage>(&self) -> Vec<(Recipe, bool)> {
        let ours = |recipe: &Recipe| recipe.stage().as_deref() == Some(T::NAME);
        let beside =
            Path::new(&self.recipe.origin).parent().filter(|_| self.recipe.origin.ends_with(".toml"));
        let beside = beside.map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
        let mut files: Vec<PathBuf> = beside
            .and_then(|dir| std::fs::read_dir(dir).ok())
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .collect();
        files.sort();
        let found = files.iter().filter_map(|path| {
            let path = path.strip_prefix(".").unwrap_or(path);
            recipes::find(path.to_str()?).ok()
        });
        let family = |name: &str| name.split('_').next().unwrap_or_default().to_owned();
        let own = family(&self.recipe.name);
        let mut all: Vec<(Recipe, bool)> = found.map(|recipe| (recipe, true)).collect();
        all.extend(recipes::all().map(|recipe| {
            let belongs = family(&recipe.name) == own;
            (recipe, belongs)
        }));
        all.retain(|(recipe, _)| ours(recipe));
        all
    }

    /// The images of this run, read as in this run.
    fn same_images(
        &self,
        ours: &DataConfig,
        theirs: &DataConfig,
        named: &mut Vec<String>,
        sizes: &mut Vec<Change>,
        overrides: &mut Vec<Change>,
    ) {
        if theirs.train != ours.train {
            named.extend(["--data".to_owned(), ours.train.clone()]);
            overrides.push(change("data.train", &ours.train));
        }
        match (&ours.val, &theirs.val) {
            (Some(ours), theirs) if theirs.as_ref() != Some(ours) => {
                named.extend(["--val".to_owned(), ours.clone()]);
                overrides.push(change("data.val", ours));
            }
            (None, Some(_)) => sizes.push(change("data.val", "none")),
            _ => {}
        }
        let (Ok(ours), Ok(theirs)) = (Table::try_from(ours), Table::try_from(theirs)) else { return };
        for key in ["range", "exif", "background", "min_side_px", "max_bad_fraction"] {
            match ours.get(key) {
                value if value == theirs.get(key) => {}
                Some(Value::String(text)) => sizes.push(change(&format!("data.{key}"), text)),
                Some(value) => sizes.push(change(&format!("data.{key}"), value)),
                None => {}
            }
        }
    }

    fn source(&self, which: &str) -> Option<&dyn Source> {
        self.inputs.source(which)
    }

    /// Features of all images, for models whose images have no classes.
    fn embed(&self) -> Option<Vec<String>> {
        let data = self.inputs.spec("train")?;
        let out = self.dir.join("features.npy").display().to_string();
        let weights = self.weights();
        Some([words(&["embed", data, "--weights", &weights, "--out", &out]), self.device()].concat())
    }

    /// What the model makes of an image: of the first one of the validation set where it is a file, else of all of them.
    fn predict(&self, command: &[&str], more: &[&str]) -> Option<Vec<String>> {
        let which = if self.inputs.spec("val").is_some() { "val" } else { "train" };
        let first = self.source(which)?.name(0);
        let images = if Path::new(&first).is_file() { first } else { self.inputs.spec(which)?.to_owned() };
        let weights = match checkpoint::best(self.dir) {
            Some(_) => self.dir.join("best").display().to_string(),
            None => self.weights(),
        };
        let args = [words(command), words(&[&images, "--weights", &weights]), words(more), self.device()];
        Some(args.concat())
    }

    /// `--device`, where it is not the default.
    fn device(&self) -> Vec<String> {
        match self.device.first().to_string() {
            cpu if cpu == "cpu" => Vec::new(),
            device => vec!["--device".to_owned(), device],
        }
    }

    /// `--out`, where the default would not lie beside this run or belongs to another one.
    fn out(&self, recipe: &str, basic: &[Change]) -> Vec<String> {
        let beside = self.dir.parent().map_or_else(PathBuf::new, Path::to_owned);
        let named = |number: usize| match number {
            1 => beside.join(recipe),
            n => beside.join(format!("{recipe}-{n}")),
        };
        let free = |dir: &PathBuf| dir != self.dir && (!dir.exists() || continues(dir, basic));
        let Some(dir) = (1..1000).map(named).find(free) else { return Vec::new() };
        match dir == Path::new("runs").join(recipe) {
            true => Vec::new(),
            false => vec!["--out".to_owned(), dir.display().to_string()],
        }
    }
}

/// What the settings of this run say about the next one.
struct Given<'a> {
    data: &'a DataConfig,
    batch: usize,
    seed: u64,
    precision: String,
}

/// Whether a run directory is that of a run with these settings.
fn continues(dir: &Path, basic: &[Change]) -> bool {
    let text = std::fs::read_to_string(dir.join("run.toml")).unwrap_or_default();
    let Ok(table) = text.parse::<Table>() else { return false };
    let table = Value::Table(table);
    basic.iter().all(|(key, value)| {
        let found = key.split('.').try_fold(&table, |at, part| at.get(part));
        found.and_then(Value::as_str) == Some(value)
    })
}

fn set((key, value): &Change) -> [String; 2] {
    ["--set".to_owned(), format!("{key}={value}")]
}

/// How far two sizes are from each other.
fn ratio(a: usize, b: usize) -> f64 {
    (a.max(1) as f64 / b.max(1) as f64).ln().abs()
}
