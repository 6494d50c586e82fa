//! What each command does; their flags are beside them, shared ones in [`crate::cli`].

pub mod bench;
pub mod doctor;
pub mod embed;
pub mod encode;
pub mod eval;
pub mod evaluate;
mod found;
pub mod predict;
pub mod recipes;
pub mod report;
pub mod segment;
pub mod teacher;
pub mod weights;

use beit2::classify::finetune::FinetuneRecipe;
use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::tokenizer::teachers::DistillRecipe;

use crate::cli::{Command, Teacher, Tokenizer};
use crate::errors::Ending;
use crate::signals::Signals;
use crate::{experiment, quickstart};

/// Runs a command.
pub fn run(command: Command, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Command::Quickstart(args) => quickstart::run(&args, signals),
        Command::Tokenizer(Tokenizer::Train(args)) => {
            experiment::run::<TokenizerRecipe>(&args, Vec::new(), signals)
        }
        Command::Tokenizer(Tokenizer::Encode(args)) => encode::run(&args, signals),
        Command::Pretrain(args) => {
            let tokenizer = args.tokenizer.map(|weights| ("tokenizer.weights".to_owned(), weights));
            experiment::run::<PretrainRecipe>(&args.train, tokenizer.into_iter().collect(), signals)
        }
        Command::Finetune(args) => {
            let init = args.init.map(|weights| ("init.weights".to_owned(), weights));
            experiment::run::<FinetuneRecipe>(&args.train, init.into_iter().collect(), signals)
        }
        Command::Teacher(Teacher::Distill(args)) => {
            experiment::run::<DistillRecipe>(&args, Vec::new(), signals)
        }
        Command::Teacher(Teacher::Export(args)) => teacher::export(&args),
        Command::Segment(command) => segment::run(&command, signals),
        Command::Weights(command) => weights::run(&command, signals),
        Command::Probe(args) => evaluate::probe(&args, signals),
        Command::Knn(args) => evaluate::knn(&args, signals),
        Command::Predict(args) => predict::run(&args, signals),
        Command::Embed(args) => embed::run(&args, signals),
        Command::Eval(args) => eval::run(&args, signals),
        Command::Report(args) => report::run(&args),
        Command::Recipes(args) => recipes::run(&args),
        Command::Bench(command) => bench::run(&command, signals),
        Command::Doctor(args) => doctor::run(&args),
    }
}
