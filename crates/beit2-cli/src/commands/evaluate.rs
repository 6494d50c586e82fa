//! `beit2 knn` and `beit2 probe`: what frozen features are worth on labelled images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use beit2::classify;
use beit2::classify::{
    Embedder, Features, KnnConfig, LinearProbeConfig, extract, linear_probe, pixel_features,
};
use beit2::train::{Assets, DataConfig};
use beit2_data::Source;
use beit2_kernels::{AutodiffBackend, Precision};
use clap::ValueHint;
use serde_json::json;

use super::found::{Found, print_json, print_rows};
use crate::assets::AssetStore;
use crate::device::Job;
use crate::errors::{Ending, usage};
use crate::flags::{DeviceArgs, FeatureKindArg, FrozenArgs, OutputArgs, PrecisionArgs};
use crate::progress::Progress;
use crate::signals::Signals;

/// Side of the images of the raw-pixel baseline when none is given.
const PIXELS_SIDE: usize = 32;

/// Whose features, of which images.
#[derive(Debug, clap::Args)]
pub struct Subject {
    /// Model: a run directory, checkpoint folder or weight file, bundled:teacher, or `pixels` for the baseline
    #[arg(long, value_name = "RUN|FILE")]
    pub(super) weights: String,

    /// Labelled images to learn from: one sub-folder for each class, tar shards, or bundled:train
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    data: String,

    /// Labelled images to be judged on, with the same classes
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    val: String,

    /// What of an image's tokens becomes its feature
    #[arg(long, value_name = "WHAT", default_value = "mean")]
    pub(super) features: FeatureKindArg,

    #[command(flatten)]
    frozen: FrozenArgs,

    /// After every block in turn, to find the best one
    #[arg(long, conflicts_with = "layer")]
    pub(super) all_layers: bool,

    /// Folder where features are kept for the next evaluation; left out, `features/` in the run directory that
    /// --weights names, and nowhere for other weights
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    cache: Option<PathBuf>,

    /// Threads that decode images
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    #[command(flatten)]
    pub(super) precision: PrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `knn`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  beit2 knn --weights runs/mim --data train --val val\n  \
    beit2 knn --weights pixels --data train --val val --k 10,20 --json")]
pub struct KnnArgs {
    #[command(flatten)]
    subject: Subject,

    /// Neighbours; several values give several results
    #[arg(long, value_name = "K,…", value_delimiter = ',', default_value = "10,20")]
    k: Vec<usize>,

    /// Votes weigh exp(similarity / T)
    #[arg(long, value_name = "T", default_value_t = KnnConfig::default().temperature)]
    temperature: f64,
}

/// Flags of `probe`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  beit2 probe --weights runs/mim --data train --val val --features concat --layer 9\n  \
                  beit2 probe --weights runs/mim --data train --val val --features concat --all-layers"
)]
pub struct ProbeArgs {
    #[command(flatten)]
    subject: Subject,

    /// Passes over the features
    #[arg(long, value_name = "N", default_value_t = LinearProbeConfig::default().epochs)]
    epochs: u64,

    /// Features per step
    #[arg(long, value_name = "N", default_value_t = LinearProbeConfig::default().batch)]
    batch_size: usize,

    /// Learning rate for a batch of 256
    #[arg(long, value_name = "RATE", default_value_t = LinearProbeConfig::default().lr)]
    lr: f64,

    /// Weight decay
    #[arg(long, value_name = "DECAY", default_value_t = LinearProbeConfig::default().weight_decay)]
    weight_decay: f64,

