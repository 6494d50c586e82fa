//! The rows so far, in a folder that survives a kill at any moment.
//!
//! | file            | what                                                                  |
//! |-----------------|-----------------------------------------------------------------------|
//! | `manifest.json` | what the rows depend on; written first, never changed                  |
//! | `rows.bin`      | rows one after the other, raw little-endian values                     |
//! | `samples.jsonl` | one line for each image that is done, also for those left out        |
//! | `lock`          | held by the process that writes here                                   |
//!
//! An image counts as done when its line is there: rows are flushed to the disk before their lines are written. Work
//! goes on at a boundary between batches, because the last bits of a row may depend on how many rows were computed
//! together; so a continued file is the same to the byte.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use beit2_run::atomic::{AtomicFile, FileError, write_bytes_atomic};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::RowLayout;
use crate::errors::usage;

/// A kill loses at most this much work. Flushing after every batch would cost more than a batch of a small model.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

const MANIFEST: &str = "manifest.json";
const ROWS: &str = "rows.bin";
const SAMPLES: &str = "samples.jsonl";
const LOCK: &str = "lock";
/// A file of the final form, on its way to its name.
const FINAL: &str = "final";

/// One line of `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What a person would look for.
    pub path: String,
    /// The name's bytes in hexadecimal digits, when it is not UTF-8 and `path` shows it escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// Name of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Why there is no row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The folder.
pub struct Partial {
    dir: PathBuf,
    rows_file: File,
    samples_file: File,
    /// Lines whose rows are written but not flushed yet.
    pending: Vec<u8>,
    last_commit: Option<Instant>,
    samples: usize,
    rows: usize,
    /// Images whose rows are on the disk for good; without any the folder is worth nothing.
    committed: usize,
    /// Whether something could not be written.
    broken: Cell<bool>,
    _lock: File,
}

/// What the user knows: the file that the folder `OUT.partial` becomes.
fn wanted(dir: &Path) -> PathBuf {
    dir.with_extension("")
}

/// Files that are known here.
const KNOWN: [&str; 5] = [FINAL, ROWS, SAMPLES, MANIFEST, LOCK];

/// Takes the folder away. Only files that are known here are removed; a folder with others stays.
fn clear(dir: &Path) {
    for name in KNOWN {
        let _ = fs::remove_file(dir.join(name));
    }
    let _ = fs::remove_dir(dir);
}

