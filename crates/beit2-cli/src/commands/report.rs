//! `beit2 report`: report.html from what a run directory holds.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use serde_json::{Value, json};

use crate::errors::Ending;
use crate::flags::JsonArgs;
use crate::{output, report};

/// Flags of `report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Example:\n\
    \x20 beit2 report runs/mim")]
pub struct Args {
    /// Run directory, or a folder that holds some
    #[arg(value_name = "RUN", value_hint = ValueHint::DirPath)]
    run: PathBuf,

    #[command(flatten)]
    output: JsonArgs,
}

/// Writes the report and says where it is; for a folder of runs, such as that of the quickstart, those of all of them.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let folder = &args.run;
    let runs = match folder.join("run.toml").is_file() {
        true => Vec::new(),
        false => report::runs_below(folder),
    };
    if runs.is_empty() {
        let found = rebuilt(folder)?;
        if args.output.json {
            output::json(&found)?;
        } else {
            output::result(found["report"].as_str().unwrap_or_default())?;
        }
        return Ok(Ending::Done);
    }
    let (reports, failed): (Vec<_>, Vec<_>) = runs.iter().map(|run| rebuilt(run)).partition(Result::is_ok);
    let reports: Vec<Value> = reports.into_iter().flatten().collect();
    // The quickstart writes a page of its own, which needs what it has measured.
    let own = Some(folder.join("report.html")).filter(|page| page.is_file());
    if args.output.json {
        output::json(&json!({ "report": own, "runs": reports }))?;
    } else {
        let (its, were) = if runs.len() == 1 { ("its report", "was") } else { ("their reports", "were") };
        output::note(&format!("{} holds {}; {its} {were} rebuilt", folder.display(), report::listed(&runs)));
        if let Some(page) = &own {
            output::note(&format!("{} stays as it is", page.display()));
        }
        for found in &reports {
            output::result(found["report"].as_str().unwrap_or_default())?;
        }
    }
    let count = failed.len();
    match failed.into_iter().find_map(Result::err) {
        Some(error) => Err(error.context(format!("{count} of {} reports could not be rebuilt", runs.len()))),
        None => Ok(Ending::Done),
    }
}

fn rebuilt(run: &Path) -> anyhow::Result<Value> {
    let path = report::write(run)?;
    Ok(json!({ "run": run, "report": path, "metrics": report::last_epoch(run) }))
}
