//! One stream of metrics, several sinks.
//!
//! The loop of a stage hands every step's values to [`Metrics`], which averages them and sends a [`Record`]
//! to each sink at the logging interval and at the end of an epoch. `metrics.jsonl` ([`JsonlSink`]) is the
//! record that counts: the report is made from it, and on resume it is cut back to the checkpoint, so that it
//! always tells one straight story.
//!
//! Order at a checkpoint: log, [`Metrics::sync`], then commit. Records at the checkpoint's own step are kept
//! on resume.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::atomic::{self, FileError};

/// What a record summarises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The steps since the record before.
    Step,
    /// A whole epoch, or an evaluation at its end.
    Epoch,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Step or epoch.
    pub kind: Kind,
    /// The stage that wrote it (`tokenizer`, `pretrain`, ...). Steps count from 0 in each stage.
    pub stage: String,
    /// Epochs done, or the running one.
    pub epoch: u64,
    /// Optimiser steps done in this stage.
    pub step: u64,
    /// Named values in writing order. NaN and infinities are allowed.
    pub values: Vec<(String, f64)>,
}

impl Record {
    /// The value called `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }
}

/// Where records go. A sink holds no half record: when `record` fails, what it wrote before is still
/// readable.
pub trait Sink: Send {
    /// Takes one record.
    ///
    /// # Errors
    /// The sink's file cannot be written.
    fn record(&mut self, record: &Record) -> Result<(), FileError>;

    /// Puts everything taken so far on the disk.
    ///
    /// # Errors
    /// The sink's file cannot be written.
    fn sync(&mut self) -> Result<(), FileError> {
        Ok(())
    }
}

/// Which records of a stage survive a resume; those of other stages all do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The stage that is resumed.
    pub stage: String,
    /// The checkpoint's step; `None` when the stage begins again from nothing.
    pub step: Option<u64>,
}

impl Cut {
    /// Whether a record of `stage` at `step` stays.
    pub fn keeps(&self, stage: &str, step: u64) -> bool {
        stage != self.stage || self.step.is_some_and(|last| step <= last)
    }
}

/// What [`JsonlSink::open`] had to remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repair {
    /// Records beyond the checkpoint.
    pub cut: usize,
    /// Lines that were no records, such as one half-written at a power cut.
    pub damaged: usize,
}

/// `metrics.jsonl`: one JSON object per record,
/// `{"kind":"step","stage":"pretrain","epoch":1,"step":20,"loss":5.2}`.
///
/// A value that is not finite is `null`. Each line reaches the system in one write, so a kill loses no line
/// that was logged.
#[derive(Debug)]
pub struct JsonlSink {
    path: PathBuf,
    file: File,
    length: u64,
}

impl JsonlSink {
    /// Opens the file for appending, creating it if needed, after removing damaged lines and what `cut` does
    /// not keep.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, cut: Option<&Cut>) -> Result<(Self, Repair), FileError> {
        let repair = repair(path, cut)?;
        let fail = |e| FileError::new("write", path, e);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        Ok((Self { path: path.to_owned(), file, length }, repair))
    }
}

impl Sink for JsonlSink {
    fn record(&mut self, record: &Record) -> Result<(), FileError> {
        let fail = |e| FileError::new("write", &self.path, e);
        let line = to_line(record).map_err(fail)?;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // A full disk may have taken half of the line; the next one must not be glued to it.
            let _ = self.file.set_len(self.length);
            return Err(fail(error));
        }
        self.length += line.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|e| FileError::new("write", &self.path, e))
    }
}

/// The content of a `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Jsonl {
    /// All readable records, in the order of the file.
    pub records: Vec<Record>,
    /// Lines that are no records.
    pub damaged: usize,
}

/// Reads `metrics.jsonl`, passing over damaged lines. `null` becomes NaN.
///
/// # Errors
/// The file cannot be read.
pub fn read_jsonl(path: &Path) -> Result<Jsonl, FileError> {
    let bytes = fs::read(path).map_err(|e| FileError::new("read", path, e))?;
    let mut result = Jsonl::default();
    for line in lines(&bytes) {
        match parse_line(line) {
            Some(record) => result.records.push(record),
            None => result.damaged += 1,
        }
    }
    Ok(result)
}

/// Rewrites the file without damaged and cut lines; leaves it alone when there are none.
fn repair(path: &Path, cut: Option<&Cut>) -> Result<Repair, FileError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Repair::default()),
        Err(e) => return Err(FileError::new("read", path, e)),
    };
    let mut repair = Repair::default();
    let mut kept = Vec::with_capacity(bytes.len());
    for line in lines(&bytes) {
        match parse_line(line) {
            None => repair.damaged += 1,
            Some(record) if cut.is_some_and(|cut| !cut.keeps(&record.stage, record.step)) => repair.cut += 1,
            Some(_) => {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
        }
    }
    if kept != bytes {
        atomic::write_bytes_atomic(path, &kept)?;
    }
    Ok(repair)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty())
}

const RESERVED: [&str; 4] = ["kind", "stage", "epoch", "step"];

fn to_line(record: &Record) -> io::Result<String> {
    let mut object = Map::new();
    object.insert("kind".into(), serde_json::to_value(record.kind)?);
    object.insert("stage".into(), record.stage.as_str().into());
    object.insert("epoch".into(), record.epoch.into());
    object.insert("step".into(), record.step.into());
    for (name, value) in &record.values {
        if RESERVED.contains(&name.as_str()) {
            return Err(io::Error::other(format!(
                "a metric cannot be called `{name}`; give it another name"
            )));
        }
        // `null` for what is not finite: JSON has no NaN, and a reader must see that there was a value.
        object.insert(name.clone(), (*value).into());
    }
    Ok(format!("{}\n", Value::Object(object)))
}