impl Partial {
    /// Continues the folder, or begins one. `batch` and `total` count images.
    pub fn open(
        dir: &Path,
        manifest: &Value,
        layout: &RowLayout,
        batch: usize,
        total: usize,
        force: bool,
    ) -> anyhow::Result<Self> {
        let failed = |error| FileError::new("write", &wanted(dir), error);
        fs::create_dir_all(dir).map_err(failed)?;
        let open = |name: &str| {
            let path = dir.join(name);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            file.map_err(failed)
        };
        let lock = open(LOCK)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!("{} is in use; another beit2 is writing these rows", dir.display())
            }
            // Some network file systems have no locks; there the user's care must do.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let difference = difference(&dir.join(MANIFEST), manifest)?;
        if let (Some(Difference::Key(key)), false) = (&difference, force) {
            return usage(format!(
                "{} holds rows made with another `{key}`; continue them with the command that began them, or start over \
                 with --force",
                dir.display()
            ));
        }
        let (mut rows_file, mut samples_file) = (open(ROWS)?, open(SAMPLES)?);
        let mut state = (0, 0, 0);
        if difference.is_none() {
            let available = rows_file.metadata().map_err(|error| FileError::new("read", dir, error))?.len();
            let lines = BufReader::new(&mut samples_file);
            state = complete(lines, available, layout.row_bytes() as u64, batch, total);
        }
        let (samples, rows, samples_bytes) = state;
        for (file, length) in
            [(&mut rows_file, (rows * layout.row_bytes()) as u64), (&mut samples_file, samples_bytes)]
        {
            let cut = file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length)));
            cut.map_err(failed)?;
        }
        // Last, so that rows of other settings can never lie beside it.
        if difference.is_some() {
            let written = write_bytes_atomic(&dir.join(MANIFEST), &serde_json::to_vec_pretty(manifest)?);
            if let Err(error) = written {
                drop((rows_file, samples_file, lock));
                clear(dir);
                return Err(failed(error.source).into());
            }
        }
        let (pending, last_commit) = (Vec::new(), None);
        let dir = dir.to_owned();
        let committed = samples;
        let broken = Cell::new(false);
        Ok(Self {
            dir,
            rows_file,
            samples_file,
            pending,
            last_commit,
            samples,
            rows,
            committed,
            broken,
            _lock: lock,
        })
    }

    /// Images that are done.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Rows that they have.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds the rows of one batch.
    pub fn append(&mut self, rows: &[u8], samples: &[Sample]) -> anyhow::Result<()> {
        self.rows_file.write_all(rows).map_err(|error| self.failed(error))?;
        for sample in samples {
            serde_json::to_writer(&mut self.pending, sample)?;
            self.pending.push(b'\n');
        }
        self.samples += samples.len();
        self.rows += samples.iter().filter(|sample| sample.error.is_none()).count();
        if self.last_commit.is_none_or(|at| at.elapsed() >= COMMIT_EVERY) {
            self.commit()?;
        }
        Ok(())
    }

    /// Puts everything so far on the disk.
    pub fn commit(&mut self) -> anyhow::Result<()> {
        if !self.pending.is_empty() {
            self.rows_file.sync_data().map_err(|error| self.failed(error))?;
            let lines = std::mem::take(&mut self.pending);
            let written = self.samples_file.write_all(&lines).and_then(|()| self.samples_file.sync_data());
            written.map_err(|error| self.failed(error))?;
            self.committed = self.samples;
        }
        self.last_commit = Some(Instant::now());
        Ok(())
    }

    fn failed(&self, error: std::io::Error) -> FileError {
        self.broken.set(true);
        FileError::new("write", &wanted(&self.dir), error)
    }

    /// All rows, from the first.
    pub fn read_rows(&self) -> anyhow::Result<impl Read> {
        Ok(BufReader::with_capacity(1 << 20, self.reopened(ROWS)?))
    }

    /// The images that have rows, in the order of the rows.
    pub fn read_samples(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Sample>>> {
        Ok(self.lines()?.filter(|line| !matches!(line, Ok(sample) if sample.error.is_some())))
    }

    /// The committed images that have no row: name and reason.
    pub fn skipped(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        for sample in self.lines()? {
            let sample = sample?;
            found.extend(sample.error.map(|error| (sample.path, error)));
        }
        Ok(found)
    }

    fn lines(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Sample>>> {
        let path = self.dir.join(SAMPLES);
        let lines = BufReader::new(self.reopened(SAMPLES)?).lines();
        Ok(lines.map(move |line| {
            let line = line.map_err(|error| FileError::new("read", &path, error))?;
            serde_json::from_str(&line).with_context(|| format!("{} is damaged", path.display()))
        }))
    }

    fn reopened(&self, name: &str) -> anyhow::Result<File> {
        let path = self.dir.join(name);
        Ok(File::open(&path).map_err(|error| FileError::new("read", &path, error))?)
    }

    /// Writes a file and gives it its name when it is complete.
    pub fn publish(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut AtomicFile) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut file = AtomicFile::create_via(&self.dir.join(FINAL), path)?;
        fill(&mut file)?;
        Ok(file.commit()?)
    }

    /// Takes the folder away, without files that are not known here.
    pub fn remove(self) {
        let dir = self.dir.clone();
        // Windows removes no open files.
        drop(self);
        clear(&dir);
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.broken.get() && self.committed == 0 {
            clear(&self.dir);
        }
    }
}

/// Why the rows of a folder cannot be continued.
enum Difference {
    /// There are none.
    Nothing,
    /// They depend on another value of this key.
    Key(String),
}

fn difference(path: &Path, manifest: &Value) -> anyhow::Result<Option<Difference>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(Difference::Nothing)),
        Err(error) => return Err(FileError::new("read", path, error).into()),
    };
    let old: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let keys = [&old, manifest].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys());
    let mut keys = keys.filter(|key| old.get(key.as_str()) != manifest.get(key.as_str()));
    Ok(keys.next().map(|key| Difference::Key(key.clone())))
}

