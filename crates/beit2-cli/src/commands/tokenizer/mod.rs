//! `beit2 tokenizer`: train a visual tokenizer, and run one on images.

mod demo;
mod encode;

use beit2::tokenizer::TokenizerRecipe;

use crate::assets::Reading;
use crate::errors::Ending;
use crate::experiment;
use crate::flags::TrainArgs;
use crate::signals::Signals;
use crate::stage::fitting_help;

/// The commands of the group.
#[derive(Debug, clap::Subcommand)]
pub enum Tokenizer {
    /// Train a tokenizer, or continue the run in --out
    #[command(defer(fitting_help::<TokenizerRecipe>), after_help = "\
        Examples:\n\
        \x20 beit2 tokenizer train vqkd_base_clip_100e --data images --val held_out \\\n\
        \x20     --set teacher.weights=ViT-B-16.pt --out runs/tokenizer\n\
        \x20 beit2 tokenizer train quickstart_tokenizer --data images --val held_out \\\n\
        \x20     --out runs/small_tokenizer --dry-run\n\
        \n\
        The first is the paper's and needs a large GPU and OpenAI's CLIP\n\
        (beit2 weights fetch ViT-B-16.pt). The second fits a CPU: its teacher is\n\
        bundled:teacher, with model.teacher_dim=384.")]
    Train(Box<TrainCommand>),
    /// Write the token ids of many images to one file
    Encode(Box<encode::Args>),
    /// Write a web page that shows the tokens, nearest codes and attention of images dropped on it
    Demo(demo::Args),
}

/// Flags of `tokenizer train`.
#[derive(Debug, clap::Args)]
pub struct TrainCommand {
    #[command(flatten)]
    train: TrainArgs,

    /// Weights to go on from: a tokenizer's run or weight file [default: random numbers]
    #[arg(long, value_name = "RUN|FILE")]
    init: Option<String>,
}

/// Runs one of them.
pub fn run(command: &Tokenizer, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Tokenizer::Train(args) => {
            let init = args.init.clone().map(|weights| ("init.weights".to_owned(), weights));
            let init = init.into_iter().collect();
            experiment::run::<TokenizerRecipe>(&args.train, init, Reading::default(), signals)
        }
        Tokenizer::Encode(args) => encode::run(args, signals),
        Tokenizer::Demo(args) => demo::run(args, signals),
    }
}
