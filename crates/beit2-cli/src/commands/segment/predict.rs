//! `beit2 segment predict`: masks and overlays of images.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use beit2::Error;
use beit2::segment::{Overlay, Predictor, SegmenterConfig};
use beit2::train::{Assets, Event, Observer};
use beit2_data::division::samples_of_part;
use beit2_data::source::{ChainSource, SubsetSource};
use beit2_data::{DecodeOptions, Image, Sequence, SequenceConfig, Source};
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::atomic::{AtomicFile, FileError, write_bytes_atomic};
use clap::ValueHint;
use serde_json::{Value, json};

use super::draw::{legend_csv, legend_svg, mask_png, overlay_png};
use super::model::open;
use beit2_run::thousands;

use crate::account;
use crate::errors::{Ending, usage};
use crate::export::{path_bytes, tell_unreadable, unreadable_json};
use crate::flags::{
    DecodeArgs, DeviceArgs, InferArgs, OutputArgs, PrecisionArgs, ReadArgs, ShardArgs, SourcesArg,
    describe_decoding,
};
use crate::output;
use crate::session::{Job, Session};
use crate::shard::{self, Claim, Expected, Folder, Record};
use crate::signals::Signals;

/// Flags of `segment predict`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 segment predict cat.jpg --weights runs/segmenter/best --out marked\n\
    \x20 beit2 segment predict images --weights runs/segmenter/best --out marked \\\n\
    \x20     --keep --flip --scales 0.5,0.75,1,1.25,1.5,1.75\n\
    \n\
    marked/masks gets one PNG per image, whose pixel values are class ids;\n\
    marked/overlays the classes in colour over the image; marked/legend.csv and\n\
    legend.svg the names and colours of the classes.")]
pub struct Args {
    #[command(flatten)]
    images: SourcesArg,

    /// Segmentation model: a run of `beit2 segment train`, checkpoint folder or weight file
    #[arg(long, value_name = "RUN|FILE")]
    weights: String,

    #[command(flatten)]
    read: ReadArgs,

    /// Folder for masks, overlays and legend
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,

    /// Write no overlays
    #[arg(long)]
    no_overlay: bool,

    /// Opacity of the colours in overlays, from 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.5)]
    opacity: f32,

    #[command(flatten)]
    shard: ShardArgs,

    /// Replace the files of an earlier call in --out
    #[arg(long, conflicts_with = "keep")]
    force: bool,

    /// Skip images whose files are already in --out
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    infer: InferArgs,

    #[command(flatten)]
    decode: DecodeArgs,

    /// Threads that decode images
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,

    #[command(flatten)]
    precision: PrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// Where the results of one image go.
struct Target {
    mask: PathBuf,
    overlay: Option<PathBuf>,
}

impl Target {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.mask).chain(&self.overlay)
    }
}

/// Runs `segment predict`.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    if !(0.0..=1.0).contains(&args.opacity) {
        return usage(format!("--opacity {} must be between 0 and 1", args.opacity));
    }
    let mut session = Session::reading(args.output, signals, args.read.reading()?);
    let sources =
        args.images.sources.iter().map(|spec| session.assets.source(spec)).collect::<Result<Vec<_>, _>>()?;
    for (spec, source) in args.images.sources.iter().zip(&sources) {
        account::tell(args.output, spec, source.as_ref());
    }
    let names = sources.iter().zip(&args.images.sources).flat_map(|(source, spec)| {
        let spec = spec.clone();
        (0..source.len()).map(move |at| below(&source.name(at), &spec)).collect::<Vec<_>>()
    });
    let targets = targets(args, names.collect());
    let all: Arc<dyn Source> = Arc::new(ChainSource::new(sources));
    if args.shard.check {
        let weights = session.assets.weights_fingerprint(&args.weights)?;
        let known = [("images", all.fingerprint()), ("weights", weights)];
        return shard::check(&args.out, &Expected { command: COMMAND, made_with: &known }, args.output.json);
    }
    if let Some(folder) = shard::division(&args.out, &args.shard, false)? {
        return run_part(args, session, all, targets, folder);
    }
    if !(args.force || args.keep)
        && let Some(there) = targets.iter().flat_map(Target::files).find(|file| file.exists())
    {
        return usage(format!(
            "{} already exists; choose another --out, keep it with --keep, or replace it with --force",
            there.display()
        ));
    }
    let job = Predicting { args, source: all, targets: &targets, part: None };
    let Done { finished, images, kept, unreadable, shares, .. } = session.on(&args.device.device, job)?;
    if args.output.json {
        output::json(&json!({
            "weights": args.weights,
            "precision": args.precision.precision,
            "out": args.out,
            "images": images,
            "kept": kept,
            "unreadable": unreadable_json(&unreadable),
            "finished": finished,
            "results": shares,
        }))?;
    } else {
        tell_unreadable(&unreadable, "left out");
        let mut rows =
            vec![("images", thousands(images as u64)), ("masks", args.out.join(MASKS).display().to_string())];
        if kept > 0 {
            rows.insert(1, ("kept", thousands(kept as u64)));
        }
        if !args.no_overlay {
            rows.push(("overlays", args.out.join(OVERLAYS).display().to_string()));
        }
        rows.push(("legend", args.out.join(LEGEND_SVG).display().to_string()));
        output::result(&output::pairs(&rows))?;
    }
    match (finished, unreadable.len()) {
        (false, _) => Ok(Ending::Stopped),
        (true, 0) => Ok(Ending::Done),
        (true, count) => anyhow::bail!("{} of the images could not be read", thousands(count as u64)),
    }
}