fn parse_line(line: &[u8]) -> Option<Record> {
    let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let number = |value: &Value| if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
    Some(Record {
        kind: serde_json::from_value(object.get("kind")?.clone()).ok()?,
        stage: object.get("stage")?.as_str()?.to_owned(),
        epoch: object.get("epoch")?.as_u64()?,
        step: object.get("step")?.as_u64()?,
        values: object
            .iter()
            .filter(|(name, _)| !RESERVED.contains(&name.as_str()))
            .filter_map(|(name, value)| Some((name.clone(), number(value)?)))
            .collect(),
    })
}

/// Averages the values of a stage and sends them to the sinks.
pub struct Metrics {
    stage: String,
    sinks: Vec<Box<dyn Sink>>,
    window: usize,
    recent: Vec<(String, VecDeque<f64>)>,
    state: MetricsState,
}

/// The running averages, to be saved in a checkpoint: with it the records of a resumed run are those of an
/// uninterrupted one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsState {
    since_log: Vec<(String, Average)>,
    epoch: Vec<(String, Average)>,
}

/// A weighted sum; serialised exactly (a sum that is not finite becomes NaN).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Average {
    #[serde(deserialize_with = "null_is_nan")]
    sum: f64,
    weight: f64,
}

fn null_is_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Metrics {
    /// Metrics of `stage`. `window` is the number of observations behind [`smoothed`](Self::smoothed), at
    /// least 1.
    pub fn new(stage: &str, sinks: Vec<Box<dyn Sink>>, window: usize) -> Self {
        let window = window.max(1);
        Self { stage: stage.to_owned(), sinks, window, recent: Vec::new(), state: MetricsState::default() }
    }

    /// Adds a value to the averages of the logging interval and of the epoch. `weight` is usually the number
    /// of images.
    pub fn observe(&mut self, name: &str, value: f64, weight: f64) {
        for list in [&mut self.state.since_log, &mut self.state.epoch] {
            let average = entry(list, name, || Average { sum: 0.0, weight: 0.0 });
            average.sum += value * weight;
            average.weight += weight;
        }
        let recent = entry(&mut self.recent, name, VecDeque::new);
        if recent.len() == self.window {
            recent.pop_front();
        }
        recent.push_back(value);
    }

    /// Sets a value that is not averaged, such as the learning rate: the last one counts.
    pub fn set(&mut self, name: &str, value: f64) {
        for list in [&mut self.state.since_log, &mut self.state.epoch] {
            *entry(list, name, || Average { sum: 0.0, weight: 1.0 }) = Average { sum: value, weight: 1.0 };
        }
        let recent = entry(&mut self.recent, name, VecDeque::new);
        recent.clear();
        recent.push_back(value);
    }

    /// The mean of the last observations, for a progress bar.
    pub fn smoothed(&self, name: &str) -> Option<f64> {
        let (_, values) = self.recent.iter().find(|(n, _)| n == name)?;
        Some(values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Sends the means since the last call to the sinks and begins anew. Returns what was sent.
    ///
    /// # Errors
    /// The first sink that failed; the others have the record.
    pub fn log_step(&mut self, epoch: u64, step: u64) -> Result<Record, FileError> {
        let values = means(std::mem::take(&mut self.state.since_log));
        self.send(Record { kind: Kind::Step, stage: self.stage.clone(), epoch, step, values })
    }

    /// The means since the last call of [`log_step`](Self::log_step), to show before their record is due.
    pub fn so_far(&self) -> Vec<(String, f64)> {
        means(self.state.since_log.clone())
    }

    /// Sends the means of the epoch, followed by `extra` (evaluations, codebook health), and begins anew.
    ///
    /// # Errors
    /// The first sink that failed; the others have the record.
    pub fn log_epoch(&mut self, epoch: u64, step: u64, extra: &[(&str, f64)]) -> Result<Record, FileError> {
        let mut values = means(std::mem::take(&mut self.state.epoch));
        for (name, value) in extra {
            *entry(&mut values, name, || 0.0) = *value;
        }
        self.send(Record { kind: Kind::Epoch, stage: self.stage.clone(), epoch, step, values })
    }

    /// Puts all sinks on the disk; to be called before a checkpoint is committed.
    ///
    /// # Errors
    /// The first sink that failed.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.each(|sink| sink.sync())
    }

    /// The running averages, for the checkpoint.
    pub fn state(&self) -> &MetricsState {
        &self.state
    }

    /// Goes on with the averages of a checkpoint.
    pub fn restore(&mut self, state: MetricsState) {
        self.state = state;
    }

    fn send(&mut self, record: Record) -> Result<Record, FileError> {
        self.each(|sink| sink.record(&record))?;
        Ok(record)
    }

    fn each(&mut self, mut act: impl FnMut(&mut dyn Sink) -> Result<(), FileError>) -> Result<(), FileError> {
        let mut first = Ok(());
        for sink in &mut self.sinks {
            let result = act(sink.as_mut());
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}

fn means(averages: Vec<(String, Average)>) -> Vec<(String, f64)> {
    averages.into_iter().map(|(name, average)| (name, average.sum / average.weight)).collect()
}

/// The entry called `name`, made at the end of the list if missing. Lists are short and their order is the
/// order of writing.
fn entry<'a, T>(list: &'a mut Vec<(String, T)>, name: &str, make: impl FnOnce() -> T) -> &'a mut T {
    let at = list.iter().position(|(n, _)| n == name).unwrap_or_else(|| {
        list.push((name.to_owned(), make()));
        list.len() - 1
    });
    &mut list[at].1
}

#[cfg(test)]
mod tests;
