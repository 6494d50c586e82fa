//! A weight file of any layout as a state dict in official names, with what names and shapes tell of it.

use std::collections::BTreeMap;

use beit2_weights::convert::{StateDict, to_canonical};
use beit2_weights::inspect::{self, ModelSummary};
use beit2_weights::layout::{Kind, LayoutError, account};
use beit2_weights::verify::verify;
use beit2_weights::{DType as FileType, Normalization, Sidecar, Tensor as FileTensor};
use burn::tensor::TensorData;

use super::{Tensors, WeightFile, dtype_of_file};
use crate::error::Error;

/// The state dict of a model.
#[derive(Debug, Clone)]
pub struct StateFile {
    /// What the names and shapes tell.
    pub summary: ModelSummary,
    /// Tensors by official name, in the file's types.
    pub tensors: StateDict,
    /// Text by name; files of this software hold the model's configuration.
    pub metadata: BTreeMap<String, String>,
    /// What the files beside it say.
    pub beside: Sidecar,
    /// As the user named the file, for messages.
    pub origin: String,
    /// What [`verify`] finds wrong with it: some models can be used all the same, as their features need no head.
    unsound: Option<String>,
}

/// Turns an error about a model that could not be made into the one about its file, if that is not sound.
#[derive(Debug, Clone)]
pub(crate) struct Blame(Option<(String, String)>);

impl Blame {
    /// Only for a tensor that is missing: what a model of stated sizes says about shapes is more to the point.
    pub(crate) fn of_missing(self) -> Self {
        Self(self.0.filter(|(_, problem)| problem.contains(" is missing")))
    }

    /// The file's error, or this one.
    pub(crate) fn or(self, error: Error) -> Error {
        match self.0 {
            Some((origin, problem)) => Error::UnsoundWeights { origin, problem },
            None => error,
        }
    }
}

impl StateFile {
    /// How the model's images are standardised, as files beside the weights or the file itself tell; `None`: by ImageNet's
    /// statistics, or nothing tells it.
    pub fn normalization(&self) -> Option<Normalization> {
        self.beside.normalization.clone().filter(|found| *found != Normalization::imagenet())
    }

    /// Understands the names of a file: official, timm or Hugging Face.
    ///
    /// # Errors
    /// Names that belong to none of them, a key too many or too few, a shape that contradicts another or a file beside the
    /// weights.
    pub fn new(file: WeightFile, origin: &str) -> Result<Self, Error> {
        let unsound = |problem: String| Error::UnsoundWeights { origin: origin.to_owned(), problem };
        let own = file.metadata.contains_key("beit2.stage");
        let named = |error| of_names(error, own, origin);
        let mut tensors = StateDict::with_capacity(file.tensors.len());
        for (name, data) in file.tensors {
            tensors.insert(
                name.clone(),
                to_file_tensor(data)
                    .ok_or_else(|| unsound(format!("tensor `{name}` has a type that weights cannot have")))?,
            );
        }
        let summary = inspect::inspect(&tensors).map_err(named)?.with_metadata(&file.metadata);
        if summary.layout.kind != Kind::Tokenizer {
            let contradicts = |error| Error::Config(format!("{origin}: {error}"));
            file.beside.check(&summary).map_err(contradicts)?;
        }
        let found = verify(&tensors).err().map(|error| error.to_string());
        let found = found.or_else(|| summary.contradiction(&file.metadata));
        let (tensors, _) = to_canonical(tensors).map_err(named)?;
        let (metadata, beside) = (file.metadata, file.beside);
        Ok(Self { summary, tensors, metadata, beside, origin: origin.to_owned(), unsound: found })
    }

    /// Refuses a file that `beit2 weights verify` refuses, for those who need all of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_whole(&self) -> Result<(), Error> {
        match &self.unsound {
            None => Ok(()),
            Some(problem) => {
                Err(Error::UnsoundWeights { origin: self.origin.clone(), problem: problem.clone() })
            }
        }
    }

    /// For errors that come when the tensors are already on their way into a model.
    pub(crate) fn blame(&self) -> Blame {
        Blame(self.unsound.clone().map(|problem| (self.origin.clone(), problem)))
    }
}

fn of_names(error: LayoutError, own: bool, origin: &str) -> Error {
    match error {
        // Another model altogether, unless this software wrote it.
        LayoutError::Unknown { .. } | LayoutError::UnknownKey { .. } if !own => {
            Error::Config(format!("{origin}: {error}"))
        }
        other => Error::UnsoundWeights { origin: origin.to_owned(), problem: other.to_string() },
    }
}

/// What a file holds, by its names alone.
///
/// # Errors
/// Names of no model that is known.
pub(crate) fn kind_of(file: &WeightFile, origin: &str) -> Result<Kind, Error> {
    let own = file.metadata.contains_key("beit2.stage");
    let account = account(file.tensors.keys().map(String::as_str));
    Ok(account.map_err(|error| of_names(error, own, origin))?.layout.kind)
}

/// Tensors of a file for a model.
pub(crate) fn to_tensors(state: StateDict) -> Tensors {
    let convert = |tensor: FileTensor| {
        let (dtype, shape) = (dtype_of_file(tensor.dtype()), tensor.shape().to_vec());
        TensorData::from_bytes_vec(tensor.into_bytes(), shape, dtype)
    };
    state.into_iter().map(|(name, tensor)| (name, convert(tensor))).collect()
}

fn to_file_tensor(data: TensorData) -> Option<FileTensor> {
    use burn::tensor::DType as D;
    let dtype = match data.dtype {
        D::F64 => FileType::F64,
        D::F32 => FileType::F32,
        D::F16 => FileType::F16,
        D::BF16 => FileType::BF16,
        D::I64 => FileType::I64,
        D::I32 => FileType::I32,
        D::I16 => FileType::I16,
        D::I8 => FileType::I8,
        D::U8 => FileType::U8,
        _ => return None,
    };
    let shape = data.shape.to_vec();
    let bytes = data.bytes.try_into_vec::<u8>().unwrap_or_else(|bytes| bytes.to_vec());
    FileTensor::new(dtype, shape, bytes)
}
