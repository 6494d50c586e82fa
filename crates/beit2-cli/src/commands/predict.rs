//! `beit2 predict`: the classes of images.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use beit2::classify::{Classifier, ClassifierOptions, Prediction};
use beit2::train::{Assets, Event, Observer};
use beit2::{Error, pixels};
use beit2_data::source::ChainSource;
use beit2_data::{DecodeOptions, EvalConfig, Image, Sequence, SequenceConfig, Source, fnv1a};
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
use crate::flags::{
    DecodeArgs, DeviceArgs, InferPrecisionArgs, OutputArgs, ReadArgs, ShardArgs, SourcesArg,
    describe_decoding,
};
use crate::output;
use crate::progress::Progress;
use crate::session::{Job, Session};
use crate::shard::{self, Claim, Expected, Folder, Record, skipped};
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

    /// Write a part of the images (--shard) as a CSV table into this folder
    #[arg(long, short, value_name = "DIR", conflicts_with = "csv", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,

    #[command(flatten)]
    shard: ShardArgs,

    /// Replace the file of --csv if it exists, or do a finished part of --out again
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
    let Some(out) = &args.out else {
        if args.shard.check || args.shard.shard.is_some() {
            return usage(
                "--shard and --check are for parts of the images, whose folder is named with --out DIR",
            );
        }
        return finish(
            &source,
            session.on(&args.device.device, Predicting { args, source: source.clone(), folder: None })?,
        );
    };
    if args.shard.check {
        let weights = session.assets.weights_fingerprint(&args.weights)?;
        let known = [("images", source.fingerprint()), ("weights", weights)];
        return shard::check(out, &Expected { command: COMMAND, made_with: &known }, args.output.json);
    }
    let is_csv = out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    if is_csv && !out.is_dir() {
        return usage(format!(
            "--out names the folder of parts; one table {} is written with --csv",
            out.display()
        ));
    }
    let Some(folder) = shard::division(out, &args.shard, false)? else {
        return usage(format!(
            "{} is for a part of the images; say which with --shard I/N, or write one table with --csv FILE",
            out.display()
        ));
    };
    let shard = folder.shard();
    let folder = Some((folder, source.len()));
    let part = shard.of(source);
    finish(&part, session.on(&args.device.device, Predicting { args, source: part.clone(), folder })?)
}

/// How the command ends, by the images that cannot be read.
fn finish(source: &Arc<dyn Source>, found: Option<Vec<(String, String)>>) -> anyhow::Result<Ending> {
    let (total, Some(unreadable)) = (source.len(), found) else {
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
    /// Where the part of the images goes that `source` is, and how many images all parts have.
    folder: Option<(Folder, usize)>,
}

const COMMAND: &str = "predict";

/// Ending of parts.
const CSV: &str = "csv";

impl Job for Predicting<'_> {
    /// Images that cannot be read, with reasons; `None` when a signal came.
    type Output = Option<Vec<(String, String)>>;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Self::Output> {
        let Self { args, source, folder } = self;
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
        let decode = args.decode.options(&args.weights, DecodeOptions::default())?.of_channels(channels);
        let made_with = json!({
            "program": env!("CARGO_PKG_VERSION"),
            "images": source.fingerprint(),
            "weights": assets.weights_fingerprint(&args.weights)?,
            "class_names": format!("{:016x}", fnv1a(model.config.class_names.join("\n").as_bytes())),
            "top": top,
            "threshold": least,
            "image_size": view.size,
            "resized_to": view.resize_side(),
            "decoding": describe_decoding(&decode),
            "batch_size": args.batch_size,
            "precision": args.precision.precision.to_string(),
            "device": args.device.device.to_string(),
        });
        let images = source.len();
        let mut walk =
            Walk { source, view, decode, args, signals, progress, rank: &rank, unreadable: Vec::new() };
        if let Some((folder, of_images)) = folder {
            if let Claim::Finished(record) = folder.claim(COMMAND, CSV, &made_with, args.force)? {
                tell_part(args, &folder, &record, true)?;
                return Ok(Some(Vec::new()));
            }
            let path = folder.file(CSV);
            let mut file = AtomicFile::create(&path)?;
            if !walk.csv(&path, &mut file, top, true)? {
                return Ok(None);
            }
            file.commit()?;
            let unreadable = walk.unreadable;
            let record = folder.finish(Record {
                file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bytes: 0,
                rows: (images - unreadable.len()) as u64,
                images: images as u64,
                of_images: of_images as u64,
                skipped: skipped(&unreadable),
                source: args.images.sources.join(" + "),
                made_with: made_with.as_object().cloned().unwrap_or_default(),
            })?;
            tell_part(args, &folder, &record, false)?;
            return Ok(Some(unreadable));
        }
        let finished = match (&args.csv, args.output.json) {
            (Some(path), _) => {
                let mut file = AtomicFile::create(path)?;
                let finished = walk.csv(path, &mut file, top, false)?;
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

/// Tells of a part that is complete.
fn tell_part(args: &Args, folder: &Folder, record: &Record, was_finished: bool) -> anyhow::Result<()> {
    let (shard, file) = (folder.shard(), folder.file(CSV));
    if args.output.json {
        return output::json(&json!({
            "out": file,
            "part": { "index": shard.index, "of": shard.count, "was_finished": was_finished },
            "rows": record.rows,
            "unreadable": record.skipped,
        }));
    }
    let already = if was_finished { " already" } else { "" };
    let (index, count, rows) = (shard.index, shard.count, thousands(record.rows));
    output::result(&format!("part {index} of {count} is finished{already}: {}, {rows} rows", file.display()))
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
    decode: DecodeOptions,
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
        let (workers, decode) = (self.args.workers, self.decode.clone());
        let config = SequenceConfig { start: 0, workers, prefetch: 2 * batch, decode };
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
            if self.args.csv.is_some() || self.args.out.is_some() {
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

    /// `is_part`: other parts of the same images must have the same columns.
    fn csv(
        &mut self,
        path: &Path,
        writer: &mut AtomicFile,
        top: usize,
        is_part: bool,
    ) -> anyhow::Result<bool> {
        let failed = |error| FileError::new("write", path, error);
        let columns = (1..=top).map(|at| format!(",class_{at},name_{at},probability_{at}"));
        // A column of bytes only if a name needs it.
        let source = &self.source;
        let odd_names = is_part || (0..source.len()).any(|index| source.name_bytes(index).is_some());
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
