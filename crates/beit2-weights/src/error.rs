//! What can go wrong with a weights file, one sentence each: what is wrong, in which file (and tensor), what would be right.

use std::io;
use std::path::PathBuf;

use beit2_run::atomic::{FileError, advice};

use crate::tensor::DType;

/// An error of this crate. Every variant names its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused.
    #[error("cannot {action} {}: {}", path.display(), match reason.kind() {
        io::ErrorKind::NotFound => reason.to_string(),
        _ => advice(action, reason),
    })]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted, as a verb: `open`, `read`, `write`.
        action: &'static str,
        /// What the operating system said.
        reason: io::Error,
    },
    /// A folder was given (DeepSpeed writes its checkpoints as folders).
    #[error("{} is a folder; name the .pth or .safetensors file inside it", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
    },
    /// No bytes at all: usually an interrupted download.
    #[error("{} is empty; download or copy it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A web page was saved under the name of a checkpoint.
    #[error("{} is an HTML page, not weights: the download link answered with a web page; download it again from a working link", path.display())]
    Html {
        /// The file.
        path: PathBuf,
    },
    /// A repository was cloned without git-lfs.
    #[error("{} is a git-lfs pointer, not the weights themselves; run `git lfs pull` where it came from, or download the file", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// Some other kind of file.
    #[error("{} is {what}; expected a safetensors file or a checkpoint written by torch.save", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: &'static str,
    },
    /// The file ends before something it promises.
    #[error("{} is cut short: {what} ends at byte {needed}, the file at byte {found}; download or copy it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is incomplete.
        what: String,
        /// Where it should end.
        needed: u64,
        /// Where the file ends.
        found: u64,
    },
    /// The zip container of a `.pth` is not as torch writes it.
    #[error("{} is not a sound torch zip file: {problem}", path.display())]
    Zip {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: ZipProblem,
    },
    /// The pickle inside a `.pth` cannot be read.
    #[error("{} holds a pickle that cannot be read, at byte {offset}: {problem}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Where, counted from the start of the file.
        offset: u64,
        /// What is wrong.
        problem: PickleProblem,
    },
    /// The header of a safetensors file is not valid.
    #[error("{} is not a sound safetensors file: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: HeaderProblem,
    },
    /// The file was written on a big-endian machine.
    #[error("{} was written on a big-endian machine, which is not supported; save it again on a little-endian one", path.display())]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// The file can be read but does not hold weights in any known arrangement.
    #[error("{}: {problem}", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A place where there are no weights that can be read.
    #[error("{} {problem}", path.display())]
    Place {
        /// The folder or link.
        path: PathBuf,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// One tensor is wrong.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// A requested tensor that is not there.
    #[error("{} has no tensor `{tensor}` (it has {count} others)", path.display())]
    NoSuchTensor {
        /// The file.
        path: PathBuf,
        /// The requested name.
        tensor: String,
        /// How many tensors there are.
        count: usize,
    },
}

impl From<FileError> for WeightsError {
    fn from(error: FileError) -> Self {
        Self::Io { path: error.path, action: error.action, reason: error.source }
    }
}

/// What is wrong with a zip container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZipProblem {
    /// The end record is missing: the classic sign of a partial download.
    #[error("its end record is missing, so the file is probably cut short; download or copy it again")]
    NoEndRecord,
    /// A record points outside the file, or does not start with its signature.
    #[error("{what} points to byte {offset}, where there is none; the file is damaged")]
    BadOffset {
        /// Which record.
        what: String,
        /// Where it points.
        offset: u64,
    },
    /// More entries or a longer directory than any checkpoint has.
    #[error("its directory claims {count} {unit}, the limit is {limit}")]
    TooLarge {
        /// What it claims.
        count: u64,
        /// Of what.
        unit: &'static str,
        /// What is accepted.
        limit: u64,
    },
    /// The bytes of an entry reach beyond the data part of the file.
    #[error("entry `{entry}` claims {size} bytes, more than the file holds at that place")]
    EntryTooLarge {
        /// The entry.
        entry: String,
        /// Its claim.
        size: u64,
    },
    /// An entry that is needed is compressed; torch never does that, and inflating is what zip bombs wait for.
    #[error(
        "entry `{entry}` is compressed or encrypted, which torch never does with weights; save the checkpoint again with torch.save"
    )]
    NotStored {
        /// The entry.
        entry: String,
    },
    /// Two entries have one name.
    #[error("entry `{entry}` is there twice")]
    Duplicate {
        /// The entry.
        entry: String,
    },
    /// Two entries share bytes.
    #[error("entries `{first}` and `{second}` overlap")]
    Overlap {
        /// The entry that starts first.
        first: String,
        /// The entry that starts inside it.
        second: String,
    },
    /// There is no `data.pkl`.
    #[error("it has no `data.pkl`, so it was not written by torch.save")]
    NoPickle,
    /// `byteorder` says neither `little` nor `big`.
    #[error("its `byteorder` entry is neither `little` nor `big`")]
    ByteOrder,
}

/// What is wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleProblem {
    /// It ends in the middle of an instruction, or before its STOP.
    #[error("it ends before it is complete ({wanted} more bytes wanted, {left} left)")]
    Truncated {
        /// How many bytes the instruction wants.
        wanted: u64,
        /// How many there are.
        left: u64,
    },
    /// An instruction outside the allow-list.
    #[error("instruction 0x{0:02x} is not one that torch.save writes")]
    UnknownOpcode(u8),
    /// A pickle protocol from the future.
    #[error("pickle protocol {0} is not known (2 to 5 are)")]
    Protocol(u8),
    /// An instruction takes more values than there are.
    #[error("an instruction takes a value from an empty stack")]
    StackUnderflow,
    /// An instruction closes a group that was not opened.
    #[error("an instruction closes a group that was never opened")]
    NoMark,
    /// A remembered value that was never stored.
    #[error("it recalls value {0}, which it never stored")]
    MemoMissing(u32),
    /// An instruction got a value of the wrong kind.
    #[error("{0} was given a value of the wrong kind")]
    WrongKind(&'static str),
    /// A text is not UTF-8, or a name has no end.
    #[error("a text in it is not valid")]
    BadText,
    /// A limit on sizes or counts.
    #[error("it has more than {limit} {what}, far more than a checkpoint needs")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are accepted.
        limit: u64,
    },
}

/// What is wrong with a safetensors header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// The header length is beyond the limit.
    #[error("its header claims {claimed} bytes, the limit is {limit}")]
    TooLarge {
        /// The claim.
        claimed: u64,
        /// What is accepted.
        limit: u64,
    },
    /// The header is not the JSON it should be.
    #[error("its header is not valid ({0})")]
    Json(String),
    /// A type this software does not use.
    #[error("tensor `{tensor}` has type {dtype}; known are {}", DType::NAMES)]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Shape and byte range disagree.
    #[error("tensor `{tensor}` of type {dtype} and shape {shape:?} does not fit its {bytes} bytes")]
    SizeMismatch {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes its offsets give it.
        bytes: u64,
    },
    /// The byte ranges leave a hole, overlap, or run backwards.
    #[error(
        "tensor `{tensor}` starts at data byte {start}, expected {expected}; tensors must follow each other without holes or overlaps"
    )]
    Gap {
        /// The tensor.
        tensor: String,
        /// Where it starts.
        start: u64,
        /// Where the one before it ended.
        expected: u64,
    },
    /// Bytes follow the last tensor.
    #[error("{0} bytes follow the last tensor")]
    Trailing(u64),
}
