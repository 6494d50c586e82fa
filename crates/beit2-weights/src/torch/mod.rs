//! The two containers of `torch.save`: where the pickle lies, and where the storages it refers to.

mod rebuild;
mod select;
mod storage;
mod values;

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::checkpoint::{Checkpoint, Format, ReadOptions};
use crate::error::{WeightsError, ZipProblem};
use crate::pickle::{self, Node, Pickle};
use crate::source::FileSource;
use crate::tensor::{DType, byte_len};
use crate::torch::rebuild::Spec;
use crate::torch::storage::Storage;
use crate::view::{TensorView, is_contiguous, last_element};
use crate::zip::{Directory, Range};

/// All tensors of a selection together may be this many times as long as the file, plus [`SPARE_BYTES`].
///
/// Why more than once: views and tied weights share storages. Why a limit: an expanded tensor (stride 0) makes any size out
/// of one element.
const MAX_EXPANSION: u64 = 8;
const SPARE_BYTES: u64 = 1 << 20;

/// Where the storages lie in the file, by key.
type Storages = HashMap<String, Range>;

/// Reads a zip file: `NAME/data.pkl`, `NAME/byteorder`, `NAME/data/KEY`.
pub(crate) fn read_zip(
    source: &Arc<FileSource>,
    options: &ReadOptions<'_>,
) -> Result<Checkpoint, WeightsError> {
    let fail = |problem| WeightsError::Zip { path: source.path().to_path_buf(), problem };
    let directory = Directory::read(source)?;
    let is_pickle = |name: &&String| {
        name.strip_suffix("data.pkl")
            .is_some_and(|folder| folder.is_empty() || folder.find('/') == Some(folder.len() - 1))
    };
    let name = directory.names.iter().find(is_pickle).ok_or_else(|| fail(ZipProblem::NoPickle))?;
    let folder = name.strip_suffix("data.pkl").unwrap_or_default();

    // Files from before torch 2.1 have no such entry; their writers were little-endian in all but a few cases.
    if let Some(range) = directory.stored(&format!("{folder}byteorder")).map_err(fail)? {
        match source.read(range.start, range.len.min(8), "its byte order")?.trim_ascii() {
            b"little" => {}
            b"big" => {
                return Err(WeightsError::BigEndian { path: source.path().to_path_buf() });
            }
            _ => return Err(fail(ZipProblem::ByteOrder)),
        }
    }
    let range = directory.stored(name).map_err(fail)?.ok_or_else(|| fail(ZipProblem::NoPickle))?;
    let pickle = pickle::run(source, range.start, range.start + range.len)?;

    let data = format!("{folder}data/");
    let mut storages = Storages::new();
    for name in &directory.names {
        if let Some(key) = name.strip_prefix(&data)
            && let Some(range) = directory.stored(name).map_err(fail)?
        {
            storages.insert(key.to_string(), range);
        }
    }
    checkpoint(source, Format::TorchZip, &pickle, &storages, options)
}

/// Reads the legacy stream: pickles of a magic number, a version, facts about the machine, the object, and the keys of the
/// storages; then each storage as its element count and its elements.
pub(crate) fn read_legacy(
    source: &Arc<FileSource>,
    options: &ReadOptions<'_>,
) -> Result<Checkpoint, WeightsError> {
    let path = || source.path().to_path_buf();
    let layout = |problem: &str| WeightsError::Layout { path: path(), problem: problem.to_string() };
    let next = |start| pickle::run(source, start, source.len());
    let magic = next(0)?;
    let version = next(magic.end)?;
    if version.count(version.top) != Some(1001) {
        return Err(layout(
            "is not of version 1001 of torch's old file format; save it again with a newer torch",
        ));
    }
    let machine = next(version.end)?;
    if machine
        .get(machine.top, "little_endian")
        .is_some_and(|value| matches!(machine.node(value), Node::Bool(false)))
    {
        return Err(WeightsError::BigEndian { path: path() });
    }
    let object = next(machine.end)?;
    let keys = next(object.end)?;

    let known: HashMap<&str, Storage<'_>> = object
        .nodes()
        .iter()
        .filter_map(|node| match node {
            Node::Persistent(id) => storage::parse(&object, *id),
            _ => None,
        })
        .map(|storage| (storage.key, storage))
        .collect();
    let mut storages = Storages::new();
    let mut at = keys.end;
    for &key in
        keys.items(keys.top).ok_or_else(|| layout("has no list of its storages; the file is damaged"))?
    {
        let key = keys
            .str(key)
            .ok_or_else(|| layout("has a storage whose key is not text; the file is damaged"))?;
        let storage = known
            .get(key)
            .ok_or_else(|| layout("has a storage that nothing refers to; the file is damaged"))?;
        let mut count = [0; 8];
        count.copy_from_slice(&source.read(at, 8, &format!("storage `{key}`"))?);
        let count = u64::from_le_bytes(count);
        if count != storage.count {
            let problem = format!(
                "storage `{key}` has {count} elements, expected {}; the file is damaged",
                storage.count
            );
            return Err(WeightsError::Layout { path: path(), problem });
        }
        let len = storage
            .byte_len()
            .ok_or_else(|| layout("has a storage whose size overflows; the file is damaged"))?;
        let start = at + 8;
        at = start.saturating_add(len);
        if at > source.len() {
            let what = format!("storage `{key}`");
            return Err(WeightsError::Truncated { path: path(), what, needed: at, found: source.len() });
        }
        storages.insert(key.to_string(), Range { start, len });
    }
    checkpoint(source, Format::TorchLegacy, &object, &storages, options)
}

