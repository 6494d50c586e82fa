//! Files that are either the old one or the new one, never half of one.
//!
//! The new content goes to a temporary name in the same folder, is flushed to the disk, takes the final name
//! by a rename, and the folder is flushed too, so that the rename itself survives a power cut. Everything
//! this crate writes goes through here, except the two append-only metric streams, which repair their tails
//! instead.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file operation that failed: what was tried, on which path, and what would help.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}", .path.display(), advice(.action, .source))]
pub struct FileError {
    /// What was tried, as a verb: `write`, `read`, `create the folder`.
    pub action: &'static str,
    /// The path that the user knows (never a temporary name).
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// Names the action and the path that `source` happened on.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }
}

/// The system's error, on trying `action`, with what would be right. It replaces what the system says, which is short and has a
/// number.
#[must_use]
pub fn advice(action: &str, error: &io::Error) -> String {
    use io::ErrorKind as K;
    let reading = ["read", "open", "list", "look"].iter().any(|word| action.starts_with(word));
    let advice = match error.kind() {
        K::PermissionDenied if reading => {
            "permission denied; give yourself the right to read it, or move it elsewhere"
        }
        K::StorageFull => "the disk is full; free some space or choose a folder on another disk",
        K::QuotaExceeded => "the disk quota is used up; free some space or choose a folder on another disk",
        K::ReadOnlyFilesystem => "the file system is read-only; choose a folder that can be written",
        K::PermissionDenied => {
            "permission denied; choose a folder that you may write, or change its permissions"
        }
        K::IsADirectory => "this is a folder; give the path of a file",
        K::AlreadyExists => "there is a file of this name; choose another name",
        K::NotADirectory => "a part of this path is a file, not a folder; give a path below a folder",
        K::NotFound => "there is no such file or folder; check the path",
        K::FileTooLarge => "the file is too large for this file system; choose a folder on another disk",
        _ => return error.to_string(),
    };
    advice.to_owned()
}

/// A file that takes its name when it is complete: after an error or a kill at any moment, what had the name before still
/// has it.
///
/// Writing is buffered. Without [`AtomicFile::commit`] the file goes away.
#[derive(Debug)]
pub struct AtomicFile {
    // Before `temp`: not every system removes files that are open.
    writer: BufWriter<File>,
    temp: TempPath,
    path: PathBuf,
}

impl AtomicFile {
    /// A file that will be `path`.
    ///
    /// # Errors
    /// The folder cannot be written, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let temp = TempPath::beside(path).map_err(|source| FileError::new("write", path, source))?;
        Self::begin(temp, path)
    }

    /// As [`AtomicFile::create`], with a temporary name that the caller can find again after a kill. `temp` must be on the
    /// same file system as `path`; what is there is replaced.
    ///
    /// # Errors
    /// As [`AtomicFile::create`].
    pub fn create_via(temp: &Path, path: &Path) -> Result<Self, FileError> {
        Self::begin(TempPath { path: temp.to_owned(), gone: false }, path)
    }

    fn begin(temp: TempPath, path: &Path) -> Result<Self, FileError> {
        let fail = |source| FileError::new("write", path, source);
        // A rename over a folder is refused only after all the work; say it before.
        if path.is_dir() {
            return Err(fail(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let writer = BufWriter::with_capacity(1 << 18, File::create(&temp.path).map_err(fail)?);
        Ok(Self { writer, temp, path: path.to_owned() })
    }

    /// Gives the file its name, on disk for good.
    ///
    /// # Errors
    /// What the file system says; the file is removed.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.writer.flush().map_err(|source| FileError::new("write", &self.path, source))?;
        publish(self.writer.get_ref(), &self.temp.path, &self.path)?;
        self.temp.gone = true;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Gives the complete `file` at `temp` the name `path`; the contents are on disk before the name is, and then the name.
///
/// # Errors
/// What the file system says, about `path`.
pub fn publish(file: &File, temp: &Path, path: &Path) -> Result<(), FileError> {
    let fail = |source| FileError::new("write", path, source);
    file.sync_all().map_err(fail)?;
    fs::rename(temp, path).map_err(fail)?;
    sync_dir(parent(path)).map_err(fail)
}

/// An [`AtomicFile`] that `fill` writes and that is then committed; `fill` need not flush.
///
/// # Errors
/// Whatever `fill` or the file system says, with `path` and advice. The temporary file is removed.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path)?;
    fill(&mut file.writer).map_err(|source| FileError::new("write", path, source))?;
    file.commit()
}

/// [`write_atomic`] for content that is in memory already.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomic(path, |writer| writer.write_all(bytes))
}

/// Fills a fresh file and puts it on the disk.
pub(crate) fn fill_and_sync(
    file: File,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    fill(&mut writer)?;
    writer.flush()?;
    writer.get_ref().sync_all()
}

/// Flushes a folder's list of names to the disk. Not every system can; there the rename is as durable as it
/// gets.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match File::open(dir)?.sync_all() {
            // Some network and FUSE file systems refuse fsync on folders.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
            other => other,
        }
    } else {
        Ok(())
    }
}

