//! report.html of a run, from what its directory holds.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2::monitor::FOLLOWED;
use beit2::train::TrainState;
use beit2_run::atomic::{FileError, write_bytes_atomic};
use beit2_run::best::{Better, Score, best};
use beit2_run::environment::{Environment, now_utc};
use beit2_run::metrics::read_jsonl;
use beit2_run::report::{
    Cell, CodebookHealth, CodebookPoint, Examples, Headline, HeadlineRow, ReportData, Stage, metric_title,
    render,
};
use beit2_run::{Kind, Record, checkpoint};
use beit2_run::{format_duration, thousands};
use serde_json::json;
use toml::Table;

use crate::display::{metric, speed};
use crate::errors::usage;

/// What a report says that has no images.
const WITHOUT_EXAMPLES: &str = "There are no images yet. They are made when training is complete; the training command continues a run \
     that was stopped, and makes them for one that is complete.";

/// Metrics that are settings or paces.
pub const NO_RESULTS: [&str; 5] = ["lr", "weight_decay", "grad_norm", "images_per_second", "data_wait"];

/// Warnings of `warnings.log` that a report shows.
const SHOWN_WARNINGS: usize = 20;

/// Makes `report.html` of a run and gives its path.
pub fn write(run: &Path) -> anyhow::Result<PathBuf> {
    let data = data(run)?;
    let path = run.join("report.html");
    write_bytes_atomic(&path, render(&data).as_bytes())?;
    Ok(path)
}

/// The values of the run's last epoch, for `--json`; `null` before the first one ends.
pub fn last_epoch(run: &Path) -> serde_json::Value {
    let records = read_jsonl(&run.join("metrics.jsonl")).map(|found| found.records).unwrap_or_default();
    let last = records.into_iter().rev().find(|record| record.kind == Kind::Epoch);
    last.map_or(serde_json::Value::Null, |record| {
        let values = record.values.into_iter().map(|(name, value)| (name, json!(value)));
        values.collect::<serde_json::Map<_, _>>().into()
    })
}

/// The settings of the run in a directory.
pub fn settings(run: &Path) -> anyhow::Result<Table> {
    let file = run.join("run.toml");
    match fs::metadata(&file) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(FileError::new("read", &file, error).into());
        }
        Err(_) if !run.exists() => {
            anyhow::bail!("{}: no such folder; name a run directory", run.display())
        }
        _ => {}
    }
    if !file.is_file() {
        return usage(not_a_run(run));
    }
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    text.parse().with_context(|| format!("{} is damaged", file.display()))
}

/// Why a path is no run directory, and which one may be meant.
fn not_a_run(path: &Path) -> String {
    let shown = path.display();
    // A checkpoint, or a file of a run.
    if let Some(run) = path.ancestors().skip(1).take(3).find(|folder| folder.join("run.toml").is_file()) {
        return format!("{shown} is a part of a run; name the run directory itself, {}", run.display());
    }
    match runs_below(path).as_slice() {
        [] => format!("{shown} is not a run directory: it has no run.toml"),
        runs => format!("{shown} is not a run directory, but holds {}; name one of them", listed(runs)),
    }
}

/// The runs in the folders of a folder, and in theirs, by name.
pub fn runs_below(folder: &Path) -> Vec<PathBuf> {
    let folders = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.sort();
        found
    };
    let is_run = |path: &PathBuf| path.join("run.toml").is_file();
    let below = |path: PathBuf| match is_run(&path) {
        true => vec![path],
        false => folders(&path).into_iter().filter(is_run).collect(),
    };
    folders(folder).into_iter().flat_map(below).collect()
}

/// `2 runs, a and b`.
pub fn listed(runs: &[PathBuf]) -> String {
    const SHOWN: usize = 4;
    let mut names: Vec<String> = runs.iter().take(SHOWN).map(|run| run.display().to_string()).collect();
    if runs.len() > SHOWN {
        names.push(format!("{} more", runs.len() - SHOWN));
    }
    match names.as_slice() {
        [only] => format!("a run, {only}"),
        [most @ .., last] => format!("{} runs, {} and {last}", runs.len(), most.join(", ")),
        [] => "no runs".to_owned(),
    }
}

