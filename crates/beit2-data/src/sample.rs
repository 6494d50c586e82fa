//! One sample of a batch: read, decode, work, or find a stand-in; and the count of those that
//! needed one.

use std::borrow::Cow;
use std::sync::Arc;

use crate::cache::ImageCache;
use crate::decode::DecodeOptions;
use crate::encoded::EncodedImage;
use crate::error::{DecodeError, LoaderError};
use crate::image::Image;
use crate::order::sample_of;
use crate::pool::guarded;
use crate::rng::{Key, RngStream, below};
use crate::source::Source;
use crate::timing;

/// Samples tried in place of an unusable one. At the default limit of 1 % unusable samples, failing
/// this often by chance has probability 1e-32, so failure means that the data are gone.
const REPLACEMENT_TRIES: u32 = 16;

/// How many unusable samples an error message lists.
const LISTED: usize = 3;

/// What the work function gets to know about a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleInfo {
    /// Seed of the run.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Sample number drawn by the epoch's order, with its copy; the key of all randomness.
    pub slot: u64,
    /// Sample number whose image this is; not the slot's own when that one was unusable.
    pub index: u64,
    /// Class of the image.
    pub label: Option<u32>,
}

impl SampleInfo {
    /// The key of this sample's random numbers.
    ///
    /// Why by `slot`: a stand-in must not repeat the augmentation that the same image gets at its
    /// own turn.
    #[must_use]
    pub fn key(&self, stream: RngStream) -> Key {
        Key { seed: self.seed, epoch: self.epoch, index: self.slot, stream }
    }
}

/// A sample that could not be used, and what was taken instead, if anything was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The unusable sample's number.
    pub index: u64,
    /// Its path, or `shard:member`.
    pub name: String,
    /// Why it could not be used.
    pub error: String,
    /// The number of the sample that stands in for it; `None` when it was left out.
    pub by: Option<u64>,
}

/// The caller's function from a decoded image to an item of the batch; an error makes the sample
/// unusable.
pub type Work<T, E> = Arc<dyn Fn(&Image, &SampleInfo) -> Result<T, E> + Send + Sync>;

pub(crate) type Prepared<T> = Result<Sample<T>, LoaderError>;

/// One sample's part of a batch.
pub(crate) struct Sample<T> {
    /// The item with its sample's number and class; `None` when the sample was left out.
    pub(crate) item: Option<(u64, T, Option<u32>)>,
    pub(crate) replaced: Option<Replaced>,
}

/// How many of `samples` may be unusable.
pub(crate) fn most_bad(fraction: f64, samples: u64) -> u64 {
    // Why the small addend: 0.29 * 100 is 28.999999999999996 in binary and must allow 29.
    // Why at least one: a share of fewer than 100 images would otherwise allow none.
    u64::from(fraction > 0.0).max((fraction * samples as f64 + 1e-6) as u64)
}

/// A fraction as a percentage, ready to print.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{}", (fraction * 1e6).round() / 1e4)
}

/// Counts unusable samples, in the order of the epoch, so that the verdict does not depend on the
/// workers.
pub(crate) struct BadCount {
    fraction: f64,
    limit: u64,
    samples: u64,
    epoch: u64,
    bad: u64,
    first: Vec<String>,
}

impl BadCount {
    /// A count for an epoch of `samples` samples, `fraction` of which may be bad, that starts at
    /// `bad`.
    pub(crate) fn new(fraction: f64, samples: u64, epoch: u64, bad: u64) -> Self {
        let limit = most_bad(fraction, samples);
        Self { fraction, limit, samples, epoch, bad, first: Vec::new() }
    }

    /// Adds one batch's; gives the epoch's count so far, or the error when it is above the limit.
    pub(crate) fn add(&mut self, epoch: u64, replaced: &[Replaced]) -> Result<u64, LoaderError> {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.bad = 0;
            self.first.clear();
        }
        self.bad += replaced.len() as u64;
        let room = LISTED.saturating_sub(self.first.len());
        self.first.extend(replaced.iter().take(room).map(|r| format!("{}: {}", r.name, r.error)));
        if replaced.is_empty() || self.bad <= self.limit {
            return Ok(self.bad);
        }
        let percent = percent(self.fraction);
        let (bad, limit, samples, first) = (self.bad, self.limit, self.samples, self.first.clone());
        Err(LoaderError::TooManyBad { epoch, bad, limit, samples, percent, first })
    }
}