/// Selects the tensors of a pickle and finds their bytes.
fn checkpoint(
    source: &Arc<FileSource>,
    format: Format,
    pickle: &Pickle,
    storages: &Storages,
    options: &ReadOptions<'_>,
) -> Result<Checkpoint, WeightsError> {
    let layout = |problem| WeightsError::Layout { path: source.path().to_path_buf(), problem };
    let (root, found) = select::select(pickle, options.root).map_err(layout)?;
    let entries = select::entries(pickle);
    let mut tensors = IndexMap::with_capacity(found.len());
    let mut total = 0u64;
    let budget = source.len().saturating_mul(MAX_EXPANSION).saturating_add(SPARE_BYTES);
    for (name, spec) in found {
        let fail = |problem| WeightsError::Tensor {
            path: source.path().to_path_buf(),
            tensor: name.clone(),
            problem,
        };
        let spec = spec.map_err(fail)?;
        let (dtype, offset, strides) = place(&spec, storages).map_err(fail)?;
        total = total.saturating_add(byte_len(dtype, &spec.shape).map_or(u64::MAX, |len| len as u64));
        if total > budget {
            return Err(fail(format!(
                "takes the tensors beyond {budget} bytes, far more than the file has; it repeats its bytes"
            )));
        }
        let view = TensorView {
            source: source.clone(),
            name: name.clone(),
            dtype,
            shape: spec.shape,
            offset,
            strides,
        };
        if tensors.insert(name.clone(), view).is_some() {
            return Err(fail("is there twice".to_string()));
        }
    }
    let mut checkpoint = Checkpoint::new(source, format, root, tensors);
    checkpoint.entries = entries;
    (checkpoint.metadata, checkpoint.ignored) = values::collect(pickle);
    Ok(checkpoint.renamed(source.path(), options))
}

/// Type, position in the file, and strides if they matter; every byte of the tensor lies in its storage.
fn place(spec: &Spec<'_>, storages: &Storages) -> Result<(DType, u64, Option<Vec<usize>>), String> {
    let storage = &spec.storage;
    let dtype = spec.dtype()?;
    let claimed = storage.byte_len().ok_or("has a storage whose size overflows")?;
    let range = match storages.get(storage.key) {
        Some(range) => *range,
        // torch may leave out a storage without elements.
        None if claimed == 0 => Range { start: 0, len: 0 },
        None => return Err(format!("needs storage `{}`, which is missing", storage.key)),
    };
    if range.len < claimed {
        return Err(format!("needs storage `{}` of {claimed} bytes, it has only {}", storage.key, range.len));
    }
    let size = dtype.size() as u64;
    let beyond = || {
        let (shape, strides) = (&spec.shape, &spec.strides);
        format!(
            "has shape {shape:?} with strides {strides:?} at element {}, beyond its storage of {claimed} bytes",
            spec.offset
        )
    };
    let start = storage
        .view_start()
        .and_then(|view| spec.offset.checked_mul(size)?.checked_add(view))
        .ok_or_else(beyond)?;
    if spec.shape.contains(&0) {
        return Ok((dtype, range.start, None));
    }
    // One element past the last, in bytes from the start of the storage.
    let end = last_element(&spec.shape, &spec.strides)
        .and_then(|last| (last as u64).checked_add(1)?.checked_mul(size)?.checked_add(start))
        .ok_or_else(beyond)?;
    if end > claimed {
        return Err(beyond());
    }
    let strides = (!is_contiguous(&spec.shape, &spec.strides)).then(|| spec.strides.clone());
    Ok((dtype, range.start + start, strides))
}
