//! The part of the training images on which a learning rate is chosen.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;

use crate::classify::Features;
use crate::init::generator;

/// Share of a class's training images that is held out to choose a learning rate.
const HELD_OUT: f64 = 0.2;

/// Images of `features` to train on and held-out ones, in ascending order: of every class a fifth is held out, but at least
/// one image, and one stays. A class of one image has none held out. `None` when that leaves nothing held out.
///
/// An image of several classes counts as one of its rarest class; of those without a class a fifth is held out as well.
pub(super) fn split(features: &Features, seed: u64) -> Option<[Vec<i32>; 2]> {
    let mut groups: BTreeMap<Option<u32>, Vec<i32>> = BTreeMap::new();
    let rarest = rarest_classes(features);
    for (image, class) in rarest.into_iter().enumerate() {
        groups.entry(class).or_default().push(image as i32);
    }
    let mut rng = generator(seed, "linear probe split");
    let (mut kept, mut held_out) = (Vec::new(), Vec::new());
    // Images without any class say nothing by themselves.
    let mut labelled = 0;
    for (class, mut images) in groups {
        images.shuffle(&mut rng);
        let count = match images.len() {
            1 => 0,
            n => ((n as f64 * HELD_OUT).round() as usize).max(1),
        };
        labelled += if class.is_some() { count } else { 0 };
        kept.extend(images.split_off(count));
        held_out.extend(images);
    }
    kept.sort_unstable();
    held_out.sort_unstable();
    (labelled > 0).then_some([kept, held_out])
}

/// Each image's class, or of several classes the one that the fewest images have; `None` for an image without.
fn rarest_classes(features: &Features) -> Vec<Option<u32>> {
    let Some(sets) = &features.sets else { return features.labels.iter().copied().map(Some).collect() };
    let mut counts = vec![0usize; features.classes];
    sets.iter().flatten().for_each(|&class| counts[class as usize] += 1);
    sets.iter().map(|set| set.iter().copied().min_by_key(|&class| (counts[class as usize], class))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of_labels(labels: &[u32]) -> Features {
        Features { values: vec![0.0; labels.len()], dim: 1, labels: labels.to_vec(), sets: None, classes: 4 }
    }

    #[test]
    fn a_fifth_of_every_class_is_held_out() {
        let labels: Vec<u32> = [vec![0; 100], vec![1; 10], vec![2; 2], vec![3; 1]].concat();
        let features = of_labels(&labels);
        let [kept, held_out] = split(&features, 0).unwrap();
        let count = |part: &[i32], class| part.iter().filter(|&&at| labels[at as usize] == class).count();
        assert_eq!([0, 1, 2, 3].map(|class| count(&held_out, class)), [20, 2, 1, 0]);
        assert_eq!([0, 1, 2, 3].map(|class| count(&kept, class)), [80, 8, 1, 1]);
        let mut all = [kept.clone(), held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..113).collect::<Vec<_>>());
        assert_eq!(split(&features, 0).unwrap(), [kept, held_out.clone()]);
        assert_ne!(split(&features, 1).unwrap()[1], held_out);
    }

    #[test]
    fn one_image_per_class_cannot_be_split() {
        assert!(split(&of_labels(&[0, 1]), 0).is_none());
        assert!(split(&of_labels(&[0, 1, 2, 3]), 0).is_none());
        assert_eq!(split(&of_labels(&[2, 2]), 0).unwrap().map(|part| part.len()), [1, 1]);
    }

    #[test]
    fn images_of_several_classes_count_for_the_rarest() {
        let mut sets = vec![vec![0]; 10];
        sets.extend([vec![0, 1], vec![0, 1], vec![], vec![]]);
        let features = Features { sets: Some(sets.clone()), ..of_labels(&[0; 14]) };
        let [_, held_out] = split(&features, 0).unwrap();
        let held_out: Vec<&Vec<u32>> = held_out.iter().map(|&at| &sets[at as usize]).collect();
        for (set, expected) in [(&vec![0], 2), (&vec![0, 1], 1), (&vec![], 1)] {
            assert_eq!(held_out.iter().filter(|&&held| held == set).count(), expected, "{set:?}");
        }
        let none = Features { sets: Some(vec![vec![0], vec![], vec![], vec![]]), ..of_labels(&[0; 4]) };
        assert!(split(&none, 0).is_none());
    }
}
