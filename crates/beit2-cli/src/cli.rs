//! The commands by name. What a command takes is beside it in `commands/`, what several take is in [`crate::flags`].

use std::ffi::OsString;

use beit2::classify::finetune::FinetuneRecipe;
use beit2::pretrain::PretrainRecipe;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::arguments;
use crate::commands::bench::Bench;
use crate::commands::data::Data;
use crate::commands::segment::Segment;
use crate::commands::teacher::Teacher;
use crate::commands::tokenizer::Tokenizer;
use crate::commands::weights::Weights;
use crate::commands::{
    adapt, bench, compare, completions, data, doctor, embed, eval, finetune, init, man, predict, pretrain,
    probe, quickstart, recipes, report, run, segment, teacher, tokenizer, weights,
};
use crate::errors::{Ending, Flags};
use crate::flags::{exif_as_published, explain, several_devices, taking_negative_numbers};
use crate::signals::Signals;
use crate::stage::fitting_help;

/// BEiT v2: train a visual tokenizer, pretrain a Vision Transformer with it, fine-tune and evaluate it.
#[derive(Debug, Parser)]
#[command(
    name = "beit2",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
        Start here:\n\
        \x20 beit2 quickstart\n\
        \x20 beit2 init --data images\n\
        \x20 beit2 doctor\n\
        \x20 beit2 recipes\n\
        \n\
        quickstart runs the whole method on bundled images, in minutes on a CPU. init\n\
        plans it for your images and this machine. doctor shows what this machine and\n\
        this build support. recipes lists the paper's experiments, ready to run.\n\
        \n\
        Exit codes: 0 done, 1 failed, 2 wrong command or recipe, 130 or 143 stopped by\n\
        Ctrl-C or SIGTERM after saving (the same command continues the run)."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole method on bundled images: tokenizer, pretraining, probes and a report
    #[command(mut_arg("device", several_devices))]
    Quickstart(quickstart::Args),
    /// Plan training on your own images: recipes for every stage, made for them and for this machine
    Init(init::Args),
    /// Run all stages of a folder that `init` wrote, or continue them
    Run(run::Args),
    /// Train a visual tokenizer (VQ-KD), or encode images with one
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 tokenizer train quickstart_tokenizer --out runs/tokenizer\n\
        \x20 beit2 tokenizer encode images --tokenizer runs/tokenizer --out ids.npy"
    )]
    Tokenizer(Tokenizer),
    /// Pretrain a Vision Transformer by masked image modeling
    #[command(defer(fitting_help::<PretrainRecipe>))]
    Pretrain(pretrain::Args),
    /// Adapt a published or own student to your images: continued pretraining
    #[command(defer(adapt::help))]
    Adapt(adapt::Args),
    /// Fine-tune pretrained weights as a classifier
    #[command(defer(fitting_help::<FinetuneRecipe>))]
    Finetune(finetune::Args),
    /// Distill a large teacher into a small one
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 teacher distill distill_tiny --data images \\\n\
        \x20     --set teacher.weights=dinov2_vits14_pretrain.pth --out runs/teacher\n\
        \x20 beit2 teacher export runs/teacher --out teacher.safetensors"
    )]
    Teacher(Teacher),
    /// Evaluate a classifier on labelled images
    #[command(mut_arg("exif", exif_as_published))]
    Eval(eval::Args),
    /// Evaluate frozen features with a linear probe
    Probe(probe::ProbeArgs),
    /// Evaluate frozen features with k-nearest neighbours
    Knn(probe::KnnArgs),
    /// Predict the classes of images
    Predict(predict::Args),
    /// Train, evaluate and run segmentation models
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 segment train segment_base_ade20k --data scenes/train --val scenes/val \\\n\
        \x20     --init runs/mim --out runs/segmenter\n\
        \x20 beit2 segment eval --weights runs/segmenter/best --data scenes/val\n\
        \x20 beit2 segment predict images --weights runs/segmenter/best --out marked"
    )]
    Segment(Segment),
    /// Write the features of many images to one file
    Embed(embed::Args),
    /// Check images, labels and masks before they are used, and pack them into shards
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 data check labelled/train --val labelled/val --decode\n\
        \x20 beit2 data pack labelled/train -o shards --short-side 300"
    )]
    Data(Data),
    /// Inspect, verify, convert and download weight files
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 weights fetch ViT-B-16.pt\n\
        \x20 beit2 weights inspect runs/mim\n\
        \x20 beit2 weights verify runs/mim\n\
        \x20 beit2 weights convert runs/classifier --to hf --out classifier_hf"
    )]
    Weights(Weights),
    /// Rebuild the report of a run
    Report(report::Args),
    /// Compare runs of one stage: settings, metrics and curves
    Compare(compare::Args),
    /// List the built-in recipes, or print one
    Recipes(recipes::Args),
    /// Measure the speed of training, of inference and of loading images
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 bench train --stage pretrain --size small\n\
        \x20 beit2 bench infer --size small\n\
        \x20 beit2 bench data images --workers 1,2"
    )]
    Bench(Bench),
    /// Show what this machine and this build support
    Doctor(doctor::Args),
    /// Print the script that lets a shell complete commands and flags
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
}

/// Runs a command.
pub fn run(command: &Command, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Command::Quickstart(args) => quickstart::run(args, signals),
        Command::Init(args) => init::run(args, signals),
        Command::Run(args) => run::run(args, signals),
        Command::Tokenizer(command) => tokenizer::run(command, signals),
        Command::Pretrain(args) => pretrain::run(args, signals),
        Command::Adapt(args) => adapt::run(args, signals),
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
        Command::Compare(args) => compare::run(args),
        Command::Recipes(args) => recipes::run(args),
        Command::Bench(command) => bench::run(command, signals),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args, Cli::command()),
        Command::Man(args) => man::run(args, Cli::command()),
    }
}

/// The command line that the program runs with.
pub fn parse() -> anyhow::Result<Cli> {
    parse_from(arguments::all())
}

/// Any command line.
fn parse_from<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> anyhow::Result<Cli> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let command = taking_negative_numbers(Cli::command());
    let parsed = command.clone().try_get_matches_from(&args).and_then(|found| Cli::from_arg_matches(&found));
    Ok(parsed.map_err(|error| {
        let args: Vec<String> = args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
        let sentence = explain(&error, &args, &command);
        Flags(error, sentence)
    })?)
}

/// Flags of the command that a command line names.
pub fn flags_of(args: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let program = Cli::command();
    let mut command = &program;
    for arg in args.into_iter().skip(1) {
        match command.find_subcommand(&arg) {
            Some(inner) => command = inner,
            None => break,
        }
    }
    command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect()
}

/// What is said of a wrong command line, for tests.
#[cfg(test)]
pub(crate) fn sentence_of(line: &str) -> String {
    parse_from(std::iter::once("beit2").chain(line.split_whitespace())).unwrap_err().to_string()
}

#[cfg(test)]
mod tests;
