//! Which samples make up which batch: a pure function of seed, epoch and step.

use crate::error::LoaderError;
use crate::rng::{Key, RngStream, shuffle};

/// The order of every epoch, cut into batches and shared among processes.
///
/// A *global* batch is `batch * world_size` consecutive samples of the epoch's order, and each rank
/// takes its `batch` of them. So four processes with batch 64 see the same 256 samples per step as
/// one process with batch 256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochOrder {
    samples: u64,
    batch: u64,
    world_size: u64,
    rank: u64,
    seed: u64,
    shuffle: bool,
    drop_last: bool,
}

impl EpochOrder {
    /// An order over `samples` samples, not shuffled, on one process, that keeps an incomplete last
    /// batch.
    ///
    /// # Errors
    /// No samples, or a `batch` of 0.
    pub fn new(samples: u64, batch: u64) -> Result<Self, LoaderError> {
        if samples == 0 {
            return Err(LoaderError::EmptySource);
        }
        if batch == 0 {
            return Err(setting("batch", 0, "at least 1"));
        }
        Ok(Self { samples, batch, world_size: 1, rank: 0, seed: 0, shuffle: false, drop_last: false })
    }

    /// Shuffles each epoch anew, from `Key { seed, epoch, index: 0, stream: Order }`.
    #[must_use]
    pub fn shuffled(self, seed: u64) -> Self {
        Self { seed, shuffle: true, ..self }
    }

    /// Leaves an incomplete last global batch out.
    ///
    /// # Errors
    /// No batch would be left.
    pub fn dropping_last(self) -> Result<Self, LoaderError> {
        let order = Self { drop_last: true, ..self };
        order.check()
    }

    /// The samples of process `rank` out of `world_size`.
    ///
    /// # Errors
    /// A `rank` that is not below `world_size`, or no batch would be left.
    pub fn for_rank(self, rank: u64, world_size: u64) -> Result<Self, LoaderError> {
        if world_size == 0 {
            return Err(setting("world_size", 0, "at least 1"));
        }
        if rank >= world_size {
            return Err(setting("rank", rank, &format!("below world_size, {world_size}")));
        }
        Self { rank, world_size, ..self }.check()
    }

    fn check(self) -> Result<Self, LoaderError> {
        if self.steps_per_epoch() == 0 {
            let (global_batch, samples) = (self.global_batch(), self.samples);
            return Err(LoaderError::BatchTooLarge { global_batch, samples });
        }
        Ok(self)
    }

    fn global_batch(&self) -> u64 {
        self.batch.saturating_mul(self.world_size)
    }

    /// Steps in every epoch; the same for all ranks.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        let full = self.samples / self.global_batch();
        if self.drop_last { full } else { self.samples.div_ceil(self.global_batch()) }
    }

    /// Samples this rank sees in one epoch.
    #[must_use]
    pub fn samples_per_epoch(&self) -> u64 {
        (0..self.steps_per_epoch()).next_back().map_or(0, |last| {
            let (start, end) = self.range(last);
            last * self.batch + (end - start)
        })
    }

    /// The whole epoch's order, for all ranks. Shape `[samples]`, each sample number once.
    #[must_use]
    pub fn permutation(&self, epoch: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..self.samples).collect();
        if self.shuffle {
            let key = Key { seed: self.seed, epoch, index: 0, stream: RngStream::Order };
            shuffle(&mut key.rng(), &mut order);
        }
        order
    }

    /// This rank's part of [`Self::permutation`] at a step, as `start..end`; empty past the end of
    /// the epoch.
    ///
    /// An incomplete last global batch is split as evenly as it goes, so a rank can get an empty
    /// batch there when fewer samples are left than there are ranks.
    #[must_use]
    pub fn range(&self, step: u64) -> (u64, u64) {
        let start = step.saturating_mul(self.global_batch()).min(self.samples);
        let left = (self.samples - start).min(self.global_batch());
        if step >= self.steps_per_epoch() {
            return (start, start);
        }
        // Why 128 bits: ranks times samples may not fit into 64.
        let cut =
            |rank: u64| start + (u128::from(left) * u128::from(rank) / u128::from(self.world_size)) as u64;
        (cut(self.rank), cut(self.rank + 1))
    }
}

pub(crate) fn setting(name: &'static str, value: impl ToString, expected: &str) -> LoaderError {
    LoaderError::Setting { name, value: value.to_string(), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_sample_once_per_epoch(samples in 1u64..200, batch in 1u64..40, world in 1u64..5, epoch: u64, seed: u64) {
            let base = EpochOrder::new(samples, batch).unwrap().shuffled(seed);
            let mut seen = Vec::new();
            let mut per_rank = 0;
            for rank in 0..world {
                let order = base.clone().for_rank(rank, world).unwrap();
                let whole = order.permutation(epoch);
                let before = seen.len();
                for step in 0..order.steps_per_epoch() {
                    let (start, end) = order.range(step);
                    prop_assert!(end - start <= batch);
                    seen.extend_from_slice(&whole[start as usize..end as usize]);
                }
                prop_assert_eq!((seen.len() - before) as u64, order.samples_per_epoch());
                per_rank += order.samples_per_epoch();
            }
            prop_assert_eq!(per_rank, samples);
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..samples).collect::<Vec<_>>());
        }

        #[test]
        fn world_size_does_not_change_the_global_batch(batches in 1u64..9, seed: u64) {
            let one = EpochOrder::new(batches * 12 + 5, 12).unwrap().shuffled(seed).dropping_last().unwrap();
            let four: Vec<_> = (0..4).map(|rank| {
                EpochOrder::new(batches * 12 + 5, 3).unwrap().shuffled(seed).dropping_last().unwrap().for_rank(rank, 4).unwrap()
            }).collect();
            prop_assert_eq!(one.steps_per_epoch(), batches);
            for step in 0..batches {
                let (start, end) = one.range(step);
                prop_assert_eq!(four[0].range(step).0, start);
                prop_assert_eq!(four[3].range(step).1, end);
                for pair in four.windows(2) {
                    prop_assert_eq!(pair[0].range(step).1, pair[1].range(step).0);
                }
            }
        }
    }

    #[test]
    fn epochs_differ_and_repeat() {
        let order = EpochOrder::new(50, 10).unwrap().shuffled(1);
        assert_ne!(order.permutation(0), order.permutation(1));
        assert_eq!(order.permutation(1), order.permutation(1));
        assert_eq!(EpochOrder::new(3, 1).unwrap().permutation(9), [0, 1, 2]);
    }

    #[test]
    fn impossible_orders_are_named() {
        assert_eq!(EpochOrder::new(0, 4), Err(LoaderError::EmptySource));
        assert!(EpochOrder::new(4, 0).is_err());
        let error = EpochOrder::new(100, 256).unwrap().dropping_last().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a batch of 256 does not fit into 100 samples when incomplete batches are dropped; use a batch of at most 100"
        );
        assert!(EpochOrder::new(100, 60).unwrap().dropping_last().unwrap().for_rank(0, 2).is_err());
        assert!(EpochOrder::new(100, 60).unwrap().for_rank(2, 2).is_err());
    }
}
