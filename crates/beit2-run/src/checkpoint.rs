//! Checkpoints that are complete or absent, whenever the process dies.
//!
//! A checkpoint is a folder `checkpoints/step-0001234/`. It is filled under a temporary name; every file is
//! flushed to the disk; `state.json`, written last, lists the other files with size and CRC-32 and so proves
//! that the folder is complete; then the folder takes its name by one rename. Only after that are the links
//! moved and older checkpoints removed. Reading goes from the newest to the oldest and takes the first one
//! whose proof holds.
//!
//! Temporary folders, all removed (or, for `replaced`, put back) by the next [`RunDir::open`]:
//! `.partial-step-N-PID` being filled, `.replaced-step-N` an older one of the same step making room,
//! `.trash-step-N` being deleted.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic::{self, FileError};
use crate::dir::RunDir;

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading or writing failed; what was there before is untouched.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state does not fit the type that reads it (a checkpoint of another version of the software).
    #[error("{} does not hold the expected state: {message}; use the version that wrote it", .path.display())]
    State {
        /// state.json.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },
    /// A file name that could leave the folder or collide with the proof of completeness.
    #[error("`{name}` cannot be the name of a file in a checkpoint; give a plain name other than state.json")]
    Name {
        /// The name.
        name: String,
    },
}

/// Which older checkpoints survive a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// How many of the newest stay, the new one included; 0 counts as 1.
    pub last: usize,
    /// Whether the new one becomes `best`. The best one always stays.
    pub best: bool,
}

/// A complete checkpoint on disk.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Optimiser steps done when it was written.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    state: serde_json::Value,
}

/// A checkpoint that was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it, as the rest of a sentence: `model.safetensors has 10 bytes instead of 20`.
    pub reason: String,
}

/// The newest complete checkpoint and the newer ones that are damaged (to be reported to the user).
#[derive(Debug, Default)]
pub struct Latest {
    /// `None`: nothing usable, begin at step 0.
    pub checkpoint: Option<Checkpoint>,
    /// From newest to oldest.
    pub skipped: Vec<Skipped>,
}

/// The content of state.json.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    step: u64,
    state: serde_json::Value,
    files: Vec<FileProof>,
}

#[derive(Serialize, Deserialize)]
struct FileProof {
    name: String,
    bytes: u64,
    crc32: u32,
}

const STATE: &str = "state.json";
const FORMAT: u32 = 1;

impl RunDir {
    /// Starts the checkpoint of `step`. Nothing is visible before [`CheckpointWriter::commit`]; dropping the
    /// writer undoes all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn begin_checkpoint(&self, step: u64) -> Result<CheckpointWriter<'_>, CheckpointError> {
        let temp =
            self.checkpoints().join(format!("{}{}-{}", atomic::PARTIAL, name_of(step), std::process::id()));
        // An earlier attempt of this process at the same step may have failed and its removal too.
        let _ = fs::remove_dir_all(&temp);
        fs::create_dir_all(&temp)
            .map_err(|e| FileError::new("create", &self.checkpoints().join(name_of(step)), e))?;
        Ok(CheckpointWriter { run: self, step, kept: Vec::new(), temp, files: Vec::new(), finished: false })
    }

    /// The newest checkpoint whose files are all there with the right sizes and checksums. Every byte of it
    /// is read once.
    ///
    /// # Errors
    /// The folder of checkpoints cannot be read.
    pub fn latest_checkpoint(&self) -> Result<Latest, CheckpointError> {
        latest(self.path())
    }
}

/// As [`RunDir::latest_checkpoint`], for a run directory that is only looked at.
///
/// # Errors
/// The folder of checkpoints exists and cannot be read.
pub fn latest(run: &Path) -> Result<Latest, CheckpointError> {
    let dir = run.join("checkpoints");
    let mut result = Latest::default();
    for (_, path) in list(&dir).map_err(|e| FileError::new("read", &dir, e))?.into_iter().rev() {
        match open(&path) {
            Ok(checkpoint) => {
                result.checkpoint = Some(checkpoint);
                break;
            }
            Err(reason) => result.skipped.push(Skipped { path, reason }),
        }
    }
    Ok(result)
}

/// The checkpoint that `best` points at, if it is complete.
pub fn best(run: &Path) -> Option<Checkpoint> {
    open(&atomic::read_link(&run.join("best"))?).ok()
}

