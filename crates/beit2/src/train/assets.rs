//! Where a run's inputs come from.

use std::sync::Arc;

use beit2_data::Source;

use crate::error::Error;
use crate::weights::{self, WeightFile};

/// Opens the images and weights that recipes name, for every device's thread.
pub trait Assets: Sync {
    /// A source of images.
    ///
    /// # Errors
    /// The source does not exist or holds no images.
    fn source(&self, spec: &str) -> Result<Arc<dyn Source>, Error> {
        Ok(beit2_data::source::open(spec)?)
    }

    /// A weight file, or the newest one of a run directory or checkpoint folder.
    ///
    /// # Errors
    /// The file does not exist or is not a weight file.
    fn weights(&self, spec: &str) -> Result<WeightFile, Error> {
        weights::open(spec)
    }
}

/// The file system, nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files;

impl Assets for Files {}
