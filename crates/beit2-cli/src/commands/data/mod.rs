//! `beit2 data`: what is done with images before they are used.

mod check;
mod pack;
mod print;

pub(super) use print::masks;

use clap::Subcommand;

use crate::errors::Ending;
use crate::flags::decoding_without_weights;
use crate::signals::Signals;

/// `data …`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Count what is used and what is left out, and find what would go wrong
    #[command(defer(decoding_without_weights))]
    Check(check::Args),
    /// Write images as shards that are fast to read, as they are or shrunk to a side
    #[command(defer(decoding_without_weights))]
    Pack(pack::Args),
}

/// Runs `data …`.
pub fn run(command: &Data, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Data::Check(args) => check::run(args, signals),
        Data::Pack(args) => pack::run(args, signals),
    }
}
