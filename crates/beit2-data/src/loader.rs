//! Ordered, threaded, resumable batches.
//!
//! Sample numbers go out to worker threads in the order of the epoch; each worker reads, decodes
//! and hands the image to the caller's work function; results come back in order. Because every
//! random draw is keyed by `(seed, epoch, sample number)`, neither the number of workers nor an
//! interruption can change a batch.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;

use crate::cache::{CacheLimit, ImageCache};
use crate::decode::DecodeOptions;
use crate::encoded::EncodedImage;
use crate::error::LoaderError;
use crate::order::{EpochOrder, sample_of, setting};
use crate::pool::{Outcome, Pool, guarded};
use crate::sample::{BadCount, Prepared, Preparer};
pub use crate::sample::{EncodedWork, Replaced, SampleInfo, Work};
use crate::source::Source;

/// Most worker threads; more is a typing mistake.
const MAX_WORKERS: usize = 1024;

/// A place in the stream of batches: the next batch to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch within the epoch, from 0.
    pub step: u64,
}

/// Settings of a [`Loader`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Samples per batch (of this rank). Default 64.
    pub batch: usize,
    /// Worker threads; 0 does the work inside `next()`. Default 2.
    pub workers: usize,
    /// Batches to prefetch; with the batch size this bounds the memory. Default 2.
    pub prefetch_batches: usize,
    /// Seed of the run. Default 0.
    pub seed: u64,
    /// Whether each epoch has its own random order. Default true.
    pub shuffle: bool,
    /// Whether an incomplete last batch is left out. Default true, as in the reference's training.
    pub drop_last: bool,
    /// First batch to deliver. Default: the beginning.
    pub start: Position,
    /// Unusable samples already counted in the epoch of `start`, from [`Batch::bad_in_epoch`] of
    /// the last batch before the interruption, so that stopping and resuming cannot hide them.
    /// Default 0.
    pub bad_before_start: u64,
    /// Number of epochs counted from epoch 0 (not from `start`); `None` never ends. Default `None`.
    pub epochs: Option<u64>,
    /// Processes that share the data. Default 1.
    pub world_size: u64,
    /// This process, from 0. Default 0.
    pub rank: u64,
    /// DecodeOptions on decoding.
    pub decode: DecodeOptions,
    /// Images whose shorter side has fewer pixels count as unusable. Default 0: all are accepted
    /// and enlarged where needed, as the reference does.
    pub min_side_px: u32,
    /// Unusable samples allowed per epoch, as a share of the samples this rank sees in it; unless it is 0, at
    /// least one is allowed. Default 0.01.
    pub max_bad_fraction: f64,
    /// Whether another sample stands in for an unusable one, so that batches keep their size. Otherwise it is left
    /// out and its batch is smaller, or empty: for measurements, which must not count an image twice. Default true.
    pub replace: bool,
    /// Whether images stay in memory once they are decoded, and how much of it they may take. Does not change the batches.
    /// Default: they do not.
    pub cache: CacheLimit,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch: 64,
            workers: 2,
            prefetch_batches: 2,
            seed: 0,
            shuffle: true,
            drop_last: true,
            start: Position::default(),
            bad_before_start: 0,
            epochs: None,
            world_size: 1,
            rank: 0,
            decode: DecodeOptions::default(),
            min_side_px: 0,
            max_bad_fraction: 0.01,
            replace: true,
            cache: CacheLimit::Off,
        }
    }
}

impl LoaderConfig {
    pub(crate) fn order(&self, source: &dyn Source) -> Result<EpochOrder, LoaderError> {
        if self.workers > MAX_WORKERS {
            return Err(setting("workers", self.workers, "0 to 1024"));
        }
        if self.prefetch_batches == 0 {
            return Err(setting("prefetch_batches", 0, "at least 1"));
        }
        if !(0.0..=1.0).contains(&self.max_bad_fraction) {
            return Err(setting(
                "max_bad_fraction",
                self.max_bad_fraction,
                "from 0 to 1 (0.01 is 1 % of an epoch)",
            ));
        }
        let (parts, batch) = (source.parts(), self.batch as u64);
        let mut order = match parts.is_empty() {
            true => EpochOrder::new(source.len() as u64, batch)?,
            false => EpochOrder::of_parts(parts, batch)?,
        };
        order = order.in_units(source.units());
        if self.shuffle {
            order = order.shuffled(self.seed);
        }
        if self.drop_last {
            order = order.dropping_last()?;
        }
        order.for_rank(self.rank, self.world_size)
    }
}

