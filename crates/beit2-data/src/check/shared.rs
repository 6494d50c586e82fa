//! Images that are in training and validation.

use std::collections::{HashMap, HashSet};

use super::{Findings, Set, parallel, spread};
use crate::fingerprint::fnv1a;
use crate::source::{Source, arrangement};

/// Sets of at most this many images together are compared by content.
const COMPARED: usize = 2_000;
/// Validation images of larger sets that are compared with training images of the same file name.
const SAMPLE: usize = 256;
/// Training images of one file name that such an image is compared with.
const NAMESAKES: usize = 4;

/// Counts the validation images that are training images too: by name, and by content where that costs nothing (sets of up
/// to 2,000 images; in larger ones, 256 validation images against training images of the same file name).
pub fn shared(train: Set<'_, dyn Source>, val: Set<'_, dyn Source>, workers: usize) -> Findings {
    let mut findings = Findings::default();
    if arrangement::are_swapped(train.name, val.name) {
        findings.warnings.push(format!(
            "{} is trained on and {} is for validation; by their names it should be the other way round",
            train.name, val.name
        ));
    }
    let (of_train, of_val) = (train.source.as_ref(), val.source.as_ref());
    let names: HashSet<String> = (0..of_train.len()).map(|index| of_train.name(index)).collect();
    let same: Vec<bool> = (0..of_val.len()).map(|index| names.contains(&of_val.name(index))).collect();
    drop(names);
    let all = of_train.len() + of_val.len() <= COMPARED;
    let open: Vec<usize> = match all {
        true => (0..of_val.len()).collect(),
        false => spread(of_val.len(), SAMPLE),
    };
    let open: Vec<usize> = open.into_iter().filter(|&index| !same[index]).collect();
    let copies = if open.is_empty() { Vec::new() } else { copies(of_train, of_val, &open, all, workers) };
    let first = same.iter().position(|&same| same).or(copies.first().copied());
    let count = same.iter().filter(|&&same| same).count() + copies.len();
    if let Some(first) = first {
        let bound = if all { "" } else { "at least " };
        findings.warnings.push(format!(
            "{bound}{count} of {} images of {} are images of {} too (first {}), so the result is better than on new images",
            of_val.len(),
            val.name,
            train.name,
            of_val.name(first)
        ));
    }
    findings
}

/// Those of `open` whose bytes are those of a training image.
fn copies(train: &dyn Source, val: &dyn Source, open: &[usize], all: bool, workers: usize) -> Vec<usize> {
    let content =
        |source: &dyn Source, index: usize| source.read(index).ok().map(|bytes| (bytes.len(), fnv1a(&bytes)));
    let candidates: Vec<usize> = match all {
        true => (0..train.len()).collect(),
        false => {
            let file = |name: &str| name.rsplit(['/', '\\', ':']).next().unwrap_or_default().to_owned();
            let mut wanted: HashMap<String, usize> =
                open.iter().map(|&index| (file(&val.name(index)), 0)).collect();
            let mut take = |index: &usize| match wanted.get_mut(&file(&train.name(*index))) {
                Some(taken) if *taken < NAMESAKES => {
                    *taken += 1;
                    true
                }
                _ => false,
            };
            (0..train.len()).filter(|index| take(index)).collect()
        }
    };
    if candidates.is_empty() {
        return Vec::new();
    }
    let known: HashSet<(usize, u64)> = parallel::map(&candidates, workers, |&index| content(train, index))
        .into_iter()
        .filter_map(|content| content.ok().flatten())
        .collect();
    let found = parallel::map(open, workers, |&index| content(val, index));
    let is_known = |content: &Result<Option<(usize, u64)>, String>| matches!(content, Ok(Some(content)) if known.contains(content));
    open.iter().zip(&found).filter(|(_, content)| is_known(content)).map(|(&index, _)| index).collect()
}
