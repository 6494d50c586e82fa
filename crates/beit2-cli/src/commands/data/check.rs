//! `beit2 data check`: an account of images, and what is wrong with them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use beit2::train::{Assets, Event, Observer, SCRATCH};
use beit2_data::check::{self, Findings, ImageReport, ImagesConfig, Set};
use beit2_data::segment::{CheckConfig, DataReport, SegmentDataOptions, SegmentSource};
use beit2_data::source::{AND, Account};
use beit2_data::{DecodeOptions, Source};
use clap::ValueHint;

use super::print;
use crate::errors::Ending;
use crate::flags::{DecodeArgs, MaskArgs, OutputArgs};
use crate::session::Session;
use crate::signals::Signals;

/// Flags of `data check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 data check images\n\
    \x20 beit2 data check labelled/train --val labelled/val --decode\n\
    \x20 beit2 data check scenes/train --val scenes/val --decode --json\n\
    \n\
    Without --decode only names, labels and a few images are looked at. The exit\n\
    code is 1 when there are errors.")]
pub struct Args {
    /// Images: a folder, tar or parquet shards, a table of paths, an index, IDX files, bundled:train, or a folder with
    /// images/ and masks/; several are one collection
    #[arg(value_name = "DIR|TAR", required = true, value_hint = ValueHint::AnyPath)]
    paths: Vec<String>,

    /// Validation images
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    val: Option<String>,

    /// Decode every image: unreadable ones, sizes, channels, duplicates, mean and standard deviation
    #[arg(long)]
    decode: bool,

    /// Labels do not matter, as in pretraining: what is wrong with them is a warning
    #[arg(long)]
    no_labels: bool,

    /// Read the folders as images with masks, also where their names do not say so
    #[arg(long)]
    masks: bool,

    #[command(flatten)]
    mask: MaskArgs,

    #[command(flatten)]
    decoding: DecodeArgs,

    /// Channels of the images: 3 for RGB, 1 for grey, or the number of bands of a model
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=4096))]
    channels: u32,

    /// Number of classes of masks, where no class list says it
    #[arg(long, value_name = "N")]
    classes: Option<usize>,

    /// Side of the crops: with --decode, images that have fewer pixels on their shorter side are counted
    #[arg(long, value_name = "PX", default_value_t = ImagesConfig::default().image_size)]
    image_size: u32,

    /// Threads that read and decode; the result does not depend on it
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    fn decode_options(&self) -> anyhow::Result<DecodeOptions> {
        Ok(self.decoding.options(SCRATCH, DecodeOptions::default())?.of_channels(self.channels as usize))
    }
}

/// What was found in one set.
#[derive(Default)]
pub(super) struct Found {
    /// As it was named.
    pub spec: String,
    pub account: Account,
    /// Images of each class, or masks with each class.
    pub classes: BTreeMap<String, u64>,
    /// Masks that the classes were counted in, when not in all.
    pub sampled: Option<usize>,
    /// Of masks, with --decode.
    pub masks: Option<DataReport>,
}

/// All that was found.
#[derive(Default)]
pub(super) struct Checked {
    pub train: Found,
    pub val: Option<Found>,
    /// With --decode.
    pub images: Option<ImageReport>,
    pub findings: Findings,
    stopped: bool,
}

