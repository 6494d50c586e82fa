//! The safetensors format: 8 bytes of header length, a JSON header, the data.
//!
//! Why not the `safetensors` crate: it checks a header only together with the whole file in memory (or mapped), and it
//! keeps the last of two tensors with one name. It is the oracle of our tests instead.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::checkpoint::{Checkpoint, Format, ReadOptions, Root};
use crate::error::{HeaderProblem, WeightsError};
use crate::source::FileSource;
use crate::tensor::{DType, byte_len};
use crate::view::TensorView;

/// The longest header that is read: about 100 bytes per tensor, so 300 000 tensors.
const MAX_HEADER: u64 = 32 << 20;

/// Reads the header of a safetensors file and checks it completely.
pub(crate) fn read(source: &Arc<FileSource>, options: &ReadOptions<'_>) -> Result<Checkpoint, WeightsError> {
    let fail = |problem| WeightsError::Header { path: source.path().to_path_buf(), problem };
    if let Some(root) = options.root {
        return Err(WeightsError::Layout {
            path: source.path().to_path_buf(),
            problem: format!(
                "a safetensors file has no entry `{root}`, it holds tensors only; leave the entry out"
            ),
        });
    }
    let mut length = [0; 8];
    source.fill(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(fail(HeaderProblem::TooLarge { claimed: length, limit: MAX_HEADER }));
    }
    let header = source.read(8, length, "its header")?;
    let header: Header =
        serde_json::from_slice(&header).map_err(|error| fail(HeaderProblem::Json(error.to_string())))?;

    let data_start = 8 + length;
    let mut entries = Vec::with_capacity(header.tensors.len());
    for (name, info) in header.tensors {
        let dtype = DType::from_name(&info.dtype)
            .ok_or_else(|| fail(HeaderProblem::UnknownType { tensor: name.clone(), dtype: info.dtype }))?;
        let (start, end) = info.data_offsets;
        let bytes = end.saturating_sub(start);
        if start > end || byte_len(dtype, &info.shape).map(|len| len as u64) != Some(bytes) {
            return Err(fail(HeaderProblem::SizeMismatch { tensor: name, dtype, shape: info.shape, bytes }));
        }
        entries.push((start, end, name, dtype, info.shape));
    }

    entries.sort_by_key(|entry| (entry.0, entry.1));
    let mut expected = 0;
    for (start, end, name, ..) in &entries {
        if *start != expected {
            return Err(fail(HeaderProblem::Gap { tensor: name.clone(), start: *start, expected }));
        }
        expected = *end;
    }
    let data_end = data_start.saturating_add(expected);
    if data_end > source.len() {
        return Err(WeightsError::Truncated {
            path: source.path().to_path_buf(),
            what: "its last tensor".to_string(),
            needed: data_end,
            found: source.len(),
        });
    }
    if data_end < source.len() {
        return Err(fail(HeaderProblem::Trailing(source.len() - data_end)));
    }

    let tensors = entries
        .into_iter()
        .map(|(start, _, name, dtype, shape)| {
            let offset = data_start + start;
            let view = TensorView {
                source: source.clone(),
                name: name.clone(),
                dtype,
                shape,
                offset,
                strides: None,
            };
            (name, view)
        })
        .collect();
    let mut checkpoint = Checkpoint::new(source, Format::Safetensors, Root::Safetensors, tensors);
    checkpoint.metadata = header.metadata;
    Ok(checkpoint.renamed(source.path(), options))
}

/// One tensor's entry in the header.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

struct Header {
    tensors: IndexMap<String, Info>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let duplicate =
                    |name: &str| serde::de::Error::custom(format!("tensor `{name}` is there twice"));
                let mut tensors = IndexMap::new();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if metadata.replace(map.next_value()?).is_some() {
                            return Err(duplicate(&name));
                        }
                    } else if tensors.contains_key(&name) {
                        return Err(duplicate(&name));
                    } else {
                        tensors.insert(name, map.next_value()?);
                    }
                }
                Ok(Header { tensors, metadata: metadata.unwrap_or_default() })
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}
