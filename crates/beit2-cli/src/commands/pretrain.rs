//! `beit2 pretrain`: masked image modeling.

use beit2::pretrain::PretrainRecipe;

use crate::assets::Reading;
use crate::errors::Ending;
use crate::experiment;
use crate::flags::TrainArgs;
use crate::signals::Signals;

/// Flags of `pretrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    beit2 pretrain mim_base_300e --data imagenet/train --tokenizer runs/vqkd_base_clip_100e --device cuda\n  \
    beit2 pretrain mim_base_300e --data images --tokenizer vqkd.pth \\\n      \
    --set tokenizer.variant=vqkd_encoder_base_decoder_3x768x12_clip --dry-run")]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,

    /// Tokenizer that makes the targets: a run directory, checkpoint folder or weight file
    #[arg(long, value_name = "RUN|FILE")]
    tokenizer: Option<String>,
}

/// Trains, or continues a run.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let tokenizer = args.tokenizer.clone().map(|weights| ("tokenizer.weights".to_owned(), weights));
    experiment::run::<PretrainRecipe>(
        &args.train,
        tokenizer.into_iter().collect(),
        Reading::default(),
        signals,
    )
}
