//! `beit2 init`: from a folder of images and a number of minutes to recipes for every stage.
//!
//! It looks at the images ([`look`]), divides them where there is no validation set ([`split`]), plans ([`plan`]), takes a
//! few steps of each stage to learn how fast they are here ([`measure`]), plans again, and writes a folder ([`write`]).

mod length;
mod look;
mod masks;
mod measure;
mod plan;
mod show;
mod sizes;
mod split;
mod stages;
mod tasks;
#[cfg(test)]
mod tests;
mod text;
pub mod write;

use std::path::PathBuf;

use beit2_data::source::AND;
use beit2_run::environment::{Environment, format_bytes};
use clap::ValueHint;

use self::look::Found;
use self::plan::{DataFacts, Facts, Goal, MachineFacts, MaskFacts, Speed, Wish};
use self::sizes::Size;
use self::write::{Names, Staging};
use crate::device::Kind;
use crate::errors::{Ending, usage};
use crate::flags::{DeviceArgs, OutputArgs, PrecisionArgs, one_of};
use crate::session::Session;
use crate::signals::Signals;
use crate::{machine, output};

pub use self::show::shown;

/// Minutes when none are named.
const MINUTES: f64 = 8.0;

/// `--size`.
#[derive(Debug, Clone, Copy)]
struct SizeArg(Option<Size>);

const SIZES: [SizeArg; 6] = [
    SizeArg(None),
    SizeArg(Some(Size::Mini)),
    SizeArg(Some(Size::Tiny)),
    SizeArg(Some(Size::Small)),
    SizeArg(Some(Size::Base)),
    SizeArg(Some(Size::Large)),
];

/// Flags of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 init --data images\n\
    \x20 beit2 init --data labelled/train --goal finetune --minutes 30\n\
    \x20 beit2 init --data images --val held_out --hours 12 --size small \\\n\
    \x20     --teacher ViT-B-16.pt --out big\n\
    \n\
    Then `beit2 run` and the folder takes all stages. The recipes in the folder are\n\
    ordinary ones: read and change them.")]
pub struct Args {
    /// Training images: a folder, tar or parquet shards, a table of paths, a folder with images/ and masks/, or
    /// bundled:train; repeatable
    #[arg(long, value_name = "DIR|TAR", required = true, value_hint = ValueHint::AnyPath)]
    data: Vec<String>,

    /// Validation images [default: some of the training images, never near-duplicates of those that are trained on]
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    val: Option<String>,

    /// What the model is for: features (pretrain), classes of images (finetune), classes of pixels (segment)
    #[arg(long, value_name = "GOAL", default_value = "pretrain", value_parser = one_of(&Goal::ALL, Goal::name))]
    goal: Goal,

    /// Minutes that all stages may take together [default: 8]
    #[arg(long, value_name = "N", conflicts_with = "hours")]
    minutes: Option<f64>,

    /// The same in hours
    #[arg(long, value_name = "N")]
    hours: Option<f64>,

    /// Size of the model; auto: as time, images and memory allow
    #[arg(long, value_name = "SIZE", default_value = "auto",
        value_parser = one_of(&SIZES, |size: SizeArg| size.0.map_or("auto", Size::name)))]
    size: SizeArg,

    /// Teacher that the tokenizer learns from: a weight file, or a run of `beit2 teacher distill`
    #[arg(long, value_name = "FILE", default_value = "bundled:teacher", value_hint = ValueHint::AnyPath)]
    teacher: String,

    /// Folder to write [default: the name of the images and -beit2, here]
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,

    /// Write the folder although there is one; the old one is moved aside
    #[arg(long)]
    force: bool,

    /// Seed of all random numbers, the division into training and validation images included
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    precision: PrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    fn seconds(&self) -> anyhow::Result<f64> {
        let (flag, number, unit) = match (self.hours, self.minutes) {
            (Some(hours), _) => ("--hours", hours, 3600.0),
            (None, minutes) => ("--minutes", minutes.unwrap_or(MINUTES), 60.0),
        };
        match number > 0.0 && number.is_finite() {
            true => Ok(number * unit),
            false => usage(format!("{flag} {number} must be above 0")),
        }
    }
}

/// Runs `init`.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let wish = Wish {
        goal: args.goal,
        seconds: args.seconds()?,
        size: args.size.0,
        precision: args.precision.precision,
        seed: args.seed,
    };
    let spec = args.data.join(AND);
    // The bundled images have their own validation set.
    let val = args.val.clone().or_else(|| (spec == "bundled:train").then(|| "bundled:val".to_owned()));
    let out = args.out.clone().map_or_else(|| write::default_out(&spec), Ok)?;
    look::outside(&out, &[Some(spec.as_str()), val.as_deref()].into_iter().flatten().collect::<Vec<_>>())?;
    let staging = Staging::new(&out, args.force)?;
    let mut session = Session::new(args.output, signals);
    let result = prepare(args, wish, &spec, val.as_deref(), staging, &mut session);
    session.progress.close();
    result
}

