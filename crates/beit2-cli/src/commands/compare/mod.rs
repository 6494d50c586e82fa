//! `beit2 compare`: runs of one stage side by side.

mod lines;
mod side;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2_run::atomic::write_bytes_atomic;
use beit2_run::dir::differing;
use beit2_run::environment::now_utc;
use beit2_run::report::{Compared, Comparison, Line, render_comparison};
use clap::ValueHint;
use serde_json::{Map, Value, json};

use crate::errors::{Ending, usage};
use crate::flags::JsonArgs;
use crate::output;
use side::{Part, Side};

/// What differs between runs without being a choice: the machine, and what the data lines say better than paths do.
const NO_SETTINGS: [&str; 7] = [
    "environment",
    "fingerprint",
    "data.train",
    "data.val",
    "teacher.weights",
    "tokenizer.weights",
    "init.weights",
];

/// Flags of `compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 compare runs/first runs/second\n\
    \x20 beit2 compare runs/first runs/second runs/third -o compare.html\n\
    \n\
    The table shows the best and the last value of the metric that counts, the\n\
    other metrics of the last epoch, speed, data, and the settings that differ;\n\
    * marks the best. The page also shows the curves of all runs, one chart for\n\
    each metric.")]
pub struct Args {
    /// Run directories of one stage, at least two
    #[arg(value_name = "RUN", required = true, num_args = 1.., value_hint = ValueHint::DirPath)]
    runs: Vec<PathBuf>,

    /// Write a page with curves to this file
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,

    #[command(flatten)]
    output: JsonArgs,
}

/// Compares.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let sides = open(&args.runs)?;
    if let Some(page) = &args.out {
        check_page(page)?;
    }
    let mut warnings = data_warnings(&sides);
    let metrics = lines::results(&sides, is_comparable(&sides));
    warnings.extend(metrics.warning);
    let results = [metrics.lines, lines::others(&sides)].concat();
    let settings = settings(&sides);
    let stage = &sides[0].stage.name;
    if let Some(page) = &args.out {
        let comparison = Comparison {
            title: title(&sides),
            date: now_utc(),
            command: command(args),
            warnings: warnings.clone(),
            runs: sides.iter().map(compared).collect(),
            results: results.clone(),
            settings: settings.clone(),
        };
        write_bytes_atomic(page, render_comparison(&comparison).as_bytes())?;
    }
    if args.output.json {
        let best = metrics.winners.iter().map(|&at| &sides[at].path).collect::<Vec<_>>();
        output::json(&json!({
            "stage": stage,
            "runs": sides.iter().map(Side::json).collect::<Vec<_>>(),
            "best": best,
            "settings": settings_json(&sides),
            "same_data": {
                "train": Side::agree(&sides, Part::Train),
                "val": Side::agree(&sides, Part::Validation),
                "weights": Side::agree(&sides, Part::Weights),
            },
            "warnings": warnings,
            "page": args.out,
        }))?;
        return Ok(Ending::Done);
    }
    warnings.iter().for_each(|warning| output::note(&format!("warning: {warning}")));
    let mut text = table(stage, &sides, &results);
    text += "\n";
    text += &match settings.is_empty() {
        true => "all settings are equal\n".to_owned(),
        false => table("settings that differ", &sides, &settings),
    };
    if let Some(page) = &args.out {
        text += &format!("\npage  {}\n", page.display());
    }
    output::result(&text)?;
    Ok(Ending::Done)
}

/// Reads the runs, and refuses what cannot be compared.
fn open(runs: &[PathBuf]) -> anyhow::Result<Vec<Side>> {
    if let [only] = runs {
        return usage(format!(
            "compare needs at least two runs, and only {} is named; `beit2 report` shows a single one",
            only.display()
        ));
    }
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    for (at, run) in runs.iter().enumerate() {
        if runs[..at].iter().any(|other| same(other, run)) {
            return usage(format!("{} is named twice; compare needs different runs", run.display()));
        }
    }
    let mut sides = runs.iter().map(|run| Side::read(run)).collect::<anyhow::Result<Vec<Side>>>()?;
    let first = &sides[0];
    if let Some(other) = sides.iter().find(|side| side.stage.name != first.stage.name) {
        return usage(format!(
            "{} is a run of the stage `{}` and {} one of `{}`; only runs of one stage can be compared",
            first.path.display(),
            first.stage.name,
            other.path.display(),
            other.stage.name
        ));
    }
    side::name(&mut sides);
    Ok(sides)
}

