//! `beit2 finetune`: a classifier from pretrained weights.

use beit2::classify::finetune::FinetuneRecipe;

use crate::classes::ClassesByArg;
use crate::errors::Ending;
use crate::experiment;
use crate::flags::{TrainArgs, UnsaidArgs};
use crate::signals::Signals;

/// Flags of `finetune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 finetune quickstart_finetune --data labelled/train \\\n\
    \x20     --val labelled/val --init runs/mim --out runs/classifier\n\
    \x20 beit2 finetune quickstart_finetune --data labelled/train \\\n\
    \x20     --val labelled/val --init scratch --epochs 30 --out runs/from_scratch\n\
    \x20 beit2 finetune finetune_base_300e --data labelled/train --val labelled/val \\\n\
    \x20     --init runs/mim_base_300e --batch-size 32 --device cuda\n\
    \n\
    A run, a weight file with official, timm or Hugging Face names, and `scratch`\n\
    can stand behind --init. Classes are the sub-folders of --data.")]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,

    /// Weights to start from: a run, a weight file with official, timm or Hugging Face names, or `scratch`
    #[arg(long, value_name = "RUN|FILE")]
    init: Option<String>,

    #[command(flatten)]
    unsaid: UnsaidArgs,

    /// Which row of the head of a classifier given by --init belongs to which class of the images; `position` is for
    /// one that does not name its classes [default: by name]
    #[arg(long, value_name = "HOW")]
    classes_by: Option<ClassesByArg>,
}

/// Trains, or continues a run.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let init = args.init.clone().map(|weights| ("init.weights".to_owned(), weights));
    let by = args.classes_by.map(|by| match by {
        ClassesByArg::Name => "name",
        ClassesByArg::Position => "position",
    });
    let by = by.map(|by| ("init.classes_by".to_owned(), by.to_owned()));
    experiment::run::<FinetuneRecipe>(
        &args.train,
        init.into_iter().chain(by).collect(),
        args.unsaid.reading()?,
        signals,
    )
}
