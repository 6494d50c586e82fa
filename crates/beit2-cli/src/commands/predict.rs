//! `beit2 predict`: the classes of images.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use beit2::classify::{Classifier, ClassifierOptions, Prediction};
use beit2::train::{Assets, Event, Observer};
use beit2::{Error, pixels};
use beit2_data::source::ChainSource;
use beit2_data::{DecodeOptions, EvalConfig, Image, Sequence, SequenceConfig, Source};
use beit2_kernels::AutodiffBackend;
use beit2_run::atomic::{AtomicFile, FileError};
use beit2_run::csv_cell;
use beit2_run::thousands;
use clap::ValueHint;
use serde_json::json;

use crate::account;
use crate::classes::ClassArgs;
use crate::errors::{Ending, usage};
use crate::export::{named, path_bytes, tell_unreadable, unreadable_json};
use crate::flags::{DecodeArgs, DeviceArgs, InferPrecisionArgs, OutputArgs, ReadArgs, SourcesArg};
use crate::output;
use crate::progress::Progress;
use crate::session::{Job, Session};
use crate::signals::Signals;

/// Flags of `predict`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 predict cat.jpg images --weights runs/classifier/best\n\
    \x20 beit2 predict images --weights runs/classifier/best --top 3 --csv classes.csv\n\
    \x20 beit2 predict cat.jpg --names names.txt \\\n\
    \x20     --weights beitv2_base_patch16_224_pt1k_ft21kto1k.pth\n\
    \n\
    --names takes the names in the order of the classes, one a line or as JSON. A\n\
    model trained on a folder with one sub-folder per class has them in its file.\n\
    Other programs number such folders in the order of their names' bytes: upper\n\
    case before lower case, `10` before `9`. --class-map shows the names of its\n\
    first column.")]
pub struct Args {
    #[command(flatten)]
    images: SourcesArg,

    /// Classifier: a run directory, checkpoint folder or weight file
    #[arg(long, value_name = "RUN|FILE")]
    weights: String,

    #[command(flatten)]
    read: ReadArgs,

    /// Classes per image, the most probable first [default: 5; all of a multi-label classifier above --threshold]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,

    /// Least probability of a class that is told; for multi-label classifiers [default: 0.5]
    #[arg(long, value_name = "P")]
    threshold: Option<f32>,

    #[command(flatten)]
    classes: ClassArgs,

    /// Write a CSV table to this file instead of printing
    #[arg(long, value_name = "FILE", conflicts_with = "json", value_hint = ValueHint::FilePath)]
    csv: Option<PathBuf>,

    /// Replace the file of --csv if it exists
    #[arg(long)]
    force: bool,

    /// Image size in pixels [default: that of training]
    #[arg(long, value_name = "PX")]
    image_size: Option<usize>,

    /// Fraction of the resized image that the model sees [default: as files beside the weights say; else 0.875, or 1 up to
    /// 32 px and from 384 px on]
    #[arg(long, value_name = "FRACTION")]
    crop_pct: Option<f64>,

    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch_size: u32,

    #[command(flatten)]
    decode: DecodeArgs,

    /// Threads that decode images
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    #[command(flatten)]
    precision: InferPrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// Names the classes of all images.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    if let Some(csv) = &args.csv {
        output::check_new_file(csv, args.force)?;
    }
    let mut session = Session::reading(args.output, signals, args.read.reading()?);
    args.classes.check()?;
    if args.threshold.is_some_and(|least| !(0.0..=1.0).contains(&least)) {
        return usage("--threshold must lie in [0, 1]");
    }
    let sources =
        args.images.sources.iter().map(|spec| session.assets.source(spec)).collect::<Result<Vec<_>, _>>()?;
    for (spec, source) in args.images.sources.iter().zip(&sources) {
        account::tell(args.output, spec, source.as_ref());
    }
    let source: Arc<dyn Source> = Arc::new(ChainSource::new(sources));
    let total = source.len();
    let Some(unreadable) = session.on(&args.device.device, Predicting { args, source })? else {
        return Ok(Ending::Stopped);
    };
    match unreadable.as_slice() {
        [] => Ok(Ending::Done),
        [(name, why)] => bail!("{}", named(name, why)),
        many => {
            tell_unreadable(many, "unreadable");
            let (bad, total) = (thousands(many.len() as u64), thousands(total as u64));
            if bad == total {
                bail!("none of the {total} images could be read");
            }
            bail!("{bad} of {total} images could not be read; the others are done")
        }
    }
}

