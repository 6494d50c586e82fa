//! `beit2 weights`: inspect, verify, convert, export and download weight files.

mod convert;
mod export;
mod fetch;
mod inspect;
mod verify;

pub use self::fetch::{cached, fetched};

use anyhow::Context;
use beit2_weights::layout::{Account, Fate};
use beit2_weights::{Checkpoint, Format};

use crate::errors::Ending;
use crate::signals::Signals;

/// The commands of the group.
#[derive(Debug, clap::Subcommand)]
pub enum Weights {
    /// Show what a weight file holds: model, sizes, parameters, and what each key is used for
    Inspect(inspect::Args),
    /// Read every value of a weight file and check that the model is complete and sound
    Verify(verify::Args),
    /// Convert weights to the names of the official code, timm or Hugging Face, as safetensors
    Convert(convert::Args),
    /// Write a model as an ONNX file for other runtimes
    Export(export::Args),
    /// List the published weights, or download one
    Fetch(fetch::Args),
}

/// Runs one of them.
pub fn run(command: &Weights, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Weights::Inspect(args) => inspect::run(args),
        Weights::Verify(args) => verify::run(args),
        Weights::Convert(args) => convert::run(args),
        Weights::Export(args) => export::run(args, signals),
        Weights::Fetch(args) => fetch::run(args, signals),
    }
}

/// Puts the file before an error that only knows tensors.
fn about<T, E>(result: Result<T, E>, checkpoint: &Checkpoint) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    result.with_context(|| checkpoint.path().display().to_string())
}

fn describe_format(checkpoint: &Checkpoint) -> String {
    let format = match checkpoint.format {
        Format::Safetensors => return "safetensors".to_owned(),
        Format::TorchZip => "PyTorch (zip)",
        Format::TorchLegacy => "PyTorch (before 1.6)",
    };
    let prefix = if checkpoint.ddp_prefix_removed { ", prefix `module.` removed" } else { "" };
    format!("{format}, entry `{}`{prefix}", checkpoint.root)
}

/// What happens to a key, as a table says it.
fn describe_use(account: &Account, at: usize) -> String {
    let Some(entry) = account.entries.get(at) else { return String::new() };
    match &entry.fate {
        Fate::Used { canonical, .. } if *canonical == entry.key => "used".to_owned(),
        Fate::Used { canonical, .. } => format!("used as {canonical}"),
        Fate::Joined { canonical, part } => format!("used as part {} of 3 of {canonical}", part + 1),
        Fate::Derived(how) => format!("derived: {how}"),
        Fate::Ignored(why) => format!("ignored: {why}"),
    }
}
