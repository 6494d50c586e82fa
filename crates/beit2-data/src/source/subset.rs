//! Some samples of a source, in an order of their own.

use std::sync::Arc;

use super::Source;
use crate::error::SourceError;

/// The samples `chosen` of a source. Its fingerprint and its account are those of the whole source.
pub struct SubsetSource {
    all: Arc<dyn Source>,
    chosen: Vec<usize>,
}

impl SubsetSource {
    /// The samples `chosen` of `all`, by number. One that is not there is an error where it is read.
    pub fn new(all: Arc<dyn Source>, chosen: Vec<usize>) -> Self {
        Self { all, chosen }
    }

    /// The number in the source; past our end one past its end.
    fn at(&self, index: usize) -> usize {
        self.chosen.get(index).copied().unwrap_or(usize::MAX)
    }
}

impl Source for SubsetSource {
    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        self.all.read(self.at(index))
    }

    fn name(&self, index: usize) -> String {
        self.all.name(self.at(index))
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        self.all.name_bytes(self.at(index))
    }

    fn key(&self, index: usize) -> String {
        self.all.key(self.at(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.all.label(self.at(index))
    }

    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        self.all.labels(self.at(index))
    }

    fn is_multi_label(&self) -> bool {
        self.all.is_multi_label()
    }

    fn image_size(&self, index: usize) -> Option<(u32, u32)> {
        self.all.image_size(self.at(index))
    }

    fn classes(&self) -> &[String] {
        self.all.classes()
    }

    fn fingerprint(&self) -> String {
        self.all.fingerprint()
    }
}
