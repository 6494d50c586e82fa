//! The features of both sets, and what is measured on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use beit2::InferPrecision;
use beit2::classify::{Embedder, Features, cached, extract, pixel_features};
use beit2::train::{Assets, DataConfig, EvaluationData, Event, ImageCaching, Observer};
use beit2_data::check::{self, Set};
use beit2_data::classes::{ClassesBy, Target, match_classes};
use beit2_data::{DecodeOptions, Source};
use beit2_kernels::AutodiffBackend;
use clap::ValueHint;
use serde_json::{Map, Value};

use crate::account;
use crate::assets::AssetStore;
use crate::errors::usage;
use crate::flags::{
    DecodeArgs, DeviceArgs, FeatureKindArg, FrozenArgs, InferPrecisionArgs, OutputArgs, ReadArgs,
};
use crate::session::{Job, Session};
use crate::signals::Signals;

/// `--weights` of the baseline without a model.
pub(super) const PIXELS: &str = "pixels";

/// Side of the images of the raw-pixel baseline when none is given.
const PIXELS_SIDE: usize = 32;

/// Whose features, of which images.
#[derive(Debug, clap::Args)]
pub(super) struct FeatureArgs {
    /// Model: a run directory, checkpoint folder or weight file, bundled:teacher, or `pixels` for
    /// the raw-pixel baseline
    #[arg(long, value_name = "RUN|FILE")]
    pub weights: String,

    #[command(flatten)]
    read: ReadArgs,

    /// Labelled training images: one sub-folder per class, tar shards, or bundled:train
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    data: String,

    /// Labelled validation images, with the same classes
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    val: String,

    /// Which tokens become an image's feature
    #[arg(long, value_name = "WHAT", default_value = "mean")]
    pub features: FeatureKindArg,

    #[command(flatten)]
    frozen: FrozenArgs,

    /// Measure the features after every block, to find the best one
    #[arg(long, conflicts_with = "layer")]
    pub all_layers: bool,

    /// Folder that keeps the features for the next evaluation [default: features/ in the run directory that --weights
    /// names; none for other weights]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    cache: Option<PathBuf>,

    /// Share of the images of a set that may be unreadable; they are left out and counted
    #[arg(long, value_name = "FRACTION", default_value_t = DataConfig::default().max_bad_fraction)]
    max_bad_fraction: f64,

    #[command(flatten)]
    decode: DecodeArgs,

    /// Threads that decode images
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    #[command(flatten)]
    pub precision: InferPrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

/// A way to measure features.
pub(super) trait Protocol {
    /// Its key in the JSON object.
    const NAME: &'static str;
    /// What it finds on one kind of features.
    type Found;

    /// Takes note of the number of training images.
    fn prepare(&mut self, train: usize) -> anyhow::Result<()>;

    /// Learns from `train` and evaluates on `val`.
    fn measure<B: AutodiffBackend>(
        &self,
        train: &Features,
        val: &Features,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Self::Found>;

    /// The rows of the printed result, name and value; in a single row per score if `short`.
    fn rows(&self, found: &Self::Found, multi_label: bool, short: bool) -> Vec<(String, String)>;

    /// What else is printed below the rows of a single result.
    fn table(&self, _found: &Self::Found, _multi_label: bool) -> Option<String> {
        None
    }

    /// What one should know about a result, one sentence each.
    fn warnings(&self, _found: &Self::Found) -> Vec<String> {
        Vec::new()
    }

    /// The score by which the best block is chosen.
    fn score(&self, found: &Self::Found) -> f64;

    /// The result in the JSON object.
    fn json(&self, found: &Self::Found, multi_label: bool) -> Value;

    /// What else belongs in the JSON object.
    fn settings(&self) -> Map<String, Value>;
}

/// What was measured on the features after one block.
pub(super) struct Measured<F> {
    /// Training images.
    pub train: usize,
    /// Validation images.
    pub val: usize,
    pub classes: usize,
    /// Values of a feature.
    pub dim: usize,
    /// The block; `None` for the model's final output.
    pub layer: Option<usize>,
    /// What the protocol found.
    pub found: F,
    /// Whether images can have several classes; then scores are mean average precisions.
    pub multi_label: bool,
    /// Training and validation images that cannot be read and do not count.
    pub left_out: [usize; 2],
}

/// The results, and what the sets hold.
pub(super) struct Results<F> {
    pub measured: Vec<Measured<F>>,
    /// The accounts of both sets.
    pub account: Value,
}

/// Computes the features of both sets and measures them; one result, or with --all-layers one for each block.
pub(super) fn measure<P: Protocol>(
    args: &FeatureArgs,
    protocol: &mut P,
    signals: &Signals,
) -> anyhow::Result<Results<P::Found>> {
    if args.all_layers && args.weights == PIXELS {
        return usage("--all-layers needs a model; pixels have no layers");
    }
    let mut session = Session::reading(args.output, signals, args.read.reading()?);
    let (train, val) = (session.assets.source(&args.data)?, session.assets.source(&args.val)?);
    for (spec, source) in [(&args.data, &train), (&args.val, &val)] {
        account::tell(args.output, spec, source.as_ref());
    }
    let account = account::json_of(train.as_ref(), Some(val.as_ref()));
    train.check_labels()?;
    val.check_labels()?;
    let target = Target { owner: &args.data, count: train.classes().len(), names: train.classes() };
    let matched = match (train.classes(), val.classes()) {
        ([], _) => return usage(format!("{} has no classes; features are measured by classes", args.data)),
        (_, []) => return usage(format!("{} has no classes; it needs those of {}", args.val, args.data)),
        _ => match_classes(&args.val, val, target, ClassesBy::Auto)
            .or_else(|error| usage(error.to_string()))?,
    };
    for warning in matched.warnings {
        session.progress.event(Event::Warning(warning));
    }
    protocol.prepare(train.len())?;
    look(args, &train, &matched.source)?;
    let sources = [train, matched.source];
    let measured = session.on(&args.device.device, Measurement { args, protocol: &*protocol, sources })?;
    Ok(Results { measured, account })
}

/// Labels that tell nothing, and images that are in both sets.
fn look(args: &FeatureArgs, train: &Arc<dyn Source>, val: &Arc<dyn Source>) -> anyhow::Result<()> {
    let train = Set { name: &args.data, source: train };
    let val = Set { name: &args.val, source: val };
    let mut findings = check::labels(train, None);
    findings.extend(check::shared(train, val, args.workers));
    account::tell_warnings(&findings.warnings);
    match findings.errors.first() {
        Some(error) => usage(error.as_str()),
        None => Ok(()),
    }
}

struct Measurement<'a, P> {
    args: &'a FeatureArgs,
    protocol: &'a P,
    /// Training and validation images, with the same classes.
    sources: [Arc<dyn Source>; 2],
}

impl<P: Protocol> Job for Measurement<'_, P> {
    type Output = Vec<Measured<P::Found>>;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Self::Output> {
        let args = self.args;
        if args.weights == PIXELS {
            return Ok(vec![self.after_block::<B>(None, session, device)?]);
        }
        let options = args.frozen.options(args.precision.precision);
        let file = session.assets.weights(&args.weights)?;
        let mut model = Embedder::<B::InnerBackend>::from_file(file, &args.weights, &options, device)?;
        if !args.all_layers {
            return Ok(vec![self.after_block::<B>(Some(&model), session, device)?]);
        }
        let Some(blocks) = model.blocks() else {
            return usage(format!(
                "--all-layers is for pretrained models and classifiers; {} only has features after its last layer",
                args.weights
            ));
        };
        let mut results = Vec::with_capacity(blocks);
        for layer in 1..=blocks {
            model.set_layer(layer);
            results.push(self.after_block::<B>(Some(&model), session, device)?);
        }
        Ok(results)
    }
}

