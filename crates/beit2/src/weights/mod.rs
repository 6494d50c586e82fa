//! Weight files in and out: tensors by name, their text metadata, and the official names of what is in them.
//!
//! Knows no model; each loads itself, in the `load.rs` beside it.

mod fingerprint;
mod state;
mod statistics;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, config_error};

use beit2_weights::{ReadOptions, Sidecar};

use self::statistics::Statistics;
pub use state::StateFile;
pub(crate) use state::{kind_of, to_tensors};

/// Tensors by name, on the host.
pub type Tensors = BTreeMap<String, TensorData>;

/// A weight file's tensors and its text metadata.
#[derive(Debug, Clone, Default)]
pub struct WeightFile {
    /// Tensors by name.
    pub tensors: Tensors,
    /// Text by name; ours hold the model's configuration.
    pub metadata: BTreeMap<String, String>,
    /// What the files beside it say, and what the file itself tells of how images are standardised.
    pub beside: Sidecar,
    /// What a user should know about how it was read, one line each.
    pub notes: Vec<String>,
    /// What a user must know: what the file does not say and was taken for granted.
    pub warnings: Vec<String>,
}

/// A weight file by the words of a user: a path, and which entry of it.
#[derive(Debug, Clone)]
pub struct Located {
    /// The file, or the index of a sharded model.
    pub path: PathBuf,
    /// The entry of a `.pth` file; `None`: what [`beit2_weights::read`] takes.
    pub entry: Option<String>,
    /// What a user should know about the choice, one line each.
    pub notes: Vec<String>,
}

/// The weights that a user means by a run directory, a checkpoint folder, a folder with `model.safetensors` or
/// `pytorch_model.bin`, or a file. `FILE#ENTRY` chooses an entry of a `.pth` file, or `model_ema` of a run that keeps averages.
///
/// # Errors
/// A run without a complete checkpoint, a place without weights, an entry that a run does not have.
pub fn locate(spec: impl AsRef<Path>) -> Result<Located, Error> {
    let spec = spec.as_ref();
    let text = spec.to_string_lossy();
    let (path, entry) = match text.rsplit_once('#') {
        Some((path, entry)) if !entry.is_empty() && !entry.contains('/') && !spec.exists() => {
            (PathBuf::from(path), Some(entry.to_owned()))
        }
        _ => (spec.to_owned(), None),
    };
    let folder = if path.join("checkpoints").is_dir() {
        match beit2_run::checkpoint::latest(&path)?.checkpoint {
            Some(checkpoint) => checkpoint.path,
            None => {
                return config_error(format!(
                    "{} is a run without a complete checkpoint yet; let it train further",
                    path.display()
                ));
            }
        }
    } else {
        path
    };
    let averages = folder.join(AVERAGES);
    let is_checkpoint = folder.join("state.json").is_file() || folder.join("optimizer.safetensors").is_file();
    if !averages.is_file() && is_checkpoint {
        return match entry.as_deref() {
            None | Some("model") => {
                Ok(Located { path: beit2_weights::locate(&folder)?, entry: None, notes: Vec::new() })
            }
            Some(other) => config_error(format!(
                "{} has no entry `{other}`; this run keeps no averages, only `model`",
                folder.display()
            )),
        };
    }
    if !averages.is_file() {
        return Ok(Located { path: beit2_weights::locate(&folder)?, entry, notes: Vec::new() });
    }
    let model = folder.join("model.safetensors");
    let also = |taken: &str, other: &str| {
        vec![format!("entry `{taken}` of the run; also there: {other} (--entry NAME)")]
    };
    match entry.as_deref() {
        None | Some("model") => Ok(Located { path: model, entry: None, notes: also("model", "model_ema") }),
        Some("model_ema" | "ema") => {
            Ok(Located { path: averages, entry: None, notes: also("model_ema", "model") })
        }
        Some(other) => {
            config_error(format!("{} has no entry `{other}`; it has model and model_ema", folder.display()))
        }
    }
}

/// Metadata that [`read`] adds to what was in a TorchScript archive.
pub(crate) const SCRIPT: &str = "torchscript";

/// The averaged parameters of a checkpoint, a model like `model.safetensors`.
pub(crate) const AVERAGES: &str = "model_ema.safetensors";

/// Reads the weight file of a run directory, a checkpoint folder, or a file ([`locate`], then [`read`]).
///
/// # Errors
/// As [`locate`] and [`read`].
pub fn open(path: impl AsRef<Path>) -> Result<WeightFile, Error> {
    let Located { path, entry, notes } = locate(path)?;
    let mut file = read_entry(&path, entry.as_deref())?;
    file.notes.splice(0..0, notes);
    Ok(file)
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
        Some(Err(error)) => Err(Error::UnsoundWeights {
            origin: origin.to_owned(),
            problem: format!("the configuration inside the file cannot be read: {error}"),
        }),
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

/// Reads a safetensors or `.pth` file completely; the format is recognised by content. Values that are NaN or infinite are an
/// error.
///
/// # Errors
/// Anything that makes the file unusable, as one sentence that names it.
pub fn read(path: &Path) -> Result<WeightFile, Error> {
    read_entry(path, None)
}

fn read_entry(path: &Path, entry: Option<&str>) -> Result<WeightFile, Error> {
    let options = ReadOptions { root: entry, ..ReadOptions::default() };
    let file = beit2_weights::read_with(path, &options)?;
    let mut tensors = Tensors::new();
    for (name, view) in &file.tensors {
        let tensor = view.load_finite()?;
        let dtype = dtype_of_file(tensor.dtype());
        let shape = tensor.shape().to_vec();
        tensors.insert(name.clone(), TensorData::from_bytes_vec(tensor.into_bytes(), shape, dtype));
    }
    let mut found = WeightFile { tensors, notes: file.notes(), ..WeightFile::default() };
    let head = ["head.weight", "classifier.weight", "head.fc.weight"]
        .iter()
        .find_map(|name| file.tensors.get(*name));
    let classes = head.and_then(|head| head.shape().first().copied());
    if let (Some(classes), Some(named)) = (classes, file.beside.classes)
        && named < classes
    {
        found.warnings.push(format!(
            "{} names {named} classes, but {} has {classes}; these names are not used",
            file.beside.files.first().map_or("config.json", String::as_str),
            path.display()
        ));
    }
    let statistics = statistics::of(&file);
    let script = file.root == beit2_weights::Root::Script;
    (found.metadata, found.beside) = (file.metadata, file.beside);
    if script {
        found.metadata.insert(SCRIPT.into(), "yes".into());
    }
    match statistics {
        Statistics::Said => {}
        Statistics::Known(normalization, why) => {
            found.notes.extend(why.map(|why| format!("{normalization} ({why})")));
            found.beside.normalization = Some(normalization);
        }
        Statistics::Unknown => found.warnings.push(format!(
            "{} does not say how its images are standardised; ImageNet's mean and standard deviation are used, as for BEiT v2 \
             (for BEiT v1 add --normalization half, for others --mean and --std)",
            path.display()
        )),
    }
    Ok(found)
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
    Ok(WeightFile { tensors, metadata, ..WeightFile::default() })
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
