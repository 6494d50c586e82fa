//! One pass over the headers of a shard.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};

use super::{Bytes, Shard};
use crate::error::SourceError;
use crate::source::account::Account;
use crate::source::name::text_of;

/// A header and the block that a tar file is counted in.
const BLOCK: u64 = 512;

/// Zeros behind the last member that still are padding; programs pad to 10 KiB, on tapes to up to 1 MiB.
const PADDING: u64 = 1 << 20;

/// A member of a shard.
pub(super) struct Item {
    /// Path inside the shard, as text.
    pub(super) path: String,
    /// Its bytes, when they are no text.
    pub(super) bytes: Option<Box<[u8]>>,
    pub(super) what: What,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    File {
        offset: u64,
        size: u64,
    },
    Folder,
    /// Another name of a member, counted from the shard's top.
    HardLink(String),
    /// Another name of a member or folder, counted from the link's own folder.
    SymLink(String),
    /// A file with holes, which does not lie in the shard as it is.
    Sparse,
    /// A pipe, a device or the like.
    Special,
}

/// All members of a shard in their order. What is odd about the file is noted in `account`.
pub(super) fn items(shard: &Shard, account: &mut Account) -> Result<Vec<Item>, SourceError> {
    let length = shard.len()?;
    if length == 0 {
        return Err(shard.fail("the file is empty; a tar file with images was expected".into()));
    }
    if shard.unpacked {
        account.warnings.push(format!(
            "{} is compressed and was unpacked into a temporary file of {} MiB; unpack it once to save the time at each start",
            shard.name,
            length.div_ceil(1 << 20)
        ));
    }
    match &shard.bytes {
        Bytes::File(file) => Reader { shard, length, account, items: Vec::new() }.read::<&File>(file),
        Bytes::Static(bytes) => {
            Reader { shard, length, account, items: Vec::new() }.read(Cursor::new(*bytes))
        }
        Bytes::Zip(zip) => zip.items().map_err(|problem| shard.fail(problem)),
    }
}

/// A reader that counts positions from `start`, as the `tar` crate expects.
struct Behind<R> {
    reader: R,
    start: u64,
}

impl<R: Read> Read for Behind<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl<R: Seek> Seek for Behind<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => SeekFrom::Start(self.start.saturating_add(at)),
            other => other,
        };
        let at = self.reader.seek(to)?;
        at.checked_sub(self.start).ok_or_else(|| std::io::ErrorKind::InvalidInput.into())
    }
}

struct Reader<'a> {
    shard: &'a Shard,
    length: u64,
    account: &'a mut Account,
    items: Vec<Item>,
}