/// Checks one checkpoint folder and opens it. The error is the reason why it cannot be used.
///
/// # Errors
/// A missing, short, long or altered file, or an unreadable state.json.
pub fn open(path: &Path) -> Result<Checkpoint, String> {
    let text = fs::read_to_string(path.join(STATE)).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("{STATE} is missing"),
        _ => format!("{STATE} cannot be read: {e}"),
    })?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|e| format!("{STATE} is damaged: {e}"))?;
    if manifest.format != FORMAT {
        return Err(format!("{STATE} has format {} and this version reads format {FORMAT}", manifest.format));
    }
    for proof in &manifest.files {
        let name = &proof.name;
        if !is_plain(name) {
            return Err(format!("{STATE} lists the file name `{name}`"));
        }
        let (bytes, crc32) = checksum(&path.join(name)).map_err(|e| format!("{name} cannot be read: {e}"))?;
        if bytes != proof.bytes {
            return Err(format!("{name} has {bytes} bytes instead of {}", proof.bytes));
        }
        if crc32 != proof.crc32 {
            return Err(format!("{name} has checksum {crc32:08x} instead of {:08x}", proof.crc32));
        }
    }
    Ok(Checkpoint { step: manifest.step, path: path.to_owned(), state: manifest.state })
}

impl Checkpoint {
    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The state that was given to [`CheckpointWriter::commit`].
    ///
    /// # Errors
    /// It does not fit `T`.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        serde_json::from_value(self.state.clone())
            .map_err(|e| CheckpointError::State { path: self.path.join(STATE), message: e.to_string() })
    }
}

/// A checkpoint in the making. Dropping it without [`commit`](Self::commit) removes it.
#[derive(Debug)]
pub struct CheckpointWriter<'a> {
    run: &'a RunDir,
    step: u64,
    /// Steps whose checkpoints stay whatever [`Keep`] says.
    kept: Vec<u64>,
    temp: PathBuf,
    files: Vec<FileProof>,
    finished: bool,
}

impl std::fmt::Debug for FileProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes)
    }
}

