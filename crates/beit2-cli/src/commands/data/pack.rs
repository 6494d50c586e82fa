//! `beit2 data pack`: images as shards that are read from one end to the other.

use std::path::PathBuf;

use beit2::train::{Assets, Event, Observer, SCRATCH};
use beit2_data::DecodeOptions;
use beit2_data::pack::{
    Encoding, MAX_QUALITY, MIN_QUALITY, PackConfig, PackError, PackFormat, Packed, Packing, Side,
};
use beit2_data::source::AND;
use beit2_run::atomic::FileError;
use beit2_run::environment::format_bytes;
use beit2_run::thousands;
use clap::{ValueEnum, ValueHint};
use serde_json::json;

use crate::account;
use crate::errors::{Ending, usage};
use crate::export::tell_unreadable;
use crate::flags::{DecodeArgs, OutputArgs};
use crate::output;
use crate::session::Session;
use crate::signals::Signals;

/// Flags of `data pack`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 data pack images -o shards\n\
    \x20 beit2 data pack labelled/train -o small --short-side 300 --workers 8\n\
    \x20 beit2 data pack labelled/train -o rows --format parquet --max-side 512\n\
    \n\
    Without a side every image is copied as it is. With one, larger images are\n\
    shrunk by Pillow's bicubic filter (antialiased) and written again: crops then\n\
    come from fewer pixels, so their statistics change when the side is close to\n\
    the side of the crops. 300 leaves room for crops of 224.\n\
    \n\
    Everything is written into OUT.partial, which becomes OUT at the end. After an\n\
    interruption the same command continues behind the last complete shard.")]
pub struct Args {
    /// Images: a folder, tar or parquet shards, a table of paths, an index, IDX files or bundled:train; several are one
    /// collection
    #[arg(value_name = "DIR|TAR", required = true, value_hint = ValueHint::AnyPath)]
    paths: Vec<String>,

    /// Folder for the shards; it must be new or empty
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,

    /// Begin again where OUT.partial holds shards of other images or settings
    #[arg(long)]
    force: bool,

    /// Form of the shards
    #[arg(long, value_name = "FORM", value_enum, default_value_t = FormatArg::Tar)]
    format: FormatArg,

    /// Size of a shard in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    shard_mib: u64,

    /// Shrink larger images to this longer side, in pixels
    #[arg(long, value_name = "PX", conflicts_with = "short_side")]
    max_side: Option<u32>,

    /// Shrink larger images to this shorter side, in pixels
    #[arg(long, value_name = "PX")]
    short_side: Option<u32>,

    /// JPEG quality of images that are written again, 90 to 100 (without chroma subsampling) [default: 95]
    #[arg(long, value_name = "N", conflicts_with = "lossless")]
    quality: Option<u8>,

    /// Write them as PPM instead: no loss, six times the size, and next to no time to decode
    #[arg(long)]
    lossless: bool,

    /// Seed of the order of the images
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Keep the order of the source, instead of one that makes every part of the shards a random sample
    #[arg(long, conflicts_with = "seed")]
    no_shuffle: bool,

    /// Share of unreadable images that are left out; more of them stop the command
    #[arg(long, value_name = "FRACTION", default_value_t = PackConfig::default().max_bad_fraction)]
    max_bad_fraction: f64,

    #[command(flatten)]
    decoding: DecodeArgs,

    /// Channels of the images: 3 for RGB, 1 for grey, or the number of bands of a model
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=4096))]
    channels: u32,

    /// Threads that read, decode and encode; the result does not depend on it
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// WebDataset's layout: key.jpg and key.cls
    Tar,
    /// Hugging Face's layout: image (bytes, path) and label
    Parquet,
}