/// A page may replace an older one, and nothing else.
fn check_page(page: &Path) -> anyhow::Result<()> {
    if page.is_dir() {
        return usage(format!("--out {} is a folder; name a file such as compare.html", page.display()));
    }
    if page.is_file() {
        let bytes = fs::read(page).with_context(|| format!("cannot read {}", page.display()))?;
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
        if !start.contains("name=\"generator\" content=\"beit2\"") {
            return usage(format!(
                "--out {} already exists and is no page of beit2; choose another name",
                page.display()
            ));
        }
    }
    Ok(())
}

/// Whether what is measured on validation images means the same in all runs.
fn is_comparable(sides: &[Side]) -> bool {
    let targets = targets_are_weights(&sides[0].stage.name);
    let differs = |part| Side::conflict(sides, part);
    !(differs(Part::Validation) || targets && differs(Part::Weights))
}

/// Stages whose losses are measured against what other weights give.
fn targets_are_weights(stage: &str) -> bool {
    matches!(stage, "tokenizer" | "pretrain" | "distill")
}

/// What a reader must know of the data before comparing numbers.
fn data_warnings(sides: &[Side]) -> Vec<String> {
    let mut warnings = Vec::new();
    if Side::conflict(sides, Part::Validation) {
        warnings.push(format!(
            "the runs have different validation images ({}), so their metrics are not comparable, and none is marked as the best",
            Side::specs(sides, Part::Validation)
        ));
    }
    let stage = sides[0].stage.name.as_str();
    if targets_are_weights(stage) && Side::conflict(sides, Part::Weights) {
        let what = if stage == "pretrain" { "tokenizers" } else { "teachers" };
        warnings.push(format!(
            "the runs have different {what} ({}), so losses and accuracies are measured against different targets and are not \
             comparable, and none is marked as the best",
            Side::specs(sides, Part::Weights)
        ));
    }
    if Side::conflict(sides, Part::Train) {
        warnings
            .push(format!("the runs have different training images ({})", Side::specs(sides, Part::Train)));
    }
    warnings
}

fn settings(sides: &[Side]) -> Vec<Line> {
    let tables: Vec<&toml::Table> = sides.iter().map(|side| &side.settings).collect();
    let line = |(label, cells)| Line { label, cells, best: Vec::new() };
    differing(&tables, &NO_SETTINGS).into_iter().map(line).collect()
}

/// The settings that differ, with their values as in `run.toml`.
fn settings_json(sides: &[Side]) -> Value {
    let values = |key: &str| -> Value {
        let value = |side: &Side| {
            side.setting(key).and_then(|value| serde_json::to_value(value).ok()).unwrap_or(Value::Null)
        };
        sides.iter().map(value).collect()
    };
    let lines = settings(sides);
    Value::Object(lines.iter().map(|line| (line.label.clone(), values(&line.label))).collect::<Map<_, _>>())
}

fn title(sides: &[Side]) -> String {
    match sides {
        [one, other] => format!("{} and {}", one.name, other.name),
        _ => format!("{} runs of {}", sides.len(), sides[0].stage.name),
    }
}

fn compared(side: &Side) -> Compared {
    Compared { name: side.name.clone(), records: side.stage.records.clone() }
}

fn command(args: &Args) -> String {
    let runs: Vec<String> = args.runs.iter().map(|run| run.display().to_string()).collect();
    let out = args.out.as_ref().map(|page| format!(" -o {}", page.display())).unwrap_or_default();
    format!("beit2 compare {}{out}", runs.join(" "))
}

fn table(title: &str, sides: &[Side], lines: &[Line]) -> String {
    let names: Vec<&str> =
        std::iter::once(title).chain(sides.iter().map(|side| side.name.as_str())).collect();
    let row = |line: &Line| -> Vec<String> {
        let cell = |at: usize| {
            let text = line.cells.get(at).cloned().flatten().unwrap_or_else(|| "–".to_owned());
            // A place for the mark, so that numbers stay below each other.
            let mark = match (line.best.contains(&at), line.best.is_empty()) {
                (true, _) => " *",
                (false, false) => "  ",
                (false, true) => "",
            };
            format!("{text}{mark}")
        };
        std::iter::once(line.label.clone()).chain((0..sides.len()).map(cell)).collect()
    };
    output::table(&names, &lines.iter().map(row).collect::<Vec<_>>())
}
