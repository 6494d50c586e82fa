//! `beit2 bench`: how fast this machine trains and predicts, and how much of its peak matmul speed that is.

use std::io::BufRead;

use beit2::train::Assets;
use beit2_bench::{
    GPU_GEMM_SIDE, Images, InferBench, Parts, Size, Stage, TrainBench, TrainSetup, gemm_flops,
    held_gemm_flops,
};
use beit2_kernels::{AutodiffBackend, Precision, probe::Probe};
use beit2_run::environment::{Environment, format_bytes, memory_held_bytes, peak_memory_bytes};
use clap::{Args, Subcommand, ValueHint};
use serde_json::{Value, json};

use crate::device::Kind;
use crate::errors::{Ending, usage};
use crate::flags::{DeviceArgs, OutputArgs, PrecisionArgs, one_of};
use crate::machine::SOFTWARE;
use crate::session::{Job, Session};
use crate::signals::Signals;
use crate::{libraries, output};

/// `bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Measure training steps of a stage
    #[command(after_help = "Examples:\n  beit2 bench train --stage pretrain --size small --batch-size 8\n  \
        beit2 bench train --stage tokenizer --size base --batch-size 64 --precision bf16 --device cuda --json\n  \
        beit2 bench train --stage pretrain --size small --data images --workers 2")]
    Train(TrainArgs),
    /// Measure forward passes of a classifier
    #[command(after_help = "Example:\n  beit2 bench infer --size base --batch-size 1 --precision bf16")]
    Infer(InferArgs),
}

/// Flags of `bench train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Stage: tokenizer (with its teacher), pretrain (with its tokenizer) or finetune
    #[arg(long, default_value = "pretrain", value_parser = one_of(&Stage::ALL, Stage::name))]
    stage: Stage,

    #[command(flatten)]
    common: Common,
}

/// Flags of `bench infer`.
#[derive(Debug, Args)]
pub struct InferArgs {
    #[command(flatten)]
    common: Common,
}

/// Flags of both.
#[derive(Debug, Args)]
struct Common {
    /// Model size; the frozen model has the same size, but is never larger than base
    #[arg(long, default_value = "small", value_parser = one_of(&Size::ALL, Size::name))]
    size: Size,

    /// Images per step
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,

    #[command(flatten)]
    precision: PrecisionArgs,

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

    /// Print one JSON object per round, each on its own line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures and prints.
pub fn run(command: &Bench, signals: &Signals) -> anyhow::Result<Ending> {
    let (kind, stage, common) = match command {
        Bench::Train(args) => ("train", Some(args.stage), &args.common),
        Bench::Infer(args) => ("infer", None, &args.common),
    };
    for (name, value) in
        [("--batch-size", common.batch_size), ("--steps", common.steps), ("--rounds", common.rounds)]
    {
        if value == 0 {
            return usage(format!("{name} is 0; it must be at least 1"));
        }
    }
    // Rounds are printed when they are over; there is nothing else to tell.
    let mut session = Session::new(OutputArgs { quiet: true, json: common.json }, signals);
    let images = match &common.data {
        None => Images::Random,
        Some(spec) => Images::Real(session.assets.source(spec)?, common.workers),
    };
    let run = Run { kind, stage, size: common.size, precision: common.precision.precision, common };
    session.on(&common.device.device, Measurement { run, images })
}

/// What is measured.
struct Run<'a> {
    kind: &'static str,
    stage: Option<Stage>,
    size: Size,
    precision: Precision,
    common: &'a Common,
}

