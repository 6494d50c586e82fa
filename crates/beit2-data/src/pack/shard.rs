//! A shard that is being written, whatever its form.

use std::io;
use std::path::PathBuf;

use super::tar::TarShard;
use super::to_parquet::ParquetShard;
use crate::shard_index::{Label, Member};

/// An image on its way into a shard.
pub(super) struct Entry<'a> {
    /// Name in the source.
    pub(super) name: &'a str,
    /// Name in the shard, without an ending.
    pub(super) key: &'a str,
    pub(super) ending: &'static str,
    pub(super) bytes: &'a [u8],
    pub(super) label: Option<u32>,
    /// All classes, where an image can have several.
    pub(super) labels: Option<Vec<u32>>,
    pub(super) copied: bool,
}

impl Entry<'_> {
    pub(super) fn label(&self) -> Label {
        match (self.label, &self.labels) {
            (Some(label), _) => Label::One(label),
            (None, Some(labels)) => Label::Many(labels.clone()),
            (None, None) => Label::None,
        }
    }
}

/// A shard and what is in it so far.
pub(super) struct Shard {
    /// Where it will be.
    pub(super) path: PathBuf,
    pub(super) file: ShardFile,
    pub(super) members: Vec<Member>,
    pub(super) copied: u64,
}

pub(super) enum ShardFile {
    Tar(Box<TarShard>),
    Parquet(Box<ParquetShard>),
}

impl Shard {
    /// Whether it may take an image without becoming longer than `limit`. The first one always fits.
    pub(super) fn fits(&self, entry: &Entry<'_>, limit: u64) -> bool {
        let more = match &self.file {
            ShardFile::Tar(tar) => tar.len_with(entry),
            ShardFile::Parquet(parquet) => parquet.len_with(entry),
        };
        self.members.is_empty() || more <= limit
    }

    pub(super) fn add(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let path = format!("{}.{}", entry.key, entry.ending);
        let offset = match &mut self.file {
            ShardFile::Tar(tar) => tar.add(&path, entry)?,
            ShardFile::Parquet(parquet) => parquet.add(entry)?,
        };
        self.copied += u64::from(entry.copied);
        let size = entry.bytes.len() as u64;
        self.members.push(Member(path, entry.name.to_owned(), offset, size, entry.label()));
        Ok(())
    }
}
