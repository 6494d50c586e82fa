//! `beit2 probe` and `beit2 knn`: how well the features of a frozen model tell classes apart.

mod features;
mod print;

use beit2::classify::{Features, KnnConfig, LinearProbeConfig, knn, linear_probe};
use beit2_kernels::AutodiffBackend;
use serde_json::{Map, Value, json};

use self::features::{FeatureArgs, Protocol, measure};
use crate::errors::{Ending, usage};
use crate::signals::Signals;

/// Flags of `knn`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 knn --weights runs/mim --data labelled/train --val labelled/val\n\
    \x20 beit2 knn --weights pixels --data labelled/train --val labelled/val \\\n\
    \x20     --k 10,20 --json")]
pub struct KnnArgs {
    #[command(flatten)]
    features: FeatureArgs,

    /// Number of neighbours; with several values, each gives a result [default: 10,20]
    #[arg(long, value_name = "K,…", value_delimiter = ',')]
    k: Option<Vec<usize>>,

    /// Temperature: a neighbour's vote weighs exp(similarity / T)
    #[arg(long, value_name = "T", default_value_t = KnnConfig::default().temperature)]
    temperature: f64,
}

/// Flags of `probe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 probe --weights runs/mim --data labelled/train --val labelled/val\n\
    \x20 beit2 probe --weights runs/mim --data labelled/train --val labelled/val \\\n\
    \x20     --features concat --all-layers")]
pub struct ProbeArgs {
    #[command(flatten)]
    features: FeatureArgs,

    /// Epochs over the features
    #[arg(long, value_name = "N", default_value_t = LinearProbeConfig::default().epochs)]
    epochs: u64,

    /// Features per batch
    #[arg(long, value_name = "N", default_value_t = LinearProbeConfig::default().batch)]
    batch_size: usize,

    /// Learning rate for a batch of 256
    #[arg(long, value_name = "RATE", default_value_t = LinearProbeConfig::default().lr)]
    lr: f64,

    /// Weight decay
    #[arg(long, value_name = "DECAY", default_value_t = LinearProbeConfig::default().weight_decay)]
    weight_decay: f64,

    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Runs `knn`.
pub fn run_knn(args: &KnnArgs, signals: &Signals) -> anyhow::Result<Ending> {
    if args.k.as_ref().is_some_and(|k| k.contains(&0))
        || args.temperature <= 0.0
        || !args.temperature.is_finite()
    {
        return usage("--k must be at least 1 and --temperature above 0");
    }
    run(
        &args.features,
        &mut Knn { asked: args.k.as_deref(), k: Vec::new(), temperature: args.temperature },
        signals,
    )
}

/// Runs `probe`.
pub fn run_probe(args: &ProbeArgs, signals: &Signals) -> anyhow::Result<Ending> {
    let config = LinearProbeConfig {
        epochs: args.epochs,
        batch: args.batch_size,
        lr: args.lr,
        weight_decay: args.weight_decay,
        seed: args.seed,
    };
    if config.epochs == 0 || config.batch == 0 || config.lr <= 0.0 || !config.lr.is_finite() {
        return usage("--epochs and --batch-size must be at least 1 and --lr above 0");
    }
    run(&args.features, &mut LinearProbe(config), signals)
}

fn run<P: Protocol>(args: &FeatureArgs, protocol: &mut P, signals: &Signals) -> anyhow::Result<Ending> {
    let results = measure(args, protocol, signals)?;
    print::print(args, &*protocol, &results)?;
    Ok(Ending::Done)
}

/// Neighbours where nobody says how many, as far as there are so many images.
const DEFAULT_K: [usize; 2] = [10, 20];

/// Weighted votes of the nearest neighbours, for one or several numbers of them.
struct Knn<'a> {
    /// On the command line.
    asked: Option<&'a [usize]>,
    k: Vec<usize>,
    temperature: f64,
}

impl Protocol for Knn<'_> {
    const NAME: &'static str = "knn";

    fn prepare(&mut self, train: usize) -> anyhow::Result<()> {
        if let Some(k) = self.asked.into_iter().flatten().find(|&&k| k > train) {
            return usage(format!(
                "--k {k} needs as many training images, but there are {train}; use a value from 1 to {train}"
            ));
        }
        self.k = match self.asked {
            Some(asked) => asked.to_vec(),
            None => DEFAULT_K.into_iter().filter(|&k| k <= train).collect(),
        };
        if self.k.is_empty() {
            self.k.push(train);
        }
        Ok(())
    }

    fn top1<B: AutodiffBackend>(
        &self,
        train: &Features,
        val: &Features,
        device: &B::Device,
    ) -> anyhow::Result<Vec<f64>> {
        let accuracy = |&k| {
            let config = KnnConfig { k, temperature: self.temperature };
            Ok(knn::<B::InnerBackend>(train, val, config, device)?)
        };
        self.k.iter().map(accuracy).collect()
    }

    fn label(&self, at: usize, _: bool) -> String {
        format!("k-NN top-1, k = {}", self.k[at])
    }

    fn json(&self, top1: &[f64], _: bool) -> Value {
        self.k.iter().zip(top1).map(|(k, top1)| json!({ "k": k, "top1": top1 })).collect()
    }

    fn settings(&self) -> Map<String, Value> {
        Map::from_iter([("temperature".to_owned(), json!(self.temperature))])
    }
}

/// One linear layer, trained on the features.
struct LinearProbe(LinearProbeConfig);

impl Protocol for LinearProbe {
    const NAME: &'static str = "probe";

    fn prepare(&mut self, _: usize) -> anyhow::Result<()> {
        Ok(())
    }

    fn top1<B: AutodiffBackend>(
        &self,
        train: &Features,
        val: &Features,
        device: &B::Device,
    ) -> anyhow::Result<Vec<f64>> {
        Ok(vec![linear_probe::<B>(train, val, self.0, device)?])
    }

    fn label(&self, _: usize, multi_label: bool) -> String {
        format!("linear probe {}", if multi_label { "mAP" } else { "top-1" })
    }

    fn json(&self, top1: &[f64], multi_label: bool) -> Value {
        let name = if multi_label { "map" } else { "top1" };
        json!({ name: top1.first(), "settings": self.0 })
    }

    fn settings(&self) -> Map<String, Value> {
        Map::new()
    }
}
