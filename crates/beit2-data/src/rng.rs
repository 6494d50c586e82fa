//! Randomness as a pure function of `(seed, epoch, index, stream)`.
//!
//! A worker that needs random numbers asks for the generator of its key; nothing is carried over
//! from one sample to the next, so thread timing, the number of workers and interruptions cannot
//! change a batch. The draws ([`unit()`], [`below`], [`shuffle`]) are written out here instead of
//! taken from `rand`, because that crate may change its algorithms between versions and an old run
//! must still continue exactly.

use rand_chacha::ChaCha8Rng;
pub use rand_chacha::rand_core::Rng;
use rand_chacha::rand_core::SeedableRng;

/// What the random numbers are for. Streams of one sample or step are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RngStream {
    /// The order of an epoch.
    Order,
    /// Crop, flip and colour of one sample.
    Augment,
    /// The block mask of one sample.
    Mask,
    /// The sample that stands in for an unreadable one.
    Replace,
    /// The erased box of one sample and what fills it.
    Erase,
    /// How the samples of one batch are mixed.
    Mix,
    /// The vectors of one step that replace unused codes of the codebook.
    CodeRevival,
    /// The samples of one (micro-)batch that drop path leaves out.
    DropPath,
    /// The channels of one (micro-)batch that the dropout of a segmentation head leaves out.
    HeadDropout,
}

impl RngStream {
    /// The number in the seed. These values are part of what makes a run repeatable: never renumber
    /// them.
    fn code(self) -> u64 {
        match self {
            Self::Order => 1,
            Self::Augment => 2,
            Self::Mask => 3,
            Self::Replace => 4,
            Self::Erase => 5,
            Self::Mix => 6,
            Self::CodeRevival => (1 << 32) | 1,
            Self::DropPath => (1 << 32) | 2,
            Self::HeadDropout => (1 << 32) | 3,
        }
    }
}

/// Names one stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Seed of the run.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Sample number in the source, from 0 (0 for things that concern a whole epoch).
    pub index: u64,
    /// What the numbers are for.
    pub stream: RngStream,
}

impl Key {
    /// The generator of this key: ChaCha with 8 rounds, whose 32-byte seed is
    /// `seed | epoch | index | stream code`, each as 8 little-endian bytes.
    #[must_use]
    pub fn rng(&self) -> ChaCha8Rng {
        let mut bytes = [0; 32];
        let words = [self.seed, self.epoch, self.index, self.stream.code()];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(bytes)
    }
}

/// A uniform number in `[0, 1)` with 53 random bits.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A uniform number between `a` and `b`; `b` may lie below `a`.
pub fn uniform(rng: &mut impl Rng, a: f64, b: f64) -> f64 {
    a + (b - a) * unit(rng)
}

/// A uniform whole number in `[0, n)`, without bias; 0 when `n` is 0.
pub fn below(rng: &mut impl Rng, n: u64) -> u64 {
    if n == 0 {
        return 0;
    }
    // Why: the high half of a 128-bit product maps 64 random bits onto 0..n; the rejected low
    // halves are exactly those that would make some results more frequent than others (Lemire 2019,
    // "Fast random integer generation in an interval").
    let reject_below = n.wrapping_neg() % n;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        if product as u64 >= reject_below {
            return (product >> 64) as u64;
        }
    }
}

/// Two independent numbers of the standard normal distribution (Box and Muller 1958).
pub fn normal_pair(rng: &mut impl Rng) -> [f64; 2] {
    // Why 1 -: the logarithm needs (0, 1], `unit` gives [0, 1).
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * unit(rng)).sin_cos();
    [radius * cos, radius * sin]
}

/// Puts `items` into uniformly random order (Fisher-Yates from the end).
pub fn shuffle<T>(rng: &mut impl Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let other = below(rng, last as u64 + 1) as usize;
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { seed: 7, epoch: 3, index: 11, stream: RngStream::Mask };

    #[test]
    fn every_field_of_the_key_matters() {
        let first = |key: Key| key.rng().next_u64();
        let keys = [
            KEY,
            Key { seed: 8, ..KEY },
            Key { epoch: 4, ..KEY },
            Key { index: 12, ..KEY },
            Key { stream: RngStream::Augment, ..KEY },
            Key { stream: RngStream::Order, ..KEY },
            Key { stream: RngStream::Replace, ..KEY },
            Key { stream: RngStream::Erase, ..KEY },
            Key { stream: RngStream::Mix, ..KEY },
            Key { stream: RngStream::CodeRevival, ..KEY },
            Key { stream: RngStream::DropPath, ..KEY },
            Key { stream: RngStream::HeadDropout, ..KEY },
        ];
        let mut seen: Vec<u64> = keys.map(first).to_vec();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), keys.len());
    }

    #[test]
    fn streams_are_pinned() {
        // A change of these numbers means that no old run can be continued.
        let mut rng = KEY.rng();
        assert_eq!([rng.next_u64(), rng.next_u64()], PINNED);
        let training = [RngStream::CodeRevival, RngStream::DropPath, RngStream::HeadDropout];
        assert_eq!(training.map(RngStream::code), [0x1_0000_0001, 0x1_0000_0002, 0x1_0000_0003]);
    }

    const PINNED: [u64; 2] = [1_600_248_476_935_285_399, 10_326_807_527_572_334_570];

    #[test]
    fn draws_stay_in_range_and_are_even() {
        let mut rng = KEY.rng();
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            let u = unit(&mut rng);
            assert!((0.0..1.0).contains(&u));
            counts[below(&mut rng, 7) as usize] += 1;
        }
        // Each count is binomial with mean 10 000 and standard deviation 93; five of those.
        assert!(counts.iter().all(|&c| (9_537..=10_463).contains(&c)), "{counts:?}");
        assert_eq!(below(&mut rng, 0), 0);
        assert_eq!(below(&mut rng, 1), 0);
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let mut rng = KEY.rng();
        let n = 100_000;
        let values: Vec<f64> = (0..n / 2).flat_map(|_| normal_pair(&mut rng)).collect();
        let moment = |power| values.iter().map(|v| v.powi(power)).sum::<f64>() / f64::from(n);
        // Standard errors of these means: 1, sqrt(2), sqrt(15) and sqrt(96) over sqrt(n); five of those.
        for (power, expected, spread) in [(1, 0.0, 1.0), (2, 1.0, 1.42), (3, 0.0, 3.88), (4, 3.0, 9.8)] {
            let allowed = 5.0 * spread / f64::from(n).sqrt();
            assert!((moment(power) - expected).abs() < allowed, "moment {power}: {}", moment(power));
        }
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        shuffle(&mut KEY.rng(), &mut items);
        assert_ne!(items[..20], (0..20).collect::<Vec<_>>()[..]);
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
