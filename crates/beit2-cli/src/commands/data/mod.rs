//! `beit2 data`: what there is to say about images before they are used.

mod check;
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
}

/// Runs `data …`.
pub fn run(command: &Data, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Data::Check(args) => check::run(args, signals),
    }
}
