//! What the threads of all loaders spend their time on, for measurements and for telling what a run waits for.
//!
//! Three clock readings and a few additions for each image: some tenths of a microsecond.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time spent since the program began, summed over threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Images that were made, stand-ins included.
    pub images: u64,
    /// Waiting for encoded bytes.
    pub read: Duration,
    /// Decoding, or taking from the cache.
    pub decode: Duration,
    /// What the loader's work function did beside decoding: augmentation, masks.
    pub transform: Duration,
}

impl StageTimes {
    /// What was added since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            images: self.images - earlier.images,
            read: self.read.saturating_sub(earlier.read),
            decode: self.decode.saturating_sub(earlier.decode),
            transform: self.transform.saturating_sub(earlier.transform),
        }
    }

    /// All stages together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.read + self.decode + self.transform
    }
}

static IMAGES: AtomicU64 = AtomicU64::new(0);
static READ: AtomicU64 = AtomicU64::new(0);
static DECODE: AtomicU64 = AtomicU64::new(0);
static TRANSFORM: AtomicU64 = AtomicU64::new(0);

/// The totals of this process.
#[must_use]
pub fn stage_times() -> StageTimes {
    let spent = |total: &AtomicU64| Duration::from_nanos(total.load(Ordering::Relaxed));
    StageTimes {
        images: IMAGES.load(Ordering::Relaxed),
        read: spent(&READ),
        decode: spent(&DECODE),
        transform: spent(&TRANSFORM),
    }
}

thread_local! {
    /// What this thread has decoded for since the last [`Sample`] began.
    static DECODING: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Whether this thread is decoding: what is inside of that is not counted twice.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Counts the time of `run` as decoding.
pub(crate) fn decoding<R>(run: impl FnOnce() -> R) -> R {
    /// Also when `run` panics.
    struct Stop(Instant);
    impl Drop for Stop {
        fn drop(&mut self) {
            INSIDE.set(false);
            DECODING.set(DECODING.get() + self.0.elapsed());
        }
    }
    if INSIDE.replace(true) {
        return run();
    }
    let _stop = Stop(Instant::now());
    run()
}

/// The clock of one image in a loader's thread.
pub(crate) struct Sample {
    began: Instant,
    read: Duration,
}

impl Sample {
    pub(crate) fn begin() -> Self {
        DECODING.set(Duration::ZERO);
        Self { began: Instant::now(), read: Duration::ZERO }
    }

    /// The bytes are there.
    pub(crate) fn has_read(&mut self) {
        self.read = self.began.elapsed();
    }

    /// The image is made. What failed is not counted.
    pub(crate) fn end(self) {
        let add = |total: &AtomicU64, time: Duration| {
            total.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed)
        };
        let (all, decoding) = (self.began.elapsed(), DECODING.get());
        add(&READ, self.read);
        add(&DECODE, decoding);
        add(&TRANSFORM, all.saturating_sub(self.read + decoding));
        IMAGES.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_inside_of_decoding_counts_once() {
        let pause = Duration::from_millis(5);
        let sample = Sample::begin();
        decoding(|| decoding(|| std::thread::sleep(pause)));
        let once = DECODING.get();
        assert!(once >= pause && once < 40 * pause, "{once:?}");
        assert!(!INSIDE.get());
        let before = stage_times();
        sample.end();
        let spent = stage_times().since(&before);
        assert!(spent.images >= 1 && spent.decode >= pause && spent.sum() >= pause);
    }
}
