//! Which samples make up which batch: a pure function of seed, epoch and step.

use crate::error::LoaderError;
use crate::rng::{Key, RngStream, below, shuffle};

/// Bits of a slot that are the sample's number; the bits above count its copies in one epoch.
const SAMPLE_BITS: u32 = 40;

/// The sample's number in a slot: a sample that an epoch has several times has one slot for each.
#[must_use]
pub fn sample_of(slot: u64) -> u64 {
    slot & ((1 << SAMPLE_BITS) - 1)
}

/// Runs of samples that are read together, such as the row groups of a parquet file.
///
/// The runs are shuffled as wholes. Then each sample moves back by a random distance of less than `window` runs. So a run is
/// in use from its place in the order to `window` places behind it, and the next one is needed only when one is done with:
/// reading is spread evenly over the epoch. Samples outside all runs can come anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    /// First sample and the end of each run, ascending.
    pub runs: Vec<(u64, u64)>,
    /// Runs that are in use at the same time, at least 1.
    pub window: usize,
}

/// Samples that an epoch has more or less often than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Number of the first one.
    pub start: u64,
    /// How many there are.
    pub len: u64,
    /// How often an epoch has each of them.
    pub copies: u64,
    /// How many of them it has once more. Each epoch continues where the last one stopped, in a shuffled order.
    pub extra: u64,
}

impl Part {
    /// `len` samples from `start` on, `weight` times in each epoch on average.
    #[must_use]
    pub fn weighted(start: u64, len: u64, weight: f64) -> Self {
        let whole = weight.max(0.0).floor();
        let extra = ((weight.max(0.0) - whole) * len as f64).round() as u64;
        let copies = whole as u64 + extra / len.max(1);
        Self { start, len, copies, extra: extra % len.max(1) }
    }

