//! `beit2 quickstart`: the whole method on the bundled pictures.

use crate::cli::{Device, Talk};
use crate::errors::{Ending, usage};
use crate::signals::Signals;

/// Flags of `quickstart`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  beit2 quickstart --minutes 20 --out runs/quickstart")]
pub struct Args {
    #[command(flatten)]
    pub device: Device,

    #[command(flatten)]
    pub talk: Talk,
}

/// Runs it.
pub fn run(_args: &Args, _signals: &Signals) -> anyhow::Result<Ending> {
    usage("quickstart is not in this build yet; train with `beit2 tokenizer train` and `beit2 pretrain`")
}
