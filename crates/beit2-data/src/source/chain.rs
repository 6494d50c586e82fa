//! Several sources, one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Account, Source};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;
use crate::order::{Part, Units};

/// The samples of several sources as one numbered collection, each of them once in an epoch or as often as its source's
/// weight says.
///
/// Classes are joined by name: if every source has labels, the classes are all of their names in sorted order. If one has
/// none, the collection has none.
pub struct ChainSource {
    parts: Vec<Arc<dyn Source>>,
    /// Number of the first sample of each part, and the number of all samples.
    starts: Vec<usize>,
    weights: Vec<f64>,
    classes: Vec<String>,
    /// Of each part, its classes' numbers here.
    numbers: Vec<Vec<u32>>,
}

impl ChainSource {
    /// Joins sources in the order given.
    #[must_use]
    pub fn new(parts: Vec<Arc<dyn Source>>) -> Self {
        Self::weighted(parts.into_iter().map(|part| (part, 1.0)).collect())
    }

    /// Joins sources and says how often an epoch has each of their samples: `weight` times on average
    /// ([`Part::weighted`]). The weights inside a source that is a chain itself stay as they are.
    #[must_use]
    pub fn weighted(parts: Vec<(Arc<dyn Source>, f64)>) -> Self {
        let (parts, weights): (Vec<Arc<dyn Source>>, Vec<f64>) = parts.into_iter().unzip();
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts.last().copied().unwrap_or(0) + part.len());
        }
        let mut classes: Vec<String> = match parts.iter().any(|part| part.classes().is_empty()) {
            true => Vec::new(),
            false => parts.iter().flat_map(|part| part.classes().iter().cloned()).collect(),
        };
        // A single source keeps the order of its classes, which its file may give.
        if parts.len() > 1 {
            classes.sort_unstable();
            classes.dedup();
        }
        let number: HashMap<&String, u32> = classes.iter().zip(0..).collect();
        let numbers_of = |part: &Arc<dyn Source>| {
            part.classes().iter().filter_map(|name| number.get(name).copied()).collect()
        };
        let numbers = parts.iter().map(numbers_of).collect();
        Self { parts, starts, weights, classes, numbers }
    }

    /// The part that has a sample, by number.
    fn part_of(&self, index: usize) -> Option<usize> {
        // Parts without samples share their start with the next one; the last of them has the sample.
        self.starts.partition_point(|&start| start <= index).checked_sub(1)
    }

    /// The part that has a sample, and the sample's number there.
    fn find(&self, index: usize) -> Option<(&dyn Source, usize)> {
        let part = self.part_of(index)?;
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

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        self.find(index).and_then(|(part, index)| part.name_bytes(index))
    }

    fn key(&self, index: usize) -> String {
        self.find(index).map(|(part, index)| part.key(index)).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        if self.is_multi_label() {
            return None;
        }
        let part = self.part_of(index)?;
        let label = self.parts.get(part)?.label(index - self.starts[part])?;
        self.numbers[part].get(label as usize).copied()
    }

    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        let part = self.part_of(index)?;
        let own = self.parts.get(part)?.labels(index - self.starts[part])?;
        let mut labels: Vec<u32> =
            own.iter().filter_map(|&label| self.numbers[part].get(label as usize).copied()).collect();
        labels.sort_unstable();
        // Without classes in common there are no labels either.
        (labels.len() == own.len()).then_some(labels)
    }

    fn is_multi_label(&self) -> bool {
        !self.classes.is_empty() && self.parts.iter().any(|part| part.is_multi_label())
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        for (part, weight) in self.parts.iter().zip(&self.weights) {
            hash.sample(&part.fingerprint(), part.len() as u64, None);
            if *weight != 1.0 {
                hash.bytes(&weight.to_le_bytes());
            }
        }
        hash.finish()
    }

    fn account(&self) -> Account {
        let mut all = Account::default();
        self.parts.iter().for_each(|part| all.merge(part.account()));
        all
    }

    fn units(&self) -> Option<Units> {
        let mut all = Units { runs: Vec::new(), window: usize::MAX };
        for (part, start) in self.parts.iter().zip(&self.starts) {
            if let Some(units) = part.units() {
                let start = *start as u64;
                all.runs.extend(units.runs.iter().map(|(from, to)| (start + from, start + to)));
                // Each part keeps its own runs in memory: in a window of the smallest, none has more than it keeps.
                all.window = all.window.min(units.window);
            }
        }
        (!all.runs.is_empty()).then_some(all)
    }

    fn parts(&self) -> Vec<Part> {
        let inner: Vec<Vec<Part>> = self.parts.iter().map(|part| part.parts()).collect();
        if self.weights.iter().all(|weight| *weight == 1.0) && inner.iter().all(Vec::is_empty) {
            return Vec::new();
        }
        let mut all = Vec::new();
        for (at, inner) in inner.into_iter().enumerate() {
            let (start, len) = (self.starts[at] as u64, self.parts[at].len() as u64);
            match inner.is_empty() {
                true => all.push(Part::weighted(start, len, self.weights[at])),
                false => all.extend(inner.into_iter().map(|part| Part { start: part.start + start, ..part })),
            }
        }
        all
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

    #[test]
    fn classes_are_joined_by_name() {
        let folder = |names: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                std::fs::create_dir_all(dir.path().join(name)).unwrap();
                std::fs::write(dir.path().join(name).join("1.ppm"), b"P6 1 1 255\nabc").unwrap();
            }
            let source: Arc<dyn Source> = Arc::new(crate::source::FolderSource::open(dir.path()).unwrap());
            (dir, source)
        };
        let (_first, first) = folder(&["cat", "eel"]);
        let (_second, second) = folder(&["cat", "dog", "eel"]);
        let chain = ChainSource::weighted(vec![(first.clone(), 1.0), (second, 2.5)]);
        assert_eq!(chain.classes(), ["cat", "dog", "eel"]);
        let labels: Vec<u32> = (0..chain.len()).filter_map(|index| chain.label(index)).collect();
        assert_eq!(labels, [0, 2, 0, 1, 2]);
        // 2 images once, 3 images 2.5 times.
        assert_eq!((chain.len(), chain.epoch_len()), (5, 2 + 8));
        let unlabelled: Arc<dyn Source> = Arc::new(FilesSource::new(vec!["a".into()]));
        let chain = ChainSource::new(vec![first, unlabelled]);
        assert!(chain.classes().is_empty() && chain.label(0).is_none());
    }
}
