//! Encoded images in files and in memory, decoded by threads while the model computes.

use std::path::PathBuf;
use std::sync::Arc;

use beit2::Error;
use beit2_data::source::FilesSource;
use beit2_data::{DecodeOptions, Image, Sequence, SequenceConfig, Source, SourceError, TransformError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::exceptions::Raised;

/// One image as Python passes it.
#[derive(FromPyObject)]
pub enum Item {
    /// The content of an image file.
    Bytes(PyBackedBytes),
    /// A file.
    File(PathBuf),
}

/// Images in the order of a call.
struct Items {
    items: Vec<Item>,
    files: FilesSource,
}

impl Source for Items {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        match self.items.get(index) {
            Some(Item::Bytes(bytes)) => Ok(bytes.to_vec()),
            _ => self.files.read(index),
        }
    }

    fn name(&self, index: usize) -> String {
        match self.items.get(index) {
            Some(Item::Bytes(_)) if self.items.len() == 1 => "the image".into(),
            Some(Item::Bytes(_)) => format!("image {index}"),
            _ => self.files.name(index),
        }
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn fingerprint(&self) -> String {
        self.files.fingerprint()
    }
}

/// How a call goes through its images.
pub struct Walk {
    /// How they are decoded.
    pub decode: DecodeOptions,
    /// Images at once.
    pub batch: usize,
    /// Threads that decode.
    pub workers: usize,
    /// Called with the images that are done and their number.
    pub progress: Option<Py<PyAny>>,
}

impl Walk {
    /// Calls `each` with batches of what `view` makes of the images.
    ///
    /// # Errors
    /// The first image that cannot be used, named; what `each` or the progress function raises, or Ctrl-C.
    pub fn batches<T: Send + 'static>(
        &self,
        items: Vec<Item>,
        view: impl Fn(&Image) -> Result<T, TransformError> + Send + Sync + 'static,
        mut each: impl FnMut(Vec<T>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let path = |item: &Item| match item {
            Item::File(path) => path.clone(),
            Item::Bytes(_) => PathBuf::new(),
        };
        let files = FilesSource::new(items.iter().map(path).collect());
        let source = Arc::new(Items { items, files });
        let total = source.len();
        let config = SequenceConfig {
            start: 0,
            // A thread for one image would only cost its start.
            workers: if total > 1 { self.workers.min(total) } else { 0 },
            prefetch: 2 * self.batch,
            decode: self.decode.clone(),
        };
        let mut images = Sequence::new(config, source.clone(), view).map_err(Error::from)?;
        let mut done = 0;
        while done < total {
            let seen = images.by_ref().take(self.batch).map(|seen| {
                seen.item.map_err(|why| {
                    let name = source.name(seen.index);
                    anyhow::Error::msg(if why.contains(&name) { why } else { format!("{name}: {why}") })
                })
            });
            let views = seen.collect::<anyhow::Result<Vec<T>>>()?;
            done += views.len();
            each(views)?;
            self.tell(done, total)?;
        }
        Ok(())
    }

    /// Says how far the call is, and lets Python see Ctrl-C.
    fn tell(&self, done: usize, total: usize) -> anyhow::Result<()> {
        let told = Python::attach(|py| {
            py.check_signals()?;
            self.progress.as_ref().map_or(Ok(()), |progress| progress.call1(py, (done, total)).map(drop))
        });
        Ok(told.map_err(Raised)?)
    }
}