/// Everything that a run directory tells about its run.
pub fn data(run: &Path) -> anyhow::Result<ReportData> {
    let settings = settings(run)?;
    let (stage, codes) = stage(run, &settings)?;
    let environment: Option<Environment> =
        settings.get("environment").cloned().and_then(|table| table.try_into().ok());
    let command = settings.get("environment").and_then(|t| t.get("command")).and_then(|c| c.as_str());
    let last = stage.records.iter().rev().find(|record| record.kind == Kind::Epoch).cloned();
    let mut warnings = warnings(run);
    let examples = Examples::load(run).unwrap_or_else(|error| {
        warnings.push(error.to_string());
        None
    });
    // A distillation has none.
    let without_examples = if examples.is_some() || stage.name == "distill" { "" } else { WITHOUT_EXAMPLES };
    Ok(ReportData {
        title: title(run),
        date: now_utc(),
        command: command.unwrap_or_default().to_owned(),
        facts: facts(&stage, &settings, last.as_ref()),
        headline: headline(last.as_ref()),
        warnings,
        codebook: codebook(&stage.records, codes),
        examples: examples.unwrap_or_default(),
        without_examples: without_examples.to_owned(),
        stages: vec![stage],
        environment: environment.map(|found| found.pairs()).unwrap_or_default(),
    })
}

/// One stage for a report, and the size of its codebook if it trains one.
pub fn stage(run: &Path, settings: &Table) -> anyhow::Result<(Stage, Option<u32>)> {
    let name = settings.get("stage").and_then(|name| name.as_str()).unwrap_or("run").to_owned();
    let codes = settings.get("model").and_then(|m| m.get("codebook_size")).and_then(|size| size.as_integer());
    let metrics = run.join("metrics.jsonl");
    let records = if metrics.is_file() { read_jsonl(&metrics)?.records } else { Vec::new() };
    let mut shown = settings.clone();
    shown.remove("environment");
    let state: Option<TrainState> =
        checkpoint::latest(run)?.checkpoint.and_then(|checkpoint| checkpoint.state().ok());
    let state = state.filter(|state| state.seconds > 0.0);
    let stage = Stage {
        name,
        records,
        settings_toml: toml::to_string(&shown)?,
        images_per_second: state.as_ref().map(|state| state.images as f64 / state.seconds),
        seconds: state.map(|state| state.seconds),
    };
    Ok((stage, codes.and_then(|codes| u32::try_from(codes).ok())))
}

/// The metric that a recipe lets decide which checkpoint is the best, if it names one.
pub fn followed(settings: &Table) -> Option<(&str, Better)> {
    let name = settings.get("monitor")?.get("best")?.as_str()?;
    FOLLOWED.iter().find(|(known, _)| *known == name).copied()
}

