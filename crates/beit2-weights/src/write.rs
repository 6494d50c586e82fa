//! Writing safetensors files: complete or not at all, and the same input always gives the same bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use beit2_run::atomic::AtomicFile;
use serde_json::{Map, Value, json};

use crate::error::WeightsError;
use crate::tensor::{DType, Tensor, byte_len};
use crate::view::TensorView;

/// Anything that can be written as a tensor: in memory ([`Tensor`]) or still in another file ([`TensorView`]).
pub trait TensorSource {
    /// The element type.
    fn dtype(&self) -> DType;
    /// The shape; empty for a scalar.
    fn shape(&self) -> &[usize];
    /// The elements, row-major, little-endian; called once, when their turn comes, so that one tensor at a time is in memory.
    ///
    /// # Errors
    /// The elements cannot be read.
    fn data(&self) -> Result<Cow<'_, [u8]>, WeightsError>;
}

impl TensorSource for Tensor {
    fn dtype(&self) -> DType {
        Tensor::dtype(self)
    }

    fn shape(&self) -> &[usize] {
        Tensor::shape(self)
    }

    fn data(&self) -> Result<Cow<'_, [u8]>, WeightsError> {
        Ok(Cow::Borrowed(self.bytes()))
    }
}

impl TensorSource for TensorView {
    fn dtype(&self) -> DType {
        TensorView::dtype(self)
    }

    fn shape(&self) -> &[usize] {
        TensorView::shape(self)
    }

    fn data(&self) -> Result<Cow<'_, [u8]>, WeightsError> {
        Ok(Cow::Owned(self.load()?.into_bytes()))
    }
}

/// Writes `tensors` to `path` in the official order (wide types first, then by name), with `metadata` as the header's
/// `__metadata__`.
///
/// The file appears under its name only when it is complete and on disk; a file of that name is replaced at that moment,
/// and on an error it stays as it was. A `path` that is being read may be given: the old contents stay readable.
///
/// # Errors
/// The folder cannot be written, the disk is full, a name appears twice, or a tensor cannot be read.
pub fn write_safetensors<'a, T: TensorSource + 'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a T)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let mut file = AtomicFile::create(path)?;
    write_safetensors_to(&mut file, path, tensors, metadata)?;
    Ok(file.commit()?)
}

/// As [`write_safetensors`], into any writer; `path` is only named in errors. Whether the bytes arrive completely is the
/// writer's business.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_to<'a, T: TensorSource + 'a>(
    writer: &mut dyn Write,
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a T)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let mut tensors: Vec<(&str, &T)> = tensors.into_iter().collect();
    let rank = |dtype| DType::STORE_ORDER.iter().position(|&known| known == dtype);
    tensors.sort_by(|(name_a, a), (name_b, b)| (rank(a.dtype()), name_a).cmp(&(rank(b.dtype()), name_b)));
    let entries = tensors.iter().map(|(name, tensor)| (*name, tensor.dtype(), tensor.shape()));
    let header = safetensors_header(path, entries, metadata)?;
    let io = |reason| WeightsError::Io { path: path.to_path_buf(), action: "write", reason };
    writer.write_all(&header).map_err(io)?;
    for (name, tensor) in &tensors {
        let data = tensor.data()?;
        // Why: a wrong length would shift every tensor behind it without anyone noticing.
        if Some(data.len()) != byte_len(tensor.dtype(), tensor.shape()) {
            return Err(refuse(path, name, "has a different length than its shape says"));
        }
        writer.write_all(&data).map_err(io)?;
    }
    Ok(())
}

/// What a safetensors file begins with: the length of its JSON header and the header, padded with spaces so that the data
/// starts at a multiple of 8 bytes. The data of the tensors, row-major and little-endian, follow in the order of `tensors`
/// (name, type, shape). `path` is only named in errors.
///
/// # Errors
/// A name appears twice, or the tensors are larger than any file.
pub fn safetensors_header<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, DType, &'a [usize])>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let metadata = metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        header.insert("__metadata__".to_string(), Value::Object(metadata));
    }
    let mut start = 0usize;
    for (name, dtype, shape) in tensors {
        let end = byte_len(dtype, shape).and_then(|bytes| start.checked_add(bytes));
        let end = end.ok_or_else(|| refuse(path, name, "is too large to be written"))?;
        let info = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, end] });
        if header.insert(name.to_string(), info).is_some() || name == "__metadata__" {
            return Err(refuse(path, name, "cannot be written: its name is used twice"));
        }
        start = end;
    }
    let mut header = Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    Ok([(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes()].concat())
}

fn refuse(path: &Path, tensor: &str, problem: &str) -> WeightsError {
    WeightsError::Tensor {
        path: path.to_path_buf(),
        tensor: tensor.to_string(),
        problem: problem.to_string(),
    }
}