/// Makes the link `path` point at `target` (relative to the link's folder), atomically replacing an older
/// link.
///
/// Where links are not possible (Windows without the right, exFAT) a text file holding the target takes its
/// place; [`read_link`] reads both.
///
/// # Errors
/// The folder cannot be written, or `path` is a folder.
pub fn replace_link(path: &Path, target: &Path) -> Result<(), FileError> {
    let fail = |source| FileError::new("link", path, source);
    if path.is_dir() && !path.is_symlink() {
        return Err(fail(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let mut temp = TempPath::beside(path).map_err(fail)?;
    if symlink(target, &temp.path).is_err() {
        return write_bytes_atomic(path, target.to_string_lossy().as_bytes());
    }
    fs::rename(&temp.path, path).map_err(fail)?;
    temp.gone = true;
    sync_dir(parent(path)).map_err(fail)
}

/// Where a link made by [`replace_link`] points, or `None` when there is none.
pub fn read_link(path: &Path) -> Option<PathBuf> {
    let target = match fs::read_link(path) {
        Ok(target) => target,
        Err(_) => PathBuf::from(fs::read_to_string(path).ok()?.trim()),
    };
    Some(parent(path).join(target))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// What marks a name as unfinished; [`remove_leftovers`] looks for it.
pub(crate) const PARTIAL: &str = ".partial-";

/// Removes the temporary files and links that killed processes left in `dir`. Only call this while no other
/// process writes there (the run directory's lock says so). What cannot be removed is left: it does no harm.
pub(crate) fn remove_leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if name.starts_with('.') && name.contains(PARTIAL) && !is_dir {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The folder that holds `path`; the current one for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// A temporary name; whatever is there is removed on drop unless it was renamed away.
#[derive(Debug)]
struct TempPath {
    path: PathBuf,
    gone: bool,
}

impl TempPath {
    fn beside(path: &Path) -> io::Result<Self> {
        // Process and counter together: two threads writing the same file must not share a temporary one.
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temp = format!(".{}{PARTIAL}{}-{count}", name.to_string_lossy(), std::process::id());
        Ok(Self { path: parent(path).join(temp), gone: false })
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        if !self.gone {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_bytes_atomic(&path, b"one").unwrap();
        write_bytes_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_failing_writer_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_bytes_atomic(&path, b"old").unwrap();
        let error = write_atomic(&path, |w| {
            w.write_all(&[0; 1 << 20])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("a.txt") && text.contains("the disk is full; free some space"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_really_full_device_is_called_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let error =
            write_atomic(&path, |_| fs::OpenOptions::new().write(true).open("/dev/full")?.write_all(b"x"))
                .unwrap_err();
        assert!(error.to_string().contains("the disk is full"), "{error}");
    }

    #[test]
    fn says_what_is_wrong_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let say = |path: &Path| write_bytes_atomic(path, b"").unwrap_err().to_string();
        assert!(say(dir.path()).contains("this is a folder"));
        assert!(say(&dir.path().join("no/x")).contains("no such file or folder"));
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(say(&dir.path().join("file/x")).contains("is a file, not a folder"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_without_permission_is_called_so() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mut folder = dir.path().join("locked");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
        if fs::write(folder.join("probe"), "").is_ok() {
            // The superuser writes everywhere except where the kernel itself refuses.
            folder = PathBuf::from("/sys/kernel");
        }
        let text = write_bytes_atomic(&folder.join("x"), b"").unwrap_err().to_string();
        assert!(text.contains("permission denied") || text.contains("read-only"), "{text}");
    }

    #[test]
    fn links_are_replaced_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("last");
        assert_eq!(read_link(&link), None);
        for target in ["a", "b"] {
            fs::create_dir(dir.path().join(target)).unwrap();
            replace_link(&link, Path::new(target)).unwrap();
            assert_eq!(read_link(&link), Some(dir.path().join(target)));
        }
        fs::remove_file(&link).unwrap();
        fs::write(&link, "a\n").unwrap();
        assert_eq!(read_link(&link), Some(dir.path().join("a")), "the form without links");
    }

    #[test]
    fn leftovers_are_removed_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".a.txt.partial-1-0", "a.txt", ".hidden"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_leftovers(dir.path());
        assert_eq!(names(dir.path()), [".hidden", "a.txt"]);
    }
}