impl Run<'_> {
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
        let signals = session.signals;
        // A GPU is measured once, before there is a model: its operands take memory, and its clock keeps.
        let gemm = match run.on_cpu() {
            true => None,
            false => Some(held_gemm_flops::<B::InnerBackend>(GPU_GEMM_SIDE, run.precision, device)?),
        };
        let held = memory_held_bytes();
        let (size, precision, batch) = (run.size, run.precision, run.common.batch_size);
        match run.stage {
            Some(stage) => {
                let setup = TrainSetup { stage, size, batch, precision, images };
                let mut bench = TrainBench::<B>::new(setup, device)?;
                let flops = bench.step_flops();
                let steps = move |count: usize| {
                    let (seconds, loss) = bench.steps(count)?;
                    Ok((seconds / count as f64, bench.parts()?, Some(loss)))
                };
                rounds::<B>(&run, (flops, gemm), held, signals, device, steps)
            }
            None => {
                let mut bench = InferBench::<B::InnerBackend>::new(size, batch, precision, images, device)?;
                let flops = bench.step_flops();
                let steps = move |count: usize| {
                    let parts = (0..count).map(|_| bench.batch()).collect::<Result<Vec<Parts>, _>>()?;
                    let mean = |of: fn(&Parts) -> f64| parts.iter().map(of).sum::<f64>() / count as f64;
                    let parts =
                        Parts { data: mean(|p| p.data), forward: mean(|p| p.forward), ..Parts::default() };
                    Ok((parts.data + parts.forward, parts, None))
                };
                rounds::<B>(&run, (flops, gemm), held, signals, device, steps)
            }
        }
    }
}

/// One round's measurement.
struct Round {
    /// Of a step.
    seconds: f64,
    parts: Parts,
    /// Operations a second.
    achieved: f64,
    gemm: f64,
    registers: Option<f64>,
    /// Of an NVIDIA GPU, that this process holds.
    gpu_memory: Option<u64>,
}

/// Runs `steps` (number → seconds of a step, its parts, the last loss) round by round. `step_flops` are operations of a
/// step; `gemm` is a large matmul's speed where it is known, else it is measured in each round.
fn rounds<B: AutodiffBackend>(
    run: &Run<'_>,
    (step_flops, gemm): (f64, Option<f64>),
    held: Option<u64>,
    signals: &Signals,
    device: &B::Device,
    mut steps: impl FnMut(usize) -> anyhow::Result<(f64, Parts, Option<f64>)>,
) -> anyhow::Result<Ending> {
    let common = run.common;
    // Threads start, buffers are made, kernels are chosen.
    steps(2)?;
    if common.paced {
        output::result(&json!({ "ready": true, "program": "beit2", "version": SOFTWARE }).to_string())?;
    }
    let mut input = std::io::stdin().lock().lines();
    let mut measured = Vec::new();
    for _ in 0..common.rounds {
        if common.paced && input.next().transpose()?.is_none() {
            break;
        }
        if signals.stop.is_set() {
            return Ok(Ending::Stopped);
        }
        let (seconds, parts, loss) = steps(common.steps)?;
        if let Some(loss) = loss.filter(|loss| !loss.is_finite()) {
            anyhow::bail!("the loss became {loss}, so the measurement means nothing");
        }
        let gpu_memory =
            (common.device.device.kind == Kind::Cuda).then(libraries::gpu_memory_held_bytes).flatten();
        let gemm = match gemm {
            Some(known) => known,
            None => gemm_flops::<B::InnerBackend>(run.precision, device)?,
        };
        let registers = Probe::new(run.precision).filter(|_| run.on_cpu()).map(|probe| probe.flops());
        let round = Round { seconds, parts, achieved: step_flops / seconds, gemm, registers, gpu_memory };
        if common.json {
            output::result(&line(run, &round, step_flops, held).to_string())?;
        }
        measured.push(round);
    }
    if !common.json && !measured.is_empty() {
        output::result(&summary(run, &measured, held))?;
    }
    Ok(Ending::Done)
}

/// Peak memory of the process, and what of it came with the model.
fn memory(held: Option<u64>) -> (Option<u64>, Option<u64>) {
    let peak = peak_memory_bytes();
    (peak, peak.zip(held).map(|(peak, held)| peak.saturating_sub(held)))
}

