//! Zip files: a directory at the end, members stored or deflated.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::scan::{Item, What, normal};
use crate::pool::guarded;
use crate::source::name::text_of;
use crate::source::positioned::Cursor;

/// Longest target of a symbolic link.
const MAX_TARGET: u64 = 4096;

/// An open zip file that many threads read.
#[derive(Debug)]
pub(super) struct Zip {
    archive: ZipArchive<Cursor>,
    len: u64,
}

impl Zip {
    /// Reads the directory.
    pub(super) fn open(file: File) -> Result<Self, String> {
        let len = file.metadata().map_err(|error| format!("cannot look at it: {error}"))?.len();
        let cursor = Cursor::new(Arc::new(file), 0, len);
        let archive = guarded(|| ZipArchive::new(cursor).map_err(|error| error.to_string()));
        let archive = archive.unwrap_or_else(Err).map_err(unsound)?;
        // The crate keeps one member of each name.
        match archive.has_duplicate_names() {
            true => Err("a member is in it twice; make the archive again with one of them".into()),
            false => Ok(Self { archive, len }),
        }
    }

    /// Its size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// All members, in the order of the directory; the position of each is its number.
    pub(super) fn items(&self) -> Result<Vec<Item>, String> {
        let mut archive = self.archive.clone();
        (0..archive.len()).filter_map(|number| self.item(&mut archive, number).transpose()).collect()
    }

    fn item(&self, archive: &mut ZipArchive<Cursor>, number: usize) -> Result<Option<Item>, String> {
        let entry = archive.by_index_raw(number).map_err(|error| unsound(error.to_string()))?;
        let bytes = normal(entry.name_raw());
        let path = text_of(&bytes);
        if bytes.is_empty() {
            return Ok(None);
        }
        let what = if entry.is_dir() {
            What::Folder
        } else if entry.encrypted() {
            return Err(format!("member {path} is encrypted; unpack the archive with its password"));
        } else if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            let method = entry.compression();
            return Err(format!(
                "member {path} is compressed by {method}, which is not read; unpack the archive"
            ));
        } else if entry.is_symlink() {
            let size = entry.size().min(MAX_TARGET);
            drop(entry);
            let mut target = vec![0; size as usize];
            self.read(number as u64, &mut target).map_err(|error| unsound(error.to_string()))?;
            What::SymLink(text_of(&target))
        } else {
            What::File { offset: number as u64, size: entry.size() }
        };
        let bytes = std::str::from_utf8(&bytes).is_err().then(|| bytes.into_boxed_slice());
        Ok(Some(Item { path, bytes, what }))
    }

    /// Fills `buffer` from the beginning of a member. A whole member is checked against its checksum.
    pub(super) fn read(&self, number: u64, buffer: &mut [u8]) -> io::Result<()> {
        // A clone shares the directory and has its own position.
        let mut archive = self.archive.clone();
        let mut entry = archive.by_index(number as usize).map_err(io::Error::other)?;
        entry.read_exact(buffer)?;
        // The checksum is looked at when the end is read.
        if buffer.len() as u64 == entry.size() {
            io::copy(&mut entry, &mut io::sink())?;
        }
        Ok(())
    }
}

fn unsound(reason: String) -> String {
    format!("not a sound zip file ({reason}); copy or make it again")
}
