//! report.html of a run, from what its directory holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2::segment::EXAMPLES;
use beit2::train::TrainState;
use beit2_run::atomic::write_bytes_atomic;
use beit2_run::environment::{Environment, now_utc};
use beit2_run::format_duration;
use beit2_run::metrics::read_jsonl;
use beit2_run::report::{
    Cell, CodebookHealth, CodebookPoint, Headline, HeadlineRow, ReportData, Segmented, Stage, render,
};
use beit2_run::{Kind, Record, checkpoint};
use serde_json::json;
use toml::Table;

use crate::display::{metric, speed};
use crate::errors::usage;

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

/// Everything that a run directory tells about its run.
pub fn data(run: &Path) -> anyhow::Result<ReportData> {
    let file = run.join("run.toml");
    if !file.is_file() {
        return usage(format!("{} is not a run directory: it has no run.toml", run.display()));
    }
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let settings: Table = text.parse().with_context(|| format!("{} is damaged", file.display()))?;
    let (stage, codes) = stage(run, &settings)?;
    let environment: Option<Environment> =
        settings.get("environment").cloned().and_then(|table| table.try_into().ok());
    let command = settings.get("environment").and_then(|t| t.get("command")).and_then(|c| c.as_str());
    let last = stage.records.iter().rev().find(|record| record.kind == Kind::Epoch).cloned();
    Ok(ReportData {
        title: title(run),
        date: now_utc(),
        command: command.unwrap_or_default().to_owned(),
        facts: facts(&stage, last.as_ref()),
        headline: headline(last.as_ref()),
        warnings: warnings(run),
        codebook: codebook(&stage.records, codes),
        segmented: segmented(run, &settings),
        stages: vec![stage],
        environment: environment.map(|found| found.pairs()).unwrap_or_default(),
        ..ReportData::default()
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

/// The folder's name, also for `.`.
fn title(run: &Path) -> String {
    let full = run.canonicalize().unwrap_or_else(|_| run.to_owned());
    full.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

/// The numbers to show large.
fn facts(stage: &Stage, last: Option<&Record>) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    for (label, name) in [
        ("Codebook usage", "codebook_usage"),
        ("Perplexity", "codebook_perplexity"),
        ("MIM accuracy", "mim_acc_1"),
        ("MIM accuracy", "mim_acc"),
        ("Top-1", "val_acc1"),
        ("mAP", "val_map"),
        ("Mean IoU", "val_miou"),
        ("Loss", "loss"),
    ] {
        if let Some(value) = last.and_then(|record| record.get(name)) {
            facts.push((label.to_owned(), metric(name, value)));
        }
    }
    facts.extend(stage.images_per_second.map(|pace| ("Speed".to_owned(), speed(pace))));
    facts.extend(stage.seconds.map(|seconds| ("Training time".to_owned(), format_duration(seconds))));
    facts
}

/// The last epoch, training beside validation.
fn headline(last: Option<&Record>) -> Headline {
    let Some(last) = last else { return Headline::default() };
    // `val_mim_acc_1` belongs beside `mim_acc_1`.
    let held_out: BTreeMap<&str, f64> =
        last.values.iter().filter_map(|(name, value)| Some((name.strip_prefix("val_")?, *value))).collect();
    let cell = |name: &str, value: Option<f64>| Cell::text(value.map_or("–".to_owned(), |v| metric(name, v)));
    let rows = last.values.iter().filter(|(name, _)| !name.starts_with("val_")).map(|(name, value)| {
        let cells = vec![cell(name, Some(*value)), cell(name, held_out.get(name.as_str()).copied())];
        HeadlineRow { label: name.replace('_', " "), cells, strong: false }
    });
    // What is measured on held-out images only, such as `val_miou`.
    let alone = held_out.iter().filter(|(name, _)| last.get(name).is_none()).map(|(name, value)| {
        let cells = vec![cell(name, None), cell(name, Some(*value))];
        HeadlineRow { label: name.replace('_', " "), cells, strong: false }
    });
    Headline {
        columns: ["", "training", "validation"].map(str::to_owned).to_vec(),
        rows: rows.chain(alone).collect(),
        note: format!("Means of epoch {}, at step {}.", last.epoch, last.step),
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

/// Images that a segmentation run keeps, and the names and colours of its classes.
fn segmented(run: &Path, settings: &Table) -> Segmented {
    let files = fs::read_dir(run.join(EXAMPLES)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "png"));
    files.sort();
    let list = |key: &str| settings.get("model")?.get(key)?.as_array();
    let name = |value: &toml::Value| value.as_str().unwrap_or_default().to_owned();
    let colour = |value: &toml::Value| -> Option<[u8; 3]> {
        let channels = value.as_array()?.iter().map(|c| u8::try_from(c.as_integer()?).ok());
        channels.collect::<Option<Vec<u8>>>()?.try_into().ok()
    };
    let names = list("class_names").into_iter().flatten().map(name);
    let colours = list("palette").into_iter().flatten().map(|value| colour(value).unwrap_or_default());
    Segmented {
        legend: names.zip(colours).collect(),
        images: files.iter().filter_map(|path| fs::read(path).ok()).collect(),
    }
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
        let alone = data.headline.rows.iter().find(|row| row.label == "miou").unwrap();
        assert_eq!(alone.cells.iter().map(|c| &*c.text).collect::<Vec<_>>(), ["–", "25.0 %"]);
        assert!(write(dir.path()).unwrap().is_file());
        assert_eq!(last_epoch(dir.path())["loss"], 0.5);
    }

    #[test]
    fn another_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path()).unwrap_err().to_string().contains("is not a run directory"));
    }
}