    /// Seed of the classifier
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Runs `knn`.
pub fn knn(args: &KnnArgs, signals: &Signals) -> anyhow::Result<Ending> {
    if args.k.contains(&0) || args.temperature <= 0.0 || !args.temperature.is_finite() {
        return usage("--k must be at least 1 and --temperature above 0");
    }
    let votes = |train: &Features, val: &Features, device: &dyn OnDevice| {
        let configs = args.k.iter().map(|&k| KnnConfig { k, temperature: args.temperature });
        configs
            .map(|config| Ok((config.k, device.knn(train, val, config)?)))
            .collect::<anyhow::Result<Vec<_>>>()
    };
    let results = measure(&args.subject, signals, votes)?;
    let list = |votes: &[(usize, f64)]| -> Vec<_> {
        votes.iter().map(|(k, top1)| json!({ "k": k, "top1": top1 })).collect()
    };
    let rows = |votes: &[(usize, f64)]| -> Vec<_> {
        votes.iter().map(|(k, top1)| (format!("k-NN top-1, k = {k}"), percent(*top1))).collect()
    };
    let best = |votes: &Vec<(usize, f64)>| votes.iter().map(|(_, top1)| *top1).fold(0.0, f64::max);
    if args.subject.output.json {
        let extra = json!({ "temperature": args.temperature });
        print_json(&args.subject, &results, "knn", |votes| list(votes).into(), best, extra)?;
    } else {
        print_rows(&args.subject, &results, |votes| rows(votes), best)?;
    }
    Ok(Ending::Done)
}

/// Runs `probe`.
pub fn probe(args: &ProbeArgs, signals: &Signals) -> anyhow::Result<Ending> {
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
    let train = |train: &Features, val: &Features, device: &dyn OnDevice| device.probe(train, val, config);
    let results = measure(&args.subject, signals, train)?;
    if args.subject.output.json {
        let value = |top1: &f64| json!({ "top1": top1, "settings": config });
        print_json(&args.subject, &results, "probe", value, |top1| *top1, json!({}))?;
    } else {
        let rows = |top1: &f64| vec![("linear probe top-1".to_owned(), percent(*top1))];
        print_rows(&args.subject, &results, rows, |top1| *top1)?;
    }
    Ok(Ending::Done)
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `--weights` of the baseline.
pub(super) const PIXELS: &str = "pixels";

/// The two evaluations, with the backend hidden.
trait OnDevice {
    fn knn(&self, train: &Features, val: &Features, config: KnnConfig) -> anyhow::Result<f64>;
    fn probe(&self, train: &Features, val: &Features, config: LinearProbeConfig) -> anyhow::Result<f64>;
}

struct Evaluator<'a, B: AutodiffBackend>(&'a B::Device);

impl<B: AutodiffBackend> OnDevice for Evaluator<'_, B> {
    fn knn(&self, train: &Features, val: &Features, config: KnnConfig) -> anyhow::Result<f64> {
        Ok(classify::knn::<B::InnerBackend>(train, val, config, self.0)?)
    }

    fn probe(&self, train: &Features, val: &Features, config: LinearProbeConfig) -> anyhow::Result<f64> {
        Ok(linear_probe::<B>(train, val, config, self.0)?)
    }
}

/// Computes the features of both sets and evaluates them; one result, or with --all-layers one for each block.
fn measure<T, F>(subject: &Subject, signals: &Signals, evaluate: F) -> anyhow::Result<Vec<(Found, T)>>
where
    F: Fn(&Features, &Features, &dyn OnDevice) -> anyhow::Result<T>,
{
    if subject.all_layers && subject.weights == PIXELS {
        return usage("--all-layers is for models; pixels have no layers");
    }
    let assets = AssetStore::default();
    let (train, val) = (assets.source(&subject.data)?, assets.source(&subject.val)?);
    if train.classes() != val.classes() {
        return usage(format!(
            "{} has {} classes and {} has {}, or their names differ; both need the same sub-folders",
            subject.data,
            train.classes().len(),
            subject.val,
            val.classes().len()
        ));
    }
    // No run directory: warnings have nowhere to be kept and are shown.
    let mut progress = Progress::new(subject.output, signals, Path::new("."));
    let job = Measurement {
        subject,
        assets: &assets,
        sides: [(train, "to learn from"), (val, "to judge")],
        signals,
        progress: &mut progress,
        evaluate,
    };
    let result = subject.device.device.on(job);
    progress.close();
    result
}

