//! `beit2 bench`: how fast this machine trains, predicts and makes batches, and how much of its peak matmul speed that is.

mod data;
mod kernel_times;
mod ranks;
mod rounds;

use std::path::PathBuf;

use beit2::train::{ActivationCheckpointing, Assets, TrainConfig};
use beit2::{Error, InferPrecision};
use beit2_bench::{
    GPU_GEMM_SIDE, Images, InferBench, Parts, Size, Stage, TrainBench, TrainSetup, held_gemm_flops,
};
use beit2_kernels::AutodiffBackend;
use beit2_run::environment::memory_held_bytes;
use clap::{Args, Subcommand, ValueHint};

use self::rounds::Rounds;
use crate::device::Kind;
use crate::errors::{Ending, usage};
use crate::flags::{DeviceArgs, InferPrecisionArgs, OutputArgs, PrecisionArgs, one_of};
use crate::session::{Job, Session};
use crate::signals::Signals;

/// `bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Measure training steps of a stage, with a fresh model
    #[command(after_help = "\
        Examples:\n\
        \x20 beit2 bench train --stage pretrain --size small --batch-size 8\n\
        \x20 beit2 bench train --stage pretrain --size small --data images --workers 2\n\
        \x20 beit2 bench train --size base --activation-checkpointing blocks\n\
        \x20 beit2 bench train --stage tokenizer --size base --batch-size 64 \\\n\
        \x20     --precision bf16 --device cuda --json")]
    Train(TrainArgs),
    /// Measure the prediction of a classifier: images to logits, with random weights
    #[command(
        defer(fitting_infer),
        after_help = "\
        Examples:\n\
        \x20 beit2 bench infer --size base --batch-size 1 --precision bf16\n\
        \x20 beit2 bench infer --size small --batch-size 32 --json"
    )]
    Infer(InferArgs),
    /// Measure the loader alone: images read, decoded, augmented and put into batches
    Data(data::Args),
    /// Measure how long processes take to average gradients, on one machine or many
    Ranks(ranks::Args),
}

/// What the flags of both mean without training.
fn fitting_infer(command: clap::Command) -> clap::Command {
    command
        .mut_arg("batch_size", |arg| arg.help("Images per forward pass"))
        .mut_arg("steps", |arg| arg.help("Forward passes per round"))
        .mut_arg("data", |arg| arg.help("Images to load and prepare [default: random bytes in memory]"))
}

/// Flags of `bench train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Model size; the frozen model has the same size, but is never larger than base
    #[arg(long, default_value = "small", value_parser = one_of(&Size::ALL, Size::name))]
    size: Size,

    /// Stage: tokenizer (with its teacher), pretrain (with its tokenizer) or finetune
    #[arg(long, default_value = "pretrain", value_parser = one_of(&Stage::ALL, Stage::name))]
    stage: Stage,

    #[command(flatten)]
    precision: PrecisionArgs,

    /// Equal micro-batches that a step is taken in
    #[arg(long, value_name = "N", default_value_t = 1)]
    grad_accum_steps: usize,

    /// What is computed again in the backward pass: none, or blocks
    #[arg(long, value_name = "WHAT", default_value = "none", value_parser = one_of(&CHECKPOINTING, checkpointing))]
    activation_checkpointing: ActivationCheckpointing,

    #[command(flatten)]
    common: Common,
}

const CHECKPOINTING: [ActivationCheckpointing; 2] =
    [ActivationCheckpointing::None, ActivationCheckpointing::Blocks];

fn checkpointing(what: ActivationCheckpointing) -> &'static str {
    match what {
        ActivationCheckpointing::None => "none",
        ActivationCheckpointing::Blocks => "blocks",
    }
}

/// Flags of `bench infer`.
#[derive(Debug, Args)]
pub struct InferArgs {
    /// Size of the classifier, which has 1000 classes
    #[arg(long, default_value = "small", value_parser = one_of(&Size::ALL, Size::name))]
    size: Size,

    #[command(flatten)]
    precision: InferPrecisionArgs,

    #[command(flatten)]
    common: Common,
}

/// Flags of both.
#[derive(Debug, Args)]
struct Common {
    /// Images per step, that is, computed at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,

    /// Steps per round
    #[arg(long, value_name = "N", default_value_t = 5)]
    steps: usize,

    /// Rounds, each measured on its own
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Wait for a line on standard input before each round and stop when the input ends, so that another program can
    /// be measured in turn
    #[arg(long)]
    paced: bool,

    /// Images to load and augment as in pretraining [default: random bytes in memory]
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    data: Option<String>,

    /// Threads that decode and augment images of --data
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    /// Write how long each native CUDA kernel of a step takes to this file, as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    kernel_times: Option<PathBuf>,

