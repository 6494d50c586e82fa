//! The run directory: made once, continued by the same command, never shared and never mixed up.
//!
//! ```text
//! runs/NAME/
//!   run.toml        the resolved run; a directory with this file is a run directory
//!   metrics.jsonl   see `metrics`
//!   events.*        see `tensorboard`
//!   checkpoints/    see `checkpoint`
//!   best, last      links into checkpoints/
//!   report.html     see `report`
//!   .lock           held by the process that works here; the system frees it when that process ends, however it ends
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use toml::Table;

use crate::atomic::{self, FileError};
use crate::checkpoint;
use crate::tree;

/// Why a run directory cannot be used. Each message is one sentence that says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder has files but no run.toml: it is something else of the user's.
    #[error(
        "{} is not a run directory (it has files but no run.toml); choose a new or empty folder with --out",
        .path.display()
    )]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// There is a file where the folder should be.
    #[error("{} is a file, not a folder; name a new or empty folder with --out", .path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
    },
    /// The folder holds a run with other settings.
    #[error(
        "{} belongs to another run, it differs in {}; choose another folder with --out, or begin again here with \
         --restart (the old run is kept beside it)",
        .path.display(),
        list(.differences)
    )]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// The keys that differ.
        differences: Vec<Difference>,
    },
    /// Another process works in the folder.
    #[error("{} is in use by another process{}; wait until it ends or choose another folder with --out", .path.display(), .owner)]
    InUse {
        /// The folder.
        path: PathBuf,
        /// ` (pid 123)` when known.
        owner: String,
    },
    /// run.toml (the old or the new one) is not TOML.
    #[error("{} is not valid TOML: {message}; restore it, or choose another folder with --out", .path.display())]
    BadToml {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
}

/// One key that differs between the run in the folder and the requested run.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Dotted name.
    pub key: String,
    /// Value of the run in the folder; `None` when it has no such key.
    pub old: Option<String>,
    /// Value that was asked for; `None` when it has no such key.
    pub new: Option<String>,
}

impl RunError {
    /// The keys that differ from those of the run in the folder, for a sentence; `None` of other errors.
    pub fn differences(&self) -> Option<String> {
        match self {
            Self::OtherRun { differences, .. } => Some(list(differences)),
            _ => None,
        }
    }
}

/// The first keys of a list that differ, with both values, for a sentence.
pub fn list(differences: &[Difference]) -> String {
    // A sentence stays a sentence with three; more do not help anyone to choose.
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
    let mut text: Vec<String> = differences
        .iter()
        .take(3)
        .map(|d| format!("`{}` ({} → {})", d.key, shown(&d.old), shown(&d.new)))
        .collect();
    if differences.len() > 3 {
        text.push(format!("{} more", differences.len() - 3));
    }
    text.join(", ")
}

/// What to do with a run that is already in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Go on with it if its settings are the same.
    #[default]
    Continue,
    /// Move it aside (`NAME.old-1`) and begin again.
    SetAside,
}

/// A run directory that this process holds. Dropping it frees the lock.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    // Never read: the open file is the lock.
    _lock: File,
}

/// The result of [`RunDir::open`].
#[derive(Debug)]
pub struct Opened {
    /// The directory.
    pub run: RunDir,
    /// Whether a run with the same settings was there before. It may still have no checkpoint.
    pub resumed: bool,
    /// Where an older run was moved to, with [`Existing::SetAside`].
    pub set_aside: Option<PathBuf>,
}

