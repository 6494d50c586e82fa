//! The flags: one place for each, with its help. Flags that several commands share are in groups here; what
//! only one command takes is beside that command in `commands/`.

use std::ffi::OsString;
use std::path::PathBuf;

use beit2_kernels::Precision;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueHint};

use crate::commands::bench::Bench;
use crate::commands::segment::Segment;
use crate::commands::weights::Weights;
use crate::commands::{doctor, embed, encode, eval, evaluate, predict, recipes, report, teacher};
use crate::device::DeviceSpec;
use crate::errors::Flags;
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
    Train(Experiment),
    /// Code ids of many images in one file
    Encode(encode::Args),
}

#[derive(Debug, Subcommand)]
pub enum Teacher {
    /// Distill a small teacher, or continue the run in --out
    #[command(after_help = "Example:\n  \
        beit2 teacher distill small.toml --data images --set teacher.weights=dinov2_vits14.safetensors \\\n      \
        --set teacher.kind=dinov2")]
    Distill(Experiment),
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
    pub experiment: Experiment,

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
    pub experiment: Experiment,

    /// Weights to start from: a run, a weight file in official, timm or Hugging Face names, or `scratch`
    #[arg(long, value_name = "RUN|FILE")]
    pub init: Option<String>,
}

/// What every training command takes.
#[derive(Debug, Args)]
pub struct Experiment {
    /// Recipe: a name from `beit2 recipes` or a .toml file; left out, the paper's
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<String>,

    /// Run directory; left out, runs/ and the recipe's name
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,

    /// Begin again; the run that is in the directory is kept beside it
    #[arg(long)]
    pub restart: bool,

    /// Change a setting of the recipe, by its full name or an unambiguous ending; can be given many times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,

    /// Training images: a folder, tar shards, or bundled:train
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub data: Option<String>,

    /// Held-out images
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub val: Option<String>,

    /// Seed of everything random
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Threads that decode and augment images; does not change the result
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    /// Print the resolved recipe, check that images and weights are there, and stop
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub device: Device,

    #[command(flatten)]
    pub talk: OutputArgs,
}

impl Experiment {
    /// All changes to the recipe, in one form.
    pub fn overrides(&self) -> Vec<(String, String)> {
        let named = [
            ("data.train", self.data.clone()),
            ("data.val", self.val.clone()),
            ("seed", self.seed.map(|n| n.to_string())),
            ("data.workers", self.workers.map(|n| n.to_string())),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        self.set.iter().cloned().chain(named).collect()
    }
}

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct Device {
    /// cpu, cuda, cuda:1, vulkan, metal or wgpu (those that this build has: `beit2 doctor`); for training also a
    /// group: cuda:all or cuda:0,1
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceSpec,
}

/// How products are computed, where no recipe says it.
#[derive(Debug, Clone, Copy, Args)]
pub struct PrecisionArgs {
    /// Operands of the matrix products: f32, or bf16 (faster on CPUs that have it; results agree to about two digits)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = precision())]
    pub precision: Precision,
}

/// The names of precisions.
pub fn precision() -> impl TypedValueParser<Value = Precision> {
    one_of(&[Precision::F32, Precision::Bf16], |precision| match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    })
}

/// A value that is chosen by its name.
pub fn one_of<T>(all: &'static [T], name: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|&one| name(one)))
        .try_map(move |chosen| all.iter().copied().find(|&one| name(one) == chosen).ok_or("no such name"))
}

/// How much to say.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// No progress on stderr; warnings and results stay
    #[arg(long, short)]
    pub quiet: bool,

    /// Print the result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, such as optimizer.lr=1e-3".to_owned()),
    }
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
    fn flags_and_set_are_one_list() {
        let line = ["beit2", "pretrain", "x", "--set", "lr=1", "--data", "a=b", "--seed", "3"];
        let Command::Pretrain(pretrain) = parse_from(line).unwrap().command else { panic!() };
        let pairs = [("lr", "1"), ("data.train", "a=b"), ("seed", "3")];
        let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(pretrain.experiment.overrides(), pairs);
        assert!(
            parse_from(["beit2", "pretrain", "--set", "lr"]).unwrap_err().to_string().contains("KEY=VALUE")
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
