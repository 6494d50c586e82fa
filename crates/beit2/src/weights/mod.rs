//! Weight files in and out: tensors by name, their text metadata, and the official names of what is in them.
//!
//! Knows no model; each loads itself, in the `load.rs` beside it.

mod state;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, config_error};

pub use state::StateFile;
pub(crate) use state::to_tensors;

/// Tensors by name, on the host.
pub type Tensors = BTreeMap<String, TensorData>;

/// A weight file's tensors and its text metadata.
#[derive(Debug, Clone, Default)]
pub struct WeightFile {
    /// Tensors by name.
    pub tensors: Tensors,
    /// Text by name; ours hold the model's configuration.
    pub metadata: BTreeMap<String, String>,
}

/// Metadata that [`read`] adds when a `config.json` lies beside the file: ε of the layer norms. Hugging Face files need
/// it, as their default (1e-12) is not the reference's.
pub(crate) const HF_NORM_EPS: &str = "config.layer_norm_eps";

/// Metadata that [`read`] adds from the same file: the classes' names, as a JSON list in their order.
pub(crate) const HF_CLASS_NAMES: &str = "config.id2label";

/// The weight file that a user means by a run directory, a checkpoint folder or a file.
///
/// # Errors
/// A run without a complete checkpoint.
pub fn locate(path: impl AsRef<Path>) -> Result<PathBuf, Error> {
    let path = path.as_ref();
    if path.join("checkpoints").is_dir() {
        return match beit2_run::checkpoint::latest(path)?.checkpoint {
            Some(checkpoint) => Ok(checkpoint.file("model.safetensors")),
            None => config_error(format!(
                "{} is a run without a complete checkpoint yet; let it train further",
                path.display()
            )),
        };
    }
    let inside = path.join("model.safetensors");
    Ok(if inside.is_file() { inside } else { path.to_owned() })
}

/// Reads the weight file of a run directory, a checkpoint folder, or a file ([`locate`], then [`read`]).
///
/// # Errors
/// As [`locate`] and [`read`].
pub fn open(path: impl AsRef<Path>) -> Result<WeightFile, Error> {
    read(&locate(path)?)
}

/// The configuration that a checkpoint of this software carries in its metadata; `None` of other files. `origin` names the
/// file in messages.
///
/// # Errors
/// A configuration that is damaged or of another model.
pub fn written_config<T: DeserializeOwned>(
    metadata: &BTreeMap<String, String>,
    origin: &str,
) -> Result<Option<T>, Error> {
    match metadata.get("beit2.config").map(|text| serde_json::from_str(text)) {
        None => Ok(None),
        Some(Ok(config)) => Ok(Some(config)),
        Some(Err(error)) => {
            config_error(format!("the configuration inside {origin} cannot be read: {error}"))
        }
    }
}

/// The metadata of a checkpoint: the stage that trained it, and its configuration, which [`written_config`] reads.
///
/// # Errors
/// A configuration that JSON cannot hold.
pub(crate) fn checkpoint_metadata(
    stage: &str,
    config: &impl Serialize,
) -> Result<BTreeMap<String, String>, Error> {
    let unwritable = |error| Error::Config(format!("the model's configuration cannot be written: {error}"));
    let config = serde_json::to_string(config).map_err(unwritable)?;
    Ok([("format", "pt"), ("beit2.stage", stage), ("beit2.config", config.as_str())]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into())
}

/// Refuses a checkpoint that another stage of this software has written.
pub(crate) fn check_stage(
    metadata: &BTreeMap<String, String>,
    origin: &str,
    stage: &str,
    why: &'static str,
) -> Result<(), Error> {
    match metadata.get("beit2.stage") {
        Some(found) if found != stage => {
            Err(Error::WrongModel { origin: origin.to_owned(), found: format!("`{found}`"), why })
        }
        _ => Ok(()),
    }
}

