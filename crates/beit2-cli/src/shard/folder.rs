//! The folder that parts are written to.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2_run::atomic::{FileError, write_bytes_atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Shard;
use super::environment::{Task, Told};
use crate::errors::usage;

pub const PARTS: &str = "parts.json";

/// `parts.json`: what is the same for all parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// The command.
    pub command: String,
    /// Number of parts.
    pub parts: u32,
    /// Number of the task that does part 0, and from one task's to the next: `--check` names tasks, not parts.
    pub first_task: u64,
    /// See `first_task`.
    pub task_step: u64,
    /// Ending of the parts' files.
    pub format: String,
    /// All that values depend on: images, weights, settings, version.
    pub made_with: Map<String, Value>,
}

/// `part-….json`: what is in a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The part's file.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
    /// Images of the part, with and without a row.
    pub images: u64,
    /// Images of all parts.
    pub of_images: u64,
    /// Images without a row, with reasons.
    pub skipped: Vec<Skipped>,
    /// What the user named as the images; folders may lie elsewhere on other machines.
    pub source: String,
    /// As in `parts.json` when it was made.
    pub made_with: Map<String, Value>,
}

/// An image without a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub path: String,
    /// Why.
    pub error: String,
}

/// Names and reasons of images that were left out.
pub fn skipped(images: &[(String, String)]) -> Vec<Skipped> {
    images.iter().map(|(path, error)| Skipped { path: path.clone(), error: error.clone() }).collect()
}

/// What has to be done for a part.
pub enum Claim {
    /// It is there.
    Finished(Record),
    /// All of it, or what is left.
    Open,
}

/// A folder and the part that this process does.
pub struct Folder {
    path: PathBuf,
    task: Task,
}

impl Folder {
    /// Nothing is written yet.
    pub fn new(path: &Path, task: Task) -> Self {
        Self { path: path.to_owned(), task }
    }

    /// The part.
    pub fn shard(&self) -> Shard {
        self.task.shard
    }

    /// A file of the part.
    pub fn file(&self, ending: &str) -> PathBuf {
        self.path.join(format!("{}.{ending}", self.task.shard.stem()))
    }

    /// Says in the folder what its parts are made with, or compares with what it says. Values with other settings must never lie
    /// side by side.
    ///
    /// # Errors
    /// The folder holds parts of another command, number, form or settings, or something else.
    pub fn claim(
        &self,
        command: &str,
        format: &str,
        made_with: &Value,
        force: bool,
    ) -> anyhow::Result<Claim> {
        let own = Common {
            command: command.to_owned(),
            parts: self.task.shard.count,
            first_task: self.task.first,
            task_step: self.task.step,
            format: format.to_owned(),
            made_with: made_with.as_object().cloned().unwrap_or_default(),
        };
        fs::create_dir_all(&self.path)
            .map_err(|error| FileError::new("create the folder", &self.path, error))?;
        let path = self.path.join(PARTS);
        if !path.exists() {
            publish_first(&path, &serde_json::to_vec_pretty(&own)?)?;
        }
        let found = read_common(&self.path)?
            .with_context(|| format!("{} was removed while this part began", path.display()))?;
        if let Some(what) = difference(&found, &own) {
            return usage(format!(
                "{} holds parts made with another {what}; use another folder, or the settings of its {PARTS}",
                self.path.display()
            ));
        }
        match read_record(&self.path, self.task.shard)? {
            Some(record) if !force && is_whole(&self.path, &record, &found) => Ok(Claim::Finished(record)),
            _ => Ok(Claim::Open),
        }
    }

    /// Writes down that the part is complete.
    ///
    /// # Errors
    /// The disk.
    pub fn finish(&self, mut record: Record) -> anyhow::Result<Record> {
        let file = self.path.join(&record.file);
        record.bytes = fs::metadata(&file).map_err(|error| FileError::new("read", &file, error))?.len();
        write_bytes_atomic(&self.file("json"), &serde_json::to_vec_pretty(&record)?)?;
        Ok(record)
    }
}

/// The first of several machines wins; the others' bytes are the same, or the comparison that follows says what differs.
fn publish_first(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = |error| FileError::new("write", path, error);
    // The name of a process is unique on its machine only.
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let own = format!(".{PARTS}.{}-{}", host.trim(), std::process::id());
    let temp = path.with_file_name(own);
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).open(&temp).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
    written.map_err(failed)?;
    // A hard link is never made over another file, which a rename would replace.
    let linked = fs::hard_link(&temp, path);
    let _ = fs::remove_file(&temp);
    match linked {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // File systems without hard links: two tasks that begin at the same moment are compared when parts are merged.
        Err(_) => Ok(write_bytes_atomic(path, bytes)?),
    }
}

/// `parts.json` of a folder.
///
/// # Errors
/// It is there and cannot be read.
pub fn read_common(folder: &Path) -> anyhow::Result<Option<Common>> {
    read_json(&folder.join(PARTS))
}

/// The record of a part, if it was ever complete.
///
/// # Errors
/// It is there and cannot be read.
pub fn read_record(folder: &Path, shard: Shard) -> anyhow::Result<Option<Record>> {
    read_json(&folder.join(format!("{}.json", shard.stem())))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes);
            Ok(Some(value.with_context(|| format!("{} is damaged or not of this program", path.display()))?))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path, error).into()),
    }
}

/// Whether the file of a record is there as it was written, with the settings of the folder.
pub fn is_whole(folder: &Path, record: &Record, common: &Common) -> bool {
    let size = fs::metadata(folder.join(&record.file)).map(|facts| facts.len());
    size.is_ok_and(|size| size == record.bytes) && record.made_with == common.made_with
}

/// The first thing that parts of one folder must have in common and do not.
fn difference(found: &Common, own: &Common) -> Option<String> {
    if found.command != own.command {
        return Some(format!("command (`{}`)", found.command));
    }
    if found.parts != own.parts {
        return Some(format!("number of parts ({}, not {})", found.parts, own.parts));
    }
    if found.format != own.format {
        return Some(format!("format ({})", found.format));
    }
    let keys = found.made_with.keys().chain(own.made_with.keys());
    let mut keys = keys.filter(|key| found.made_with.get(*key) != own.made_with.get(*key));
    keys.next().map(|key| format!("`{key}`"))
}

/// The part of a task in a folder that is begun: a part of an array that is run again for what is missing (`--array=3,7-9`)
/// counts as the whole array did.
///
/// # Errors
/// The folder's parts are not those of this task's array.
pub fn task_of(folder: &Path, told: &Told) -> anyhow::Result<Option<Task>> {
    if !told.is_array {
        return Ok(None);
    }
    let Some(common) = read_common(folder)? else { return Ok(None) };
    let place = told.place(common.first_task, common.task_step);
    match place.and_then(|place| Shard::new(place, common.parts.into()).ok()) {
        Some(shard) => Ok(Some(Task { shard, first: common.first_task, step: common.task_step })),
        None => usage(format!(
            "{}, and {} holds {} parts, done by the tasks {}; say the part with --shard I/{}",
            told.by,
            folder.display(),
            common.parts,
            super::check::tasks(&common, 0..common.parts),
            common.parts
        )),
    }
}