impl RunDir {
    /// Creates the run directory `path` or continues the run in it.
    ///
    /// `run_toml` is the resolved run as TOML: every setting, the data's fingerprint, seeds, versions. It is
    /// the run's identity and is saved as `run.toml`. `may_differ` lists the keys (or tables: everything
    /// below them) that do not count when a continued run is compared, such as `environment` or `logging`;
    /// their new values are saved.
    ///
    /// Leftovers of killed processes are tidied up on the way.
    ///
    /// # Errors
    /// The folder cannot be written, belongs to a run with other settings or to no run at all, or is in use.
    pub fn open(
        path: &Path,
        run_toml: &str,
        may_differ: &[&str],
        existing: Existing,
    ) -> Result<Opened, RunError> {
        let new = parse(run_toml, &path.join("run.toml"))?;
        if path.is_file() {
            return Err(RunError::NotAFolder { path: path.to_owned() });
        }
        create_dir(path)?;
        let file = path.join("run.toml");
        let is_run = || file.try_exists().map_err(|source| FileError::new("read", &file, source));
        // Before the lock, which would leave a file in a folder that is not ours.
        if !is_run()? {
            refuse_foreign_files(path)?;
        }
        let mut lock = lock(path)?;
        let mut set_aside = None;
        let exists = is_run()?;
        let mut resumed = exists;
        if exists && existing == Existing::SetAside {
            let aside = free_name(path);
            fs::rename(path, &aside).map_err(|source| FileError::new("move aside", path, source))?;
            create_dir(path)?;
            lock = self::lock(path)?;
            set_aside = Some(aside);
            resumed = false;
        }
        let mut old_text = String::new();
        if resumed {
            old_text = fs::read_to_string(&file).map_err(|source| FileError::new("read", &file, source))?;
            let differences = differences(&parse(&old_text, &file)?, &new, may_differ);
            if !differences.is_empty() {
                return Err(RunError::OtherRun { path: path.to_owned(), differences });
            }
        }
        atomic::remove_leftovers(path);
        let run = Self { path: path.to_owned(), _lock: lock };
        create_dir(&run.checkpoints())?;
        checkpoint::tidy(&run.checkpoints());
        // run.toml comes last: its presence says that the directory is complete.
        if old_text != run_toml {
            atomic::write_bytes_atomic(&file, run_toml.as_bytes())?;
        }
        Ok(Opened { run, resumed, set_aside })
    }

    /// Whether [`RunDir::open`] with the same arguments would go on with a run that is there, told without writing into the
    /// folder. On the way it finds what `open` would refuse.
    ///
    /// # Errors
    /// As [`RunDir::open`].
    pub fn look(
        path: &Path,
        run_toml: &str,
        may_differ: &[&str],
        existing: Existing,
    ) -> Result<bool, RunError> {
        let new = parse(run_toml, &path.join("run.toml"))?;
        let fail = |source| FileError::new("create the folder", path, source);
        if path.is_file() {
            return Err(RunError::NotAFolder { path: path.to_owned() });
        }
        try_to_write(path).map_err(fail)?;
        if !path.is_dir() {
            return Ok(false);
        }
        let file = path.join("run.toml");
        if !file.is_file() {
            refuse_foreign_files(path)?;
            return Ok(false);
        }
        // Where there is no lock, nobody works here. The file is freed again at once.
        if path.join(".lock").is_file() {
            look_at_lock(path)?;
        }
        if existing == Existing::SetAside {
            return Ok(false);
        }
        let old_text = fs::read_to_string(&file).map_err(|source| FileError::new("read", &file, source))?;
        let differences = differences(&parse(&old_text, &file)?, &new, may_differ);
        match differences.is_empty() {
            true => Ok(true),
            false => Err(RunError::OtherRun { path: path.to_owned(), differences }),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `report.html`.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }
}

/// The keys in which two resolved runs differ, apart from those at or below a name in `may_differ`.
pub fn differences(old: &Table, new: &Table, may_differ: &[&str]) -> Vec<Difference> {
    let counts = |name: &str| !may_differ.iter().any(|prefix| tree::is_under(name, prefix));
    let mut out = Vec::new();
    for (key, value) in tree::leaves(old) {
        let other = tree::get(new, &key);
        if counts(&key) && other != Some(&value) {
            out.push(Difference { key, old: Some(tree::short(&value)), new: other.map(tree::short) });
        }
    }
    for (key, value) in tree::leaves(new) {
        if counts(&key) && tree::get(old, &key).is_none() {
            out.push(Difference { key, old: None, new: Some(tree::short(&value)) });
        }
    }
    out
}

/// The keys in which any of several resolved runs differs from the others, with the value of each (`None` where a run does
/// not have the key), apart from those at or below a name in `apart`.
pub fn differing(runs: &[&Table], apart: &[&str]) -> Vec<(String, Vec<Option<String>>)> {
    let mut keys: Vec<String> = Vec::new();
    for (key, _) in runs.iter().flat_map(|run| tree::leaves(run)) {
        if !apart.iter().any(|prefix| tree::is_under(&key, prefix)) && !keys.contains(&key) {
            keys.push(key);
        }
    }
    let differs = |key: &String| {
        let values: Vec<Option<&toml::Value>> = runs.iter().map(|run| tree::get(run, key)).collect();
        values.windows(2).any(|pair| pair[0] != pair[1])
    };
    let values = |key: String| {
        let values = runs.iter().map(|run| tree::get(run, &key).map(tree::short)).collect();
        (key, values)
    };
    keys.into_iter().filter(differs).map(values).collect()
}

fn parse(text: &str, file: &Path) -> Result<Table, RunError> {
    toml::from_str(text).map_err(|error: toml::de::Error| RunError::BadToml {
        path: file.to_owned(),
        message: error.message().trim().replace('\n', ", "),
    })
}

fn create_dir(path: &Path) -> Result<(), FileError> {
    let fail = |source| FileError::new("create the folder", path, source);
    if path.is_file() {
        return Err(fail(std::io::Error::from(std::io::ErrorKind::NotADirectory)));
    }
    fs::create_dir_all(path).map_err(fail)
}

/// Makes a folder in the nearest folder of `path` that exists, and takes it away again.
fn try_to_write(path: &Path) -> std::io::Result<()> {
    let absolute = std::path::absolute(path)?;
    let Some(there) = absolute.ancestors().find(|folder| folder.exists()) else { return Ok(()) };
    let trial = there.join(format!(".beit2-trial-{}", std::process::id()));
    fs::create_dir(&trial)?;
    fs::remove_dir(&trial)
}

/// Whether another process works in the folder.
fn look_at_lock(path: &Path) -> Result<(), RunError> {
    let name = path.join(".lock");
    let fail = |source| FileError::new("read", &name, source);
    let mut file = OpenOptions::new().read(true).write(true).open(&name).map_err(fail)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(in_use(path, &mut file)),
        Err(TryLockError::Error(error)) if error.kind() != std::io::ErrorKind::Unsupported => {
            Err(fail(error).into())
        }
        _ => Ok(()),
    }
}