fn line(run: &Run<'_>, round: &Round, step_flops: f64, held: Option<u64>) -> Value {
    let (peak, own) = memory(held);
    let mebibytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
    let ms = |seconds: f64| seconds * 1e3;
    let Parts { data, tokenizer, forward, backward, optimizer } = round.parts;
    json!({
        "program": "beit2",
        "version": SOFTWARE,
        "kind": run.kind,
        "stage": run.stage.map(Stage::name),
        "size": run.size.name(),
        "batch_size": run.common.batch_size,
        "precision": run.common.precision.precision,
        "device": run.common.device.device.to_string(),
        "threads": beit2_kernels::threads(),
        "steps": run.common.steps,
        "seconds_per_step": round.seconds,
        "images_per_second": run.common.batch_size as f64 / round.seconds,
        "ms": {
            "data": ms(data),
            "tokenizer": ms(tokenizer),
            "forward": ms(forward),
            "backward": ms(backward),
            "optimizer": ms(optimizer),
        },
        "gflop_per_step": step_flops / 1e9,
        "gflops": round.achieved / 1e9,
        "gemm_gflops": round.gemm / 1e9,
        "share_of_gemm_peak": round.achieved / round.gemm,
        "register_gflops": round.registers.map(|flops| flops / 1e9),
        "share_of_register_peak": round.registers.map(|flops| round.achieved / flops),
        "peak_memory_mib": mebibytes(peak),
        "peak_step_memory_mib": mebibytes(own),
        "gpu_memory_mib": mebibytes(round.gpu_memory),
    })
}

fn summary(run: &Run<'_>, rounds: &[Round], held: Option<u64>) -> String {
    let of = |what: &dyn Fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(what).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let batch = run.common.batch_size as f64;
    let (median, least, most) = of(&|round| batch / round.seconds);
    let what = match run.stage {
        Some(stage) => format!("training step, {}", stage.name()),
        None => "forward passes of a classifier".to_owned(),
    };
    let machine = Environment::detect(SOFTWARE);
    let threads = beit2_kernels::threads();
    let mut rows = vec![
        (
            "measured".to_owned(),
            format!("{what}, {} size, batch {batch}, {}", run.size.name(), run.common.precision.precision),
        ),
        (
            "on".to_owned(),
            match run.common.device.device.to_string().as_str() {
                "cpu" => format!("{}, {threads} threads", machine.cpu.unwrap_or_else(|| "cpu".into())),
                device => device.to_owned(),
            },
        ),
        ("images/s".to_owned(), format!("{median:.2} (median of {}; {least:.2} to {most:.2})", rounds.len())),
        ("a step".to_owned(), format!("{:.1} ms", 1e3 * batch / median)),
    ];
    type Part = (&'static str, fn(&Parts) -> f64);
    let parts: [Part; 5] = [
        ("data", |p| p.data),
        ("tokenizer or teacher", |p| p.tokenizer),
        ("forward", |p| p.forward),
        ("backward", |p| p.backward),
        ("optimizer", |p| p.optimizer),
    ];
    for (name, part) in parts {
        let (median, ..) = of(&|round| part(&round.parts));
        if median > 0.0 {
            rows.push((format!("  {name}"), format!("{:.1} ms", 1e3 * median)));
        }
    }
    let (achieved, ..) = of(&|round| round.achieved);
    let (gemm, ..) = of(&|round| round.gemm);
    let (share, ..) = of(&|round| round.achieved / round.gemm);
    let rate = |flops: f64| format!("{:.0} GFLOP/s", flops / 1e9);
    let share = format!("{}, {:.0} % of {} (a large matmul)", rate(achieved), 100.0 * share, rate(gemm));
    rows.push(("matmul".to_owned(), share));
    if rounds[0].registers.is_some() {
        let (peak, ..) = of(&|round| round.registers.unwrap_or(f64::NAN));
        rows.push((
            String::new(),
            format!("{:.0} % of {} (registers only)", 100.0 * achieved / peak, rate(peak)),
        ));
    }
    if let (Some(peak), own) = memory(held) {
        let own = own.map(|own| format!(", {} of it for the model and its steps", format_bytes(own)));
        rows.push(("peak memory".to_owned(), format!("{}{}", format_bytes(peak), own.unwrap_or_default())));
    }
    if let Some(bytes) = rounds.iter().filter_map(|round| round.gpu_memory).max() {
        rows.push(("GPU memory".to_owned(), format!("{} held by this process", format_bytes(bytes))));
    }
    if run.stage.is_some() {
        let note = "parts are timed one by one; in training, the next batch's images and frozen model overlap with the step";
        rows.push(("note".to_owned(), note.to_owned()));
    }
    output::pairs(&rows)
}