struct Measurement<'a, F> {
    subject: &'a Subject,
    assets: &'a AssetStore,
    sides: [(Arc<dyn Source>, &'static str); 2],
    signals: &'a Signals,
    progress: &'a mut Progress,
    evaluate: F,
}

impl<T, F> Job for Measurement<'_, F>
where
    F: Fn(&Features, &Features, &dyn OnDevice) -> anyhow::Result<T>,
{
    type Output = Vec<(Found, T)>;

    fn run<B: AutodiffBackend>(mut self, device: &B::Device) -> anyhow::Result<Vec<(Found, T)>> {
        let subject = self.subject;
        if subject.weights == PIXELS {
            return Ok(vec![self.one::<B>(None, device)?]);
        }
        let options = subject.frozen.options(subject.precision.precision);
        let file = self.assets.weights(&subject.weights)?;
        let mut model = Embedder::<B::InnerBackend>::from_file(file, &subject.weights, &options, device)?;
        if !subject.all_layers {
            return Ok(vec![self.one::<B>(Some(&model), device)?]);
        }
        let Some(blocks) = model.blocks() else {
            return usage(format!(
                "--all-layers is for pretrained models and classifiers; {} has features after its last layer only",
                subject.weights
            ));
        };
        let mut results = Vec::with_capacity(blocks);
        for layer in 1..=blocks {
            model.set_layer(layer);
            results.push(self.one::<B>(Some(&model), device)?);
        }
        Ok(results)
    }
}

impl<T, F> Measurement<'_, F>
where
    F: Fn(&Features, &Features, &dyn OnDevice) -> anyhow::Result<T>,
{
    /// One evaluation: of pixels without a model.
    fn one<B: AutodiffBackend>(
        &mut self,
        model: Option<&Embedder<B::InnerBackend>>,
        device: &B::Device,
    ) -> anyhow::Result<(Found, T)> {
        let Self { subject, assets, sides, signals, progress, .. } = self;
        let data = DataConfig { workers: subject.workers, ..DataConfig::default() };
        let mut both = Vec::with_capacity(2);
        for (source, what) in sides {
            both.push(match model {
                None => {
                    let side = subject.frozen.image_size.unwrap_or(PIXELS_SIDE);
                    pixel_features(source.clone(), &data, side, *progress, &signals.stop)?
                }
                Some(model) => {
                    let kind = subject.features.of_library();
                    let (net, px) = (&model.net, model.image_px);
                    let place = cache_file(subject, assets, source.as_ref(), model.layer, px)?;
                    let source = source.clone();
                    let compute =
                        || extract(net, source, &data, px, kind, what, *progress, &signals.stop, device);
                    match place {
                        Some(path) => classify::cached(&path, compute)?,
                        None => compute()?,
                    }
                }
            });
        }
        let found = Found {
            train: both[0].len(),
            val: both[1].len(),
            classes: both[0].classes,
            dim: both[0].dim,
            layer: model.and_then(|model| model.layer),
        };
        let result = (self.evaluate)(&both[0], &both[1], &Evaluator::<B>(device))?;
        Ok((found, result))
    }
}

/// Where the features of one set are kept: the name says model, images and options.
fn cache_file(
    subject: &Subject,
    assets: &AssetStore,
    source: &dyn Source,
    layer: Option<usize>,
    px: usize,
) -> anyhow::Result<Option<PathBuf>> {
    let run = Path::new(&subject.weights);
    let folder = match &subject.cache {
        Some(folder) => folder.clone(),
        None if run.join("run.toml").is_file() => run.join("features"),
        None => return Ok(None),
    };
    let model = assets.weights_fingerprint(&subject.weights)?;
    let layer = layer.map_or("all".to_owned(), |layer| layer.to_string());
    let precision = match subject.precision.precision {
        Precision::F32 => String::new(),
        other => format!("-{other}"),
    };
    let (source, features) = (source.fingerprint(), subject.features.name());
    let name = format!("{model}-{source}-{features}-{layer}-{px}{precision}.safetensors");
    Ok(Some(folder.join(name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c), "_"))))
}
