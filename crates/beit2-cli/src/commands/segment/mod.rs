//! `beit2 segment`: train, evaluate and use segmentation models.

mod check;
mod draw;
mod eval;
mod model;
mod predict;

use beit2::segment::SegmentRecipe;
use clap::{Args, Subcommand};

use crate::errors::Ending;
use crate::experiment;
use crate::flags::{TrainArgs, UnsaidArgs, exif_as_published};
use crate::signals::Signals;
use crate::stage::fitting_help;

/// `segment …`.
#[derive(Debug, Subcommand)]
pub enum Segment {
    /// Train a segmentation model (UPerNet), or continue the run in --out
    #[command(defer(fitting_help::<SegmentRecipe>))]
    Train(Box<Train>),
    /// Evaluate a segmentation model on labelled images
    #[command(mut_arg("exif", exif_as_published))]
    Eval(eval::Args),
    /// Predict the masks of images
    Predict(predict::Args),
}

/// `segment train`.
#[derive(Debug, Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 segment train segment_base_ade20k --data scenes/train --val scenes/val \\\n\
    \x20     --init runs/mim --out runs/segmenter\n\
    \x20 beit2 segment train segment_scenes --data scenes/train --val scenes/val \\\n\
    \x20     --init scratch --out runs/small_segmenter --dry-run\n\
    \x20 beit2 segment train segment_base_ade20k --device cuda \\\n\
    \x20     --data ADEChallengeData2016/images/training \\\n\
    \x20     --val ADEChallengeData2016/images/validation \\\n\
    \x20     --init beitv2_base_patch16_224_pt1k.pth\n\
    \n\
    --data and --val take a folder with images/, masks/ and a classes.txt with one\n\
    class per line, or a split of ADE20K as it is distributed.")]
pub struct Train {
    #[command(flatten)]
    train: TrainArgs,

    /// Weights of the backbone: a run, a weight file with official, timm or Hugging Face names, or `scratch`
    #[arg(long, value_name = "RUN|FILE")]
    init: Option<String>,

    #[command(flatten)]
    unsaid: UnsaidArgs,

    /// Check every image and mask, list the problems, and stop
    #[arg(long)]
    check_data: bool,
}

/// Runs `segment …`.
pub fn run(command: &Segment, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Segment::Train(args) if args.check_data => check::run(&args.train, signals),
        Segment::Train(args) => {
            let init = args.init.clone().map(|weights| ("init.weights".to_owned(), weights));
            experiment::run::<SegmentRecipe>(
                &args.train,
                init.into_iter().collect(),
                args.unsaid.reading()?,
                signals,
            )
        }
        Segment::Eval(args) => eval::run(args, signals),
        Segment::Predict(args) => predict::run(args, signals),
    }
}
