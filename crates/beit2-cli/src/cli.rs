//! The commands by name. What a command takes is beside it in `commands/`, what several take is in [`crate::flags`].

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use crate::commands::bench::Bench;
use crate::commands::segment::Segment;
use crate::commands::weights::Weights;
use crate::commands::{doctor, embed, encode, eval, evaluate, predict, recipes, report, teacher};
use crate::errors::Flags;
use crate::flags::TrainArgs;
use crate::quickstart;

/// BEiT v2: train a visual tokenizer, pretrain a Vision Transformer with it, and see what it has learned.
#[derive(Debug, Parser)]
#[command(
    name = "beit2",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Start here:\n  beit2 quickstart        everything on bundled images, in minutes, on a CPU\n  \
                  beit2 recipes           the paper's experiments\n  \
                  beit2 doctor            what this machine and this build can do\n\n\
                  Exit codes: 0 done, 1 failed, 2 the command or recipe must change, 130/143 stopped by\n\
                  Ctrl-C/SIGTERM after saving (the same command continues the run)."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tokenizer, pretraining and probes on the bundled images, with a report at the end
    Quickstart(quickstart::Args),
    /// Train a visual tokenizer (VQ-KD)
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// Pretrain a Vision Transformer by masked image modeling
    Pretrain(Pretrain),
    /// Fine-tune a classifier from pretrained weights
    Finetune(Finetune),
    /// Make a small teacher from a large one
    #[command(subcommand)]
    Teacher(Teacher),
    /// Accuracy of a classifier, with its confusions
    Eval(eval::Args),
    /// Accuracy of a linear classifier on frozen features
    Probe(evaluate::ProbeArgs),
    /// Accuracy of k-nearest neighbours on frozen features
    Knn(evaluate::KnnArgs),
    /// Classes of images
    Predict(predict::Args),
    /// Train segmentation models, evaluate them, and mark the classes of every pixel
    #[command(subcommand)]
    Segment(Segment),
    /// Features of many images in one file
    Embed(embed::Args),
    /// Look into weight files, check, convert and download them
    #[command(subcommand)]
    Weights(Weights),
    /// Rebuild report.html of a run from its metrics
    Report(report::Args),
    /// List the recipes in this program, or show one
    Recipes(recipes::Args),
    /// Measure how fast this machine trains and answers
    #[command(subcommand)]
    Bench(Bench),
    /// What this machine and this build can do
    Doctor(doctor::Args),
}

#[derive(Debug, Subcommand)]
pub enum Tokenizer {
    /// Train a tokenizer, or continue the run in --out
    #[command(after_help = "Examples:\n  \
        beit2 tokenizer train vqkd_base_clip_100e --data imagenet/train --val imagenet/val \\\n      \
        --set teacher.weights=clip_vit_b16.pth --device cuda\n  \
        beit2 tokenizer train my.toml --set optimizer.lr=1e-4 --set schedule.epochs=50 --dry-run")]
    Train(TrainArgs),
    /// Code ids of many images in one file
    Encode(encode::Args),
}

#[derive(Debug, Subcommand)]
pub enum Teacher {
    /// Distill a small teacher, or continue the run in --out
    #[command(after_help = "Example:\n  \
        beit2 teacher distill small.toml --data images --set teacher.weights=dinov2_vits14.safetensors \\\n      \
        --set teacher.kind=dinov2")]
    Distill(TrainArgs),
    /// Write a distilled teacher as one small file (half precision)
    Export(teacher::Args),
}

/// `pretrain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    beit2 pretrain mim_base_300e --data imagenet/train --tokenizer runs/vqkd_base_clip_100e --device cuda\n  \
    beit2 pretrain mim_base_300e --data images --tokenizer vqkd.pth \\\n      \
    --set tokenizer.variant=vqkd_encoder_base_decoder_3x768x12_clip --dry-run")]
pub struct Pretrain {
    #[command(flatten)]
    pub train: TrainArgs,

    /// Tokenizer that gives the targets: its run directory, a checkpoint folder or a weight file
    #[arg(long, value_name = "RUN|FILE")]
    pub tokenizer: Option<String>,
}

/// `finetune`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    beit2 finetune finetune_base_1600e --data imagenet/train --val imagenet/val --init runs/mim_base_1600e\n  \
    beit2 finetune --data images/train --val images/val --init beitv2_base_patch16_224_pt1k.pth \\\n      \
    --set schedule.epochs=30 --set schedule.batch_size=64 --set grad_accum_steps=8")]
pub struct Finetune {
    #[command(flatten)]
    pub train: TrainArgs,

    /// Weights to start from: a run, a weight file in official, timm or Hugging Face names, or `scratch`
    #[arg(long, value_name = "RUN|FILE")]
    pub init: Option<String>,
}

/// The command line of this process.
pub fn parse() -> anyhow::Result<Cli> {
    parse_from(std::env::args_os())
}

/// Any command line.
pub fn parse_from<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> anyhow::Result<Cli> {
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
