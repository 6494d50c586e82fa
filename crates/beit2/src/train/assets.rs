//! Where the inputs of a run come from.

use std::sync::{Arc, Mutex, PoisonError};

use beit2_data::Source;
use beit2_data::segment::{SegmentDataOptions, SegmentSource, open_segment};

use crate::error::Error;
use crate::weights::{self, WeightFile};

/// Opens the images and weights that recipes name, for the threads of all devices.
///
/// A source is opened once, whoever names it: listing a million files takes a while.
pub trait Assets: Sync {
    /// A source of images.
    ///
    /// # Errors
    /// The source does not exist or holds no images.
    fn source(&self, spec: &str) -> Result<Arc<dyn Source>, Error>;

    /// Images with masks, read with these options.
    ///
    /// # Errors
    /// The folder does not exist, or its images and masks do not match.
    fn segment_source(&self, spec: &str, options: &SegmentDataOptions) -> Result<Arc<SegmentSource>, Error>;

    /// A weight file, or the newest one of a run directory or checkpoint folder.
    ///
    /// # Errors
    /// The file does not exist or is not a weight file.
    fn weights(&self, spec: &str) -> Result<WeightFile, Error>;
}

/// Assets in the file system, by path.
#[derive(Default)]
pub struct Files {
    sources: OpenOnce<String, dyn Source>,
    segment_sources: OpenOnce<(String, SegmentDataOptions), SegmentSource>,
}

impl Assets for Files {
    fn source(&self, spec: &str) -> Result<Arc<dyn Source>, Error> {
        self.sources.get_or_open(spec.to_owned(), || Ok(beit2_data::source::open(spec)?))
    }

    fn segment_source(&self, spec: &str, options: &SegmentDataOptions) -> Result<Arc<SegmentSource>, Error> {
        let key = (spec.to_owned(), options.clone());
        self.segment_sources.get_or_open(key, || Ok(open_segment(spec, options)?))
    }

    fn weights(&self, spec: &str) -> Result<WeightFile, Error> {
        weights::open(spec)
    }
}

/// What was opened under which key. A run names a handful of sources.
pub struct OpenOnce<K, T: ?Sized>(Mutex<Vec<(K, Arc<T>)>>);

impl<K, T: ?Sized> Default for OpenOnce<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, T: ?Sized> OpenOnce<K, T> {
    /// What was opened under `key`, or else what `open` gives.
    ///
    /// # Errors
    /// Those of `open`; the next call tries again.
    pub fn get_or_open(&self, key: K, open: impl FnOnce() -> Result<Arc<T>, Error>) -> Result<Arc<T>, Error> {
        // Held while one thread opens, so that several devices do not list a folder several times.
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = opened.iter().find(|(name, _)| *name == key) {
            return Ok(found.clone());
        }
        let new = open()?;
        opened.push((key, new.clone()));
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let spec = dir.path().to_string_lossy().into_owned();
        let files = Files::default();
        assert!(files.source(&spec).is_err(), "a folder without images");
        for name in ["a.ppm", "b.ppm"] {
            std::fs::write(dir.path().join(name), b"P6 1 1 255\nabc").unwrap();
        }
        let first = files.source(&spec).unwrap();
        std::fs::remove_file(dir.path().join("b.ppm")).unwrap();
        assert!(Arc::ptr_eq(&first, &files.source(&spec).unwrap()));
    }
}
