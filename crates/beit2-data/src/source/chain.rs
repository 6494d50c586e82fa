//! Several sources, one after the other.

use std::sync::Arc;

use super::{Account, Source};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// The samples of several sources as one numbered collection. Without labels: two folders' classes need not mean the
/// same.
pub struct ChainSource {
    parts: Vec<Arc<dyn Source>>,
    /// Number of the first sample of each part, and the number of all samples.
    starts: Vec<usize>,
}

impl ChainSource {
    /// Joins sources in the order given.
    #[must_use]
    pub fn new(parts: Vec<Arc<dyn Source>>) -> Self {
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts.last().copied().unwrap_or(0) + part.len());
        }
        Self { parts, starts }
    }

    /// The part that has a sample, and the sample's number there.
    fn find(&self, index: usize) -> Option<(&dyn Source, usize)> {
        // Parts without samples share their start with the next one; the last of them has the sample.
        let part = self.starts.partition_point(|&start| start <= index).checked_sub(1)?;
        Some((self.parts.get(part)?.as_ref(), index - self.starts[part]))
    }
}

impl Source for ChainSource {
    fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let (part, index) = self.find(index).ok_or(SourceError::Index { index, len: self.len() })?;
        part.read(index)
    }

    fn name(&self, index: usize) -> String {
        self.find(index).map(|(part, index)| part.name(index)).unwrap_or_default()
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn account(&self) -> Account {
        let mut all = Account::default();
        self.parts.iter().for_each(|part| all.merge(part.account()));
        all
    }

    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        for part in &self.parts {
            hash.sample(&part.fingerprint(), part.len() as u64, None);
        }
        hash.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::FilesSource;
    use super::*;

    #[test]
    fn samples_keep_their_order_across_parts() {
        let files = |names: &[&str]| -> Arc<dyn Source> {
            Arc::new(FilesSource::new(names.iter().map(Into::into).collect()))
        };
        let chain = ChainSource::new(vec![files(&["a", "b"]), files(&[]), files(&["c"])]);
        let names: Vec<String> = (0..4).map(|index| chain.name(index)).collect();
        assert_eq!((chain.len(), names.join(" ").as_str()), (3, "a b c "));
        assert!(matches!(chain.read(3), Err(SourceError::Index { index: 3, len: 3 })));
        assert_ne!(chain.fingerprint(), ChainSource::new(vec![files(&["a", "b", "c"])]).fingerprint());
    }
}
