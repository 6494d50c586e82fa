//! What every training command takes.

use std::path::{Path, PathBuf};

use beit2_bench::Size;
use beit2_data::source::AND;
use beit2_kernels::Precision;
use beit2_run::recipe;
use clap::{Args, ValueHint};

use super::{DeviceArgs, EntryArg, OutputArgs, one_of, precision};
use crate::errors::usage;
use crate::output;
use crate::ranks::RankArgs;
use crate::stage::Stage;

/// A recipe, changes to it, and where and how to run it.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Recipe: a name from `beit2 recipes` or a .toml file
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<String>,

    /// Run directory; a run that is already there is continued [default: runs/ and the recipe's name]
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,

    /// Start over; a run that is already in the directory is moved aside
    #[arg(long, conflicts_with = "resume")]
    pub restart: bool,

    /// Continue the run in the directory; this is the default, and `--restart` is its opposite
    #[arg(long)]
    pub resume: bool,

    /// Training images: a folder, tar or parquet shards, a table of paths, or bundled:train; repeatable, with
    /// :weight=N for how often an epoch has each image
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub data: Vec<String>,

    /// Validation images
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub val: Option<String>,

    /// Passes over the training images
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "steps")]
    pub epochs: Option<u64>,

    /// Optimiser steps in all, instead of epochs
    #[arg(long, value_name = "N", value_parser = count)]
    pub steps: Option<u64>,

    /// Images of a step, on all devices; the learning rate follows it unless --lr is given
    #[arg(long, value_name = "N", value_parser = count)]
    pub batch_size: Option<u64>,

    /// Peak learning rate, used as it is
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub lr: Option<f64>,

    /// Side of the model's input in pixels
    #[arg(long, value_name = "PX", value_parser = side)]
    pub image_size: Option<u64>,

    /// Width, depth and heads of a registered model
    #[arg(long, value_name = "SIZE", value_parser = one_of(&Size::ALL, Size::name))]
    pub size: Option<Size>,

    /// Precision of matmul operands: f32, or bf16 (faster where the hardware has it)
    #[arg(long, value_name = "TYPE", value_parser = precision())]
    pub precision: Option<Precision>,

    /// Images whose features are measured while the model trains, best with one sub-folder per class [default: those of
    /// --val, else some of --data]
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub monitor: Option<String>,

    /// Images of what the model could do before, to see what it forgets
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub monitor_forgetting: Option<String>,

    /// Metric that decides which checkpoint is `best`, such as monitor_knn_top1 [default: val_loss]
    #[arg(long, value_name = "METRIC")]
    pub best: Option<String>,

    /// End the run when that metric has not improved so many times in a row
    #[arg(long, value_name = "N", value_parser = count)]
    pub patience: Option<u64>,

    /// Change a setting of the recipe, by its full key or an unambiguous ending of it; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,

    /// Seed of all random numbers
    #[arg(long, value_name = "N", value_parser = seed)]
    pub seed: Option<u64>,

    /// Threads that decode and augment images; the result does not depend on it
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    /// Train although the look at labels, masks and a few images finds that the result would mean nothing
    #[arg(long)]
    pub no_check: bool,

    /// Rehearse: print the resolved recipe, check images and weights, try two steps on a few images, and tell what a run
    /// takes; nothing is written
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub entry: EntryArg,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub ranks: RankArgs,
}

