//! Samples divided among machines: which of N parts has a sample is a function of its key alone.

use crate::fingerprint::fnv1a;
use crate::source::Source;

/// The part, from 0, of the sample with this key. Never changes: parts that were made by another version, on another system or
/// of other files of the same collection fit together.
#[must_use]
pub fn part_of(key: &str, parts: u32) -> u32 {
    // Names that differ in their last digits differ only in the low bits of FNV-1a times a prime; this finalizer
    // (MurmurHash3's) spreads them over all bits, of which the high ones choose the part.
    let mut hash = fnv1a(key.as_bytes());
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    ((u128::from(hash) * u128::from(parts)) >> 64) as u32
}

/// Numbers of the samples of a part, ascending.
#[must_use]
pub fn samples_of_part(source: &dyn Source, part: u32, parts: u32) -> Vec<usize> {
    (0..source.len()).filter(|&index| part_of(&source.key(index), parts) == part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FilesSource;

    #[test]
    fn parts_never_change() {
        let keys = ["", "a.jpg", "n01440764/n01440764_10026.JPEG", "shard-000001.tar:000042.jpg", "été.png"];
        let found = keys.map(|key| [1, 2, 7, 1024, u32::MAX].map(|parts| part_of(key, parts)));
        assert_eq!(found, EXPECTED);
    }

    /// Computed by another program (FNV-1a, MurmurHash3's finalizer, the high bits of the product).
    const EXPECTED: [[u32; 5]; 5] = [
        [0, 1, 6, 959, 4_023_394_143],
        [0, 0, 2, 351, 1_474_583_398],
        [0, 1, 3, 527, 2_214_547_357],
        [0, 1, 6, 970, 4_072_377_002],
        [0, 1, 4, 603, 2_529_946_720],
    ];

    #[test]
    fn every_sample_is_in_one_part_and_parts_are_about_equal() {
        let files = (0..10_000).map(|at| format!("photos/{at:06}.jpg").into()).collect();
        let source = FilesSource::new(files);
        for parts in [1, 3, 16, 100] {
            let mut seen = vec![0; source.len()];
            for part in 0..parts {
                let samples = samples_of_part(&source, part, parts);
                let (mean, count) = (10_000.0 / f64::from(parts), samples.len() as f64);
                // Five standard deviations of a binomial distribution.
                assert!((count - mean).abs() <= 5.0 * mean.sqrt(), "{count} of {mean}");
                samples.iter().for_each(|&at| seen[at] += 1);
            }
            assert!(seen.iter().all(|&times| times == 1));
        }
    }
}