    /// Show no progress; results are still printed
    #[arg(long, short)]
    quiet: bool,

    /// Print one JSON object per round, each on its own line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures and prints.
pub fn run(command: &Bench, signals: &Signals) -> anyhow::Result<Ending> {
    let (kind, stage, size, precision, common) = match command {
        Bench::Train(args) => {
            ("train", Some(args.stage), args.size, args.precision.precision.into(), &args.common)
        }
        Bench::Infer(args) => ("infer", None, args.size, args.precision.precision, &args.common),
        Bench::Data(args) => return data::run(args, signals),
        Bench::Ranks(args) => return ranks::run(args, signals),
    };
    let (micro_batches, activation_checkpointing) = match command {
        Bench::Train(args) => (args.grad_accum_steps, args.activation_checkpointing),
        _ => (1, ActivationCheckpointing::None),
    };
    for (name, value) in [
        ("--batch-size", common.batch_size),
        ("--steps", common.steps),
        ("--rounds", common.rounds),
        ("--grad-accum-steps", micro_batches),
    ] {
        if value == 0 {
            return usage(format!("{name} is 0; it must be at least 1"));
        }
    }
    if !common.batch_size.is_multiple_of(micro_batches) {
        return usage(format!(
            "--batch-size {} cannot be divided into {micro_batches} equal micro-batches (--grad-accum-steps)",
            common.batch_size
        ));
    }
    if common.kernel_times.is_some()
        && (common.device.device.kind != Kind::Cuda || cfg!(not(feature = "cuda")))
    {
        return usage("--kernel-times is for the native kernels of a CUDA device: use it with --device cuda");
    }
    let mut session = Session::new(OutputArgs { quiet: common.quiet, json: common.json }, signals);
    let images = match &common.data {
        None => Images::Random,
        Some(spec) => Images::Real(session.assets.source(spec)?, common.workers),
    };
    let train = TrainConfig { activation_checkpointing };
    let run = Run { kind, stage, size, precision, micro_batches, train, common };
    session.on(&common.device.device, Measurement { run, images })
}

/// What is measured.
struct Run<'a> {
    kind: &'static str,
    stage: Option<Stage>,
    size: Size,
    precision: InferPrecision,
    micro_batches: usize,
    train: TrainConfig,
    common: &'a Common,
}

impl Run<'_> {
    /// How a step saves memory, for people.
    fn division(&self) -> String {
        let parts = match self.micro_batches {
            1 => String::new(),
            parts => format!(" in {parts} micro-batches"),
        };
        match self.train.recomputes_blocks() {
            true => format!("{parts}, blocks computed again"),
            false => parts,
        }
    }

    fn on_cpu(&self) -> bool {
        self.common.device.device.kind == Kind::Cpu
    }
}

struct Measurement<'a> {
    run: Run<'a>,
    images: Images,
}

impl Job for Measurement<'_> {
    type Output = Ending;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Ending> {
        let Self { run, images } = self;
        // A GPU's peak is measured once, before there is a model: its operands take memory, and its clock keeps.
        let gemm = match run.on_cpu() {
            true => None,
            false => {
                Some(held_gemm_flops::<B::InnerBackend>(GPU_GEMM_SIDE, run.precision.of_floats(), device)?)
            }
        };
        let held = memory_held_bytes();
        let (size, precision, batch) = (run.size, run.precision, run.common.batch_size);
        match run.stage {
            Some(stage) => {
                let precision = precision.of_floats();
                let (micro_batches, train) = (run.micro_batches, run.train);
                let setup = TrainSetup { stage, size, batch, micro_batches, train, precision, images };
                let mut bench = TrainBench::<B>::new(setup, device)?;
                let bench_of = Rounds { run: &run, step_flops: bench.step_flops(), gemm, held };
                let steps = move |count: usize, go_on: &mut dyn FnMut() -> bool| {
                    let (seconds, loss) = bench.steps(count, go_on)?;
                    Ok((seconds / count as f64, bench.parts()?, Some(loss)))
                };
                bench_of.measure::<B>(session, device, steps)
            }
            None => {
                let mut bench = InferBench::<B::InnerBackend>::new(size, batch, precision, images, device)?;
                let bench_of = Rounds { run: &run, step_flops: bench.step_flops(), gemm, held };
                let steps = move |count: usize, go_on: &mut dyn FnMut() -> bool| {
                    let mut batches = Vec::new();
                    while batches.len() < count {
                        batches.push(bench.batch()?);
                        if !go_on() {
                            return Err(Error::Interrupted);
                        }
                    }
                    let parts = Parts::mean(&batches);
                    Ok((parts.sum(), parts, None))
                };
                bench_of.measure::<B>(session, device, steps)
            }
        }
    }
}