/// Runs a part of the images, of which other machines do the others into the same folder.
fn run_part(
    args: &Args,
    mut session: Session<'_>,
    all: Arc<dyn Source>,
    targets: Vec<Target>,
    folder: Folder,
) -> anyhow::Result<Ending> {
    if args.keep {
        return usage(
            "--keep is not for a part (--shard): a part that is finished is left as it is, another is done again",
        );
    }
    if !args.out.join(shard::PARTS).exists() && args.out.join(MASKS).exists() && !args.force {
        return usage(format!(
            "{} already exists and is not of parts; choose another --out, or replace its files with --force",
            args.out.join(MASKS).display()
        ));
    }
    let part = folder.shard();
    let mut targets: Vec<Option<Target>> = targets.into_iter().map(Some).collect();
    let chosen = samples_of_part(all.as_ref(), part.index, part.count);
    let targets: Vec<Target> = chosen.iter().filter_map(|&at| targets[at].take()).collect();
    let of_images = all.len();
    let source: Arc<dyn Source> = Arc::new(SubsetSource::new(all, chosen));
    let job = Predicting { args, source, targets: &targets, part: Some((&folder, of_images)) };
    let done = session.on(&args.device.device, job)?;
    let Some(record) = &done.record else {
        return Ok(Ending::Stopped);
    };
    if args.output.json {
        output::json(&json!({
            "out": args.out,
            "part": { "index": part.index, "of": part.count, "was_finished": done.was_finished },
            "images": record.images,
            "unreadable": record.skipped,
            "finished": true,
        }))?;
    } else {
        let already = if done.was_finished { " already" } else { "" };
        let (index, count, images) = (part.index, part.count, thousands(record.rows));
        let file = folder.file(LINES).display().to_string();
        output::result(&format!(
            "part {index} of {count} is finished{already}: {images} masks, listed in {file}"
        ))?;
    }
    tell_unreadable(&done.unreadable, "left out");
    match done.unreadable.len() {
        0 => Ok(Ending::Done),
        count => anyhow::bail!("{} of the images could not be read", thousands(count as u64)),
    }
}

const COMMAND: &str = "segment predict";

/// Ending of the files that list the masks of a part.
const LINES: &str = "jsonl";

const MASKS: &str = "masks";
const OVERLAYS: &str = "overlays";
const LEGEND_CSV: &str = "legend.csv";
const LEGEND_SVG: &str = "legend.svg";