/// As [`Work`], from an image that is decoded as far as the function asks.
pub type EncodedWork<T, E> = Arc<dyn Fn(&EncodedImage<'_>, &SampleInfo) -> Result<T, E> + Send + Sync>;

type BoxedWork<T> = Box<dyn Fn(&EncodedImage<'_>, &SampleInfo) -> Result<T, String> + Send + Sync>;

/// Everything a worker needs to turn a sample number into an item.
pub(crate) struct Preparer<T> {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) decode: DecodeOptions,
    pub(crate) min_side_px: u32,
    pub(crate) seed: u64,
    /// Whether another sample stands in for an unusable one; otherwise it is left out.
    pub(crate) replace: bool,
    /// Images that are decoded already.
    pub(crate) cache: Option<Arc<ImageCache>>,
    pub(crate) work: BoxedWork<T>,
}

impl<T> Preparer<T> {
    pub(crate) fn name(&self, index: u64) -> String {
        self.source.name(index as usize)
    }

    /// The sample, or the stand-in drawn from `Key { stream: Replace }` of this sample.
    pub(crate) fn prepare(&self, epoch: u64, slot: u64) -> Prepared<T> {
        let index = sample_of(slot);
        let error = match self.attempt(epoch, slot, index) {
            Ok((item, label)) => {
                return Ok(Sample { item: Some((index, item, label)), replaced: None });
            }
            Err(error) => error,
        };
        if !self.replace {
            let name = self.name(index);
            return Ok(Sample { item: None, replaced: Some(Replaced { index, name, error, by: None }) });
        }
        let mut rng = Key { seed: self.seed, epoch, index: slot, stream: RngStream::Replace }.rng();
        let name = self.name(index);
        for _ in 0..REPLACEMENT_TRIES {
            let by = below(&mut rng, self.source.len() as u64);
            if by == index {
                continue;
            }
            if let Ok((item, label)) = self.attempt(epoch, slot, by) {
                let replaced = Some(Replaced { index, name, error, by: Some(by) });
                return Ok(Sample { item: Some((by, item, label)), replaced });
            }
        }
        Err(LoaderError::NoReplacement { name, error, tries: REPLACEMENT_TRIES })
    }

    /// Reads, decodes and works on one image; the error is a sentence about it.
    pub(crate) fn attempt(&self, epoch: u64, slot: u64, index: u64) -> Result<(T, Option<u32>), String> {
        let mut clock = timing::Sample::begin();
        let place = index as usize;
        let done = match self.cache.as_ref().and_then(|cache| cache.get(place)) {
            Some(image) => self.work_on(&image.into(), epoch, slot, index),
            None => {
                let bytes = self.source.read(place).map_err(|error| error.to_string())?;
                clock.has_read();
                // Why guarded: a hostile file that trips a decoder's bug is one unusable sample, not the
                // end of a run.
                let opened = guarded(|| {
                    let opened = EncodedImage::of_sample(self.source.as_ref(), place, &bytes, &self.decode)?;
                    let Some(cache) = &self.cache else { return Ok(opened) };
                    // Whole, because the next crop will be another one. What cannot be decoded as a whole may have a region
                    // that can: then it is as without a cache.
                    let whole = opened.whole().map(Cow::into_owned);
                    Ok(whole.map_or(opened, |whole| cache.put(place, whole).into()))
                });
                let image =
                    opened.map_err(|message| format!("the image decoder crashed on it ({message})"))?;
                let image = image.map_err(|error: DecodeError| error.to_string())?;
                self.work_on(&image, epoch, slot, index)
            }
        };
        if done.is_ok() {
            clock.end();
        }
        done
    }

    fn work_on(
        &self,
        image: &EncodedImage<'_>,
        epoch: u64,
        slot: u64,
        index: u64,
    ) -> Result<(T, Option<u32>), String> {
        if image.shorter_side() < self.min_side_px {
            let (w, h, min) = (image.width(), image.height(), self.min_side_px);
            return Err(format!(
                "the image is {w} x {h} pixels, smaller than the {min} wanted for its shorter side"
            ));
        }
        let label = self.source.label(index as usize);
        let info = SampleInfo { seed: self.seed, epoch, slot, index, label };
        Ok(((self.work)(image, &info)?, label))
    }
}
