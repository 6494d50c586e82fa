//! Labels that cannot teach anything, told from the labels alone.

use std::collections::BTreeMap;

use super::{Findings, Set, listed};
use crate::source::Source;

/// How many images have each class, by name. Classes that the source knows and no image has are there with 0.
pub fn class_counts(source: &dyn Source) -> BTreeMap<String, u64> {
    let names = source.classes();
    let mut counts: BTreeMap<String, u64> = names.iter().map(|name| (name.clone(), 0)).collect();
    if names.is_empty() {
        return counts;
    }
    for (class, count) in counts_by_number(source).into_iter().enumerate() {
        if let Some(sum) = names.get(class).and_then(|name| counts.get_mut(name)) {
            *sum += count;
        }
    }
    counts
}

fn counts_by_number(source: &dyn Source) -> Vec<u64> {
    let mut counts = vec![0; source.classes().len()];
    for label in (0..source.len()).filter_map(|index| source.labels(index)).flatten() {
        if let Some(count) = counts.get_mut(label as usize) {
            *count += 1;
        }
    }
    counts
}

/// Looks at the labels of training images and, if there are some, validation images: one class in all, labels that are
/// all equal, classes without images.
pub fn labels(train: Set<'_, dyn Source>, val: Option<Set<'_, dyn Source>>) -> Findings {
    let mut findings = Findings::default();
    let names = train.source.classes();
    let counts = counts_by_number(train.source.as_ref());
    let there: Vec<&String> =
        names.iter().zip(&counts).filter(|(_, count)| **count > 0).map(|(name, _)| name).collect();
    if let [one] = names {
        findings.errors.push(format!(
            "{} has one class in all, `{one}`, so there is nothing to tell apart; give images of at least two classes, \
             one sub-folder each",
            train.name
        ));
    } else if let Some(same) = all_equal(train.source.as_ref()) {
        findings.errors.push(format!(
            "all {} images of {} have the same label, {same}, so there is nothing to learn; give images of at least two \
             classes, one sub-folder each",
            train.source.len(),
            train.name
        ));
    } else if there.len() < names.len() {
        let absent: Vec<&String> =
            names.iter().zip(&counts).filter(|(_, count)| **count == 0).map(|(name, _)| name).collect();
        findings.warnings.push(format!(
            "{} of the {} classes of {} have no image and cannot be learned: {}",
            absent.len(),
            names.len(),
            train.name,
            listed(&absent)
        ));
    }
    if let Some(val) = val.filter(|val| !val.source.classes().is_empty()) {
        let counts = class_counts(val.source.as_ref());
        let has = |name: &&&String| counts.get(**name).is_some_and(|&count| count > 0);
        let (known, missing): (Vec<&String>, Vec<&String>) = there.iter().partition(|name| has(name));
        if let ([one], [_, ..]) = (known.as_slice(), missing.as_slice()) {
            findings.warnings.push(format!(
                "all images of {} have the class `{one}`, so its accuracy says nothing about telling classes apart",
                val.name
            ));
        } else if !missing.is_empty() {
            findings.warnings.push(format!(
                "{} has no image of {} of the {} classes of {}: {}",
                val.name,
                missing.len(),
                there.len(),
                train.name,
                listed(&missing)
            ));
        }
    }
    findings
}

/// The label that every image has, for a sentence; `None` when two differ or there are fewer than two images.
fn all_equal(source: &dyn Source) -> Option<String> {
    let first = source.labels(0)?;
    if source.len() < 2 || (1..source.len()).any(|index| source.labels(index).as_ref() != Some(&first)) {
        return None;
    }
    let name = |&class: &u32| source.classes().get(class as usize).map(|name| format!("`{name}`"));
    match first.iter().filter_map(name).collect::<Vec<_>>() {
        none if none.is_empty() => Some("none of the classes".to_owned()),
        some => Some(some.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::SourceError;

    /// A class number for each image.
    struct Labels(Vec<String>, Vec<u32>);

    impl Source for Labels {
        fn len(&self) -> usize {
            self.1.len()
        }
        fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
            Err(SourceError::Index { index, len: 0 })
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn label(&self, index: usize) -> Option<u32> {
            self.1.get(index).copied()
        }
        fn classes(&self) -> &[String] {
            &self.0
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
    }

    fn source(classes: &[&str], labels: &[u32]) -> Arc<dyn Source> {
        Arc::new(Labels(classes.iter().map(|name| (*name).to_owned()).collect(), labels.to_vec()))
    }

    fn found(train: &Arc<dyn Source>, val: Option<&Arc<dyn Source>>) -> (Vec<String>, Vec<String>) {
        let val = val.map(|source| Set { name: "val", source });
        let Findings { warnings, errors } = labels(Set { name: "train", source: train }, val);
        (warnings, errors)
    }

    #[test]
    fn labels_that_teach_nothing_are_errors() {
        let (_, errors) = found(&source(&["cat"], &[0, 0, 0]), None);
        assert!(errors[0].starts_with("train has one class in all, `cat`"), "{errors:?}");
        let (_, errors) = found(&source(&["cat", "dog"], &[1, 1, 1]), None);
        assert!(errors[0].starts_with("all 3 images of train have the same label, `dog`"), "{errors:?}");
        assert_eq!(found(&source(&["cat", "dog"], &[0, 1]), None), (vec![], vec![]));
    }

    #[test]
    fn classes_without_images_are_named() {
        let train = source(&["a", "b", "c"], &[0, 1, 1]);
        assert_eq!(
            found(&train, None).0,
            ["1 of the 3 classes of train have no image and cannot be learned: c"]
        );
        let train = source(&["a", "b", "c"], &[0, 1, 2]);
        let val = source(&["c", "a"], &[0, 1]);
        assert_eq!(found(&train, Some(&val)).0, ["val has no image of 1 of the 3 classes of train: b"]);
        let one = found(&train, Some(&source(&["c"], &[0, 0]))).0;
        assert!(one[0].starts_with("all images of val have the class `c`"), "{one:?}");
        assert_eq!(class_counts(val.as_ref()), BTreeMap::from([("a".into(), 1), ("c".into(), 1)]));
    }
}