/// One batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<T> {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch within the epoch, from 0.
    pub step: u64,
    /// Whether the next batch belongs to the next epoch.
    pub last_in_epoch: bool,
    /// Numbers of the samples whose images are in the batch (stand-ins included). Shape `[B]`.
    pub indices: Vec<u64>,
    /// Results of the work function. Shape `[B]`.
    pub items: Vec<T>,
    /// Classes of the images. Shape `[B]`.
    pub labels: Vec<Option<u32>>,
    /// Unusable samples met in this batch.
    pub replaced: Vec<Replaced>,
    /// Unusable samples of this epoch up to and including this batch; see
    /// [`LoaderConfig::bad_before_start`].
    pub bad_in_epoch: u64,
}

impl<T> Batch<T> {
    /// Where to start a loader that continues behind this batch.
    #[must_use]
    pub fn next_position(&self) -> Position {
        if self.last_in_epoch {
            Position { epoch: self.epoch + 1, step: 0 }
        } else {
            Position { epoch: self.epoch, step: self.step + 1 }
        }
    }

    /// What to pass as [`LoaderConfig::bad_before_start`] together with [`Self::next_position`].
    #[must_use]
    pub fn bad_before_next(&self) -> u64 {
        if self.last_in_epoch { 0 } else { self.bad_in_epoch }
    }
}

/// Iterator over batches in order. After an error it ends. Dropping it stops and joins the workers,
/// at any moment.
pub struct Loader<T> {
    order: EpochOrder,
    preparer: Arc<Preparer<T>>,
    pool: Option<Pool<(u64, u64), Prepared<T>>>,
    prefetch: usize,
    epochs: Option<u64>,
    /// The next batch to hand to the workers.
    to_submit: Position,
    /// Order of the epoch of `to_submit`, once drawn.
    permutation: Option<(u64, Vec<u64>)>,
    /// Batches the workers have, oldest first.
    pending: VecDeque<Pending>,
    /// Number of the next job.
    next_job: u64,
    bad: BadCount,
    finished: bool,
}

