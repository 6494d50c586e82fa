//! Which images are set aside for validation, when there is no validation set.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use beit2_data::Source;
use beit2_data::segment::SegmentSource;
use serde_json::json;

/// Part of the images that is set aside.
pub const SHARE: f64 = 0.15;
/// Most images that are set aside.
pub const MOST: usize = 5000;
/// Neighbours by name that stay together where images are not compared.
const BLOCK: usize = 20;

/// Whether each image is for validation. Images of a group stay together; of each class (a stratum; all images are one where
/// there are no labels) about [`SHARE`] are set aside, at least one of three, and never a whole class.
pub fn split(group: &[usize], stratum: &[u64], seed: u64) -> Vec<bool> {
    let count = group.len();
    let share = SHARE.min(MOST as f64 / count.max(1) as f64);
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut sizes: HashMap<u64, usize> = HashMap::new();
    for at in 0..count {
        groups.entry(group[at]).or_default().push(at);
        *sizes.entry(stratum[at]).or_default() += 1;
    }
    let wanted = |stratum: u64| match sizes.get(&stratum).copied().unwrap_or(0) {
        0..3 => 0,
        images => ((images as f64 * share).round() as usize).max(1),
    };
    let mut order: Vec<(u64, usize)> =
        groups.keys().map(|&first| (mixed(seed, first as u64), first)).collect();
    order.sort_unstable();
    let mut taken: HashMap<u64, usize> = HashMap::new();
    let mut is_val = vec![false; count];
    for (_, first) in order {
        let members = &groups[&first];
        // Near-duplicates with different labels count for each of their classes.
        let mut adds: HashMap<u64, usize> = HashMap::new();
        members.iter().for_each(|&at| *adds.entry(stratum[at]).or_default() += 1);
        let fits = adds.iter().all(|(class, more)| {
            let (have, want) = (taken.get(class).copied().unwrap_or(0), wanted(*class));
            have + more <= want
        });
        if fits {
            adds.into_iter().for_each(|(class, more)| *taken.entry(class).or_default() += more);
            members.iter().for_each(|&at| is_val[at] = true);
        }
    }
    is_val
}

/// Groups of neighbours by name: frames of one video and shots of one series mostly follow each other.
pub fn blocks(count: usize) -> Vec<usize> {
    (0..count).map(|at| at / BLOCK * BLOCK).collect()
}

/// SplitMix64: an order that depends on the seed and on nothing else.
fn mixed(seed: u64, at: u64) -> u64 {
    let mut x = seed
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(at.wrapping_add(1).wrapping_mul(0xBF58_476D_1CE4_E5B9));
    for factor in [0xBF58_476D_1CE4_E5B9u64, 0x94D0_49BB_1331_11EB] {
        x = (x ^ (x >> 30)).wrapping_mul(factor);
    }
    x ^ (x >> 31)
}

/// The strata of a source: a class, or a set of classes, each.
pub fn strata(source: &dyn Source) -> Vec<u64> {
    let mut known: HashMap<Option<Vec<u32>>, u64> = HashMap::new();
    let number = |at| {
        let next = known.len() as u64;
        *known.entry(source.labels(at)).or_insert(next)
    };
    (0..source.len()).map(number).collect()
}

/// Whether a table can list the images: each is a file of its own with a name that JSON can hold.
pub fn can_be_listed(source: &dyn Source) -> bool {
    let file = |at: usize| source.name_bytes(at).is_none() && Path::new(&source.name(at)).is_file();
    let len = source.len();
    len > 0
        && (0..len).all(|at| source.name_bytes(at).is_none())
        && [0, len / 2, len - 1].into_iter().all(file)
}

/// Writes the images for which `wanted` is true as a table of paths and labels.
pub fn write_images(
    file: &mut impl Write,
    source: &dyn Source,
    wanted: impl Fn(usize) -> bool,
) -> anyhow::Result<()> {
    let classes = source.classes();
    let name = |label: u32| classes.get(label as usize).cloned().unwrap_or_else(|| label.to_string());
    for at in (0..source.len()).filter(|&at| wanted(at)) {
        let path = absolute(&source.name(at))?;
        let labels = source.labels(at).map(|labels| labels.into_iter().map(name).collect::<Vec<_>>());
        let row = match (labels, source.is_multi_label()) {
            (None, _) => json!({ "file_name": path }),
            (Some(labels), true) => json!({ "file_name": path, "label": labels }),
            (Some(labels), false) => json!({ "file_name": path, "label": labels.first() }),
        };
        writeln!(file, "{row}")?;
    }
    Ok(())
}

/// The same for images with masks.
pub fn write_pairs(
    file: &mut impl Write,
    source: &SegmentSource,
    wanted: impl Fn(usize) -> bool,
) -> anyhow::Result<()> {
    for at in (0..source.len()).filter(|&at| wanted(at)) {
        let (image, mask) = (absolute(&source.name(at))?, absolute(&source.mask_name(at))?);
        writeln!(file, "{}", json!({ "image": image, "mask": mask }))?;
    }
    Ok(())
}

fn absolute(path: &str) -> anyhow::Result<String> {
    Ok(std::path::absolute(path)?.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(is_val: &[bool], stratum: &[u64]) -> Vec<usize> {
        let classes = stratum.iter().max().unwrap() + 1;
        (0..classes)
            .map(|class| (0..is_val.len()).filter(|&at| is_val[at] && stratum[at] == class).count())
            .collect()
    }

    #[test]
    fn each_class_gives_its_share() {
        // Classes of 200, 40, 3 and 2 images.
        let stratum: Vec<u64> = [(0, 200), (1, 40), (2, 3), (3, 2)]
            .into_iter()
            .flat_map(|(class, count)| std::iter::repeat_n(class, count))
            .collect();
        let group: Vec<usize> = (0..stratum.len()).collect();
        let is_val = split(&group, &stratum, 0);
        assert_eq!(counts(&is_val, &stratum), [30, 6, 1, 0]);
        assert_eq!(is_val, split(&group, &stratum, 0));
        assert_ne!(is_val, split(&group, &stratum, 1));
    }

    #[test]
    fn groups_stay_together() {
        let group: Vec<usize> = (0..300).map(|at| at / 5 * 5).collect();
        let is_val = split(&group, &[0; 300], 3);
        assert_eq!(counts(&is_val, &[0; 300]), [45]);
        assert!((0..300).all(|at| is_val[at] == is_val[group[at]]));
        // One group is everything: nothing can be set aside.
        assert!(!split(&[0; 50], &[0; 50], 0).contains(&true));
    }

    #[test]
    fn large_sets_give_a_bounded_number() {
        let group = blocks(100_000);
        let is_val = split(&group, &vec![0; 100_000], 0);
        assert_eq!(counts(&is_val, &vec![0; 100_000]), [MOST]);
        assert!((0..100_000).all(|at| is_val[at] == is_val[group[at]]));
    }
}
