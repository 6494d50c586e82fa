//! A file that is read at positions, never as a whole.
//!
//! Why not a memory map: a file that shrinks while it is mapped kills the process with a signal, and mapping needs `unsafe`.
//! Positioned reads give an error instead and are as fast from the page cache.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::WeightsError;

/// An open file with its length at the time of opening; shared by all tensors read from it.
#[derive(Debug)]
pub(crate) struct FileSource {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
    len: u64,
    path: PathBuf,
}

impl FileSource {
    /// Opens `path`; a folder or an empty file is an error.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, WeightsError> {
        let io = |reason| WeightsError::Io { path: path.to_path_buf(), action: "open", reason };
        // Why before opening: on some systems a folder cannot be opened, on others it cannot be read.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if metadata.is_dir() {
            return Err(WeightsError::Directory { path: path.to_path_buf() });
        }
        if !metadata.is_file() {
            // Why: a named pipe or a device has no length and could block for ever.
            return Err(WeightsError::NotWeights { path: path.to_path_buf(), what: "not a regular file" });
        }
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        if len == 0 {
            return Err(WeightsError::Empty { path: path.to_path_buf() });
        }
        #[cfg(not(unix))]
        let file = std::sync::Mutex::new(file);
        Ok(Arc::new(Self { file, len, path: path.to_path_buf() }))
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `count` bytes at `offset`. The range is checked against the length before memory is taken for it.
    pub(crate) fn read(&self, offset: u64, count: u64, what: &str) -> Result<Vec<u8>, WeightsError> {
        let needed = offset.saturating_add(count);
        let truncated = || WeightsError::Truncated {
            path: self.path.clone(),
            what: what.to_string(),
            needed,
            found: self.len,
        };
        if needed > self.len {
            return Err(truncated());
        }
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| truncated())?];
        self.fill(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` from `offset`.
    pub(crate) fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<(), WeightsError> {
        self.read_at(offset, bytes).map_err(|reason| WeightsError::Io {
            path: self.path.clone(),
            action: "read",
            reason,
        })
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset)
    }

    #[cfg(not(unix))]
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }
}