fn in_use(path: &Path, lock: &mut File) -> RunError {
    let mut pid = String::new();
    let _ = lock.read_to_string(&mut pid);
    let owner = match pid.trim() {
        "" => String::new(),
        pid => format!(" (pid {pid})"),
    };
    RunError::InUse { path: path.to_owned(), owner }
}

/// Takes the lock, or says who has it.
fn lock(path: &Path) -> Result<File, RunError> {
    let name = path.join(".lock");
    let fail = |source| FileError::new("write", &name, source);
    // Not truncated: until the lock is ours the content is somebody else's.
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut file)),
        // A file system without locks: the run is worth more than the protection against running it twice.
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(fail(error).into()),
    }
    // For the message above only; the lock itself is the system's.
    let pid = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(fail)?;
    Ok(file)
}

/// Lets pass an empty folder and one in which an earlier start was killed before it wrote run.toml.
fn refuse_foreign_files(path: &Path) -> Result<(), RunError> {
    let entries = fs::read_dir(path).map_err(|source| FileError::new("read", path, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| FileError::new("read", path, source))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let empty_dir = || fs::read_dir(entry.path()).is_ok_and(|mut inner| inner.next().is_none());
        let ours = name == ".lock"
            // Just now written by a process that started beside this one; the lock will tell.
            || name == "run.toml"
            || name.starts_with(&format!(".run.toml{}", atomic::PARTIAL))
            || (name == "checkpoints" && empty_dir());
        if !ours {
            return Err(RunError::NotARun { path: path.to_owned() });
        }
    }
    Ok(())
}