/// What a flag sets: the flag as it was typed, the key, the value.
type Named = (String, &'static str, String);

impl TrainArgs {
    /// All changes to a recipe of stage `S`, as pairs of key and value; `extra` are those by the command's own flags.
    ///
    /// # Errors
    /// A flag that the stage does not have, or a flag and `--set` for the same setting.
    pub fn overrides<S: Stage>(&self, extra: Vec<(String, String)>) -> anyhow::Result<Vec<(String, String)>> {
        let named = self.named::<S>()?;
        self.check_twice::<S>(&named, &extra)?;
        let named = named.into_iter().map(|(_, key, value)| (key.to_owned(), value));
        Ok(self.set.iter().cloned().chain(named).chain(extra).collect())
    }

    fn named<S: Stage>(&self) -> anyhow::Result<Vec<Named>> {
        let mut named = Vec::new();
        let mut add = |flag: &str, key, value: Option<String>| {
            named.extend(value.map(|value| (format!("{flag} {value}"), key, value)));
        };
        add("--data", "data.train", (!self.data.is_empty()).then(|| self.data.join(AND)));
        add("--val", "data.val", self.val.clone());
        add("--epochs", "schedule.epochs", self.epochs.map(|n| n.to_string()));
        add("--steps", "schedule.steps", self.steps.map(|n| n.to_string()));
        add("--batch-size", "schedule.batch_size", self.batch_size.map(|n| n.to_string()));
        // As Rust prints it, so that `.5` is a number in TOML too.
        add("--lr", "optimizer.lr", self.lr.map(|rate| format!("{rate:?}")));
        add("--image-size", S::IMAGE_SIZE, self.image_size.map(|px| px.to_string()));
        if let (Some(key), Some(_)) = (S::IMAGE_SIZE_FROM_WEIGHTS, self.image_size) {
            named.push(("--image-size".to_owned(), key, "false".to_owned()));
        }
        if let Some(size) = self.size {
            let flag = format!("--size {}", size.name());
            named.extend(S::of_size(size).into_iter().map(|(key, value)| (flag.clone(), key, value)));
        }
        match self.precision {
            Some(Precision::F32) | None if !S::HAS_PRECISION => {}
            Some(precision) if !S::HAS_PRECISION => {
                return usage(format!(
                    "--precision {precision} is not for `beit2 {}`, which always computes in f32; leave it out",
                    S::COMMAND
                ));
            }
            precision => {
                let value = precision.map(|precision| precision.to_string());
                named.extend(value.map(|value| (format!("--precision {value}"), "precision", value)));
            }
        }
        let patience = self.patience.map(|n| n.to_string());
        for (flag, key, value) in [
            ("--monitor", "monitor.folder", &self.monitor),
            ("--monitor-forgetting", "monitor.forgetting_folder", &self.monitor_forgetting),
            ("--best", "monitor.best", &self.best),
            ("--patience", "monitor.patience", &patience),
        ] {
            let Some(value) = value else { continue };
            if !S::HAS_MONITORS {
                return usage(format!(
                    "{flag} is for `beit2 tokenizer train` and `beit2 pretrain`; leave it out"
                ));
            }
            named.push((format!("{flag} {value}"), key, value.clone()));
        }
        let seed = self.seed.map(|n| n.to_string());
        named.extend(seed.map(|value| (format!("--seed {value}"), "seed", value)));
        let workers = self.workers.map(|n| n.to_string());
        named.extend(workers.map(|value| (format!("--workers {value}"), "data.workers", value)));
        Ok(named)
    }

    /// Refuses two ways of saying the same, of which one would lose without a word.
    fn check_twice<S: Stage>(&self, named: &[Named], extra: &[(String, String)]) -> anyhow::Result<()> {
        let own = extra.iter().map(|(key, value)| (own_flag(key, value), key.as_str()));
        let named: Vec<(String, &str)> =
            named.iter().map(|(flag, key, _)| (flag.clone(), *key)).chain(own).collect();
        let mut length = named
            .iter()
            .find(|(_, key)| is_a_length(key))
            .map(|(flag, key)| (flag.clone(), (*key).to_owned()));
        for (typed, value) in &self.set {
            let said = format!("--set {typed}={value}");
            // A name that is none is said where recipes are resolved.
            let keys = recipe::given::<S>(&[(typed.clone(), value.clone())]).unwrap_or_default();
            for (key, parsed) in keys {
                if let Some((flag, _)) = named.iter().find(|(_, named)| *named == key) {
                    return usage(format!("{flag} and {said} both set `{key}`; give it once"));
                }
                if !is_a_length(&key) || parsed.as_str() == Some("none") {
                    continue;
                }
                match &length {
                    Some((other, earlier)) if *earlier != key => {
                        return usage(format!(
                            "{other} and {said} both say how long the run is; give either epochs or steps"
                        ));
                    }
                    _ => length = Some((said.clone(), key)),
                }
            }
        }
        Ok(())
    }

    /// Refuses `--size` where weights decide the sizes.
    ///
    /// # Errors
    /// One sentence that says which weights do.
    pub fn check_size<S: Stage>(&self, settings: &S) -> anyhow::Result<()> {
        match (self.size, settings.sizes_from()) {
            (Some(size), Some(weights)) => usage(format!(
                "--size {} cannot be had: {weights} decides the sizes (init.sizes_from_weights); leave --size out, or start \
                 from random numbers with --init scratch",
                size.name()
            )),
            _ => Ok(()),
        }
    }

    /// Says that `--resume` is the default, or that there is nothing to resume.
    pub fn tell_resume(&self, dir: &Path) {
        if !self.resume {
            return;
        }
        let place = dir.display();
        if !dir.join("run.toml").is_file() {
            output::warning(&format!("--resume finds no run in {place}, so a new one starts there"));
        } else if !self.output.quiet {
            output::note(&format!(
                "--resume is the default: the run in {place} is continued; --restart would start over"
            ));
        }
    }
}

fn is_a_length(key: &str) -> bool {
    key == "schedule.epochs" || key == "schedule.steps"
}

/// How a command's own flag was typed.
fn own_flag(key: &str, value: &str) -> String {
    let flag = match key {
        "tokenizer.weights" => "--tokenizer",
        "init.weights" => "--init",
        "init.classes_by" => "--classes-by",
        key => key,
    };
    format!("{flag} {value}")
}

/// `KEY=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, such as optimizer.lr=1e-3".to_owned()),
    }
}