/// The last boundary between batches up to which lines and rows are complete: images, rows, bytes of lines.
fn complete(
    mut lines: impl BufRead,
    available: u64,
    row_bytes: u64,
    batch: usize,
    total: usize,
) -> (usize, usize, u64) {
    let mut kept = (0, 0, 0);
    let (mut samples, mut rows, mut bytes) = (0, 0, 0u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A tail that is cut off or not ours ends the list.
        if !lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) || line.last() != Some(&b'\n') {
            return kept;
        }
        let Ok(sample) = serde_json::from_slice::<Sample>(&line) else { return kept };
        samples += 1;
        rows += usize::from(sample.error.is_none());
        bytes += line.len() as u64;
        if samples > total || rows as u64 * row_bytes > available {
            return kept;
        }
        if samples.is_multiple_of(batch) || samples == total {
            kept = (samples, rows, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Element;
    use super::*;
    use serde_json::json;

    fn layout() -> RowLayout {
        RowLayout { name: "features", element: Element::F32, shape: vec![2] }
    }

    fn open(dir: &Path, seed: u32, force: bool) -> anyhow::Result<Partial> {
        Partial::open(dir, &json!({ "weights": "w", "seed": seed }), &layout(), 2, 5, force)
    }

    fn sample(path: &str, error: Option<&str>) -> Sample {
        Sample { path: path.into(), path_bytes: None, label: None, error: error.map(Into::into) }
    }

    #[test]
    fn a_torn_end_is_cut_back_to_the_last_whole_batch() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("x.npy.partial");
        let mut partial = open(&dir, 0, false).unwrap();
        partial.append(&[1; 8], &[sample("a", None), sample("b", Some("broken"))]).unwrap();
        partial.append(&[2; 16], &[sample("c", None), sample("d", None)]).unwrap();
        partial.commit().unwrap();
        assert!(open(&dir, 0, false).err().unwrap().to_string().contains("in use"));
        drop(partial);
        let samples = fs::read(dir.join(SAMPLES)).unwrap();
        // (what the files are left with) → images and rows that count
        let whole = (24, samples.len());
        let first = samples.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 1;
        for (rows_bytes, sample_bytes, expected) in [
            (whole.0, whole.1, (4, 3)),
            (whole.0 + 5, whole.1, (4, 3)),
            (whole.0 - 1, whole.1, (2, 1)),
            (whole.0, whole.1 - 1, (2, 1)),
            (whole.0, first, (2, 1)),
            (whole.0, first - 1, (0, 0)),
            (0, whole.1, (0, 0)),
        ] {
            let mut rows = vec![1; 8];
            rows.extend([2; 16]);
            rows.resize(rows_bytes, 9);
            fs::write(dir.join(ROWS), rows).unwrap();
            fs::write(dir.join(SAMPLES), &samples[..sample_bytes]).unwrap();
            let again = open(&dir, 0, false).unwrap();
            assert_eq!((again.samples(), again.rows()), expected, "{rows_bytes} {sample_bytes}");
            assert_eq!(fs::metadata(dir.join(ROWS)).unwrap().len(), expected.1 as u64 * 8);
        }
    }

    #[test]
    fn other_settings_are_named_and_begin_again_only_by_force() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("x.npy.partial");
        let mut partial = open(&dir, 0, false).unwrap();
        partial.append(&[1; 16], &[sample("a", None), sample("b", None)]).unwrap();
        drop(partial);
        let text = open(&dir, 1, false).err().unwrap().to_string();
        assert!(text.contains("another `seed`") && text.contains("--force"), "{text}");
        assert_eq!(open(&dir, 0, true).unwrap().samples(), 2, "the same settings go on");
        assert_eq!(open(&dir, 1, true).unwrap().samples(), 0);
        assert!(open(&dir, 0, false).is_err(), "and the new settings are the folder's now");
        fs::write(dir.join("mine.txt"), "").unwrap();
        open(&dir, 1, false).unwrap().remove();
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["mine.txt"], "only files of ours are removed");
    }
}
