//! `beit2 bench ranks`: how long processes take to average the gradients of a model, and what that means for a step.

use std::time::Instant;

use anyhow::anyhow;
use beit2::cost;
use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerConfig;
use beit2_bench::Size;
use beit2_bench::noise::median;
use beit2_kernels::{AutodiffBackend, Rank};
use beit2_run::environment::Environment;
use beit2_run::thousands;
use burn::tensor::Tensor;
use burn::tensor::backend::Device as _;
use serde_json::json;

use crate::errors::{Ending, usage};
use crate::flags::{DeviceArgs, OutputArgs, one_of};
use crate::machine::SOFTWARE;
use crate::output;
use crate::ranks::{self, Joined, RankArgs};
use crate::session::{Job, Session};
use crate::signals::Signals;

/// Flags of `bench ranks`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 bench ranks --rank 0/2 --rendezvous localhost:4000\n\
    \x20 beit2 bench ranks --rank 1/2 --rendezvous localhost:4000\n\
    \x20 srun beit2 bench ranks --size large --step-seconds 0.8 --device cuda")]
pub struct Args {
    /// Size of the pretrained model whose gradients are averaged
    #[arg(long, default_value = "base", value_parser = one_of(&Size::ALL, Size::name))]
    size: Size,

    /// Exchanges, each measured on its own, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Seconds that a step computes for, to see which part of a step the exchange would be
    #[arg(long, value_name = "SECONDS")]
    step_seconds: Option<f64>,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    ranks: RankArgs,
}

/// Speeds of networks for the table, in Gb/s.
const NETWORKS: [f64; 3] = [1.0, 10.0, 100.0];

/// Numbers of one tensor: gradients are many tensors.
const TENSOR: usize = 1 << 22;

/// Measures, and prints where rank 0 is.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    if args.rounds == 0 {
        return usage("--rounds is 0; it must be at least 1");
    }
    if let Some(seconds) = args.step_seconds.filter(|seconds| !(seconds.is_finite() && *seconds > 0.0)) {
        return usage(format!("--step-seconds is {seconds}; it must be a number above 0"));
    }
    let same = [("the stage", "bench ranks".to_owned()), ("the size", args.size.name().to_owned())];
    let Joined { rank, device, told } = ranks::meet(&args.ranks, &args.device.device, &same, signals)?;
    let Some(told) = told else {
        return usage(
            "there is nothing to exchange: start at least two processes, with a launcher or with --rank I/N --rendezvous HOST:PORT",
        );
    };
    let recipe = PretrainRecipe { model: args.size.student(), ..PretrainRecipe::default() };
    let parameters = cost::pretrain(&recipe, &TokenizerConfig::default()).parameters;
    let mut session = Session::new(args.output, signals);
    let measured = session.on(&device, Exchanges { rank: &rank, parameters, rounds: args.rounds });
    rank.leave(measured.as_ref().err().map(|error| format!("{error:#}")).as_deref());
    let seconds = measured?;
    if rank.leads() {
        Found { args, world: rank.world(), parameters, seconds, told }.print()?;
    }
    Ok(Ending::Done)
}

struct Exchanges<'a> {
    rank: &'a Rank,
    parameters: usize,
    rounds: usize,
}

impl Job for Exchanges<'_> {
    type Output = Vec<f64>;

    fn run<B: AutodiffBackend>(self, _: &mut Session<'_>, device: &B::Device) -> anyhow::Result<Vec<f64>> {
        let rank = self.rank.clone().on(device.to_id());
        let mut seconds = Vec::new();
        for round in 0..=self.rounds {
            let mut tensors = Vec::new();
            let mut left = self.parameters;
            while left > 0 {
                let count = left.min(TENSOR);
                let value = (rank.index() + 1) as f32;
                tensors.push(Tensor::<B::InnerBackend, 1>::full([count], value, device));
                left -= count;
            }
            // All begin together, so that nobody's time is another's.
            rank.gather(())?;
            let began = Instant::now();
            let means = rank.means(tensors);
            let found = means.last().map(|mean| mean.clone().slice(0..1).into_data().convert::<f32>());
            if round > 0 {
                seconds.push(began.elapsed().as_secs_f64());
            }
            rank.gather(())?;
            let expected = (rank.world() + 1) as f32 / 2.0;
            if found.and_then(|found| found.into_vec::<f32>().ok()) != Some(vec![expected]) {
                return Err(anyhow!(
                    "the mean over the ranks is wrong; this is an error in the program or the network"
                ));
            }
        }
        Ok(seconds)
    }
}

struct Found<'a> {
    args: &'a Args,
    world: usize,
    parameters: usize,
    seconds: Vec<f64>,
    told: String,
}

impl Found<'_> {
    /// Bytes that each process sends, and as many that it receives.
    fn bytes(&self) -> f64 {
        4.0 * self.parameters as f64 * 2.0 * (self.world - 1) as f64 / self.world as f64
    }

    fn print(&self) -> anyhow::Result<()> {
        let seconds = median(&self.seconds).unwrap_or(f64::NAN);
        let rate = self.bytes() * 8e-9 / seconds;
        let efficiency = |exchange: f64| self.args.step_seconds.map(|step| step / (step + exchange));
        let networks = NETWORKS.map(|rate| (rate, self.bytes() * 8e-9 / rate));
        if self.args.output.json {
            let networks = networks.map(|(rate, seconds)| {
                json!({ "gbit_per_s": rate, "seconds": seconds, "efficiency": efficiency(seconds) })
            });
            return output::json(&json!({
                "processes": self.world,
                "size": self.args.size.name(),
                "parameters": self.parameters,
                "bytes_each_way": self.bytes(),
                "seconds": seconds,
                "rounds": self.seconds,
                "gbit_per_s": rate,
                "efficiency": efficiency(seconds),
                "networks": networks,
                "environment": Environment::detect(SOFTWARE),
            }));
        }
        let part = |exchange: f64| {
            let percent =
                |efficiency: f64| format!("; steps reach {:.0} % of their speed alone", 100.0 * efficiency);
            efficiency(exchange).map(percent).unwrap_or_default()
        };
        let (size, mb) = (self.args.size.name(), self.bytes() / 1e6);
        let mut rows = vec![
            ("ranks".to_owned(), self.told.clone()),
            ("gradients".to_owned(), format!("{size}, {} parameters", thousands(self.parameters as u64))),
            (
                "exchange".to_owned(),
                format!(
                    "{seconds:.3} s (median of {}), {mb:.0} MB each way: {rate:.1} Gb/s{}",
                    self.seconds.len(),
                    part(seconds)
                ),
            ),
        ];
        rows.extend(networks.map(|(rate, seconds)| {
            (
                format!("at {rate} Gb/s"),
                format!("{seconds:.3} s if the network is all that counts{}", part(seconds)),
            )
        }));
        output::result(&output::pairs(&rows))
    }
}
