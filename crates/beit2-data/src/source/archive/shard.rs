//! One shard: a file, or bytes that are part of the program.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::zip::Zip;
use crate::error::SourceError;
use crate::source::kind::{is_tar, start_of};
use crate::source::name::path_text;
use crate::source::positioned::read_exact_at;

/// Largest `.cls` or `classes.txt` member: room for a million class names.
const MAX_TEXT_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Shard {
    /// For messages.
    pub(super) name: String,
    /// Where the file is; `None` for bytes.
    pub(super) path: Option<PathBuf>,
    pub(super) bytes: Bytes,
    /// Whether `bytes` are a temporary file that a compressed shard was unpacked into.
    pub(super) unpacked: bool,
}

#[derive(Debug)]
pub(super) enum Bytes {
    File(File),
    Static(&'static [u8]),
    /// A zip file, whose "positions" are the numbers of its members.
    Zip(Zip),
}

impl Shard {
    /// Opens a tar file, a zip file, or a gzip file with a tar file in it, which is unpacked into a temporary file.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let name = path_text(path);
        let mut file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SourceError::Missing { path: name.clone() },
            _ => SourceError::Io { path: name.clone(), action: "open the shard", error },
        })?;
        let shard =
            |bytes, unpacked| Self { name: name.clone(), path: Some(path.to_path_buf()), bytes, unpacked };
        match start_of(path).unwrap_or_default().as_slice() {
            [b'P', b'K', 3, 4, ..] => {
                let zip =
                    Zip::open(file).map_err(|problem| SourceError::Shard { shard: name.clone(), problem })?;
                Ok(shard(Bytes::Zip(zip), false))
            }
            [0x1F, 0x8B, ..] => {
                let mut unpack = || {
                    let mut whole = tempfile::tempfile()?;
                    io::copy(&mut MultiGzDecoder::new(&mut file), &mut whole)?;
                    whole.rewind()?;
                    Ok(whole)
                };
                let io = |error| SourceError::Io {
                    path: name.clone(),
                    action: "unpack it into a temporary file",
                    error,
                };
                Ok(shard(Bytes::File(unpack().map_err(io)?), true))
            }
            _ => Ok(shard(Bytes::File(file), false)),
        }
    }

    /// Its size in bytes.
    pub(super) fn len(&self) -> Result<u64, SourceError> {
        match &self.bytes {
            Bytes::File(file) => {
                file.metadata().map(|meta| meta.len()).map_err(|error| self.io("look at it", error))
            }
            Bytes::Static(bytes) => Ok(bytes.len() as u64),
            Bytes::Zip(zip) => Ok(zip.len()),
        }
    }

    /// Fills `buffer` from byte `offset` on; of a zip file, from the beginning of member `offset`.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.bytes {
            Bytes::File(file) => read_exact_at(file, buffer, offset),
            Bytes::Zip(zip) => zip.read(offset, buffer),
            Bytes::Static(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
                buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// A small member as text.
    pub(super) fn text(&self, offset: u64, size: u64) -> Result<String, String> {
        if size > MAX_TEXT_BYTES {
            return Err(format!("{size} bytes of text is more than the limit of {MAX_TEXT_BYTES}"));
        }
        let mut bytes = vec![0; size as usize];
        self.read_at(&mut bytes, offset).map_err(|error| format!("it cannot be read ({error})"))?;
        String::from_utf8(bytes).map_err(|error| format!("it cannot be read as text ({error})"))
    }

    pub(super) fn fail(&self, problem: String) -> SourceError {
        SourceError::Shard { shard: self.name.clone(), problem }
    }

    pub(super) fn io(&self, action: &'static str, error: io::Error) -> SourceError {
        SourceError::Io { path: self.name.clone(), action, error }
    }
}

/// Whether a gzip file holds a tar file.
pub(super) fn is_packed_tar(path: &Path) -> bool {
    let start = || -> io::Result<Vec<u8>> {
        let mut start = Vec::new();
        io::copy(&mut io::Read::take(MultiGzDecoder::new(File::open(path)?), 512), &mut start)?;
        Ok(start)
    };
    start().is_ok_and(|start| is_tar(&start))
}
