//! `beit2 tokenizer`: train a visual tokenizer, and run one on images.

mod encode;

use beit2::tokenizer::TokenizerRecipe;

use crate::assets::Reading;
use crate::errors::Ending;
use crate::experiment;
use crate::flags::TrainArgs;
use crate::signals::Signals;

/// The commands of the group.
#[derive(Debug, clap::Subcommand)]
pub enum Tokenizer {
    /// Train a tokenizer, or continue the run in --out
    #[command(after_help = "Examples:\n  \
        beit2 tokenizer train vqkd_base_clip_100e --data imagenet/train --val imagenet/val \\\n      \
        --set teacher.weights=ViT-B-16.pt --device cuda\n  \
        beit2 tokenizer train my.toml --set optimizer.lr=1e-4 --set schedule.epochs=50 --dry-run")]
    Train(TrainArgs),
    /// Write the token ids of many images to one file
    Encode(encode::Args),
}

/// Runs one of them.
pub fn run(command: &Tokenizer, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Tokenizer::Train(args) => {
            experiment::run::<TokenizerRecipe>(args, Vec::new(), Reading::default(), signals)
        }
        Tokenizer::Encode(args) => encode::run(args, signals),
    }
}
