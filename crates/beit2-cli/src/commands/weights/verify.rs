//! `beit2 weights verify`: reads every value of a file once and checks the model.

use std::path::Path;
use std::time::Instant;

use anyhow::bail;
use beit2_weights::Checkpoint;
use beit2_weights::inspect::ModelSummary;
use beit2_weights::published::{self, Published};
use beit2_weights::verify::verify;
use serde_json::json;

use super::{about, describe_format};
use beit2_run::thousands;

use crate::errors::Ending;
use crate::flags::{JsonArgs, WeightFileArgs};
use crate::output;

/// Flags of `weights verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 weights verify runs/mim\n\
    \x20 beit2 weights verify ~/.cache/beit2/beitv2_base_patch16_224_pt1k.pth --json\n\
    \n\
    Checked: the structure of the file; that every key is used, derived or ignored\n\
    for a known reason; that every tensor of the model is there and fits the others;\n\
    that index buffers agree with their tables; that no value is NaN or infinite;\n\
    and for a published file (known by its name) the kind of model, parameters,\n\
    classes and, where it is known, the SHA-256.")]
pub struct Args {
    #[command(flatten)]
    source: WeightFileArgs,

    #[command(flatten)]
    output: JsonArgs,
}

/// How many problems are told in the one sentence; all are in `--json`.
const TOLD: usize = 3;

/// Checks it.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let checkpoint = args.source.open()?;
    let path = checkpoint.path();
    let summary = about(verify(&checkpoint.tensors), &checkpoint)?
        .with_metadata(&checkpoint.metadata)
        .with_sizes(&checkpoint.beside.sizes);
    let since = Instant::now();
    let mut problems = not_finite(&checkpoint)?;
    problems.extend(summary.contradiction(&checkpoint.metadata));
    let seconds = since.elapsed().as_secs_f64();
    let sha256 = beit2_weights::fingerprint(path)?;
    let published = named(path);
    if let Some(published) = published {
        problems.extend(contradiction(published, &summary));
        problems.extend(wrong_hash(published, &sha256));
    }
    if args.output.json {
        output::json(&json!({
            "file": path.display().to_string(),
            "model": super::inspect::summary_json(&summary),
            "tensors": checkpoint.tensors.len(),
            "sha256": sha256,
            "published": published.map(|published| published.file),
            "problems": problems,
        }))?;
    } else {
        let mut rows = vec![
            ("file", path.display().to_string()),
            ("format", describe_format(&checkpoint)),
            ("model", format!("{}, {} parameters", summary.layout, thousands(summary.parameters))),
            ("tensors", format!("{} read in {seconds:.2} s", checkpoint.tensors.len())),
            ("sha256", sha256),
        ];
        match published {
            Some(published) if published.sha256_prefix.is_some() => {
                rows.push(("published", format!("{}; SHA-256 and sizes compared", published.about)));
            }
            Some(published) => {
                rows.push(("published", format!("{}; sizes compared, no SHA-256 known", published.about)));
            }
            None => {}
        }
        if problems.is_empty() {
            rows.push(("result", "sound".to_owned()));
        }
        output::result(&output::pairs(&rows))?;
    }
    match problems.len() {
        0 => Ok(Ending::Done),
        count => {
            let more = if count > TOLD { format!("; and {} more", count - TOLD) } else { String::new() };
            let told: Vec<String> = problems.into_iter().take(TOLD).collect();
            bail!("{}: {}{more}", path.display(), told.join("; "))
        }
    }
}

/// Reads all tensors; one line for each with values that are no numbers.
pub(super) fn not_finite(checkpoint: &Checkpoint) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for (name, view) in &checkpoint.tensors {
        let tensor = view.load()?;
        let count = tensor.count_non_finite();
        if count > 0 {
            let of: usize = tensor.shape().iter().product();
            let name = output::printable(name);
            problems.push(format!("tensor `{name}` has {count} of {of} values that are NaN or infinite"));
        }
    }
    Ok(problems)
}

/// The published file of this name.
fn named(path: &Path) -> Option<&'static Published> {
    let name = path.file_name()?.to_str()?;
    // Only the authors' own files: the same weights in other names may lack parts.
    name.ends_with(".pth").then(|| published::find(name)).flatten()
}

/// How a model contradicts the published one.
pub(super) fn contradiction(published: &Published, summary: &ModelSummary) -> Option<String> {
    let (kind, classes) = (summary.layout.kind, summary.classes.unwrap_or(0));
    let what = |found: String, expected: String| {
        Some(format!("{found}, but the published {} {expected}", published.file))
    };
    if kind != published.kind {
        what(format!("it is a {kind} model"), format!("is a {} model", published.kind))
    } else if summary.parameters != published.parameters {
        let found = format!("it has {} parameters", thousands(summary.parameters));
        what(found, format!("has {}", thousands(published.parameters)))
    } else if classes != published.classes {
        what(format!("it has {classes} classes"), format!("has {}", published.classes))
    } else {
        None
    }
}

/// A SHA-256 that is not the published one.
pub(super) fn wrong_hash(published: &Published, sha256: &str) -> Option<String> {
    let prefix = published.sha256_prefix.filter(|prefix| !sha256.starts_with(prefix))?;
    let found = &sha256[..prefix.len()];
    Some(format!(
        "its SHA-256 starts with {found}, but that of the published {} with {prefix}",
        published.file
    ))
}