/// Runs `data check`.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let mut session = Session::new(args.output, signals);
    let spec = args.paths.join(AND);
    let checked = match args.masks || args.paths.iter().any(|path| has_masks(path)) {
        true => with_masks(args, &spec, &mut session),
        false => without_masks(args, &spec, &mut session),
    };
    session.progress.close();
    let checked = match checked {
        Ok(checked) => checked,
        // What cannot be opened is an error of the data, too.
        Err(error) if args.output.json => {
            let findings = Findings { errors: vec![format!("{error:#}")], ..Findings::default() };
            let train = Found { spec, ..Found::default() };
            print::json(&Checked { train, findings, ..Checked::default() })?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    match args.output.json {
        true => print::json(&checked)?,
        false => print::text(&checked)?,
    }
    match (checked.stopped, checked.findings.errors.as_slice()) {
        (true, _) => Ok(Ending::Stopped),
        (false, []) => Ok(Ending::Done),
        (false, [one]) => anyhow::bail!("{one}"),
        (false, [first, rest @ ..]) => anyhow::bail!("{first} (and {} more errors)", rest.len()),
    }
}

/// Whether a folder holds `images/` and masks.
fn has_masks(path: &str) -> bool {
    let inside = |name: &str| Path::new(path).join(name).is_dir();
    inside("images") && ["masks", "annotations", "labels"].into_iter().any(inside)
}

fn without_masks(args: &Args, spec: &str, session: &mut Session<'_>) -> anyhow::Result<Checked> {
    let train = session.assets.source(spec)?;
    let val = args
        .val
        .as_deref()
        .map(|val| Ok::<_, anyhow::Error>((val, session.assets.source(val)?)))
        .transpose()?;
    let found = |spec: &str, source: &Arc<dyn Source>| Found {
        spec: spec.to_owned(),
        account: source.account(),
        classes: check::class_counts(source.as_ref()),
        ..Found::default()
    };
    let mut checked = Checked {
        train: found(spec, &train),
        val: val.as_ref().map(|(spec, source)| found(spec, source)),
        ..Checked::default()
    };
    for set in std::iter::once(&checked.train).chain(&checked.val) {
        let Account { warnings, label_errors, .. } = &set.account;
        // What is an error of labels below may be a warning of the source as well.
        let new = warnings.iter().filter(|warning| args.no_labels || !label_errors.contains(warning));
        checked.findings.warnings.extend(new.cloned());
        let of_labels =
            if args.no_labels { &mut checked.findings.warnings } else { &mut checked.findings.errors };
        let known = if args.no_labels { warnings.clone() } else { Vec::new() };
        of_labels.extend(label_errors.iter().filter(|error| !known.contains(error)).cloned());
    }
    let set = Set { name: spec, source: &train };
    let val = val.as_ref().map(|(name, source)| Set { name, source });
    if !args.no_labels && !train.classes().is_empty() {
        checked.findings.extend(check::labels(set, val));
    }
    looks(args, set, val, session, &mut checked)?;
    Ok(checked)
}

fn with_masks(args: &Args, spec: &str, session: &mut Session<'_>) -> anyhow::Result<Checked> {
    let options = SegmentDataOptions {
        keep_unpaired: true,
        classes: args.classes,
        ..args.mask.options(args.decode_options()?)
    };
    let train = session.assets.segment_source(spec, &options)?;
    let val = args
        .val
        .as_deref()
        .map(|val| Ok::<_, anyhow::Error>((val, session.assets.segment_source(val, &options)?)))
        .transpose()?;
    let mut checked = Checked::default();
    let set = Set { name: spec, source: &train };
    let val = val.as_ref().map(|(name, source)| Set { name, source });
    let (findings, classes) = check::masks(set, val, args.workers);
    checked.findings.extend(findings);
    let one = |set: Set<'_, SegmentSource>, classes: check::MaskClasses| Found {
        spec: set.name.to_owned(),
        account: set.source.account(),
        sampled: (classes.read < set.source.len()).then_some(classes.read),
        classes: classes.masks.into_iter().map(|(name, count)| (name, count as u64)).collect(),
        masks: None,
    };
    checked.train = one(set, classes);
    checked.val = val.map(|val| one(val, check::masks(val, None, args.workers).1));
    let sets = [Some((set, &mut checked.train)), val.zip(checked.val.as_mut())];
    for (set, found) in sets.into_iter().flatten() {
        checked.findings.warnings.extend(found.account.warnings.iter().cloned());
        if args.decode {
            let report = pairs(args, set, session)?;
            checked.findings.errors.extend(report.findings.iter().map(|finding| finding.sentence.clone()));
            if report.problems > report.findings.len() {
                let more = report.problems - report.findings.len();
                checked.findings.errors.push(format!("{}: {more} more problems of the same kinds", set.name));
            }
            found.classes = report.classes.iter().map(|class| (class.name.clone(), class.images)).collect();
            found.sampled = None;
            found.masks = Some(report);
        } else {
            checked.findings.errors.extend(set.source.unpaired().summary());
        }
    }
    let image_source: Arc<dyn Source> = train.clone();
    let val_source: Option<(&str, Arc<dyn Source>)> =
        val.map(|val| (val.name, val.source.clone() as Arc<dyn Source>));
    let val = val_source.as_ref().map(|(name, source)| Set { name, source });
    looks(args, Set { name: spec, source: &image_source }, val, session, &mut checked)?;
    Ok(checked)
}

/// Every pair of image and mask.
fn pairs(args: &Args, set: Set<'_, SegmentSource>, session: &mut Session<'_>) -> anyhow::Result<DataReport> {
    let Session { signals, progress, .. } = session;
    let total = set.source.len() as u64;
    let tell = |done: usize| {
        progress.event(Event::Progress { what: "pairs checked".into(), done: done as u64, total });
    };
    let config = CheckConfig { workers: args.workers, ..CheckConfig::default() };
    Ok(beit2_data::segment::check(set.source, &config, tell, || signals.stop.is_set())?)
}

/// What concerns the images themselves.
fn looks(
    args: &Args,
    train: Set<'_, dyn Source>,
    val: Option<Set<'_, dyn Source>>,
    session: &mut Session<'_>,
    checked: &mut Checked,
) -> anyhow::Result<()> {
    let Session { signals, progress, .. } = session;
    if !args.decode {
        let options = args.decode_options()?;
        for set in std::iter::once(train).chain(val) {
            checked.findings.extend(check::sample(set, &options, args.workers, None));
        }
        if let Some(val) = val {
            checked.findings.extend(check::shared(train, val, args.workers));
        }
        return Ok(());
    }
    let decode = args.decode_options()?;
    let config = ImagesConfig { workers: args.workers, image_size: args.image_size, decode };
    let total = (train.source.len() + val.map_or(0, |val| val.source.len())) as u64;
    let tell = |done: usize| {
        progress.event(Event::Progress { what: "images decoded".into(), done: done as u64, total });
    };
    let (report, findings) = check::images(train, val, &config, tell, || signals.stop.is_set());
    checked.stopped = signals.stop.is_set();
    checked.findings.extend(findings);
    checked.images = Some(report);
    Ok(())
}
