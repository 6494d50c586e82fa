//! The file beside packed shards that says what is in them: opening them takes no look through the shards, and every
//! image can be traced to its original name.
//!
//! JSON lines: a [`Header`], then a [`ShardLine`] for each shard in the order of their names. [`crate::pack`] writes it,
//! [`ArchiveSource`](crate::source::ArchiveSource) reads it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fingerprint::fnv1a;
use crate::pack::Unreadable;

/// Name of the file.
pub(crate) const INDEX_NAME: &str = "shards.index";

/// Version of the file's form.
pub(crate) const FORMAT: &str = "beit2-shards-1";

/// First line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) format: String,
    /// Settings of the pack.
    pub(crate) settings: serde_json::Value,
    /// Fingerprint of the images that were packed.
    pub(crate) source: String,
    /// Their number, unreadable ones too.
    pub(crate) images: u64,
    /// Names of the classes.
    pub(crate) classes: Vec<String>,
}

impl Header {
    /// Whether the order was drawn at random: then the settings have its seed.
    pub(crate) fn is_shuffled(&self) -> bool {
        self.settings.get("order").is_some_and(serde_json::Value::is_u64)
    }
}

/// What is in one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShardLine {
    /// File name.
    pub(crate) shard: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// Images of the source that were dealt with when the shard was complete, in all shards so far.
    pub(crate) taken: u64,
    /// Images in this shard that are copies of the original bytes.
    pub(crate) copied: u64,
    /// [`mark`] of a tar file; empty for others.
    pub(crate) mark: String,
    /// Its images.
    pub(crate) members: Vec<Member>,
    /// Images that were left out on the way.
    pub(crate) unreadable: Vec<Unreadable>,
}

/// Path in the shard, original name, first byte in the shard, length, label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Member(
    pub(crate) String,
    pub(crate) String,
    pub(crate) u64,
    pub(crate) u64,
    pub(crate) Label,
);

/// The classes of an image, by number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Label {
    None,
    One(u32),
    Many(Vec<u32>),
}

/// What tells a shard from another one of the same length: a hash of the headers of its first and its last image.
pub(crate) fn mark(first: &[u8], last: &[u8]) -> String {
    format!("{:016x}", fnv1a(&[first, last].concat()))
}

/// A whole index; a line that is cut off ends it.
///
/// # Errors
/// The system's error, or why the file is no such index.
pub(crate) fn read(path: &Path) -> Result<(Header, Vec<ShardLine>), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut lines = BufReader::new(file).lines();
    let first = lines.next().transpose().map_err(|error| error.to_string())?.unwrap_or_default();
    let header: Header =
        serde_json::from_str(&first).map_err(|error| format!("its first line is unsound ({error})"))?;
    if header.format != FORMAT {
        return Err(format!("it has the form '{}', and this version reads {FORMAT}", header.format));
    }
    let mut shards = Vec::new();
    for line in lines {
        let line = line.map_err(|error| error.to_string())?;
        match serde_json::from_str(&line) {
            Ok(shard) => shards.push(shard),
            Err(_) => break,
        }
    }
    Ok((header, shards))
}
