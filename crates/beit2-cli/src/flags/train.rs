//! What every training command takes.

use std::path::PathBuf;

use beit2_data::source::AND;
use clap::{Args, ValueHint};

use super::{DeviceArgs, EntryArg, OutputArgs};

/// A recipe, changes to it, and where and how to run it.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Recipe: a name from `beit2 recipes` or a .toml file
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<String>,

    /// Run directory; a run that is already there is continued [default: runs/ and the recipe's name]
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,

    /// Start over; a run that is already in the directory is moved aside
    #[arg(long)]
    pub restart: bool,

    /// Change a setting of the recipe, by its full key or an unambiguous ending of it; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,

    /// Training images: a folder, tar or parquet shards, a table of paths, or bundled:train; repeatable, with
    /// :weight=N for how often an epoch has each image
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub data: Vec<String>,

    /// Validation images
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub val: Option<String>,

    /// Seed of all random numbers
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Threads that decode and augment images; the result does not depend on it
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    /// Train although the look at labels, masks and a few images finds that the result would mean nothing
    #[arg(long)]
    pub no_check: bool,

    /// Print the resolved recipe, check images and weights, and stop
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub entry: EntryArg,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

impl TrainArgs {
    /// All changes to the recipe, as pairs of key and value.
    pub fn overrides(&self) -> Vec<(String, String)> {
        let named = [
            ("data.train", (!self.data.is_empty()).then(|| self.data.join(AND))),
            ("data.val", self.val.clone()),
            ("seed", self.seed.map(|n| n.to_string())),
            ("data.workers", self.workers.map(|n| n.to_string())),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        self.set.iter().cloned().chain(named).collect()
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, such as optimizer.lr=1e-3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{FromArgMatches, error::Error};

    fn parse(line: &[&str]) -> Result<TrainArgs, Error> {
        let command = TrainArgs::augment_args(clap::Command::new("train"));
        TrainArgs::from_arg_matches(&command.try_get_matches_from(line)?)
    }

    #[test]
    fn flags_and_set_are_one_list() {
        let args = parse(&["train", "x", "--set", "lr=1", "--data", "a=b", "--seed", "3"]).unwrap();
        let pairs = [("lr", "1"), ("data.train", "a=b"), ("seed", "3")];
        let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(args.overrides(), pairs);
        let args = parse(&["train", "--data", "a", "--data", "b:weight=2"]).unwrap();
        assert_eq!(args.overrides(), [("data.train".to_owned(), "a + b:weight=2".to_owned())]);
        assert!(parse(&["train", "--set", "lr"]).unwrap_err().to_string().contains("KEY=VALUE"));
    }
}
