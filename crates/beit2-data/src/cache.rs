//! Decoded images in memory: an image that fits is decoded once in the life of a process, by whichever loader comes first.
//!
//! All loaders of a source share one cache, over the stages of a run and the devices of a group, and all caches share one
//! limit. A cache goes away with its source. What is read from it is what decoding would give, so batches do not depend
//! on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crate::decode::DecodeOptions;
use crate::encoded::EncodedImage;
use crate::image::Image;
use crate::pool::guarded;
use crate::source::Source;

/// Images that are decoded to see how much room all of them would take.
const SAMPLE: usize = 16;

/// Of these, those after which a set that is far too large is given up.
const FIRST_SAMPLE: usize = 4;

/// What an image takes beside its pixels, in bytes.
const BESIDE: u64 = 96;

/// How many bytes all decoded images of the process may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheLimit {
    /// None are kept.
    #[default]
    Off,
    /// Those of a source are kept if a sample says that all of them fit.
    IfAllFit(u64),
    /// As many as fit are kept.
    UpTo(u64),
}

/// What a source's images would take in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// Bytes of all images, estimated from a sample.
    pub bytes: u64,
    /// Whether images are kept.
    pub kept: bool,
}

/// The decoded images of one source.
pub(crate) struct ImageCache {
    /// Its address says whose images these are: it is not used again while this is held.
    source: Weak<dyn Source>,
    decode: DecodeOptions,
    plan: CachePlan,
    /// Empty when images are not kept.
    images: Vec<OnceLock<Arc<Image>>>,
    /// For all caches together.
    limit: AtomicU64,
    bytes: AtomicU64,
}

static CACHES: Mutex<Vec<Arc<ImageCache>>> = Mutex::new(Vec::new());

/// Bytes in all caches.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Bytes of all images that are in memory now.
#[must_use]
pub fn cached_bytes() -> u64 {
    drop(living());
    HELD.load(Ordering::Relaxed)
}

/// What [`LoaderConfig::cache`](crate::LoaderConfig::cache) would do with a source; decodes a few images the first time.
/// `None` when the cache is off or no image of the sample can be read.
#[must_use]
pub fn cache_plan(source: &Arc<dyn Source>, decode: &DecodeOptions, limit: CacheLimit) -> Option<CachePlan> {
    find(source, decode, limit).map(|cache| cache.plan)
}

/// The caches of sources that somebody still has.
fn living() -> MutexGuard<'static, Vec<Arc<ImageCache>>> {
    let mut caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    caches.retain(|cache| cache.source.strong_count() > 0);
    caches
}

/// The cache of a source, made at the first call.
fn find(source: &Arc<dyn Source>, decode: &DecodeOptions, limit: CacheLimit) -> Option<Arc<ImageCache>> {
    let (bytes, partly) = match limit {
        CacheLimit::Off => return None,
        CacheLimit::IfAllFit(bytes) => (bytes, false),
        CacheLimit::UpTo(bytes) => (bytes, true),
    };
    let place = Arc::as_ptr(source).cast::<()>();
    let mut caches = living();
    let is_wanted = |cache: &&Arc<ImageCache>| {
        cache.source.as_ptr().cast::<()>() == place && cache.decode == *decode && (!partly || cache.plan.kept)
    };
    if let Some(cache) = caches.iter().find(is_wanted) {
        cache.limit.fetch_max(bytes, Ordering::Relaxed);
        return Some(cache.clone());
    }
    let all = estimate(source.as_ref(), decode, bytes)?;
    let plan = CachePlan { bytes: all, kept: partly || all <= bytes };
    let count = if plan.kept { source.len() } else { 0 };
    let cache = Arc::new(ImageCache {
        source: Arc::downgrade(source),
        decode: decode.clone(),
        plan,
        images: (0..count).map(|_| OnceLock::new()).collect(),
        limit: AtomicU64::new(bytes),
        bytes: AtomicU64::new(0),
    });
    caches.push(cache.clone());
    Some(cache)
}

/// Bytes of all images, from a sample of them; `None` when none of it can be read.
fn estimate(source: &dyn Source, decode: &DecodeOptions, limit: u64) -> Option<u64> {
    let count = source.len().min(SAMPLE);
    let (mut sum, mut read) = (0u64, 0u64);
    // Every 7th of the places, so that the first few are spread as well: 7 and 16 have no common divisor.
    for at in 0..count {
        let place = if count == SAMPLE { at * 7 % SAMPLE } else { at };
        let index = (place as u128 * source.len() as u128 / count as u128) as usize;
        let size = guarded(|| {
            let bytes = source.read(index).ok()?;
            let image = EncodedImage::of_sample(source, index, &bytes, decode).ok()?;
            Some(u64::from(image.width()) * u64::from(image.height()) * u64::from(decode.channels))
        });
        if let Ok(Some(size)) = size {
            (sum, read) = (sum + size + BESIDE, read + 1);
        }
        let far_too_large = || (sum / read).saturating_mul(source.len() as u64) > limit.saturating_mul(4);
        if at + 1 == FIRST_SAMPLE && read > 0 && far_too_large() {
            break;
        }
    }
    (read > 0).then(|| (u128::from(sum) * source.len() as u128 / u128::from(read)) as u64)
}

impl ImageCache {
    /// The cache that keeps a source's images, if there is one.
    pub(crate) fn of(
        source: &Arc<dyn Source>,
        decode: &DecodeOptions,
        limit: CacheLimit,
    ) -> Option<Arc<Self>> {
        find(source, decode, limit).filter(|cache| cache.plan.kept)
    }

    pub(crate) fn get(&self, index: usize) -> Option<Arc<Image>> {
        self.images.get(index)?.get().cloned()
    }

    /// Keeps an image, if there is room for it, and gives it back.
    pub(crate) fn put(&self, index: usize, image: Image) -> Arc<Image> {
        let image = Arc::new(image);
        let Some(slot) = self.images.get(index) else { return image };
        let (size, limit) = (image.data.len() as u64 + BESIDE, self.limit.load(Ordering::Relaxed));
        let with = |held: u64| held.checked_add(size).filter(|&held| held <= limit);
        if HELD.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).is_err() {
            return image;
        }
        match slot.set(image.clone()) {
            Ok(()) => self.bytes.fetch_add(size, Ordering::Relaxed),
            // Another thread was faster.
            Err(_) => HELD.fetch_sub(size, Ordering::Relaxed),
        };
        image
    }
}

impl Drop for ImageCache {
    fn drop(&mut self) {
        HELD.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
