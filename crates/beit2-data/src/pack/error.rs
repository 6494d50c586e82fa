//! Why images could not be packed.

use std::io;
use std::path::PathBuf;

/// One sentence each: what is wrong, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A setting outside its range.
    #[error("{name}: {value}; it must be {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Value found.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The output folder has something in it.
    #[error("{} is not empty; shards go into a new folder, so give another one or remove it", path.display())]
    NotEmpty {
        /// The output folder.
        path: PathBuf,
    },
    /// The output is no folder's name.
    #[error("{}: {problem}; give the path of a new folder", path.display())]
    Out {
        /// What was given.
        path: PathBuf,
        /// What it is.
        problem: &'static str,
    },
    /// `OUT.partial` holds shards of something else.
    #[error(
        "{} holds shards that were begun with another {key}; continue them with the command that began them, or begin again with --force",
        path.display()
    )]
    Other {
        /// The folder.
        path: PathBuf,
        /// What differs.
        key: String,
    },
    /// Another process writes there.
    #[error("{} is in use; another beit2 is packing there", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Images that an epoch has more or less often than once.
    #[error(
        "a source with a weight cannot be packed, because a pack has each image once; leave the weight to the recipe that reads the shards"
    )]
    Weights,
    /// There is nothing to pack.
    #[error("none of the {images} images can be read; nothing was written")]
    NoImages {
        /// Images of the source.
        images: u64,
    },
    /// More unreadable images than allowed.
    #[error(
        "{bad} of {images} images cannot be read, more than the {limit} that may be left out ({percent} %): {}{}; repair or remove them, or allow more with a larger max_bad_fraction (--max-bad-fraction)",
        first.join("; "),
        match (*bad as usize).saturating_sub(first.len()) { 0 => String::new(), more => format!("; and {more} more") }
    )]
    TooManyBad {
        /// Unreadable images so far.
        bad: u64,
        /// How many were allowed.
        limit: u64,
        /// Images of the source.
        images: u64,
        /// The limit as a percentage.
        percent: String,
        /// The first few, as `name: reason`.
        first: Vec<String>,
    },
    /// A file that the system does not let us write.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// The path that the user knows.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// A parquet file could not be written for another reason than the disk.
    #[error("{}: {problem}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What its library says.
        problem: String,
    },
    /// Threads could not be started.
    #[error("cannot start a thread: {0}")]
    Spawn(String),
}