/// TOML's largest integer: recipes could not hold more.
const LARGEST: u64 = i64::MAX as u64;

fn whole(text: &str, least: u64) -> Option<u64> {
    text.trim().parse().ok().filter(|n| (least..=LARGEST).contains(n))
}

fn count(text: &str) -> Result<u64, String> {
    whole(text, 1).ok_or_else(|| "it must be a whole number of at least 1".to_owned())
}

fn seed(text: &str) -> Result<u64, String> {
    whole(text, 0).ok_or_else(|| format!("a seed is a whole number from 0 to {LARGEST}"))
}

fn side(text: &str) -> Result<u64, String> {
    whole(text, 1).ok_or_else(|| "it must be the side of a square in pixels, such as 224".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.trim().parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    rate.ok_or_else(|| "a learning rate is a number above 0, such as 1e-3".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use beit2::classify::finetune::FinetuneRecipe;
    use beit2::pretrain::PretrainRecipe;
    use beit2::segment::SegmentRecipe;
    use beit2::tokenizer::TokenizerRecipe;
    use beit2::tokenizer::teachers::DistillRecipe;
    use clap::{FromArgMatches, error::Error};

    fn parse(line: &[&str]) -> Result<TrainArgs, Error> {
        let command = TrainArgs::augment_args(clap::Command::new("train"));
        let line = ["train"].iter().chain(line);
        TrainArgs::from_arg_matches(&command.try_get_matches_from(line)?)
    }

    fn overrides<S: Stage>(line: &[&str]) -> Vec<(String, String)> {
        parse(line).unwrap().overrides::<S>(Vec::new()).unwrap()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn flags_and_set_are_one_list() {
        let found = overrides::<PretrainRecipe>(&["x", "--set", "lr=1", "--data", "a=b", "--seed", "3"]);
        assert_eq!(found, owned(&[("lr", "1"), ("data.train", "a=b"), ("seed", "3")]));
        let found = overrides::<PretrainRecipe>(&["--data", "a", "--data", "b:weight=2"]);
        assert_eq!(found, owned(&[("data.train", "a + b:weight=2")]));
        assert!(parse(&["--set", "lr"]).unwrap_err().to_string().contains("KEY=VALUE"));
    }

    #[test]
    fn each_stage_has_its_own_keys() {
        let line = ["--image-size", "64", "--lr", ".5e-3", "--epochs", "7", "--batch-size", "4"];
        let keys = |size_key, more: &[(&str, &str)]| {
            let first = [("schedule.epochs", "7"), ("schedule.batch_size", "4"), ("optimizer.lr", "0.0005")];
            owned(&[&first[..], &[(size_key, "64")], more].concat())
        };
        let of_weights = [("init.image_size_from_weights", "false")];
        assert_eq!(overrides::<TokenizerRecipe>(&line), keys("model.image_size", &of_weights));
        assert_eq!(overrides::<DistillRecipe>(&line), keys("model.image_size", &[]));
        assert_eq!(overrides::<PretrainRecipe>(&line), keys("model.vit.image_size", &of_weights));
        assert_eq!(overrides::<SegmentRecipe>(&line), keys("model.vit.image_size", &[]));
        assert_eq!(overrides::<FinetuneRecipe>(&line), keys("model.vit.image_size", &of_weights));
    }

    #[test]
    fn sizes_give_recipes_that_hold_together() {
        fn check<S: Stage>(more: &[(&str, &str)]) {
            for size in ["tiny", "small", "base", "large"] {
                let mut all = overrides::<S>(&["--size", size]);
                all.extend(owned(more));
                let settings: S = recipe::resolve("", "x.toml", &all, &[]).unwrap();
                settings.check().unwrap_or_else(|error| panic!("{} {size}: {error}", S::NAME));
            }
        }
        check::<TokenizerRecipe>(&[]);
        check::<PretrainRecipe>(&[]);
        check::<FinetuneRecipe>(&[("init.weights", "scratch")]);
        check::<SegmentRecipe>(&[("init.weights", "scratch"), ("model.classes", "3")]);
        check::<DistillRecipe>(&[]);
        let all = overrides::<SegmentRecipe>(&["--size", "large"]);
        let large: SegmentRecipe = recipe::resolve("", "x.toml", &all, &[]).unwrap();
        assert_eq!(
            (large.model.vit.width, large.model.channels, large.model.out_indices),
            (1024, 1024, [7, 11, 15, 23])
        );
        let all = overrides::<PretrainRecipe>(&["--size", "large"]);
        let large: PretrainRecipe = recipe::resolve("", "x.toml", &all, &[]).unwrap();
        assert_eq!((large.model.intermediate_layer, large.model.vit.layer_scale_init), (21, 1e-5));
        let all = overrides::<TokenizerRecipe>(&["--size", "tiny"]);
        let tiny: TokenizerRecipe = recipe::resolve("", "x.toml", &all, &[]).unwrap();
        let sizes = (tiny.model.width, tiny.model.decoder_width, tiny.model.heads, tiny.model.decoder_heads);
        assert_eq!(sizes, (192, 192, 3, 3));
    }

    #[test]
    fn values_that_cannot_be_are_explained() {
        for (line, part) in [
            (["--seed", "-1"], "a seed is a whole number from 0"),
            (["--seed", "99999999999999999999"], "a seed is a whole number from 0"),
            (["--batch-size", "-4"], "a whole number of at least 1"),
            (["--epochs", "0"], "a whole number of at least 1"),
            (["--steps", "1.5"], "a whole number of at least 1"),
            (["--lr", "0"], "a number above 0, such as 1e-3"),
            (["--lr", "-0.1"], "a number above 0, such as 1e-3"),
            (["--lr", "-1e-3"], "must not be negative"),
            (["--lr", "1e-3x"], "a number above 0, such as 1e-3"),
            (["--lr", "nan"], "a number above 0, such as 1e-3"),
            (["--image-size", "224x224"], "the side of a square in pixels, such as 224"),
        ] {
            let error = crate::cli::sentence_of(&format!("pretrain {}", line.join(" ")));
            assert!(error.contains(part) && error.contains(line[1]), "{error}");
        }
    }

    #[test]
    fn the_same_setting_twice_is_named_twice() {
        for (line, parts) in [
            (&["--epochs", "5", "--set", "epochs=5"][..], ["--epochs 5", "--set epochs=5"]),
            (&["--lr", "1e-3", "--set", "optimizer.lr=1e-2"], ["--lr 0.001", "--set optimizer.lr=1e-2"]),
            (&["--steps", "9", "--set", "schedule.epochs=3"], ["--steps 9", "--set schedule.epochs=3"]),
            (&["--epochs", "9", "--set", "schedule.steps=3"], ["--epochs 9", "--set schedule.steps=3"]),
            (&["--set", "steps=9", "--set", "epochs=3"], ["--set steps=9", "--set epochs=3"]),
            (&["--size", "tiny", "--set", "vit.depth=3"], ["--size tiny", "--set vit.depth=3"]),
            (&["--batch-size", "8", "--set", "schedule={batch_size=4}"], ["--batch-size 8", "batch_size=4"]),
        ] {
            let error = parse(line).unwrap().overrides::<PretrainRecipe>(Vec::new()).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let init = owned(&[("init.weights", "a")]);
        let args = parse(&["--set", "init.weights=b"]).unwrap();
        let error = args.overrides::<FinetuneRecipe>(init).unwrap_err().to_string();
        assert!(error.contains("--init a") && error.contains("--set init.weights=b"), "{error}");
        let none = ["--epochs", "9", "--set", "schedule.steps=none"];
        assert_eq!(overrides::<PretrainRecipe>(&none).len(), 2);
    }

    #[test]
    fn what_a_stage_lacks_is_said() {
        let bf16 = parse(&["--precision", "bf16"]).unwrap();
        let error = bf16.overrides::<DistillRecipe>(Vec::new()).unwrap_err().to_string();
        assert!(error.contains("--precision bf16") && error.contains("always computes in f32"), "{error}");
        assert!(bf16.overrides::<TokenizerRecipe>(Vec::new()).is_ok());
        let watched =
            parse(&["--monitor", "labelled", "--best", "monitor_knn_top1", "--patience", "3"]).unwrap();
        let error = watched.overrides::<FinetuneRecipe>(Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with("--monitor is for `beit2 tokenizer train`"), "{error}");
        let keys = watched.overrides::<PretrainRecipe>(Vec::new()).unwrap();
        let expected =
            [("monitor.folder", "labelled"), ("monitor.best", "monitor_knn_top1"), ("monitor.patience", "3")];
        assert_eq!(keys, owned(&expected));
        let mut settings = FinetuneRecipe::default();
        settings.init.weights = "runs/mim".into();
        let small = parse(&["--size", "small"]).unwrap();
        let error = small.check_size(&settings).unwrap_err().to_string();
        assert!(error.contains("runs/mim decides the sizes") && error.contains("--init scratch"), "{error}");
        settings.init.weights = "scratch".into();
        assert!(small.check_size(&settings).is_ok());
    }
}