impl CheckpointWriter<'_> {
    /// Writes one file through `fill` and puts it on the disk. The writer is buffered and counts along.
    ///
    /// # Errors
    /// A name that is not a plain file name, or whatever `fill` and the file system say.
    pub fn add(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), CheckpointError> {
        let taken = self.files.iter().any(|file| file.name == name);
        if !is_plain(name) || name == STATE || taken {
            return Err(CheckpointError::Name { name: name.to_owned() });
        }
        let fail = |e| FileError::new("write", &self.final_path().join(name), e);
        let file = File::create_new(self.temp.join(name)).map_err(fail)?;
        let mut proof = FileProof { name: name.to_owned(), bytes: 0, crc32: 0 };
        atomic::fill_and_sync(file, |writer| {
            let mut counting = Counting { inner: writer, bytes: 0, hasher: crc32fast::Hasher::new() };
            fill(&mut counting)?;
            (proof.bytes, proof.crc32) = (counting.bytes, counting.hasher.finalize());
            Ok(())
        })
        .map_err(fail)?;
        self.files.push(proof);
        self.reached(Point::FileAdded)
    }

    /// Lets the checkpoints of these steps stay, too.
    #[must_use]
    pub fn keeping(mut self, steps: &[u64]) -> Self {
        self.kept.extend_from_slice(steps);
        self
    }

    /// Completes the checkpoint: writes `state` (epoch, data position, generator keys, best metric …) with
    /// the proof, gives the folder its name, moves `last` (and `best`), removes what `keep` does not keep.
    ///
    /// Floats in `state` come back to the bit; NaN and infinities do not exist in JSON, use `Option`.
    ///
    /// # Errors
    /// A failed write. When only the tidying after the rename fails, the checkpoint is complete all the same.
    pub fn commit<S: Serialize>(mut self, state: &S, keep: Keep) -> Result<Checkpoint, CheckpointError> {
        let dir = self.run.checkpoints();
        let path = self.final_path();
        let fail = |e: io::Error| FileError::new("write", &path, e);

        let state = serde_json::to_value(state)
            .map_err(|e| CheckpointError::State { path: path.join(STATE), message: e.to_string() })?;
        let files = std::mem::take(&mut self.files);
        let manifest = Manifest { format: FORMAT, step: self.step, state, files };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| fail(e.into()))?;
        let file = File::create_new(self.temp.join(STATE)).map_err(fail)?;
        atomic::fill_and_sync(file, |writer| writer.write_all(&text)).map_err(fail)?;
        atomic::sync_dir(&self.temp).map_err(fail)?;
        self.reached(Point::Proven)?;

        // The same step again: after falling back from a damaged checkpoint, or a Ctrl-C right after a
        // regular save. A folder cannot be renamed over another, so the older one steps aside; `tidy` puts it
        // back if we die in between.
        let replaced = dir.join(format!(".replaced-{}", name_of(self.step)));
        if path.exists() {
            let _ = fs::remove_dir_all(&replaced);
            fs::rename(&path, &replaced).map_err(fail)?;
            self.reached(Point::SteppedAside)?;
        }
        if let Err(e) = fs::rename(&self.temp, &path) {
            let _ = fs::rename(&replaced, &path);
            return Err(fail(e).into());
        }
        self.finished = true;
        atomic::sync_dir(&dir).map_err(fail)?;
        self.reached(Point::Renamed)?;

        let target = Path::new("checkpoints").join(name_of(self.step));
        atomic::replace_link(&self.run.path().join("last"), &target)?;
        if keep.best {
            atomic::replace_link(&self.run.path().join("best"), &target)?;
        }
        self.reached(Point::Linked)?;
        let _ = fs::remove_dir_all(&replaced);
        self.prune(keep)?;
        Ok(Checkpoint { step: self.step, path, state: manifest.state })
    }

    /// Removes checkpoints older than the newest `keep.last`, except the best one and those of [`Self::keeping`].
    ///
    /// Newer ones than this (the run fell back behind a damaged one) neither count nor go: they are replaced
    /// when the run gets there again, and until then a disk that recovers may still give them back.
    fn prune(&mut self, keep: Keep) -> Result<(), CheckpointError> {
        let dir = self.run.checkpoints();
        let all = list(&dir).map_err(|e| FileError::new("read", &dir, e))?;
        let best =
            atomic::read_link(&self.run.path().join("best")).and_then(|p| p.file_name().map(PathBuf::from));
        let up_to_now: Vec<_> = all.into_iter().filter(|(step, _)| *step <= self.step).collect();
        let surplus = up_to_now.len().saturating_sub(keep.last.max(1));
        for (step, path) in &up_to_now[..surplus] {
            if best.as_deref() == path.file_name().map(Path::new) || self.kept.contains(step) {
                continue;
            }
            // First out of the list by one rename: a half-deleted folder must never look like a damaged
            // checkpoint.
            let trash = dir.join(format!(".trash-{}", name_of(*step)));
            fs::rename(path, &trash).map_err(|e| FileError::new("remove", path, e))?;
            self.reached(Point::Trashed)?;
            fs::remove_dir_all(&trash).map_err(|e| FileError::new("remove", path, e))?;
        }
        Ok(())
    }

    fn final_path(&self) -> PathBuf {
        self.run.checkpoints().join(name_of(self.step))
    }

    /// Tests stop here as a killed process would: no clean-up runs.
    #[cfg(test)]
    fn reached(&mut self, point: Point) -> Result<(), CheckpointError> {
        if tests::KILL_AT.get() == Some(point) {
            self.finished = true;
            return Err(FileError::new("write", &self.temp, io::Error::other("killed")).into());
        }
        Ok(())
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps)]
    fn reached(&mut self, _: Point) -> Result<(), CheckpointError> {
        Ok(())
    }
}

/// The moments of a commit between which a kill leaves different traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    FileAdded,
    Proven,
    SteppedAside,
    Renamed,
    Linked,
    Trashed,
}

impl Drop for CheckpointWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.temp);
        }
    }
}

/// Removes what killed processes left among the checkpoints. The caller holds the run's lock.
pub(crate) fn tidy(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some(step) = name.strip_prefix(".replaced-") {
            let original = dir.join(step);
            if !original.exists() && fs::rename(entry.path(), &original).is_ok() {
                continue;
            }
        }
        if [atomic::PARTIAL, ".replaced-", ".trash-"].iter().any(|prefix| name.starts_with(prefix)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn name_of(step: u64) -> String {
    format!("step-{step:07}")
}

/// All folders with a checkpoint's name, by rising step. A missing folder holds none.
fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok()) {
            all.push((step, entry.path()));
        }
    }
    all.sort();
    Ok(all)
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\'])
}

fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path)?);
    let mut buffer = vec![0; 1 << 18];
    let (mut bytes, mut hasher) = (0, crc32fast::Hasher::new());
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok((bytes, hasher.finalize()));
        }
        bytes += n as u64;
        hasher.update(&buffer[..n]);
    }
}

/// Counts and checks what passes through.
struct Counting<'a, W: Write> {
    inner: &'a mut W,
    bytes: u64,
    hasher: crc32fast::Hasher,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.bytes += n as u64;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
