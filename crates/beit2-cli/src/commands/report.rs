//! `beit2 report`: report.html from what a run directory holds.

use std::path::PathBuf;

use clap::ValueHint;
use serde_json::json;

use crate::errors::Ending;
use crate::flags::JsonArgs;
use crate::{output, report};

/// Flags of `report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Example:\n\
    \x20 beit2 report runs/mim")]
pub struct Args {
    /// Run directory
    #[arg(value_name = "RUN", value_hint = ValueHint::DirPath)]
    run: PathBuf,

    #[command(flatten)]
    output: JsonArgs,
}

/// Writes the report and says where it is.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let path = report::write(&args.run)?;
    if args.output.json {
        output::json(&json!({ "report": path, "metrics": report::last_epoch(&args.run) }))?;
    } else {
        output::result(&path.display().to_string())?;
    }
    Ok(Ending::Done)
}