/// An image's place below what the user named, without anything that would lead out of a folder.
fn below(name: &str, spec: &str) -> PathBuf {
    let inner = Path::new(name).strip_prefix(spec).ok().filter(|rest| rest.components().next().is_some());
    let member = name.strip_prefix(spec).and_then(|rest| rest.strip_prefix(':')).map(Path::new);
    let path = member.or(inner).unwrap_or_else(|| Path::new(Path::new(name).file_name().unwrap_or_default()));
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// `a.jpg` becomes `a.png`; when there is `a.webp` too, `a.jpg.png` and `a.webp.png`.
fn targets(args: &Args, names: Vec<PathBuf>) -> Vec<Target> {
    let mut stems: HashMap<PathBuf, usize> = HashMap::new();
    for name in &names {
        *stems.entry(name.with_extension("png")).or_default() += 1;
    }
    let mut taken: HashMap<PathBuf, usize> = HashMap::new();
    let target = |name: PathBuf| {
        let mut file = name.with_extension("png");
        if stems.get(&file).is_some_and(|&count| count > 1) {
            file = PathBuf::from(format!("{}.png", name.display()));
        }
        // The same image named twice, or equal names in two folders.
        let count = taken.entry(file.clone()).or_default();
        *count += 1;
        if *count > 1 {
            let stem = file.with_extension("");
            file = PathBuf::from(format!("{}-{count}.png", stem.display()));
        }
        let overlay = (!args.no_overlay).then(|| args.out.join(OVERLAYS).join(&file));
        Target { mask: args.out.join(MASKS).join(file), overlay }
    };
    names.into_iter().map(target).collect()
}

struct Done {
    finished: bool,
    images: usize,
    kept: usize,
    unreadable: Vec<(String, String)>,
    shares: Vec<Value>,
    /// What was written down of a part.
    record: Option<Record>,
    was_finished: bool,
}

struct Predicting<'a> {
    args: &'a Args,
    source: Arc<dyn Source>,
    targets: &'a [Target],
    /// Where `source` is a part of the images: its folder, and how many images all parts have.
    part: Option<(&'a Folder, usize)>,
}

impl Job for Predicting<'_> {
    type Output = Done;

    fn run<B: AutodiffBackend>(self, session: &mut Session<'_>, device: &B::Device) -> anyhow::Result<Done> {
        let Self { args, source, targets, part } = self;
        let Session { assets, signals, progress } = session;
        let (segmenter, infer) =
            open::<B::InnerBackend>(&args.weights, &args.infer, args.precision, assets, device)?;
        let config = &segmenter.config;
        let predictor = Predictor::new(&segmenter.model, config, &infer)?;
        let decode = args.decode.options(&args.weights, DecodeOptions::default())?;
        let mut done = Done {
            finished: false,
            images: 0,
            kept: 0,
            unreadable: Vec::new(),
            shares: Vec::new(),
            record: None,
            was_finished: false,
        };
        let made_with = json!({
            "program": env!("CARGO_PKG_VERSION"),
            "images": source.fingerprint(),
            "weights": assets.weights_fingerprint(&args.weights)?,
            "infer": infer,
            "decoding": describe_decoding(&decode),
            "precision": args.precision.precision.to_string(),
            "device": args.device.device.to_string(),
            "opacity": (!args.no_overlay).then_some(args.opacity),
        });
        if let Some((folder, _)) = part
            && let Claim::Finished(record) = folder.claim(COMMAND, LINES, &made_with, args.force)?
        {
            return Ok(Done { finished: true, record: Some(record), was_finished: true, ..done });
        }
        for target in targets {
            for folder in target.files().filter_map(|file| file.parent()) {
                fs::create_dir_all(folder)
                    .map_err(|error| FileError::new("create the folder", folder, error))?;
            }
        }
        write_bytes_atomic(&args.out.join(LEGEND_CSV), legend_csv(config).as_bytes())?;
        write_bytes_atomic(&args.out.join(LEGEND_SVG), legend_svg(config).as_bytes())?;

        let total = source.len();
        // Why one ahead: decoded images can be large, and computing one takes longer than decoding the next.
        let settings = SequenceConfig { start: 0, workers: args.workers, prefetch: args.workers + 1, decode };
        let wanted: Vec<bool> =
            targets.iter().map(|target| !(args.keep && target.files().all(|file| file.exists()))).collect();
        let images = Sequence::new(settings, source.clone(), |image: &Image| Ok::<_, Error>(image.clone()))
            .map_err(Error::from)?;
        for seen in images {
            if signals.stop.is_set() {
                return Ok(done);
            }
            let name = source.name(seen.index);
            match (wanted[seen.index], seen.item) {
                (false, _) => done.kept += 1,
                (true, Err(why)) => done.unreadable.push((name, why)),
                (true, Ok(image)) => {
                    let target = &targets[seen.index];
                    let counts = write(&predictor, &image, target, args.opacity, config)?;
                    done.images += 1;
                    let mut object = result(&name, target, &counts, config);
                    if let Some(bytes) = path_bytes(source.as_ref(), seen.index) {
                        object["path_bytes"] = json!(bytes);
                    }
                    done.shares.push(object);
                }
            }
            let (at, total) = (seen.index as u64 + 1, total as u64);
            progress.event(Event::Progress { what: "images".into(), done: at, total });
        }
        if let Some((folder, of_images)) = part {
            let lines: String = done.shares.iter().map(|object| format!("{object}\n")).collect();
            let file = folder.file(LINES);
            write_bytes_atomic(&file, lines.as_bytes())?;
            done.record = Some(folder.finish(Record {
                file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bytes: 0,
                rows: done.images as u64,
                images: total as u64,
                of_images: of_images as u64,
                skipped: shard::skipped(&done.unreadable),
                source: args.images.sources.join(" + "),
                made_with: made_with.as_object().cloned().unwrap_or_default(),
            })?);
        }
        done.finished = true;
        Ok(done)
    }
}