impl<P: Protocol> Measurement<'_, P> {
    /// One measurement: after the block that the model is set to, or of pixels without a model.
    fn after_block<B: AutodiffBackend>(
        &self,
        model: Option<&Embedder<B::InnerBackend>>,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Measured<P::Found>> {
        let [train, val] = &self.sources;
        let train = self.features::<B>(model, train, "training", session, device)?;
        let val = self.features::<B>(model, val, "validation", session, device)?;
        Ok(Measured {
            train: train.len(),
            val: val.len(),
            classes: train.classes,
            dim: train.dim,
            layer: model.and_then(|model| model.layer),
            found: self.protocol.measure::<B>(&train, &val, session, device)?,
            multi_label: train.sets.is_some(),
            left_out: [
                self.sources[0].len().saturating_sub(train.len()),
                self.sources[1].len().saturating_sub(val.len()),
            ],
        })
    }

    fn features<B: AutodiffBackend>(
        &self,
        model: Option<&Embedder<B::InnerBackend>>,
        source: &Arc<dyn Source>,
        what: &str,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Features> {
        let args = self.args;
        let Session { assets, signals, progress } = session;
        let stop = &signals.stop;
        let decode = args.decode.options(&args.weights, DecodeOptions::default())?;
        let decode = decode.of_channels(model.map_or(3, Embedder::channels));
        let max_bad_fraction = args.max_bad_fraction;
        let config = DataConfig {
            workers: args.workers,
            max_bad_fraction,
            cache: ImageCaching::Off, // each image is looked at once
            ..DataConfig::default()
        };
        let config = config.decoding_by(&decode);
        let Some(model) = model else {
            let side = args.frozen.image_size.unwrap_or(PIXELS_SIDE);
            return Ok(pixel_features(&EvaluationData::of_size(source, &config, side), progress, stop)?);
        };
        let (net, px, kind) = (&model.net, model.image_px, args.features.of_library());
        let file = cache_file(args, assets, source.as_ref(), model.layer, px, &decode)?;
        let data = EvaluationData { view: model.view(), ..EvaluationData::of_size(source, &config, px) };
        let mut compute = || extract(net, kind, &data, what, progress, stop, device);
        Ok(match file {
            Some(file) => cached(&file, compute)?,
            None => compute()?,
        })
    }
}

/// Where the features of one set are kept: the name says model, images and options.
fn cache_file(
    args: &FeatureArgs,
    assets: &AssetStore,
    source: &dyn Source,
    layer: Option<usize>,
    px: usize,
    decode: &DecodeOptions,
) -> anyhow::Result<Option<PathBuf>> {
    let run = Path::new(&args.weights);
    let folder = match &args.cache {
        Some(folder) => folder.clone(),
        None if run.join("run.toml").is_file() => run.join("features"),
        None => return Ok(None),
    };
    let model = assets.weights_fingerprint(&args.weights)?;
    let layer = layer.map_or("all".to_owned(), |layer| layer.to_string());
    let precision = match args.precision.precision {
        InferPrecision::F32 => String::new(),
        other => format!("-{other}"),
    };
    let (source, features) = (source.fingerprint(), args.features.name());
    // Nothing for the defaults, and of images without their own say all of it.
    let decoding = match *decode == DecodeOptions::default() {
        true => String::new(),
        false => format!("-{}-{}-{}", decode.range, decode.exif.name(), decode.background.name()),
    };
    let name = format!("{model}-{source}-{features}-{layer}-{px}{precision}{decoding}.safetensors");
    Ok(Some(folder.join(name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c), "_"))))
}
