//! A tar shard in WebDataset's layout.
//!
//! `__classes__` comes first, with the names of the classes, one a line: readers of WebDataset skip a name without an
//! ending. Then `key.jpg` and `key.cls` for each image.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use tar::{EntryType, Header};

use super::shard::Entry;
use crate::shard_index::{Label, mark};
use crate::source::CLASSES_MEMBER;

/// A header, and what members are padded to.
const BLOCK: u64 = 512;

/// Zeros at the end of an archive.
const END: u64 = 2 * BLOCK;

/// A tar file that is being written.
pub(super) struct TarShard {
    writer: BufWriter<File>,
    at: u64,
    /// Headers of the first and of the last image.
    first: Option<[u8; BLOCK as usize]>,
    last: [u8; BLOCK as usize],
}

impl TarShard {
    pub(super) fn begin(file: File, classes: &[String]) -> io::Result<Self> {
        let writer = BufWriter::with_capacity(1 << 20, file);
        let mut shard = Self { writer, at: 0, first: None, last: [0; BLOCK as usize] };
        if !classes.is_empty() {
            let lines: String = classes.iter().map(|class| format!("{class}\n")).collect();
            shard.member(CLASSES_MEMBER, lines.as_bytes())?;
        }
        Ok(shard)
    }

    /// Bytes of the file with one more image.
    pub(super) fn len_with(&self, entry: &Entry<'_>) -> u64 {
        let label = if entry.label() == Label::None { 0 } else { 2 * BLOCK };
        self.at + BLOCK + (entry.bytes.len() as u64).next_multiple_of(BLOCK) + label + END
    }

    /// Adds an image and its label; gives the image's first byte.
    pub(super) fn add(&mut self, path: &str, entry: &Entry<'_>) -> io::Result<u64> {
        let offset = self.at + BLOCK;
        let header = self.member(path, entry.bytes)?;
        self.first.get_or_insert(header);
        self.last = header;
        match entry.label() {
            Label::None => {}
            Label::One(label) => {
                self.member(&format!("{}.cls", entry.key), label.to_string().as_bytes())?;
            }
            Label::Many(labels) => {
                let text = serde_json::json!({ "label": labels }).to_string();
                self.member(&format!("{}.json", entry.key), text.as_bytes())?;
            }
        }
        Ok(offset)
    }

    /// Adds a member; gives its header. Without times and owners, the same images give the same bytes.
    fn member(&mut self, path: &str, bytes: &[u8]) -> io::Result<[u8; BLOCK as usize]> {
        let mut header = Header::new_ustar();
        header.set_path(path)?;
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        let header = *header.as_bytes();
        self.writer.write_all(&header)?;
        self.writer.write_all(bytes)?;
        let length = bytes.len() as u64;
        let padded = length.next_multiple_of(BLOCK);
        self.writer.write_all(&[0; BLOCK as usize][..(padded - length) as usize])?;
        self.at += BLOCK + padded;
        Ok(header)
    }

    /// Ends the archive; gives the file, its length and its mark.
    pub(super) fn end(mut self) -> io::Result<(File, u64, String)> {
        self.writer.write_all(&[0; END as usize])?;
        let file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mark = mark(&self.first.unwrap_or([0; BLOCK as usize]), &self.last);
        Ok((file, self.at + END, mark))
    }
}
