//! What a row is, and the forms of the file.

use beit2_weights::DType;
use clap::ValueEnum;

/// Forms of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// NumPy's array file.
    Npy,
    /// Columns `path`, `label` and the values.
    Parquet,
    /// One tensor.
    Safetensors,
    /// One JSON object a line.
    #[value(name = "jsonl")]
    JsonLines,
    /// Arrow's stream, on standard output.
    #[value(skip)]
    ArrowStream,
}

impl Format {
    /// The ending of its files.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Npy => "npy",
            Self::Parquet => "parquet",
            Self::Safetensors => "safetensors",
            Self::JsonLines => "jsonl",
            Self::ArrowStream => "arrows",
        }
    }

    /// Whether paths go into a file of their own, because this one holds numbers only.
    pub fn needs_list(self) -> bool {
        matches!(self, Self::Npy | Self::Safetensors)
    }
}

/// Type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Code ids up to 65535.
    U16,
    /// Code ids beyond.
    U32,
}

impl Element {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::U16 => 2,
        }
    }

    /// Its name for a reader.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U16 => "u16",
            Self::U32 => "u32",
        }
    }

    /// The same in safetensors files; `None` for ids, which are not written as weights are.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::U16 | Self::U32 => None,
        }
    }

    /// Its name in npy files, little-endian.
    pub fn numpy(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F16 => "<f2",
            Self::U16 => "<u2",
            Self::U32 => "<u4",
        }
    }
}

/// What a row is.
#[derive(Debug, Clone)]
pub struct RowLayout {
    /// What its values are: `features` or `ids`.
    pub name: &'static str,
    /// Type of a value.
    pub element: Element,
    /// Shape of one row.
    pub shape: Vec<usize>,
}

impl RowLayout {
    /// Values of a row.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.values() * self.element.size()
    }
}