impl Args {
    fn config(&self) -> anyhow::Result<PackConfig> {
        let side = self.max_side.map(Side::Longer).or(self.short_side.map(Side::Shorter));
        if side.is_none() && (self.lossless || self.quality.is_some()) {
            let flag = if self.lossless { "--lossless" } else { "--quality" };
            return usage(format!(
                "{flag} is for images that are shrunk, and without a side all are copied as they are; add --short-side \
                 or --max-side, or leave {flag} out"
            ));
        }
        let encoding = match (self.lossless, self.quality) {
            (true, _) => Encoding::Lossless,
            (false, None) => Encoding::default(),
            (false, Some(quality)) if (MIN_QUALITY..=MAX_QUALITY).contains(&quality) => {
                Encoding::Jpeg { quality }
            }
            (false, Some(quality)) => {
                return usage(format!(
                    "--quality {quality} must be {MIN_QUALITY} to {MAX_QUALITY}: below, models would learn what JPEG \
                     does to small images"
                ));
            }
        };
        let decode = self.decoding.options(SCRATCH, DecodeOptions::default())?;
        Ok(PackConfig {
            format: match self.format {
                FormatArg::Tar => PackFormat::Tar,
                FormatArg::Parquet => PackFormat::Parquet,
            },
            shard_bytes: self.shard_mib << 20,
            side,
            encoding,
            shuffle: !self.no_shuffle,
            seed: self.seed,
            workers: self.workers,
            decode: decode.of_channels(self.channels as usize),
            max_bad_fraction: self.max_bad_fraction,
        })
    }
}

/// Runs `data pack`.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let config = args.config()?;
    let mut session = Session::new(args.output, signals);
    let spec = args.paths.join(AND);
    let source = session.assets.source(&spec)?;
    account::tell(args.output, &spec, source.as_ref());
    let total = source.len() as u64;
    let explained = |error| explained(error, &spec);
    let packing = Packing::open(source.clone(), &args.out, config, args.force).map_err(explained)?;
    if packing.done() > 0 {
        let next = thousands(packing.done() as u64 + 1);
        session.progress.note(&format!("continues at image {next} of {}", thousands(total)));
    }
    let Session { signals, progress, .. } = &mut session;
    let tell = |done: usize| {
        progress.event(Event::Progress { what: "images packed".into(), done: done as u64, total });
    };
    let packed = packing.run(tell, || signals.stop.is_set()).map_err(explained);
    session.progress.close();
    match packed? {
        None => Err(beit2::Error::Interrupted.into()),
        Some(packed) => {
            report(args, &packed)?;
            Ok(Ending::Done)
        }
    }
}

/// What a person can do about an error, and the exit code that goes with it.
fn explained(error: PackError, spec: &str) -> anyhow::Error {
    match error {
        PackError::Io { path, action, error } => FileError::new(action, &path, error).into(),
        PackError::Setting { .. }
        | PackError::NotEmpty { .. }
        | PackError::Out { .. }
        | PackError::Other { .. }
        | PackError::Weights => crate::errors::Usage(error.to_string()).into(),
        PackError::TooManyBad { .. } => {
            anyhow::anyhow!("{error} (`beit2 data check {spec} --decode` names all of them)")
        }
        other => other.into(),
    }
}

fn report(args: &Args, packed: &Packed) -> anyhow::Result<()> {
    if args.output.json {
        let mut object = serde_json::to_value(packed)?;
        object["out"] = json!(args.out.display().to_string());
        return output::json(&object);
    }
    let left_out: Vec<(String, String)> =
        packed.unreadable.iter().map(|image| (image.path.clone(), image.error.clone())).collect();
    tell_unreadable(&left_out, "left out");
    let rewritten = packed.images - packed.copied;
    let images = match (rewritten, packed.copied) {
        (0, _) => format!("{}, copied as they are", thousands(packed.images)),
        (_, 0) => format!("{}, shrunk", thousands(packed.images)),
        (some, copied) => {
            let all = thousands(packed.images);
            format!("{all}: {} written again, {} copied as they are", thousands(some), thousands(copied))
        }
    };
    let shards = format!("{}, {}", thousands(packed.shards), format_bytes(packed.bytes));
    let mut rows = vec![("written", args.out.display().to_string()), ("images", images), ("shards", shards)];
    if !left_out.is_empty() {
        rows.push(("left out", thousands(left_out.len() as u64)));
    }
    output::result(&output::pairs(&rows))
}
