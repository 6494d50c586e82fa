//! What can go wrong in the library, each as one sentence.

use std::path::PathBuf;

/// An error of the `beit2` library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that contradict each other or make no sense.
    #[error("{0}")]
    Config(String),
    /// A tensor of a weight file does not fit its parameter.
    #[error(
        "weight `{name}` has shape {found:?}, the model needs {expected:?}; check that the file and the model's sizes belong together"
    )]
    WeightShape {
        /// Official key.
        name: String,
        /// Shape of the model's parameter.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// The names of a weight file and of a model differ.
    #[error("the weights do not fit the model: {}", names(missing, unexpected))]
    WeightNames {
        /// Parameters without a tensor.
        missing: Vec<String>,
        /// Tensors without a parameter.
        unexpected: Vec<String>,
    },
    /// A weight file whose tensors are no whole model, or contradict what the file says about itself.
    #[error("{origin}: {problem}")]
    UnsoundWeights {
        /// The file, as it was named.
        origin: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A source of images.
    #[error(transparent)]
    Source(#[from] beit2_data::SourceError),
    /// Reading batches.
    #[error(transparent)]
    Loader(#[from] beit2_data::LoaderError),
    /// Mask settings.
    #[error(transparent)]
    Mask(#[from] beit2_data::MaskError),
    /// Images with masks.
    #[error(transparent)]
    SegmentData(#[from] beit2_data::segment::SegmentDataError),
    /// Image settings or sizes.
    #[error(transparent)]
    Transform(#[from] beit2_data::TransformError),
    /// An image that cannot be decoded.
    #[error(transparent)]
    Decode(#[from] beit2_data::DecodeError),
    /// A file that is no usable image.
    #[error("{}: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A weight file that holds another model than the requested one.
    #[error("{origin} holds a {found} model, {why}")]
    WrongModel {
        /// The file, as it was named.
        origin: String,
        /// The kind of model in it, or the stage that wrote it.
        found: String,
        /// What is missing, and what would be right.
        why: &'static str,
    },
    /// A weight file.
    #[error(transparent)]
    Weights(#[from] beit2_weights::WeightsError),
    /// The run directory.
    #[error(transparent)]
    Run(#[from] beit2_run::RunError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] beit2_run::CheckpointError),
    /// A file of a run.
    #[error(transparent)]
    File(#[from] beit2_run::atomic::FileError),
    /// A recipe.
    #[error(transparent)]
    Recipe(#[from] beit2_run::RecipeError),
    /// A schedule whose warm-up does not fit into the run.
    #[error(
        "the warm-up of {warmup} steps is longer than the run of {total} steps; shorten warmup_epochs or train longer"
    )]
    LongWarmup {
        /// Steps of the warm-up.
        warmup: u64,
        /// Steps of the run.
        total: u64,
    },
    /// Another device's part of the run ended early.
    #[error(transparent)]
    PeerLeft(#[from] beit2_kernels::PeerLeft),
    /// The run was told to stop.
    #[error("stopped on request; the same command continues")]
    Interrupted,
    /// Training went wrong in a way that more steps cannot repair.
    #[error("{0}")]
    Training(String),
}

fn names(missing: &[String], unexpected: &[String]) -> String {
    let list = |what: &str, names: &[String]| match names {
        [] => None,
        [one] => Some(format!("{what} `{one}`")),
        [first, rest @ ..] => Some(format!("{what} `{first}` and {} more", rest.len())),
    };
    [list("missing", missing), list("unexpected", unexpected)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

/// Shorthand for a [`Error::Config`].
pub(crate) fn config_error<T>(message: impl Into<String>) -> Result<T, Error> {
    Err(Error::Config(message.into()))
}