struct Predicting<'a> {
    args: &'a Args,
    source: Arc<dyn Source>,
}

impl Job for Predicting<'_> {
    /// Images that cannot be read, with reasons; `None` when a signal came.
    type Output = Option<Vec<(String, String)>>;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Self::Output> {
        let Self { args, source } = self;
        let Session { assets, signals, progress } = session;
        let options = ClassifierOptions {
            image_size: args.image_size,
            precision: args.precision.precision,
            ..ClassifierOptions::default()
        };
        let file = assets.weights(&args.weights)?;
        let mut model = Classifier::<B::InnerBackend>::from_file(file, &args.weights, &options, device)?;
        let classes = model.config.class_count();
        let named = args.classes.model_names(&model.config.class_names, classes, None, &args.weights)?;
        named.warnings.into_iter().for_each(|warning| progress.event(Event::Warning(warning)));
        model.config.class_names = args.classes.shown(named.names, classes, &args.weights)?;
        if model.config.class_names.is_empty() {
            progress
                .note(&format!("{} does not name its classes; name them with --names FILE", args.weights));
        }
        if let (Some(_), false) = (args.threshold, model.config.multi_label) {
            return usage(format!(
                "--threshold is for multi-label classifiers; {} has one class for each image, use --top",
                args.weights
            ));
        }
        let least = if model.config.multi_label { args.threshold.unwrap_or(0.5) } else { 0.0 };
        let view = model.view();
        let view = EvalConfig { crop_pct: args.crop_pct.or(view.crop_pct), ..view };
        view.validate().map_err(Error::from)?;
        let most = if model.config.multi_label { classes } else { 5 };
        let top = classes.min(args.top.map_or(most, |top| top as usize));
        let rank = |views: &[Image]| -> Result<Vec<Vec<Prediction>>, Error> {
            let mut ranked = model.rank(model.logits(pixels::stacked(views, device)?), top);
            for best in &mut ranked {
                best.retain(|one| one.probability >= least);
            }
            Ok(ranked)
        };
        let channels = model.config.vit.in_chans;
        let mut walk =
            Walk { source, view, channels, args, signals, progress, rank: &rank, unreadable: Vec::new() };
        let finished = match (&args.csv, args.output.json) {
            (Some(path), _) => {
                let mut file = AtomicFile::create(path)?;
                let finished = walk.csv(path, &mut file, top)?;
                // An unfinished table must not take the name.
                if finished {
                    file.commit()?;
                }
                finished
            }
            (None, true) => walk.json()?,
            (None, false) => walk.lines()?,
        };
        Ok(finished.then_some(walk.unreadable))
    }
}

/// Views `[B]` → the best classes of each.
type Rank<'a> = dyn Fn(&[Image]) -> Result<Vec<Vec<Prediction>>, Error> + 'a;

/// An image's name, and its bytes in hexadecimal digits when it is not UTF-8.
struct Name {
    path: String,
    bytes: Option<String>,
}

/// Walks through the images, a batch at a time, and writes what it finds. The methods give false when a signal came.
struct Walk<'a> {
    source: Arc<dyn Source>,
    view: EvalConfig,
    channels: usize,
    args: &'a Args,
    signals: &'a Signals,
    progress: &'a mut Progress,
    rank: &'a Rank<'a>,
    unreadable: Vec<(String, String)>,
}

