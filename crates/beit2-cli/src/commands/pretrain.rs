//! `beit2 pretrain`: masked image modeling.

use beit2::pretrain::PretrainRecipe;

use crate::errors::Ending;
use crate::experiment;
use crate::flags::{TrainArgs, UnsaidArgs};
use crate::signals::Signals;

/// Flags of `pretrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 pretrain mim_base_300e --data images --val held_out \\\n\
    \x20     --tokenizer runs/tokenizer --out runs/mim\n\
    \x20 beit2 pretrain quickstart_pretrain --data images --val held_out \\\n\
    \x20     --tokenizer runs/small_tokenizer --out runs/small_mim --dry-run\n\
    \x20 beit2 pretrain mim_base_300e --data images --device cuda \\\n\
    \x20     --tokenizer vqkd.pth \\\n\
    \x20     --set tokenizer.variant=vqkd_encoder_base_decoder_3x768x12_clip")]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,

    /// Tokenizer that makes the targets: a run directory, checkpoint folder or weight file
    #[arg(long, value_name = "RUN|FILE")]
    tokenizer: Option<String>,

    /// Weights to go on from: a run, or a weight file with official, timm or Hugging Face names [default: random numbers]
    #[arg(long, value_name = "RUN|FILE")]
    init: Option<String>,

    #[command(flatten)]
    unsaid: UnsaidArgs,
}

/// Trains, or continues a run.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let named = [("tokenizer.weights", &args.tokenizer), ("init.weights", &args.init)];
    let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
    let reading = args.unsaid.reading_of(args.init.as_deref(), "--init")?;
    experiment::run::<PretrainRecipe>(&args.train, named.collect(), reading, signals)
}
