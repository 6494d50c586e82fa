//! `beit2 bench data`: how many images a second the loader makes, and where the time goes.

use beit2::Error;
use beit2::train::{Assets, Event, ImageCaching, Observer};
use beit2_bench::noise::median;
use beit2_bench::{DataRound, DataSetup, Transform, data_round};
use beit2_run::environment::Environment;
use clap::ValueHint;
use serde_json::{Value, json};

use crate::account;
use crate::errors::{Ending, usage};
use crate::flags::{OutputArgs, one_of};
use crate::machine::SOFTWARE;
use crate::output;
use crate::session::Session;
use crate::signals::Signals;

/// Flags of `bench data`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 bench data images --workers 1,2,4\n\
    \x20 beit2 bench data images shards --transform finetune --image-size 224\n\
    \x20 beit2 bench data images shards --read-mib-per-s 20 --workers 8 --json\n\
    \n\
    Sources and numbers of threads are measured in turn, round by round, so that a\n\
    busy machine slows all of them alike.")]
pub struct Args {
    /// Images: folders, tar or parquet shards, tables, bundled:train; each is measured on its own
    #[arg(value_name = "DIR|TAR", required = true, value_hint = ValueHint::AnyPath)]
    sources: Vec<String>,

    /// What becomes of an image: mim (pretraining), tokenizer, finetune, eval, or none (it is decoded)
    #[arg(long, value_name = "STAGE", default_value = "mim", value_parser = one_of(&Transform::ALL, Transform::name))]
    transform: Transform,

    /// Side of the crops in pixels
    #[arg(long, value_name = "PX", default_value_t = 224)]
    image_size: u32,

    /// Threads that read, decode and augment; several numbers are compared, 0 is the thread that takes the batches
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,

    /// Images of a batch
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch_size: usize,

    /// Images of a round
    #[arg(long, value_name = "N", default_value_t = 512)]
    images: usize,

    /// Rounds, each measured on its own
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Whether decoded images stay in memory: off, auto or memory, as `data.cache` in recipes; then epochs after the first
    /// are measured
    #[arg(long, value_name = "WHICH", default_value = "off", value_parser = one_of(&CACHES, caching))]
    cache: ImageCaching,

    /// A slow disk: it gives so many MiB a second to all threads together
    #[arg(long, value_name = "MIB")]
    read_mib_per_s: Option<f64>,

    /// Show no progress; results are still printed
    #[arg(long, short)]
    quiet: bool,

    /// Print one JSON object per round, each on its own line
    #[arg(long)]
    json: bool,
}

const CACHES: [ImageCaching; 3] = [ImageCaching::Off, ImageCaching::Auto, ImageCaching::Memory];

fn caching(cache: ImageCaching) -> &'static str {
    match cache {
        ImageCaching::Off => "off",
        ImageCaching::Auto => "auto",
        ImageCaching::Memory => "memory",
    }
}

/// One source with one number of threads.
struct Case {
    spec: String,
    setup: DataSetup,
    rounds: Vec<DataRound>,
}

/// Measures and prints.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    for (name, value) in
        [("--batch-size", args.batch_size), ("--images", args.images), ("--rounds", args.rounds)]
    {
        if value == 0 {
            return usage(format!("{name} is 0; it must be at least 1"));
        }
    }
    if let Some(rate) = args.read_mib_per_s.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
        return usage(format!("--read-mib-per-s {rate} must be above 0, such as 100"));
    }
    let output = OutputArgs { quiet: args.quiet, json: args.json };
    let mut session = Session::new(output, signals);
    let mut cases = Vec::new();
    for spec in &args.sources {
        let source = session.assets.source(spec)?;
        account::tell(output, spec, source.as_ref());
        for &workers in &args.workers {
            let mut setup = DataSetup {
                source: source.clone(),
                transform: args.transform,
                image_size: args.image_size,
                batch_size: args.batch_size.min(source.len()),
                workers,
                images: args.images,
                cache: args.cache.limit(),
                read_bytes_per_second: args.read_mib_per_s.map(|rate| rate * f64::from(1 << 20)),
            };
            match setup.prepare(|| !signals.stop.is_set()) {
                Err(Error::Interrupted) => return Ok(Ending::Stopped),
                prepared => prepared?,
            }
            cases.push(Case { spec: spec.clone(), setup, rounds: Vec::new() });
        }
    }
    let total = (cases.len() * args.rounds) as u64;
    let mut done = 0;
    for number in 0..args.rounds {
        for at in 0..cases.len() {
            let case = &mut cases[at];
            let round = match data_round(&case.setup, number as u64, || !signals.stop.is_set()) {
                Err(Error::Interrupted) => return Ok(Ending::Stopped),
                measured => measured?,
            };
            case.rounds.push(round);
            done += 1;
            session.progress.event(Event::Progress { what: "rounds".to_owned(), done, total });
            if args.json {
                output::result(&line(args, &cases, at, number).to_string())?;
            }
        }
    }
    session.progress.close();
    if !args.json {
        output::result(&summary(args, &cases))?;
    }
    Ok(Ending::Done)
}