/// `NAME.old-1`, or the next number that is free.
fn free_name(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    (1u32..)
        .map(|n| path.with_file_name(format!("{name}.old-{n}")))
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| path.with_file_name(format!("{name}.old")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "seed = 1\n[optimizer]\nlr = 0.1\n[environment]\ncpu = \"a\"\n";

    fn open(path: &Path, toml: &str) -> Result<Opened, RunError> {
        RunDir::open(path, toml, &["environment"], Existing::Continue)
    }

    #[test]
    fn what_differs_among_several_runs() {
        let tables = [
            "a = 1\nsame = 2\n[t]\nx = 'u'\n[environment]\nos = 'p'",
            "a = 1\nsame = 2\n[t]\nx = 'u'",
            "a = 3\nsame = 2",
        ]
        .map(|text| text.parse::<Table>().unwrap());
        let runs: Vec<&Table> = tables.iter().collect();
        let text = |value: &str| Some(value.to_owned());
        assert_eq!(
            differing(&runs, &["environment"]),
            [
                ("a".to_owned(), vec![text("1"), text("1"), text("3")]),
                ("t.x".to_owned(), vec![text("\"u\""), text("\"u\""), None])
            ]
        );
        assert!(differing(&runs[..2], &["environment"]).is_empty());
    }

    #[test]
    fn a_look_finds_what_opening_finds_and_leaves_nothing() {
        let look = |path: &Path, toml: &str, existing| RunDir::look(path, toml, &["environment"], existing);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs/a");
        assert!(!look(&path, RUN, Existing::Continue).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let held = open(&path, RUN).unwrap();
        let in_use = look(&path, RUN, Existing::Continue).unwrap_err().to_string();
        assert_eq!(in_use, open(&path, RUN).unwrap_err().to_string());
        assert!(in_use.contains("in use by another process"), "{in_use}");
        drop(held);
        let files = || {
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = files();
        assert!(look(&path, RUN, Existing::Continue).unwrap());
        assert!(!look(&path, RUN, Existing::SetAside).unwrap());
        let other = RUN.replace("0.1", "0.2");
        let found = look(&path, &other, Existing::Continue).unwrap_err().to_string();
        assert_eq!(found, open(&path, &other).unwrap_err().to_string());
        assert_eq!(files(), before);

        let foreign = dir.path().join("notes");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("a.txt"), "mine").unwrap();
        for path in [foreign.clone(), foreign.join("a.txt"), foreign.join("a.txt/run")] {
            let found = look(&path, RUN, Existing::Continue).unwrap_err().to_string();
            assert_eq!(found, open(&path, RUN).unwrap_err().to_string());
        }
    }

    #[test]
    fn is_created_then_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs/a");
        let first = open(&path, RUN).unwrap();
        assert!(!first.resumed);
        assert!(path.join("run.toml").is_file() && first.run.checkpoints().is_dir());
        drop(first);
        let changed = RUN.replace("\"a\"", "\"b\"");
        assert!(open(&path, &changed).unwrap().resumed);
        assert_eq!(fs::read_to_string(path.join("run.toml")).unwrap(), changed, "allowed changes are saved");
    }

    #[test]
    fn another_recipe_is_refused_with_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), RUN).unwrap());
        let text = open(dir.path(), &RUN.replace("0.1", "0.2").replace("seed = 1", "epochs = 3"))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("`seed` (1 → absent), `optimizer.lr` (0.1 → 0.2), `epochs` (absent → 3)"),
            "{text}"
        );
        assert!(text.contains("--out") && text.contains("--restart"), "{text}");
        assert_eq!(fs::read_to_string(dir.path().join("run.toml")).unwrap(), RUN);
    }

    #[test]
    fn two_processes_cannot_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), RUN).unwrap();
        let text = open(dir.path(), RUN).unwrap_err().to_string();
        assert!(text.contains(&format!("in use by another process (pid {})", std::process::id())), "{text}");
        drop(first);
        open(dir.path(), RUN).unwrap();
    }

    #[test]
    fn restart_keeps_the_old_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(open(&path, RUN).unwrap());
        fs::write(path.join("metrics.jsonl"), "old").unwrap();
        for n in 1..=2 {
            let again = RunDir::open(&path, "seed = 2\n", &[], Existing::SetAside).unwrap();
            assert!(!again.resumed && !path.join("metrics.jsonl").exists());
            assert_eq!(again.set_aside, Some(dir.path().join(format!("a.old-{n}"))));
        }
        assert_eq!(fs::read_to_string(dir.path().join("a.old-1/metrics.jsonl")).unwrap(), "old");
    }

    #[test]
    fn foreign_folders_and_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "").unwrap();
        assert!(open(dir.path(), RUN).unwrap_err().to_string().contains("is not a run directory"));
        let text = open(&dir.path().join("thesis.txt"), RUN).unwrap_err().to_string();
        assert!(text.contains("thesis.txt") && text.contains("is a file, not a folder"), "{text}");
    }

    #[test]
    fn a_start_that_was_killed_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("checkpoints")).unwrap();
        fs::write(dir.path().join(".lock"), "1").unwrap();
        fs::write(dir.path().join(".run.toml.partial-9-0"), "se").unwrap();
        assert!(!open(dir.path(), RUN).unwrap().resumed);
        assert!(!dir.path().join(".run.toml.partial-9-0").exists());
    }

    #[test]
    fn a_damaged_run_toml_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("run.toml"), "seed = ").unwrap();
        let text = open(dir.path(), RUN).unwrap_err().to_string();
        assert!(text.contains("run.toml is not valid TOML"), "{text}");
    }
}