impl Reader<'_> {
    /// Reads the archive, and those that were written behind it (`cat a.tar b.tar`).
    fn read<R: Read + Seek>(mut self, mut reader: R) -> Result<Vec<Item>, SourceError> {
        let mut start = 0;
        loop {
            let seek = reader.seek(SeekFrom::Start(start));
            seek.map_err(|error| self.shard.io("read it", error))?;
            let mut archive = tar::Archive::new(Behind { reader, start });
            let end = self.archive(&mut archive, start)?;
            reader = archive.into_inner().reader;
            match self.next_archive(end)? {
                Some(next) => start = next,
                None => return Ok(self.items),
            }
        }
    }

    /// Reads one archive that starts at `start`; gives the end of its last member.
    fn archive<R: Read + Seek>(
        &mut self,
        archive: &mut tar::Archive<R>,
        start: u64,
    ) -> Result<u64, SourceError> {
        let shard = self.shard;
        let unsound = |error: std::io::Error| {
            shard.fail(format!("not a sound tar file ({error}); copy or make it again"))
        };
        let mut last = start;
        for entry in archive.entries_with_seek().map_err(unsound)? {
            let mut entry = entry.map_err(unsound)?;
            let raw = entry.path_bytes().into_owned();
            let bytes = normal(&raw);
            let path = text_of(&bytes);
            let (offset, size) = (start.saturating_add(entry.raw_file_position()), entry.size());
            let kind = entry.header().entry_type();
            // Old archives mark a folder by the slash at its end only.
            let what = if kind.is_dir() || raw.ends_with(b"/") {
                What::Folder
            } else if kind.is_gnu_sparse() || is_pax_sparse(&mut entry) {
                What::Sparse
            } else if kind.is_file() || kind.is_contiguous() {
                if offset.checked_add(size).is_none_or(|end| end > self.length) {
                    let length = self.length;
                    return Err(shard.fail(format!(
                        "truncated: member {path} needs {size} bytes at {offset}, but the file has only {length}; copy it again"
                    )));
                }
                What::File { offset, size }
            } else if kind.is_hard_link() || kind.is_symlink() {
                let target = entry.link_name_bytes().unwrap_or_default();
                match kind.is_hard_link() {
                    true => What::HardLink(text_of(&normal(&target))),
                    false => What::SymLink(text_of(&target)),
                }
            } else if kind.is_pax_global_extensions() {
                continue;
            } else {
                What::Special
            };
            last = offset.saturating_add(size);
            if bytes.is_empty() {
                continue; // the folder that was packed
            }
            let bytes = std::str::from_utf8(&bytes).is_err().then(|| bytes.into_boxed_slice());
            self.items.push(Item { path, bytes, what });
        }
        Ok(last.next_multiple_of(BLOCK))
    }

    /// Looks behind the end of an archive: where the next one starts, if there is one.
    fn next_archive(&mut self, end: u64) -> Result<Option<u64>, SourceError> {
        let name = &self.shard.name;
        if end >= self.length {
            self.account.warnings.push(format!(
                "{name}: the mark at the end of a tar file is missing; if it was cut off, copy it again"
            ));
            return Ok(None);
        }
        let (mut at, mut chunk) = (end, vec![0; 1 << 16]);
        let found = loop {
            let size = (self.length - at).min(chunk.len() as u64) as usize;
            if size == 0 {
                break None;
            }
            self.shard.read_at(&mut chunk[..size], at).map_err(|error| self.shard.io("read it", error))?;
            if let Some(first) = chunk[..size].iter().position(|&byte| byte != 0) {
                break Some(at + first as u64);
            }
            at += size as u64;
        };
        match found {
            Some(found) => {
                let next = end + (found - end) / BLOCK * BLOCK;
                if self.is_header(next) {
                    return Ok(Some(next));
                }
                self.account.warnings.push(format!(
                    "{name}: the last {} bytes, behind the end of the archive, are no members and are not read",
                    self.length - found
                ));
            }
            None if self.items.is_empty() => self.account.warnings.push(format!(
                "{name}: it holds nothing but zeros; it is an empty archive, or a download that was not finished"
            )),
            None if self.length - end > PADDING => self.account.warnings.push(format!(
                "{name}: its last {} bytes are zeros; if it is a download that was not finished, copy it again",
                self.length - end
            )),
            None => {}
        }
        Ok(None)
    }

    /// Whether a member's header lies at `at`: its checksum is right.
    fn is_header(&self, at: u64) -> bool {
        let mut header = tar::Header::new_old();
        if self.length - at < BLOCK || self.shard.read_at(header.as_mut_bytes(), at).is_err() {
            return false;
        }
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
        let bytes = header.as_bytes();
        // The field of the checksum counts as eight blanks.
        header.cksum().is_ok_and(|found| found == sum(&bytes[..148]) + sum(&bytes[156..]) + 8 * 32)
    }
}

/// Whether POSIX headers say that the member has holes, and so is stored in parts behind a list of them.
fn is_pax_sparse<R: Read>(entry: &mut tar::Entry<'_, R>) -> bool {
    let Ok(Some(extensions)) = entry.pax_extensions() else {
        return false;
    };
    extensions.flatten().any(|extension| extension.key_bytes().starts_with(b"GNU.sparse."))
}

/// `./a//b.jpg` and `a/x/../b.jpg` are `a/b.jpg`; what would lead out of the archive is left away. (Members are never written
/// to disk.)
pub(super) fn normal(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}
