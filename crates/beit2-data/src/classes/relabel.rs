//! A source whose labels have other numbers.

use std::sync::Arc;

use crate::error::SourceError;
use crate::fingerprint::Fingerprint;
use crate::order::{Part, Units};
use crate::source::{Account, Source};

/// The samples of a source with the class numbers of another set of classes.
pub(super) struct Relabelled {
    inner: Arc<dyn Source>,
    /// The new number of each class of `inner`.
    numbers: Vec<u32>,
    classes: Vec<String>,
}

impl Relabelled {
    /// `numbers[c]` becomes the number of the inner source's class `c`; all are below the length of `classes`.
    pub(super) fn new(inner: Arc<dyn Source>, numbers: Vec<u32>, classes: Vec<String>) -> Self {
        Self { inner, numbers, classes }
    }

    fn number(&self, label: u32) -> Option<u32> {
        self.numbers.get(label as usize).copied()
    }
}

impl Source for Relabelled {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        self.inner.read(index)
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        self.inner.name_bytes(index)
    }

    fn key(&self, index: usize) -> String {
        self.inner.key(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(index).and_then(|label| self.number(label))
    }

    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        let labels = self.inner.labels(index)?;
        let mut labels: Vec<u32> =
            labels.into_iter().map(|label| self.number(label)).collect::<Option<_>>()?;
        // Several of its classes can have become one.
        labels.sort_unstable();
        labels.dedup();
        Some(labels)
    }

    fn is_multi_label(&self) -> bool {
        self.inner.is_multi_label()
    }

    fn image_size(&self, index: usize) -> Option<(u32, u32)> {
        self.inner.image_size(index)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Other numbers are other data.
    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        hash.sample(&self.inner.fingerprint(), self.inner.len() as u64, None);
        hash.sample("classes", self.classes.len() as u64, None);
        self.numbers.iter().for_each(|number| hash.bytes(&number.to_le_bytes()));
        hash.finish()
    }

    fn account(&self) -> Account {
        self.inner.account()
    }

    fn units(&self) -> Option<Units> {
        self.inner.units()
    }

    fn parts(&self) -> Vec<Part> {
        self.inner.parts()
    }

    fn epoch_len(&self) -> usize {
        self.inner.epoch_len()
    }
}