struct Pending {
    at: Position,
    slots: Vec<u64>,
    first_job: u64,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts the workers on the first batches.
    ///
    /// # Errors
    /// A setting out of range, an empty source, a batch that no epoch fills, a `start` outside an epoch.
    pub fn new<E: Display + 'static>(
        config: LoaderConfig,
        source: Arc<dyn Source>,
        work: Work<T, E>,
    ) -> Result<Self, LoaderError> {
        let whole = move |image: &EncodedImage<'_>, info: &SampleInfo| {
            let image = image.whole().map_err(|error| error.to_string())?;
            work(&image, info).map_err(|error| error.to_string())
        };
        Self::of_encoded(config, source, Arc::new(whole))
    }

    /// As [`Self::new`], with a work function that asks for the part of an image that it needs; only that part of a JPEG is
    /// decoded.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_encoded<E: Display + 'static>(
        config: LoaderConfig,
        source: Arc<dyn Source>,
        work: EncodedWork<T, E>,
    ) -> Result<Self, LoaderError> {
        let order = config.order(source.as_ref())?;
        let steps = order.steps_per_epoch();
        let Position { epoch, step } = config.start;
        if step > steps {
            return Err(LoaderError::StartOutside { epoch, step, steps });
        }
        let at_end = step == steps;
        let to_submit = if at_end { Position { epoch: epoch + 1, step: 0 } } else { config.start };
        let bad_before = if to_submit.step > 0 { config.bad_before_start } else { 0 };
        let bad =
            BadCount::new(config.max_bad_fraction, order.samples_per_epoch(), to_submit.epoch, bad_before);
        let cache = ImageCache::of(&source, &config.decode, config.cache);
        let preparer = Arc::new(Preparer {
            source,
            decode: config.decode,
            min_side_px: config.min_side_px,
            seed: config.seed,
            replace: config.replace,
            cache,
            work: Box::new(move |image, info| work(image, info).map_err(|error| error.to_string())),
        });
        let pool = match config.workers {
            0 => None,
            n => {
                let preparer = preparer.clone();
                let pool = Pool::start(n, move |(epoch, slot)| preparer.prepare(epoch, slot));
                Some(pool.map_err(|error| LoaderError::Spawn(error.to_string()))?)
            }
        };
        let mut loader = Self {
            order,
            preparer,
            pool,
            // Without workers nothing can be prefetched, and the batch at hand is the only one.
            prefetch: if config.workers == 0 { 1 } else { config.prefetch_batches },
            epochs: config.epochs,
            to_submit,
            permutation: None,
            pending: VecDeque::new(),
            next_job: 0,
            bad,
            finished: false,
        };
        loader.submit_ahead();
        Ok(loader)
    }

    /// Batches in every epoch.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.order.steps_per_epoch()
    }

    /// Where the next batch stands.
    #[must_use]
    pub fn position(&self) -> Position {
        self.pending.front().map_or(self.to_submit, |pending| pending.at)
    }

    /// Keeps the workers supplied with the next batches.
    fn submit_ahead(&mut self) {
        while self.pending.len() < self.prefetch
            && self.epochs.is_none_or(|epochs| self.to_submit.epoch < epochs)
        {
            let at = self.to_submit;
            if self.permutation.as_ref().is_none_or(|(epoch, _)| *epoch != at.epoch) {
                self.permutation = Some((at.epoch, self.order.permutation(at.epoch)));
            }
            let (start, end) = self.order.range(at.step);
            let whole = self.permutation.as_ref().map_or(&[][..], |(_, order)| order);
            let slots = whole[start as usize..end as usize].to_vec();
            let first_job = self.next_job;
            self.next_job += slots.len() as u64;
            if let Some(pool) = &self.pool {
                pool.submit(slots.iter().zip(first_job..).map(|(&slot, job)| (job, (at.epoch, slot))));
            }
            self.pending.push_back(Pending { at, slots, first_job });
            self.to_submit = match at.step + 1 {
                step if step < self.order.steps_per_epoch() => Position { step, ..at },
                _ => Position { epoch: at.epoch + 1, step: 0 },
            };
        }
    }

    /// Waits for the samples of one batch.
    fn collect(&mut self, pending: &Pending) -> Result<Batch<T>, LoaderError> {
        let Position { epoch, step } = pending.at;
        let size = pending.slots.len();
        let mut batch = Batch {
            epoch,
            step,
            last_in_epoch: step + 1 == self.order.steps_per_epoch(),
            indices: Vec::with_capacity(size),
            items: Vec::with_capacity(size),
            labels: Vec::with_capacity(size),
            replaced: Vec::new(),
            bad_in_epoch: 0,
        };
        let jobs = pending.first_job..pending.first_job + size as u64;
        let mut made = self.pool.as_ref().map(|pool| pool.wait_all(jobs)).into_iter().flatten();
        for &slot in &pending.slots {
            let outcome: Outcome<Prepared<T>> =
                made.next().unwrap_or_else(|| guarded(|| self.preparer.prepare(epoch, slot)));
            let crashed =
                |message| LoaderError::WorkerPanicked { name: self.preparer.name(sample_of(slot)), message };
            let sample = outcome.map_err(crashed)??;
            if let Some((index, item, label)) = sample.item {
                batch.indices.push(index);
                batch.items.push(item);
                batch.labels.push(label);
            }
            batch.replaced.extend(sample.replaced);
        }
        batch.bad_in_epoch = self.bad.add(epoch, &batch.replaced)?;
        Ok(batch)
    }
}

impl<T: Send + 'static> Iterator for Loader<T> {
    type Item = Result<Batch<T>, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        self.submit_ahead();
        let Some(pending) = self.pending.pop_front() else {
            self.finished = true;
            return None;
        };
        let batch = self.collect(&pending);
        if batch.is_ok() && self.pool.is_some() {
            // The workers go on while the caller computes.
            self.submit_ahead();
        } else if batch.is_err() {
            self.finished = true;
            self.pending.clear();
            self.pool = None;
        }
        Some(batch)
    }
}
