//! Every way in which data can be wrong, one sentence each: what is wrong, where, and what would be
//! right.

mod decode;
mod source;
mod transform;

pub use decode::DecodeError;
pub use source::SourceError;
pub use transform::TransformError;

/// Why a loader's work function made nothing of a sample.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The image cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The image cannot be transformed.
    #[error(transparent)]
    Transform(#[from] TransformError),
}

/// A contradiction in a [`BlockMaskConfig`](crate::BlockMaskConfig).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MaskError {
    /// A grid without cells.
    #[error("the mask grid is {grid_h} x {grid_w}; both sides must be 1 to {max}")]
    Grid {
        /// Rows.
        grid_h: usize,
        /// Columns.
        grid_w: usize,
        /// Largest side accepted.
        max: usize,
    },
    /// More masked patches than patches.
    #[error(
        "{masked} masked patches do not fit: the {grid_h} x {grid_w} grid has only {patches}; use at most {patches}"
    )]
    TooMany {
        /// Requested masked patches.
        masked: usize,
        /// Rows.
        grid_h: usize,
        /// Columns.
        grid_w: usize,
        /// Patches in the grid.
        patches: usize,
    },
    /// Block size limits that contradict each other.
    #[error("max_patches is {max}, below min_patches {min}; a block needs room for its minimum")]
    Limits {
        /// Smallest block area.
        min: usize,
        /// Largest block area.
        max: usize,
    },
    /// An aspect limit outside (0, 1].
    #[error("min_aspect is {0}; it must be above 0 and at most 1 (0.3 in the paper)")]
    Aspect(f64),
}

/// What to do about unusable images, as the rest of a sentence. `data` is how the user names the images.
#[must_use]
pub fn advice_on_bad_images(bad: u64, samples: u64, data: &str) -> String {
    // With some room: what was found so far may not be all.
    let wanted = 1.5 * bad as f64 / samples.max(1) as f64;
    let fraction = [0.05, 0.1, 0.2, 0.5].into_iter().find(|&fraction| wanted <= fraction).unwrap_or(1.0);
    format!(
        "`beit2 data check {data} --decode` names all of them: repair or remove them, or allow more with --set data.max_bad_fraction={fraction} (in knn and probe --max-bad-fraction {fraction})"
    )
}

/// Why a [`Loader`](crate::Loader) could not start or had to stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoaderError {
    /// A setting outside its range.
    #[error("loader setting {name} is {value}; it must be {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Value found.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// The source holds no samples.
    #[error("the data source holds no samples; at least one image is needed")]
    EmptySource,
    /// With `drop_last`, one global batch must fit into the data.
    #[error(
        "a batch of {global_batch} does not fit into {samples} samples when incomplete batches are dropped; use a batch of at most {samples}"
    )]
    BatchTooLarge {
        /// Batch size times world size.
        global_batch: u64,
        /// Samples in the source.
        samples: u64,
    },
    /// A position past the end of an epoch.
    #[error(
        "cannot start at step {step} of epoch {epoch}: an epoch of this data has {steps} steps; did the data or the batch size change?"
    )]
    StartOutside {
        /// Requested epoch.
        epoch: u64,
        /// Requested step.
        step: u64,
        /// Steps in an epoch.
        steps: u64,
    },
    /// More unreadable samples than `max_bad_fraction` of the epoch.
    #[error(
        "{bad} of {samples} images could not be used in epoch {epoch}, more than the {limit} that data.max_bad_fraction allows ({percent} %): {}{}",
        first.join("; "),
        match (*bad as usize).saturating_sub(first.len()) { 0 => String::new(), more => format!("; and {more} more") }
    )]
    TooManyBad {
        /// Epoch in which it happened.
        epoch: u64,
        /// Unusable samples so far.
        bad: u64,
        /// How many were allowed.
        limit: u64,
        /// Samples in the epoch (of this rank).
        samples: u64,
        /// The limit as a percentage, ready to print.
        percent: String,
        /// The first few, as `name: reason`.
        first: Vec<String>,
    },
    /// A sample and every replacement drawn for it were unusable.
    #[error("{name}: {error}; {tries} other samples drawn in its place could not be used either")]
    NoReplacement {
        /// Name of the sample.
        name: String,
        /// Its own error.
        error: String,
        /// Replacements tried.
        tries: u32,
    },
    /// The caller's work function, or the source, panicked.
    #[error("a data worker crashed on {name}: {message}")]
    WorkerPanicked {
        /// Name of the sample.
        name: String,
        /// The panic's message.
        message: String,
    },
    /// Threads could not be started.
    #[error("cannot start a data worker thread: {0}")]
    Spawn(String),
}