    /// Samples of an epoch.
    #[must_use]
    pub fn per_epoch(&self) -> u64 {
        self.len.saturating_mul(self.copies).saturating_add(self.extra)
    }
}

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
    parts: Vec<Part>,
    units: Option<Units>,
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
        Ok(Self {
            samples,
            batch,
            world_size: 1,
            rank: 0,
            seed: 0,
            shuffle: false,
            drop_last: false,
            parts: Vec::new(),
            units: None,
        })
    }

    /// An order over samples that an epoch has more or less often than once.
    ///
    /// # Errors
    /// No samples in an epoch, or a `batch` of 0.
    pub fn of_parts(parts: Vec<Part>, batch: u64) -> Result<Self, LoaderError> {
        let samples = parts.iter().map(Part::per_epoch).fold(0, u64::saturating_add);
        Ok(Self { parts, ..Self::new(samples, batch)? })
    }

    /// Shuffles so that samples of a run come near each other.
    #[must_use]
    pub fn in_units(self, units: Option<Units>) -> Self {
        Self { units, ..self }
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

    /// The whole epoch's order, for all ranks: slots, of which [`sample_of`] gives the samples. Shape `[samples]`;
    /// without parts, each sample number once.
    #[must_use]
    pub fn permutation(&self, epoch: u64) -> Vec<u64> {
        let mut order: Vec<u64> = match self.parts.is_empty() {
            true => (0..self.samples).collect(),
            false => {
                self.parts.iter().enumerate().flat_map(|(at, part)| self.slots(at, part, epoch)).collect()
            }
        };
        if self.shuffle {
            let key = Key { seed: self.seed, epoch, index: 0, stream: RngStream::Order };
            match &self.units {
                Some(units) => order = units.shuffled(order, &mut key.rng()),
                None => shuffle(&mut key.rng(), &mut order),
            }
        }
        order
    }

    /// Slots of one part: whole copies, then the next `extra` samples of its own endless shuffled order.
    fn slots(&self, at: usize, part: &Part, epoch: u64) -> Vec<u64> {
        let slot = |copy: u64, sample: u64| (copy << SAMPLE_BITS) | (part.start + sample);
        let mut slots: Vec<u64> =
            (0..part.copies).flat_map(|copy| (0..part.len).map(move |sample| slot(copy, sample))).collect();
        let mut round: Option<(u64, Vec<u64>)> = None;
        let begin = u128::from(epoch) * u128::from(part.extra);
        for place in begin..begin + u128::from(part.extra) {
            let number = (place / u128::from(part.len)) as u64;
            if round.as_ref().is_none_or(|(drawn, _)| *drawn != number) {
                let mut samples: Vec<u64> = (0..part.len).collect();
                if self.shuffle {
                    let index = at as u64 + 1;
                    let key = Key { seed: self.seed, epoch: number, index, stream: RngStream::Order };
                    shuffle(&mut key.rng(), &mut samples);
                }
                round = Some((number, samples));
            }
            // A sample can end one round and begin the next within an epoch: two copies.
            let copy = part.copies + u64::from(number > (begin / u128::from(part.len)) as u64);
            let sample =
                round.as_ref().map_or(0, |(_, order)| order[(place % u128::from(part.len)) as usize]);
            slots.push(slot(copy, sample));
        }
        slots
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

impl Units {
    /// Shuffles runs, then moves each sample back by less than a window of runs.
    fn shuffled(&self, order: Vec<u64>, rng: &mut impl crate::rng::Rng) -> Vec<u64> {
        /// Distances are in parts of a run, fine enough that few samples of a run get the same one.
        const RUN: u64 = 1 << 32;
        let run_of = |slot: u64| {
            let sample = sample_of(slot);
            let run = self.runs.partition_point(|(start, _)| *start <= sample).checked_sub(1)?;
            (sample < self.runs[run].1).then_some(run)
        };
        let mut runs: Vec<Vec<u64>> = vec![Vec::new(); self.runs.len()];
        let mut alone = Vec::new();
        for slot in order {
            match run_of(slot) {
                Some(run) => runs[run].push(slot),
                None => alone.push(slot),
            }
        }
        runs.retain(|run| !run.is_empty());
        shuffle(rng, &mut runs);
        // The order is a circle: the last runs also fill its beginning, which would mix fewer runs otherwise.
        let circle = (runs.len() as u64).max(1) * RUN;
        let window = (self.window.max(1) as u64).saturating_mul(RUN).min(circle);
        let mut placed: Vec<(u64, u64)> =
            Vec::with_capacity(alone.len() + runs.iter().map(Vec::len).sum::<usize>());
        for (place, run) in (0..).zip(&runs) {
            placed.extend(run.iter().map(|&slot| ((place * RUN + below(rng, window)) % circle, slot)));
        }
        placed.extend(alone.into_iter().map(|slot| (below(rng, circle), slot)));
        placed.sort_unstable();
        placed.into_iter().map(|(_, slot)| slot).collect()
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
    fn runs_stay_together_and_still_mix() {
        let units = Units { runs: (0..20).map(|run| (run * 10, run * 10 + 10)).collect(), window: 4 };
        let order = EpochOrder::new(230, 10).unwrap().shuffled(3).in_units(Some(units));
        let whole = order.permutation(1);
        let mut sorted = whole.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..230).collect::<Vec<_>>());
        // Samples 200 to 229 are in no run: they lie between the others.
        let runs: Vec<u64> = whole.iter().filter(|&&sample| sample < 200).map(|sample| sample / 10).collect();
        for run in 0..20 {
            // The places of a run on the circle: all but one gap between them are smaller than the window.
            let places: Vec<usize> = (0..200).filter(|&place| runs[place] == run).collect();
            let next = places.iter().skip(1).copied().chain([places[0] + 200]);
            let gap = places.iter().zip(next).map(|(place, next)| next - place).max().unwrap();
            assert!(200 - gap <= 4 * 10 + 15, "run {run}: {places:?}");
        }
        for (at, window) in runs.windows(20).enumerate() {
            let distinct = window.iter().collect::<std::collections::BTreeSet<_>>().len();
            assert!(distinct >= 3, "at {at}: {window:?}");
            assert!(window.windows(2).filter(|pair| pair[0] == pair[1]).count() < 12, "at {at}: {window:?}");
        }
        let halves = whole.chunks(115).map(|half| half.iter().filter(|&&sample| sample >= 200).count());
        assert!(halves.clone().all(|count| count > 4), "{:?}", halves.collect::<Vec<_>>());
        assert_ne!(order.permutation(2), whole);
    }

    #[test]
    fn few_runs_are_shuffled_as_one() {
        let units = Units { runs: vec![(0, 500), (500, 1000)], window: 32 };
        let whole = EpochOrder::new(1000, 10).unwrap().shuffled(3).in_units(Some(units)).permutation(0);
        let early = whole[..100].iter().filter(|&&sample| sample < 500).count();
        assert!((30..=70).contains(&early), "{early}");
    }

    #[test]
    fn weights_say_how_often_a_sample_comes() {
        assert_eq!(Part::weighted(5, 10, 2.5), Part { start: 5, len: 10, copies: 2, extra: 5 });
        assert_eq!(Part::weighted(5, 3, 0.999), Part { start: 5, len: 3, copies: 1, extra: 0 });
        let parts =
            vec![Part::weighted(0, 10, 2.0), Part::weighted(10, 100, 0.3), Part::weighted(110, 4, 0.0)];
        let order = EpochOrder::of_parts(parts, 10).unwrap().shuffled(7);
        assert_eq!(order.steps_per_epoch(), 5);
        let mut seen = vec![0; 114];
        for epoch in 0..10 {
            let whole = order.permutation(epoch);
            assert_eq!(whole.len(), 50);
            let distinct: std::collections::BTreeSet<u64> = whole.iter().copied().collect();
            assert_eq!(distinct.len(), 50, "each slot has its own random numbers");
            whole.iter().for_each(|&slot| seen[sample_of(slot) as usize] += 1);
        }
        assert!(seen[..10].iter().all(|&count| count == 20));
        assert!(seen[10..110].iter().all(|&count| count == 3), "each of them equally often: {seen:?}");
        assert!(seen[110..].iter().all(|&count| count == 0));
        assert!(EpochOrder::of_parts(vec![Part::weighted(0, 9, 0.0)], 1).is_err());
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