/// The speed of a case in its rounds.
fn speed(case: &Case) -> f64 {
    let speeds: Vec<f64> = case.rounds.iter().map(DataRound::images_per_second).collect();
    median(&speeds).unwrap_or(f64::NAN)
}

/// Images a second and thread, as a share of those of one thread with the same source; of each round on its own, because the
/// machine may change its speed between rounds.
fn scaling(cases: &[Case], at: usize) -> Option<f64> {
    let case = &cases[at];
    let one = cases.iter().find(|one| one.spec == case.spec && one.setup.workers == 1)?;
    let threads = case.setup.workers.max(1) as f64;
    let of =
        |(many, one): (&DataRound, &DataRound)| many.images_per_second() / threads / one.images_per_second();
    let shares: Vec<f64> = case.rounds.iter().zip(&one.rounds).map(of).collect();
    median(&shares)
}

/// One round as JSON.
fn line(args: &Args, cases: &[Case], at: usize, number: usize) -> Value {
    let case = &cases[at];
    let Some(round) = case.rounds.get(number) else { return Value::Null };
    let one = cases.iter().find(|one| one.spec == case.spec && one.setup.workers == 1);
    let one = one.and_then(|one| one.rounds.get(number));
    let speed = round.images_per_second();
    let per_thread = speed / case.setup.workers.max(1) as f64;
    json!({
        "program": "beit2",
        "version": SOFTWARE,
        "kind": "data",
        "data": case.spec,
        "transform": args.transform.name(),
        "image_size": args.image_size,
        "batch_size": case.setup.batch_size,
        "workers": case.setup.workers,
        "cache": caching(args.cache),
        "read_mib_per_s": args.read_mib_per_s,
        "round": number + 1,
        "images": round.images,
        "seconds": round.seconds,
        "images_per_second": speed,
        "images_per_second_and_worker": per_thread,
        "scaling": one.map(|one| per_thread / one.images_per_second()),
        "us": {
            "read": round.micros(round.spent.read),
            "decode": round.micros(round.spent.decode),
            "transform": round.micros(round.spent.transform),
            "batch": 1e6 * round.batch.as_secs_f64() / round.images.max(1) as f64,
        },
        "overhead": round.overhead(),
    })
}

fn summary(args: &Args, cases: &[Case]) -> String {
    let machine = Environment::detect(SOFTWARE);
    let mut about = vec![
        (
            "measured",
            format!(
                "the loader, {} at {} px, batches of {}, medians of {} rounds of {} images",
                args.transform.name(),
                args.image_size,
                args.batch_size,
                args.rounds,
                args.images
            ),
        ),
        ("on", format!("{}, {} threads", machine.cpu.unwrap_or_else(|| "cpu".into()), machine.threads)),
    ];
    if args.cache != ImageCaching::Off {
        about.push(("cache", format!("{}, after the first epoch", caching(args.cache))));
    }
    if let Some(rate) = args.read_mib_per_s {
        about.push(("disk", format!("slowed down to {rate} MiB/s")));
    }
    let rows: Vec<Vec<String>> = (0..cases.len())
        .map(|at| {
            let case = &cases[at];
            let middle = |of: &dyn Fn(&DataRound) -> f64| {
                median(&case.rounds.iter().map(of).collect::<Vec<f64>>()).unwrap_or(f64::NAN)
            };
            let micros = |of: &dyn Fn(&DataRound) -> f64| format!("{:.0}", middle(of));
            let speed = speed(case);
            vec![
                case.spec.clone(),
                case.setup.workers.to_string(),
                format!("{speed:.0}"),
                format!("{:.0}", speed / case.setup.workers.max(1) as f64),
                scaling(cases, at).map_or_else(String::new, |share| format!("{share:.2}")),
                micros(&|round| round.micros(round.spent.read)),
                micros(&|round| round.micros(round.spent.decode)),
                micros(&|round| round.micros(round.spent.transform)),
                micros(&|round| 1e6 * round.batch.as_secs_f64() / round.images.max(1) as f64),
                format!("{:.1} %", 100.0 * middle(&|round| round.overhead())),
            ]
        })
        .collect();
    let names = [
        "source",
        "workers",
        "images/s",
        "each",
        "scaling",
        "read µs",
        "decode µs",
        "transform µs",
        "batch µs",
        "overhead",
    ];
    format!("{}\n{}", output::pairs(&about), output::table(&names, &rows))
}
