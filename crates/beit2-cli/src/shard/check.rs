//! `--check`: which parts are missing, and all of them as one manifest.

use std::ops::Range;
use std::path::Path;

use anyhow::bail;
use beit2_run::atomic::write_bytes_atomic;
use beit2_run::thousands;
use serde_json::{Value, json};

use super::Shard;
use super::folder::{Common, PARTS, Record, is_whole, read_common, read_record};
use crate::errors::{Ending, usage};
use crate::output;

const MANIFEST: &str = "manifest.json";

/// What the command that asks would make the parts with, as far as it is known without opening a model.
pub struct Expected<'a> {
    /// The command.
    pub command: &'a str,
    /// Keys and values of `made_with`.
    pub made_with: &'a [(&'a str, String)],
}

/// Tells which parts of a folder are missing; if none is, merges what is known of them.
///
/// # Errors
/// No folder of parts, other images or weights than this command names, parts of different settings; parts that are missing, after
/// they were named.
pub fn check(folder: &Path, expected: &Expected<'_>, as_json: bool) -> anyhow::Result<Ending> {
    let Some(common) = read_common(folder)? else {
        return usage(format!("{} has no {PARTS}: no part was begun there", folder.display()));
    };
    if common.command != expected.command {
        return usage(format!("{} holds parts of `beit2 {}`", folder.display(), common.command));
    }
    for (key, value) in expected.made_with {
        if common.made_with.get(*key) != Some(&Value::String(value.clone())) {
            return usage(format!("{} holds parts made with another `{key}`", folder.display()));
        }
    }
    let (mut records, mut missing) = (Vec::new(), Vec::new());
    for index in 0..common.parts {
        let record = read_record(folder, Shard { index, count: common.parts })?;
        if let Some(record) = &record {
            same_settings(folder, record, &common)?;
        }
        match record.filter(|record| is_whole(folder, record, &common)) {
            Some(record) => records.push(record),
            None => missing.push(index),
        }
    }
    if missing.is_empty() {
        return merge(folder, &common, &records, as_json);
    }
    let array = tasks(&common, missing.iter().copied());
    let (count, all) = (thousands(missing.len() as u64), thousands(common.parts.into()));
    if as_json {
        output::json(&json!({
            "out": folder, "parts": common.parts, "missing": missing, "array": array, "manifest": null,
        }))?;
    } else {
        output::result(&array)?;
    }
    bail!(
        "{count} of {all} parts are missing in {}; run them again, with Slurm by sbatch --array={array}",
        folder.display()
    )
}

fn same_settings(folder: &Path, record: &Record, common: &Common) -> anyhow::Result<()> {
    let keys = record.made_with.keys().chain(common.made_with.keys());
    let mut keys = keys.filter(|key| record.made_with.get(*key) != common.made_with.get(*key));
    match keys.next() {
        Some(key) => bail!(
            "{}: {} was made with another `{key}` than {PARTS} says; remove it, and run the part again",
            folder.display(),
            record.file
        ),
        None => Ok(()),
    }
}

/// Numbers of the tasks that do these parts, ascending, as Slurm takes them: `3,7-9`.
pub fn tasks(common: &Common, parts: impl IntoIterator<Item = u32>) -> String {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for part in parts {
        match runs.last_mut() {
            Some(run) if run.end == part => run.end += 1,
            _ => runs.push(part..part + 1),
        }
    }
    let task = |part: u32| common.first_task + u64::from(part) * common.task_step;
    let text = |run: &Range<u32>| match (task(run.start), task(run.end - 1), common.task_step) {
        (first, last, _) if first == last => first.to_string(),
        (first, last, 1) => format!("{first}-{last}"),
        (first, last, step) => format!("{first}-{last}:{step}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

fn merge(folder: &Path, common: &Common, records: &[Record], as_json: bool) -> anyhow::Result<Ending> {
    let sum = |of: fn(&Record) -> u64| records.iter().map(of).sum::<u64>();
    let (images, rows) = (sum(|record| record.images), sum(|record| record.rows));
    if let Some(odd) = records.iter().find(|record| record.of_images != images) {
        bail!(
            "{}: the parts have {} images together, but {} is a part of {}; run this part again",
            folder.display(),
            thousands(images),
            odd.file,
            thousands(odd.of_images)
        );
    }
    let mut sources: Vec<&str> = records.iter().map(|record| record.source.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    let skipped: u64 = records.iter().map(|record| record.skipped.len() as u64).sum();
    let parts: Vec<Value> = records
        .iter()
        .map(|record| {
            json!({
                "file": record.file,
                "bytes": record.bytes,
                "rows": record.rows,
                "images": record.images,
                "skipped": record.skipped,
            })
        })
        .collect();
    let manifest = json!({
        "command": common.command,
        "format": common.format,
        "made_with": common.made_with,
        "source": sources,
        "images": images,
        "rows": rows,
        "skipped": skipped,
        "parts": parts,
    });
    let path = folder.join(MANIFEST);
    write_bytes_atomic(&path, &serde_json::to_vec_pretty(&manifest)?)?;
    if as_json {
        output::json(&json!({
            "out": folder, "parts": common.parts, "missing": [], "array": "", "manifest": path,
            "images": images, "rows": rows, "skipped": skipped,
        }))?;
        return Ok(Ending::Done);
    }
    let mut lines = vec![
        ("parts", format!("{}, none is missing", thousands(common.parts.into()))),
        ("images", thousands(images)),
        ("rows", thousands(rows)),
        ("manifest", path.display().to_string()),
    ];
    if skipped > 0 {
        lines.insert(3, ("left out", thousands(skipped)));
    }
    // The list is for people; a script that wants the missing parts reads an empty standard output.
    output::note(output::pairs(&lines).trim_end());
    Ok(Ending::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parts_are_an_array_of_tasks() {
        let common = |first_task, task_step| Common {
            command: "embed".into(),
            parts: 20,
            first_task,
            task_step,
            format: "npy".into(),
            made_with: serde_json::Map::new(),
        };
        assert_eq!(tasks(&common(0, 1), [3, 7, 8, 9]), "3,7-9");
        assert_eq!(tasks(&common(1, 1), [0, 1, 19]), "1-2,20");
        assert_eq!(tasks(&common(2, 4), [0, 1, 2, 5]), "2-10:4,22");
        assert_eq!(tasks(&common(0, 1), []), "");
    }
}
