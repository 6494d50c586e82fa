//! Why a source cannot be opened or read.

use std::path::PathBuf;

/// Why a source of images could not be opened, or one of its samples could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such file or folder.
    #[error(
        "{path}: no such file or folder; give a folder of images, a .tar shard, or a pattern like 'shard-{{000..003}}.tar'"
    )]
    Missing {
        /// The requested path.
        path: String,
    },
    /// A file where a folder is needed.
    #[error("{}: not a folder; a folder of images was expected", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A file that is neither a folder nor a tar shard.
    #[error("{path}: {problem}; give a folder of images or an uncompressed .tar shard")]
    NotASource {
        /// The path.
        path: String,
        /// What it is.
        problem: String,
    },
    /// A folder or a set of shards that holds no image.
    #[error("{place}: no images in it{instead}")]
    NoImages {
        /// Folder or shards.
        place: String,
        /// What was found instead, and what would be right.
        instead: String,
    },
    /// Folders that would be trained on for something that they are not.
    #[error("{place}: {problem}")]
    Arrangement {
        /// The folder or shard.
        place: String,
        /// What they are and what would be right.
        problem: String,
    },
    /// Labels that are missing or wrong where they matter.
    #[error("{}{}", problems.first().map_or("", String::as_str), match problems.len() {
        0 | 1 => String::new(),
        2 => "; and there is 1 more problem with labels (`beit2 data check` names all)".to_owned(),
        more => format!("; and there are {} more problems with labels (`beit2 data check` names all)", more - 1),
    })]
    Labels {
        /// One sentence each.
        problems: Vec<String>,
    },
    /// A pattern that matches nothing or cannot be expanded.
    #[error("pattern '{pattern}': {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A shard that is not a sound tar file.
    #[error("{shard}: {problem}")]
    Shard {
        /// Path or name of the shard.
        shard: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A label that is not a number in range.
    #[error("{shard}, member {member}: {problem}")]
    Label {
        /// Path or name of the shard.
        shard: String,
        /// Member of the shard.
        member: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An IDX file that is not sound.
    #[error("{path}: {problem}")]
    Idx {
        /// The file.
        path: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A parquet, CSV or JSON-lines file that cannot be used.
    #[error("{path}: {problem}")]
    Table {
        /// The file, with the row if it is about one.
        path: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An index file with a bad line.
    #[error(
        "{path}, line {line}: {problem}; a line like {{\"class\": \"cat\", \"files\": [\"1.jpg\"]}} was expected"
    )]
    IndexFile {
        /// The file.
        path: String,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A sample larger than [`MAX_SAMPLE_BYTES`](crate::source::MAX_SAMPLE_BYTES).
    #[error("{name}: {bytes} bytes is more than the limit of {limit} for one image")]
    TooLarge {
        /// Sample name.
        name: String,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A sample number past the end (a caller's mistake).
    #[error("there is no sample {index}: the source has {len}")]
    Index {
        /// Sample number.
        index: usize,
        /// Number of samples.
        len: usize,
    },
    /// The operating system refused.
    #[error("{path}: cannot {action}: {error}{}", match error.kind() {
        std::io::ErrorKind::PermissionDenied => "; give yourself the right to read it, or move it elsewhere",
        _ => "",
    })]
    Io {
        /// Path or member.
        path: String,
        /// What was attempted.
        action: &'static str,
        /// What the system says.
        error: std::io::Error,
    },
}