/// The folder's name, also for `.`.
fn title(run: &Path) -> String {
    let full = run.canonicalize().unwrap_or_else(|_| run.to_owned());
    full.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

/// The numbers to show large: the best and the last value of the metric that counts, what belongs to it, and the speed.
fn facts(stage: &Stage, settings: &Table, last: Option<&Record>) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut shown: Vec<String> = Vec::new();
    if let Some(found) = best(&stage.name, &stage.records, followed(settings)) {
        let at = |score: &Score| match score.epoch {
            0 => format!("at step {}", thousands(score.step)),
            epoch => format!("at epoch {}, step {}", thousands(epoch), thousands(score.step)),
        };
        // A classifier's moving average may be the better model.
        let of = |score: &Score| if score.name.starts_with("ema_") { " of the moving average" } else { "" };
        for (which, score) in [("Best", &found.best), ("Last", &found.last)] {
            let label = format!("{which} {}{}, {}", found.label, of(score), found.split);
            facts.push((label, format!("{}\n{}", metric(&score.name, score.value), at(score))));
        }
        for (name, value) in &found.last.beside {
            let (title, side) = metric_title(name);
            facts.push((format!("Last {}, {side}", lower_first(&title)), metric(name, *value)));
            shown.push(title);
        }
    }
    for name in ["codebook_usage", "codebook_perplexity"] {
        let (title, side) = metric_title(name);
        if let Some(value) = last.and_then(|record| record.get(name)).filter(|_| !shown.contains(&title)) {
            facts.push((format!("Last {}, {side}", lower_first(&title)), metric(name, value)));
        }
    }
    facts.extend(stage.images_per_second.map(|pace| ("Speed".to_owned(), speed(pace))));
    facts.extend(stage.seconds.map(|seconds| ("Training time".to_owned(), format_duration(seconds))));
    facts
}

/// A title within a sentence: `Mean IoU` becomes `mean IoU`, `MIM accuracy` stays.
fn lower_first(title: &str) -> String {
    let mut chars = title.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(chars).collect(),
        _ => title.to_owned(),
    }
}

/// The last epoch: a line for each quantity, training beside validation.
fn headline(last: Option<&Record>) -> Headline {
    let Some(last) = last else { return Headline::default() };
    let mut sides: Vec<&str> = Vec::new();
    let mut rows: Vec<(String, BTreeMap<&str, String>)> = Vec::new();
    // What was reached before what was set.
    let (set, reached): (Vec<_>, Vec<_>) =
        last.values.iter().partition(|(name, _)| NO_RESULTS.contains(&name.as_str()));
    for (name, value) in reached.into_iter().chain(set) {
        let (title, side) = metric_title(name);
        if !sides.contains(&side) {
            sides.push(side);
        }
        let text = metric(name, *value);
        match rows.iter_mut().find(|(other, _)| *other == title) {
            Some((_, cells)) => drop(cells.insert(side, text)),
            None => rows.push((title, BTreeMap::from([(side, text)]))),
        }
    }
    let row = |(label, cells): (String, BTreeMap<&str, String>)| {
        let cell = |side: &&str| Cell::text(cells.get(side).cloned().unwrap_or_else(|| "–".to_owned()));
        HeadlineRow { label, cells: sides.iter().map(cell).collect(), strong: false }
    };
    Headline {
        columns: std::iter::once("").chain(sides.iter().copied()).map(str::to_owned).collect(),
        rows: rows.into_iter().map(row).collect(),
        note: format!("Means of epoch {}, at step {}.", last.epoch, thousands(last.step)),
    }
}

fn codebook(records: &[Record], codes: Option<u32>) -> Option<CodebookHealth> {
    let history: Vec<CodebookPoint> = records
        .iter()
        .filter(|record| record.kind == Kind::Epoch)
        .filter_map(|record| {
            Some(CodebookPoint {
                epoch: record.epoch,
                usage: record.get("codebook_usage")?,
                perplexity: record.get("codebook_perplexity")?,
                dead: record.get("codebook_dead")? as u64,
            })
        })
        .collect();
    (!history.is_empty()).then_some(CodebookHealth { size: codes?, history })
}