/// Writes an image's files row by row and counts the pixels of each class.
fn write<B: Backend>(
    predictor: &Predictor<'_, B>,
    image: &Image,
    target: &Target,
    opacity: f32,
    config: &SegmenterConfig,
) -> anyhow::Result<Vec<u64>> {
    let palette = config.colours();
    let mut counts = vec![0u64; config.class_count()];
    let mut mask_file = AtomicFile::create(&target.mask)?;
    let mut overlay_file = target.overlay.as_deref().map(AtomicFile::create).transpose()?;
    {
        // A png writer writes the end of its file when it is dropped.
        let mut mask = mask_png(&mut mask_file, image, &palette)?;
        let mut mask = mask.stream_writer()?;
        let mut overlay = overlay_file.as_mut().map(|file| overlay_png(file, image)).transpose()?;
        let mut overlay = overlay.as_mut().map(|png| png.stream_writer()).transpose()?;
        let mut coloured = Overlay::new(image, &palette, opacity);
        predictor.strips(image, |ids: &[u8]| -> anyhow::Result<()> {
            ids.iter().for_each(|&id| counts[id as usize] += 1);
            mask.write_all(ids).map_err(|error| FileError::new("write", &target.mask, error))?;
            if let (Some(png), Some(path)) = (&mut overlay, &target.overlay) {
                png.write_all(&coloured.rows(ids)).map_err(|error| FileError::new("write", path, error))?;
            }
            Ok(())
        })?;
        mask.finish()?;
        overlay.map(|png| png.finish()).transpose()?;
    }
    // The mask comes last: `--keep` takes an image with both files for done.
    overlay_file.map(AtomicFile::commit).transpose()?;
    mask_file.commit()?;
    Ok(counts)
}

/// The line of one image in `--json`: its files and the share of each class that it shows.
fn result(name: &str, target: &Target, counts: &[u64], config: &SegmenterConfig) -> Value {
    let all: u64 = counts.iter().sum();
    let mut classes: Vec<(usize, u64)> =
        counts.iter().copied().enumerate().filter(|&(_, count)| count > 0).collect();
    classes.sort_by_key(|&(class, count)| (std::cmp::Reverse(count), class));
    let share = |(class, count): (usize, u64)| json!({ "class": class, "name": config.class_name(class), "share": count as f64 / all.max(1) as f64 });
    json!({
        "path": name,
        "mask": target.mask,
        "overlay": target.overlay,
        "classes": classes.into_iter().map(share).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_lie_below_out_whatever_the_names() {
        let at = |name: &str, spec: &str| below(name, spec).display().to_string();
        assert_eq!(at("photos/a/b.jpg", "photos"), "a/b.jpg");
        assert_eq!(at("photos/a.jpg", "photos/a.jpg"), "a.jpg");
        assert_eq!(at("x.tar:../../etc/a.jpg", "x.tar"), "etc/a.jpg");
        assert_eq!(at("/tmp/shards/x.tar:a.jpg", "/tmp/shards"), "x.tar:a.jpg");
    }
}
