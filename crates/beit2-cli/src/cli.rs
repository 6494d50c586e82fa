//! The commands by name. What a command takes is beside it in `commands/`, what several take is in [`crate::flags`].

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::commands::bench::Bench;
use crate::commands::data::Data;
use crate::commands::segment::Segment;
use crate::commands::teacher::Teacher;
use crate::commands::tokenizer::Tokenizer;
use crate::commands::weights::Weights;
use crate::commands::{
    bench, data, doctor, embed, eval, finetune, predict, pretrain, probe, quickstart, recipes, report,
    segment, teacher, tokenizer, weights,
};
use crate::errors::{Ending, Flags};
use crate::signals::Signals;

/// BEiT v2: train a visual tokenizer, pretrain a Vision Transformer with it, fine-tune and evaluate it.
#[derive(Debug, Parser)]
#[command(
    name = "beit2",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Start here:\n  beit2 quickstart        the whole method on bundled images, in minutes on a CPU\n  \
                  beit2 recipes           the paper's experiments, ready to run\n  \
                  beit2 doctor            what this machine and this build support\n\n\
                  Exit codes: 0 done, 1 failed, 2 wrong command or recipe, 130 or 143 stopped by Ctrl-C or\n\
                  SIGTERM after saving (the same command continues the run)."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole method on bundled images: tokenizer, pretraining, probes and a report
    Quickstart(quickstart::Args),
    /// Train a visual tokenizer (VQ-KD), or encode images with one
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// Pretrain a Vision Transformer by masked image modeling
    Pretrain(pretrain::Args),
    /// Fine-tune pretrained weights as a classifier
    Finetune(finetune::Args),
    /// Distill a large teacher into a small one
    #[command(subcommand)]
    Teacher(Teacher),
    /// Evaluate a classifier on labelled images
    Eval(eval::Args),
    /// Evaluate frozen features with a linear probe
    Probe(probe::ProbeArgs),
    /// Evaluate frozen features with k-nearest neighbours
    Knn(probe::KnnArgs),
    /// Predict the classes of images
    Predict(predict::Args),
    /// Train, evaluate and run segmentation models
    #[command(subcommand)]
    Segment(Segment),
    /// Write the features of many images to one file
    Embed(embed::Args),
    /// Check images, labels and masks before they are used
    #[command(subcommand)]
    Data(Data),
    /// Inspect, verify, convert and download weight files
    #[command(subcommand)]
    Weights(Weights),
    /// Rebuild the report of a run
    Report(report::Args),
    /// List the built-in recipes, or print one
    Recipes(recipes::Args),
    /// Measure the speed of training and inference
    #[command(subcommand)]
    Bench(Bench),
    /// Show what this machine and this build support
    Doctor(doctor::Args),
}

/// Runs a command.
pub fn run(command: &Command, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Command::Quickstart(args) => quickstart::run(args, signals),
        Command::Tokenizer(command) => tokenizer::run(command, signals),
        Command::Pretrain(args) => pretrain::run(args, signals),
        Command::Finetune(args) => finetune::run(args, signals),
        Command::Teacher(command) => teacher::run(command, signals),
        Command::Eval(args) => eval::run(args, signals),
        Command::Probe(args) => probe::run_probe(args, signals),
        Command::Knn(args) => probe::run_knn(args, signals),
        Command::Predict(args) => predict::run(args, signals),
        Command::Segment(command) => segment::run(command, signals),
        Command::Embed(args) => embed::run(args, signals),
        Command::Data(command) => data::run(command, signals),
        Command::Weights(command) => weights::run(command, signals),
        Command::Report(args) => report::run(args),
        Command::Recipes(args) => recipes::run(args),
        Command::Bench(command) => bench::run(command, signals),
        Command::Doctor(args) => doctor::run(args),
    }
}

/// The command line of this process.
pub fn parse() -> anyhow::Result<Cli> {
    parse_from(std::env::args_os())
}

/// Any command line.
fn parse_from<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> anyhow::Result<Cli> {
    Ok(Cli::try_parse_from(args).map_err(Flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_flag_is_one_line_with_a_suggestion() {
        let text = parse_from(["beit2", "knn", "--wieghts", "x"]).unwrap_err().to_string();
        assert!(
            !text.contains('\n') && text.contains("'--wieghts'") && text.contains("'--weights'"),
            "{text}"
        );
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn walk(command: &mut clap::Command, path: &str) {
            if command.get_subcommands().next().is_none() {
                let help = command.render_long_help().to_string();
                assert!(help.contains("Example") && help.contains(path), "{path}: {help}");
            }
            for inner in command.get_subcommands_mut().filter(|c| c.get_name() != "help") {
                let path = format!("{path} {}", inner.get_name());
                walk(inner, &path);
            }
        }
        let mut command = Cli::command();
        command.build();
        walk(&mut command, "beit2");
    }
}