/// The latest different warnings of the run.
fn warnings(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("warnings.log")).unwrap_or_default();
    let mut found: Vec<String> = Vec::new();
    for line in text.lines().rev() {
        let line = line.split_once("UTC  ").map_or(line, |(_, text)| text);
        if found.len() < SHOWN_WARNINGS && !found.iter().any(|other| other == line) {
            found.push(line.to_owned());
        }
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let toml = "stage = \"tokenizer\"\n[model]\ncodebook_size = 16\n[environment]\nsoftware = \"beit2 0\"\n\
                    command = \"beit2 tokenizer train\"\nthreads = 2\nos = \"x\"\n";
        fs::write(dir.path().join("run.toml"), toml).unwrap();
        let line = r#"{"kind":"epoch","stage":"tokenizer","epoch":1,"step":4,"loss":0.5,"codebook_usage":0.75,"codebook_perplexity":9.0,"codebook_dead":4,"val_loss":0.6,"val_miou":0.25}"#;
        fs::write(dir.path().join("metrics.jsonl"), format!("{line}\n")).unwrap();
        fs::write(dir.path().join("warnings.log"), "2026-01-01 00:00 UTC  a\n2026-01-01 00:01 UTC  a\n")
            .unwrap();
        let data = data(dir.path()).unwrap();
        assert_eq!(data.command, "beit2 tokenizer train");
        assert_eq!(data.warnings, ["a"]);
        let codebook = data.codebook.as_ref().unwrap();
        assert_eq!((codebook.size, codebook.history[0].dead), (16, 4));
        assert_eq!(
            data.headline.rows[0].cells.iter().map(|c| &*c.text).collect::<Vec<_>>(),
            ["0.5000", "0.6000"]
        );
        let alone = data.headline.rows.iter().find(|row| row.label == "Mean IoU").unwrap();
        assert_eq!(alone.cells.iter().map(|c| &*c.text).collect::<Vec<_>>(), ["–", "25.0 %"]);
        assert!(write(dir.path()).unwrap().is_file());
        assert_eq!(last_epoch(dir.path())["loss"], 0.5);
        let html = fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(html.contains("There are no images yet"), "{html}");
    }

    #[test]
    fn the_best_and_the_last_value_are_shown_and_on_which_images() {
        let record = |epoch: u64, values: &[(&str, f64)]| Record {
            kind: Kind::Epoch,
            stage: "finetune".into(),
            epoch,
            step: 100 * epoch,
            values: values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        };
        let mut stage = Stage {
            name: "finetune".into(),
            records: vec![
                record(12, &[("loss", 1.0), ("val_acc1", 0.531)]),
                record(20, &[("loss", 0.5), ("val_acc1", 0.52)]),
            ],
            ..Stage::default()
        };
        let pairs = |facts: Vec<(String, String)>| -> Vec<String> {
            facts.into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
        };
        assert_eq!(
            pairs(facts(&stage, &Table::new(), None)),
            [
                "Best top-1 accuracy, validation: 53.1 %\nat epoch 12, step 1,200",
                "Last top-1 accuracy, validation: 52.0 %\nat epoch 20, step 2,000"
            ]
        );
        stage.records.iter_mut().for_each(|record| record.values.truncate(1));
        assert_eq!(
            pairs(facts(&stage, &Table::new(), None)),
            [
                "Best loss, training: 0.5000\nat epoch 20, step 2,000",
                "Last loss, training: 0.5000\nat epoch 20, step 2,000"
            ]
        );
    }

    #[test]
    fn another_folder_is_refused_with_what_may_be_meant() {
        let dir = tempfile::tempdir().unwrap();
        let why = |path: &str| write(&dir.path().join(path)).unwrap_err().to_string();
        assert!(why("").contains("is not a run directory: it has no run.toml"));
        assert!(why("nowhere").contains("nowhere: no such folder; name a run directory"));
        for run in ["quick/tokenizer", "quick/pretrain/checkpoints/step-1"] {
            fs::create_dir_all(dir.path().join(run)).unwrap();
        }
        for run in ["quick/tokenizer", "quick/pretrain"] {
            fs::write(dir.path().join(run).join("run.toml"), "stage = \"x\"").unwrap();
        }
        let text = why("quick");
        assert!(
            text.contains("holds 2 runs") && text.contains("pretrain and") && text.contains("tokenizer"),
            "{text}"
        );
        let text = why("quick/pretrain/checkpoints/step-1");
        assert!(text.contains("is a part of a run") && text.ends_with("quick/pretrain"), "{text}");
        assert_eq!(runs_below(dir.path()).len(), 2);
    }
}