/// Reads a safetensors or `.pth` file completely; the format is recognised by content.
///
/// # Errors
/// Anything that makes the file unusable, as one sentence that names it.
pub fn read(path: &Path) -> Result<WeightFile, Error> {
    let file = beit2_weights::read(path)?;
    let mut tensors = Tensors::new();
    for (name, view) in &file.tensors {
        let tensor = view.load()?;
        let dtype = dtype_of_file(tensor.dtype());
        let shape = tensor.shape().to_vec();
        tensors.insert(name.clone(), TensorData::from_bytes_vec(tensor.into_bytes(), shape, dtype));
    }
    let mut metadata = file.metadata;
    if let Some(config) = config_beside(path) {
        metadata.extend(config["layer_norm_eps"].as_f64().map(|eps| (HF_NORM_EPS.into(), eps.to_string())));
        let names = class_names(&config["id2label"]);
        metadata.extend(names.map(|names| (HF_CLASS_NAMES.into(), serde_json::json!(names).to_string())));
    }
    Ok(WeightFile { tensors, metadata })
}

fn config_beside(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path.with_file_name("config.json")).ok()?).ok()
}

/// The names of `{"0": "cat", "1": "dog"}`, when all are there and someone has chosen them: `LABEL_7` is only a number.
fn class_names(id2label: &serde_json::Value) -> Option<Vec<&str>> {
    let table = id2label.as_object()?;
    let names: Option<Vec<&str>> = (0..table.len()).map(|id| table.get(&id.to_string())?.as_str()).collect();
    names.filter(|names| !names.iter().any(|name| name.starts_with("LABEL_")))
}

fn dtype_of_file(dtype: beit2_weights::DType) -> DType {
    use beit2_weights::DType as F;
    match dtype {
        F::F64 => DType::F64,
        F::F32 => DType::F32,
        F::F16 => DType::F16,
        F::BF16 => DType::BF16,
        F::I64 => DType::I64,
        F::I32 => DType::I32,
        F::I16 => DType::I16,
        F::I8 => DType::I8,
        F::U8 | F::Bool => DType::U8,
    }
}

/// Decodes safetensors from memory (weights bundled in a binary).
///
/// # Errors
/// Bytes that are not a safetensors file of float tensors.
pub fn decode(bytes: &[u8], origin: &str) -> Result<WeightFile, Error> {
    let wrong =
        |e: safetensors::SafeTensorError| Error::Config(format!("{origin} is not a safetensors file: {e}"));
    let file = SafeTensors::deserialize(bytes).map_err(wrong)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        let dtype = match view.dtype() {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::I64 => DType::I64,
            Dtype::I32 => DType::I32,
            other => {
                return Err(Error::Config(format!(
                    "{origin}: tensor `{name}` has type {other:?}, expected floats"
                )));
            }
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        tensors.insert(name.to_owned(), data);
    }
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok(WeightFile { tensors, metadata })
}

/// A tensor as the file writer sees it.
struct Stored<'a>(beit2_weights::DType, &'a [usize], &'a TensorData);

impl beit2_weights::TensorSource for Stored<'_> {
    fn dtype(&self) -> beit2_weights::DType {
        self.0
    }
    fn shape(&self) -> &[usize] {
        self.1
    }
    fn data(&self) -> Result<Cow<'_, [u8]>, beit2_weights::WeightsError> {
        Ok(Cow::Borrowed(self.2.as_bytes()))
    }
}

/// Writes tensors as safetensors; the same tensors always give the same bytes.
///
/// # Errors
/// A tensor whose element type safetensors does not have, a writer that fails.
pub fn encode_to(
    writer: &mut dyn Write,
    tensors: &Tensors,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    use beit2_weights::DType as F;
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        let dtype = match data.dtype {
            DType::F64 => F::F64,
            DType::F32 => F::F32,
            DType::F16 => F::F16,
            DType::BF16 => F::BF16,
            DType::I64 => F::I64,
            DType::I32 => F::I32,
            DType::U8 => F::U8,
            other => {
                return config_error(format!("tensor `{name}` has type {other:?}, which safetensors lacks"));
            }
        };
        stored.push((name.as_str(), Stored(dtype, data.shape.as_slice(), data)));
    }
    let stored = stored.iter().map(|(name, tensor)| (*name, tensor));
    Ok(beit2_weights::write_safetensors_to(writer, Path::new("model.safetensors"), stored, metadata)?)
}

/// [`encode_to`] into memory.
///
/// # Errors
/// As [`encode_to`].
pub fn encode(tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    encode_to(&mut bytes, tensors, metadata)?;
    Ok(bytes)
}
