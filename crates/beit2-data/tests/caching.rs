//! Images that stay in memory: each is decoded once, and batches are the same.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beit2_data::rng::Rng;
use beit2_data::{
    Batch, CacheLimit, DecodeOptions, ExifOrientation, Image, Loader, LoaderConfig, RngStream, SampleInfo,
    Source, SourceError, cache_plan, cached_bytes,
};
use common::{noise, ppm};

/// The limit is that of the whole process, so tests about it take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Images in memory that count how often they are read; the one in `bad` cannot be decoded.
struct Counting {
    files: Vec<Vec<u8>>,
    bad: Option<usize>,
    reads: Vec<AtomicUsize>,
}

impl Counting {
    fn new(len: usize, bad: Option<usize>) -> Arc<Self> {
        let files: Vec<Vec<u8>> = (0..len).map(|i| ppm(&noise(20, 10, i as u64))).collect();
        Arc::new(Self { reads: files.iter().map(|_| AtomicUsize::new(0)).collect(), files, bad })
    }

    fn reads(&self) -> Vec<usize> {
        self.reads.iter().map(|reads| reads.swap(0, Ordering::Relaxed)).collect()
    }
}

impl Source for Counting {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        self.reads[index].fetch_add(1, Ordering::Relaxed);
        let cut = if self.bad == Some(index) { 30 } else { 0 };
        Ok(self.files[index][..self.files[index].len() - cut].to_vec())
    }
    fn name(&self, index: usize) -> String {
        format!("pic{index}.ppm")
    }
    fn label(&self, index: usize) -> Option<u32> {
        Some(index as u32 % 3)
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
}

/// Bytes of an image with what is beside it.
const SIZE: u64 = 20 * 10 * 3 + 96;

type Item = (Image, u64);

fn batches(source: &Arc<Counting>, config: LoaderConfig) -> Vec<Batch<Item>> {
    let work = Arc::new(|image: &Image, info: &SampleInfo| {
        Ok::<_, String>((image.clone(), info.key(RngStream::Augment).rng().next_u64()))
    });
    Loader::new(config, source.clone(), work).unwrap().map(Result::unwrap).collect()
}

fn config(cache: CacheLimit, workers: usize) -> LoaderConfig {
    LoaderConfig {
        batch: 4,
        epochs: Some(3),
        seed: 5,
        workers,
        cache,
        max_bad_fraction: 0.1,
        ..LoaderConfig::default()
    }
}

#[test]
fn batches_are_the_same_and_every_image_is_read_once() {
    let _turn = turn();
    for workers in [0, 1, 3] {
        let source = Counting::new(23, Some(7));
        let expected = batches(&source, config(CacheLimit::Off, workers));
        assert!(source.reads().iter().sum::<usize>() > 50);
        assert_eq!(cached_bytes(), 0);
        let found = batches(&source, config(CacheLimit::IfAllFit(1 << 20), workers));
        assert_eq!(found, expected);
        let reads = source.reads();
        // Twice for the sample that the cache's size is told by, and where two threads came at once.
        assert!(reads.iter().enumerate().all(|(at, &reads)| at == 7 || reads <= 3), "{reads:?}");
        // Another loader of the same source, as of the next stage, reads only what nobody can decode.
        assert_eq!(batches(&source, config(CacheLimit::IfAllFit(1 << 20), 2)), expected);
        let reads = source.reads();
        assert!(reads.iter().enumerate().all(|(at, &reads)| at == 7 || reads == 0), "{reads:?}");
        assert_eq!(cached_bytes(), 22 * SIZE);
        drop((source, expected, found));
        assert_eq!(cached_bytes(), 0, "a cache goes with its source");
    }
}

#[test]
fn what_does_not_fit_is_decoded_each_time() {
    let _turn = turn();
    let source = Counting::new(40, None);
    let expected = batches(&source, config(CacheLimit::Off, 2));
    let plan = |limit| {
        cache_plan(&(source.clone() as Arc<dyn Source>), &DecodeOptions::default(), limit)
            .map(|p| (p.bytes, p.kept))
    };
    // All or none.
    let little = CacheLimit::IfAllFit(39 * SIZE);
    assert_eq!(plan(CacheLimit::Off), None);
    assert_eq!(plan(little), Some((40 * SIZE, false)));
    assert_eq!(batches(&source, config(little, 2)), expected);
    assert_eq!(cached_bytes(), 0);
    // As many as fit.
    let some = CacheLimit::UpTo(10 * SIZE + 5);
    assert_eq!(batches(&source, config(some, 2)), expected);
    assert_eq!((plan(some), cached_bytes()), (Some((40 * SIZE, true)), 10 * SIZE));
    // The limit is that of all sources together.
    let other = Counting::new(12, None);
    batches(&other, config(CacheLimit::IfAllFit(12 * SIZE), 2));
    assert_eq!(cached_bytes(), 12 * SIZE);
    drop(source);
    batches(&other, config(CacheLimit::IfAllFit(12 * SIZE), 2));
    assert_eq!(cached_bytes(), 12 * SIZE);
}

#[test]
fn other_ways_of_decoding_are_kept_apart() {
    let _turn = turn();
    let source = Counting::new(8, None);
    let with = |channels| {
        let decode = DecodeOptions::default().of_channels(channels);
        batches(&source, LoaderConfig { decode, ..config(CacheLimit::IfAllFit(1 << 20), 2) })
    };
    let (rgb, grey) = (with(3), with(1));
    assert!(rgb.iter().all(|batch| batch.items.iter().all(|item| item.0.channels == 3)));
    assert!(grey.iter().all(|batch| batch.items.iter().all(|item| item.0.channels == 1)));
    assert_eq!(with(3), rgb);
    let decode = DecodeOptions { exif: ExifOrientation::Ignore, ..DecodeOptions::default() };
    batches(&source, LoaderConfig { decode, ..config(CacheLimit::IfAllFit(1 << 20), 2) });
    assert_eq!(cached_bytes(), 8 * (2 * SIZE + 20 * 10 + 96));
}
