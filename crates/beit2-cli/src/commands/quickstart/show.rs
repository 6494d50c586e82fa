//! The quickstart's table, JSON object and report.

use std::path::Path;

use anyhow::Context;
use beit2_run::atomic::write_bytes_atomic;
use beit2_run::environment::now_utc;
use beit2_run::report::{Cell, Headline, HeadlineRow, ReportData, Stage, render};
use serde_json::{Map, Value, json};

use super::measure::{Results, Row};
use beit2_run::format_duration;

use crate::display::estimate;
use crate::errors::Ending;
use crate::flags::OutputArgs;
use crate::{output, report};

/// Writes the report and prints the table or the object.
pub fn show(
    output: OutputArgs,
    out: &Path,
    tokenizer: &Path,
    pretrain: &Path,
    results: Results,
) -> anyhow::Result<Ending> {
    let mut data = report::data(tokenizer).context("the tokenizer's run cannot be read")?;
    let second = report::data(pretrain).context("the pretraining run cannot be read")?;
    data.title = "BEiT v2 quickstart".into();
    data.date = now_utc();
    data.stages.extend(second.stages);
    data.warnings.extend(second.warnings);
    let seconds = |at: usize, stages: &[Stage]| stages.get(at).and_then(|s| s.seconds).unwrap_or(0.0);
    let spent = [seconds(0, &data.stages), seconds(1, &data.stages), results.seconds];
    data.headline = headline(&results);
    data.facts = facts(&results, &spent);
    let path = out.join("report.html");
    let json = object(&results, &spent, &path);
    data.without_examples.clear();
    data.examples = results.examples;
    write(&path, &data)?;
    write_bytes_atomic(&out.join("results.json"), serde_json::to_string_pretty(&json)?.as_bytes())?;

    if output.json {
        output::json(&json)?;
        return Ok(Ending::Done);
    }
    let rows: Vec<Vec<String>> = results
        .rows
        .iter()
        .map(|row| {
            vec![row.label.into(), row.features.into(), estimate(row.knn, 1), estimate(row.probe.val, 1)]
        })
        .collect();
    let table = output::table(&["top-1 on validation images", "features", "k-NN", "linear probe"], &rows);
    let mut lines = data.facts.clone();
    lines.push(("report".into(), path.display().to_string()));
    output::result(&format!("\n{table}\n{}", output::pairs(&lines)))?;
    Ok(Ending::Done)
}

fn write(path: &Path, data: &ReportData) -> anyhow::Result<()> {
    Ok(write_bytes_atomic(path, render(data).as_bytes())?)
}

fn facts(results: &Results, spent: &[f64; 3]) -> Vec<(String, String)> {
    let codebook = &results.codebook;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let accuracy = |branch: usize| results.mim.accuracy.get(branch).map_or("–".to_owned(), |&a| percent(a));
    let rows = [
        ("codebook usage", percent(codebook.usage())),
        ("codebook perplexity", format!("{:.0}", codebook.perplexity)),
        ("MIM accuracy", accuracy(0)),
        ("MIM accuracy, patch aggregation", accuracy(1)),
        ("tokenizer", format_duration(spent[0])),
        ("pretraining", format_duration(spent[1])),
        ("probes", format_duration(spent[2])),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn headline(results: &Results) -> Headline {
    let rows = results.rows.iter().map(|row| HeadlineRow {
        label: format!("{} ({})", row.label, row.features),
        cells: vec![Cell::percent(row.knn.value), Cell::percent(row.probe.val.value)],
        strong: row.key == "pretrained",
    });
    Headline {
        columns: ["features", "k-NN top-1", "linear probe top-1"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
        note: format!(
            "On {} validation images of {} classes; always predicting the largest class scores {:.1} %. k-NN: cosine \
             similarity, 20 neighbours, weights exp(cos/0.07). Linear probe: learning rate chosen on held-out training images.",
            results.held_out,
            results.classes,
            100.0 * results.majority
        ),
    }
}

fn object(results: &Results, spent: &[f64; 3], report: &Path) -> Value {
    let column = |value: fn(&Row) -> Value| -> Map<String, Value> {
        results.rows.iter().map(|row| (row.key.to_owned(), value(row))).collect()
    };
    json!({
        "codebook_usage": results.codebook.usage(),
        "codebook_perplexity": results.codebook.perplexity,
        "mim_accuracy": results.mim.accuracy.first(),
        "mim_accuracy_patch_aggregation": results.mim.accuracy.get(1),
        "majority": results.majority,
        "knn": column(|row| json!(row.knn.value)),
        "knn_interval": column(|row| json!(row.knn.interval)),
        "probe": column(|row| json!(row.probe.val.value)),
        "probe_interval": column(|row| json!(row.probe.val.interval)),
        "probe_lr": column(|row| json!(row.probe.lr)),
        "probe_train": column(|row| json!(row.probe.train)),
        "steps": { "tokenizer": results.steps[0], "pretrain": results.steps[1] },
        "seconds": {
            "tokenizer": spent[0],
            "pretrain": spent[1],
            "probes": spent[2],
            "total": spent.iter().sum::<f64>(),
        },
        "report": report,
    })
}