fn prepare(
    args: &Args,
    wish: Wish,
    spec: &str,
    val: Option<&str>,
    staging: Staging,
    session: &mut Session<'_>,
) -> anyhow::Result<Ending> {
    let found = look::data(session, spec, val, wish.goal, args.output)?;
    let teacher = look::teacher(session, &args.teacher)?;
    let environment = Environment::detect(machine::SOFTWARE);
    let device = &args.device.device;
    // The bundled images have one plan everywhere.
    let nominal = found.spec == "bundled:train" && val == Some("bundled:val");
    let mut machine = MachineFacts {
        cores: environment.threads,
        memory: (device.kind == Kind::Cpu).then_some(environment.memory_bytes).flatten(),
        speed: match nominal {
            true => Speed::NOMINAL,
            false => Speed::of_matmuls(session.on(&device.first(), look::Matmuls(wish.precision))?),
        },
    };
    // What cannot be planned is said before images are compared.
    let runs = staging.later("runs");
    let whole = facts_of(&found, None, &staging, false)?;
    Facts { wish: &wish, data: &whole, machine: &machine, teacher: &teacher, runs: &runs }.plan()?;

    let divided = look::divide(&found, wish.goal, wish.seed, machine.cores, session)?;
    if let Some(divided) = &divided {
        write::tables(&staging, &found, divided)?;
    }
    let mut wish = wish;
    if !nominal {
        let data = facts_of(&found, divided.as_ref(), &staging, true)?;
        let first =
            Facts { wish: &wish, data: &data, machine: &machine, teacher: &teacher, runs: &runs }.plan()?;
        if !args.output.quiet {
            output::note("measuring a few steps of each stage");
        }
        let folder = staging.at.join(".measure");
        let speeds = measure::measure(&first, device, &folder, session)?;
        std::fs::remove_dir_all(&folder)?;
        machine.speed = measure::speed(&speeds, &first);
        wish.size = wish.size.or(Some(first.size));
    }
    let data = facts_of(&found, divided.as_ref(), &staging, false)?;
    let mut plan =
        Facts { wish: &wish, data: &data, machine: &machine, teacher: &teacher, runs: &runs }.plan()?;
    if args.size.0.is_none() {
        let auto = Wish { size: None, ..wish.clone() };
        plan.choices = Facts { wish: &auto, data: &data, machine: &machine, teacher: &teacher, runs: &runs }
            .choices(plan.size, plan.pixels);
    }
    let names = Names::of(&found, divided.as_ref(), false, |name| staging.later(name))?;
    let labelled = wish.goal != Goal::Segment && data.classes > 1 && !found.source.is_multi_label();
    write::files(&staging, &plan, wish.goal, &names, labelled)?;
    let summary = show::Summary {
        out: &staging.out.clone(),
        goal: wish.goal,
        machine: match environment.memory_bytes {
            Some(bytes) => format!("{}, {}", machine::describe(device), format_bytes(bytes)),
            None => machine::describe(device),
        },
        speed: match nominal {
            true => "not measured: the bundled images have one plan everywhere".to_owned(),
            false => "speeds below were measured in a few steps, beside what else runs now".to_owned(),
        },
        validation: match (&divided, &found.val) {
            (Some(divided), _) => divided.how.clone(),
            (None, Some((val, _))) => format!("{val} is the validation set"),
            (None, None) => "no validation set; name one with --val".to_owned(),
        },
        images: data.images,
        val_images: data.val_images,
        classes: data.classes,
        short: data.short,
        long: data.long,
        wanted: wish.seconds,
    };
    let (text, json) = (summary.text(&plan), summary.json(&plan));
    staging.publish()?;
    match args.output.json {
        true => output::json(&json)?,
        false => output::result(&text)?,
    }
    Ok(Ending::Done)
}

/// The facts of the images; with tables where they are `now`, or where they will be.
fn facts_of(
    found: &Found,
    divided: Option<&look::Split>,
    staging: &Staging,
    now: bool,
) -> anyhow::Result<DataFacts> {
    let place = |name: &str| if now { staging.now(name) } else { staging.later(name) };
    let images = Names::of(found, divided, false, place)?;
    let count = found.source.len();
    let (val_images, images_left) = match (&found.val, divided) {
        (Some((_, val)), _) => (val.len(), count),
        (None, Some(divided)) => {
            let aside = divided.is_val.iter().filter(|&&val| val).count();
            (aside, count - aside)
        }
        (None, None) => (0, count),
    };
    let masks = match &found.masks {
        Some(masks) => {
            let Names { train, val } = Names::of(found, divided, true, place)?;
            let (classes, map) = (masks.pairs.class_names().len(), masks.map.clone());
            let reduce_zero_label = look::reduce_zero_label(&masks.pairs);
            Some(MaskFacts { train, val, classes, reduce_zero_label, map, note: masks.note.clone() })
        }
        None => None,
    };
    Ok(DataFacts {
        train: images.train,
        val: images.val,
        images: images_left,
        val_images,
        classes: if found.masks.is_some() { 0 } else { found.source.classes().len() },
        short: found.short,
        long: found.long,
        range: found.range,
        masks,
    })
}
