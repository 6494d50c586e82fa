//! `beit2 probe` and `beit2 knn`: how well the features of a frozen model tell classes apart.

mod features;
mod print;

use beit2::classify::bootstrap::Estimate;
use beit2::classify::{Features, KnnConfig, LinearProbe, LinearProbeConfig, RateChoice, knn, linear_probe};
use beit2_kernels::AutodiffBackend;
use serde_json::{Map, Value, json};

use self::features::{FeatureArgs, Protocol, measure};
use crate::display::estimate;
use crate::errors::{Ending, usage};
use crate::output;
use crate::session::Session;
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

    /// Learning rate for a batch of 256; of several, the best one on held-out training images is used [default:
    /// 1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1]
    #[arg(long, value_name = "RATE,…", value_delimiter = ',')]
    lr: Option<Vec<f64>>,

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
        rates: args.lr.clone().unwrap_or_else(|| LinearProbeConfig::RATES.to_vec()),
        weight_decay: args.weight_decay,
        seed: args.seed,
    };
    if config.epochs == 0 || config.batch == 0 {
        return usage("--epochs and --batch-size must be at least 1");
    }
    if let Some(rate) = config.rates.iter().find(|rate| !(**rate > 0.0 && rate.is_finite())) {
        return usage(format!("--lr {rate} must be above 0, such as 1e-3"));
    }
    run(&args.features, &mut Probe(config), signals)
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

    type Found = Vec<Estimate>;

    fn measure<B: AutodiffBackend>(
        &self,
        train: &Features,
        val: &Features,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Vec<Estimate>> {
        let config = KnnConfig { k: self.k.clone(), temperature: self.temperature };
        let Session { progress, signals, .. } = session;
        Ok(knn::<B::InnerBackend>(train, val, &config, progress, &signals.stop, device)?)
    }

    fn rows(&self, found: &Vec<Estimate>, _: bool, _: bool) -> Vec<(String, String)> {
        let name = |k| format!("k-NN top-1, k = {k}");
        self.k.iter().zip(found).map(|(k, found)| (name(k), estimate(*found, 1))).collect()
    }

    fn score(&self, found: &Vec<Estimate>) -> f64 {
        found.iter().map(|found| found.value).fold(0.0, f64::max)
    }

    fn json(&self, found: &Vec<Estimate>, _: bool) -> Value {
        let one = |(k, found): (&usize, &Estimate)| json!({ "k": k, "top1": found.value, "top1_interval": found.interval });
        self.k.iter().zip(found).map(one).collect()
    }

    fn settings(&self) -> Map<String, Value> {
        Map::from_iter([("temperature".to_owned(), json!(self.temperature))])
    }
}

/// One linear layer, trained on the features.
struct Probe(LinearProbeConfig);

impl Protocol for Probe {
    const NAME: &'static str = "probe";
    type Found = LinearProbe;

    fn prepare(&mut self, _: usize) -> anyhow::Result<()> {
        Ok(())
    }

    fn measure<B: AutodiffBackend>(
        &self,
        train: &Features,
        val: &Features,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<LinearProbe> {
        let Session { progress, signals, .. } = session;
        Ok(linear_probe::<B>(train, val, &self.0, progress, &signals.stop, device)?)
    }

    fn rows(&self, found: &LinearProbe, multi_label: bool, short: bool) -> Vec<(String, String)> {
        let name = format!("linear probe {}", metric(multi_label));
        let (score, train, lr) = (estimate(found.val, 1), percent(found.train), found.lr);
        if short {
            return vec![(name, format!("{score}, training {train}, learning rate {lr:e}"))];
        }
        let why = match &found.choice {
            RateChoice::Given => String::new(),
            RateChoice::NoSplit => {
                let which = if lr == LinearProbeConfig::DEFAULT_RATE { "default" } else { "middle one" };
                format!(", the {which}: no split is possible, because no class has two training images")
            }
            RateChoice::Sweep { scores, held_out, .. } => {
                format!(", the best of {} on {held_out} held-out training images", scores.len())
            }
        };
        vec![
            ("learning rate".to_owned(), format!("{lr:e}{why}")),
            (format!("{name}, training"), train),
            (name, score),
        ]
    }

    fn table(&self, found: &LinearProbe, multi_label: bool) -> Option<String> {
        let RateChoice::Sweep { scores, epochs, .. } = &found.choice else { return None };
        let cell = |score: &Option<f64>| score.map_or("diverged".to_owned(), percent);
        let rows: Vec<_> =
            scores.iter().map(|(rate, score)| vec![format!("{rate:e}"), cell(score)]).collect();
        let held_out = format!("held-out {} after {epochs} epochs", metric(multi_label));
        Some(output::table(&["learning rate", &held_out], &rows))
    }

    fn warnings(&self, found: &LinearProbe) -> Vec<String> {
        found.warnings()
    }

    /// On held-out training images, where there are any: validation images choose nothing.
    fn score(&self, found: &LinearProbe) -> f64 {
        match &found.choice {
            RateChoice::Sweep { scores, .. } => {
                scores.iter().filter_map(|(_, score)| *score).fold(0.0, f64::max)
            }
            RateChoice::Given | RateChoice::NoSplit => found.val.value,
        }
    }

    fn json(&self, found: &LinearProbe, multi_label: bool) -> Value {
        let name = if multi_label { "map" } else { "top1" };
        let LinearProbeConfig { epochs, batch, weight_decay, seed, .. } = self.0;
        let mut object = json!({
            name: found.val.value,
            (format!("{name}_interval")): found.val.interval,
            (format!("train_{name}")): found.train,
            "lr": found.lr,
            "sweep": null,
            "losses": found.losses,
            "warnings": found.warnings(),
            "settings": { "epochs": epochs, "batch": batch, "weight_decay": weight_decay, "seed": seed },
        });
        if let RateChoice::Sweep { scores, held_out, epochs } = &found.choice {
            let one = |(rate, score): &(f64, Option<f64>)| json!({ "lr": rate, name: score });
            let rates: Vec<Value> = scores.iter().map(one).collect();
            object["sweep"] = json!({ "held_out": held_out, "epochs": epochs, "rates": rates });
        }
        object
    }

    fn settings(&self) -> Map<String, Value> {
        Map::new()
    }
}

fn metric(multi_label: bool) -> &'static str {
    if multi_label { "mAP" } else { "top-1" }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