impl Walk<'_> {
    /// Calls `each` with every readable image's name and classes.
    fn images(
        &mut self,
        mut each: impl FnMut(&Name, &[Prediction]) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let (view, batch, total) = (self.view, self.args.batch_size as usize, self.source.len());
        let decode = self.args.decode.options(&self.args.weights, DecodeOptions::default())?;
        let decode = decode.of_channels(self.channels);
        let config = SequenceConfig { start: 0, workers: self.args.workers, prefetch: 2 * batch, decode };
        let mut images = Sequence::new(config, self.source.clone(), move |image: &Image| view.apply(image))
            .map_err(Error::from)?;
        let mut done = 0;
        while done < total {
            let (mut views, mut names) = (Vec::with_capacity(batch), Vec::with_capacity(batch));
            for seen in images.by_ref().take(batch) {
                if self.signals.stop.is_set() {
                    return Ok(false);
                }
                done += 1;
                let name = self.source.name(seen.index);
                match seen.item {
                    Ok(view) => {
                        views.push(view);
                        names.push(Name { path: name, bytes: path_bytes(self.source.as_ref(), seen.index) });
                    }
                    Err(why) => self.unreadable.push((name, why)),
                }
            }
            if !views.is_empty() {
                for (name, best) in names.iter().zip((self.rank)(&views)?) {
                    each(name, &best)?;
                }
            }
            // Rows on the screen are progress enough.
            if self.args.csv.is_some() {
                let (done, total) = (done as u64, total as u64);
                self.progress.event(Event::Progress { what: "images".into(), done, total });
            }
        }
        Ok(true)
    }

    fn lines(&mut self) -> anyhow::Result<bool> {
        self.images(|name, best| {
            let predictions: Vec<String> = best
                .iter()
                .map(|one| {
                    let class = one.name.clone().unwrap_or_else(|| format!("class {}", one.class));
                    format!("{:.1} % {class}", 100.0 * one.probability)
                })
                .collect();
            // Of a multi-label classifier no class may be probable enough.
            let none = if predictions.is_empty() { "no class" } else { "" };
            output::result(&format!("{}: {none}{}", name.path, predictions.join(", ")))
        })
    }

    /// One object, streamed: a million images need not be in memory.
    fn json(&mut self) -> anyhow::Result<bool> {
        let (weights, precision) = (json!(self.args.weights), self.args.precision.precision);
        output::result(&format!("{{\"weights\": {weights}, \"precision\": \"{precision}\", \"images\": ["))?;
        let mut first = true;
        let finished = self.images(|name, best| {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            let mut object = json!({ "path": name.path, "predictions": best });
            if let Some(bytes) = &name.bytes {
                object["path_bytes"] = json!(bytes);
            }
            output::result(&format!("{comma}{object}"))
        })?;
        let ended = if finished { "true" } else { "false" };
        output::result(&format!(
            "], \"unreadable\": {}, \"account\": {}, \"finished\": {ended}}}",
            unreadable_json(&self.unreadable),
            account::json(&self.source.account())
        ))?;
        Ok(finished)
    }

    fn csv(&mut self, path: &Path, writer: &mut AtomicFile, top: usize) -> anyhow::Result<bool> {
        let failed = |error| FileError::new("write", path, error);
        let columns = (1..=top).map(|at| format!(",class_{at},name_{at},probability_{at}"));
        // A column of bytes only if a name needs it.
        let source = &self.source;
        let odd_names = (0..source.len()).any(|index| source.name_bytes(index).is_some());
        let bytes = if odd_names { ",path_bytes" } else { "" };
        writeln!(writer, "path{bytes}{}", columns.collect::<String>()).map_err(failed)?;
        self.images(|name, best| {
            let bytes = match odd_names {
                true => format!(",{}", name.bytes.as_deref().unwrap_or_default()),
                false => String::new(),
            };
            let predictions = best.iter().map(|one| {
                let class = csv_cell(one.name.as_deref().unwrap_or_default());
                format!(",{},{class},{}", one.class, one.probability)
            });
            let (cells, empty) = (predictions.collect::<String>(), ",,,".repeat(top - best.len().min(top)));
            Ok(writeln!(writer, "{}{bytes}{cells}{empty}", csv_cell(&name.path)).map_err(failed)?)
        })
    }
}
