//! The loader's promises: order, independence of workers, resuming, replacement, errors, shutdown.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use beit2_data::rng::Rng;
use beit2_data::source::ChainSource;
use beit2_data::{
    Batch, EncodedImage, Image, Loader, LoaderConfig, LoaderError, Position, RngStream, SampleInfo, Samples,
    Source, SourceError,
};
use common::{noise, ppm};

/// Images in memory; the ones in `bad` cannot be decoded.
struct Memory {
    files: Vec<Vec<u8>>,
    bad: Vec<usize>,
}

impl Memory {
    fn new(len: usize, bad: &[usize]) -> Arc<Self> {
        let files = (0..len).map(|i| ppm(&noise(9, 8, i as u64))).collect();
        Arc::new(Self { files, bad: bad.to_vec() })
    }
}

impl Source for Memory {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let cut = if self.bad.contains(&index) { 30 } else { 0 };
        let file = &self.files[index];
        Ok(file[..file.len() - cut].to_vec())
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

type Item = (u8, u64);
type Work = beit2_data::loader::Work<Item, String>;

/// A byte of the image and a random number of the sample's key; the pause lets threads overtake
/// each other.
fn work() -> Work {
    Arc::new(|image: &Image, info: &SampleInfo| {
        let number = info.key(RngStream::Augment).rng().next_u64();
        std::thread::sleep(Duration::from_micros(number % 300));
        Ok((image.data[5], number))
    })
}

fn config() -> LoaderConfig {
    LoaderConfig { batch: 4, epochs: Some(3), seed: 5, ..LoaderConfig::default() }
}

fn batches(config: LoaderConfig, source: Arc<dyn Source>) -> Vec<Batch<Item>> {
    Loader::new(config, source, work()).unwrap().map(Result::unwrap).collect()
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let source = Memory::new(23, &[]);
    let expected = batches(LoaderConfig { workers: 0, ..config() }, source.clone());
    assert_eq!(expected.len(), 15);
    for workers in [1, 2, 7] {
        for prefetch_batches in [1, 3, 40] {
            assert_eq!(
                batches(LoaderConfig { workers, prefetch_batches, ..config() }, source.clone()),
                expected
            );
        }
    }
}

#[test]
fn samples_one_by_one_are_those_of_the_batches() {
    let work = || {
        Arc::new(|image: &EncodedImage<'_>, info: &SampleInfo| {
            let number = info.key(RngStream::Augment).rng().next_u64();
            Ok::<Item, String>((image.whole().map_err(|why| why.to_string())?.data[5], number))
        })
    };
    let plain: Arc<dyn Source> = Memory::new(24, &[3, 17]);
    let weighted: Arc<dyn Source> = Arc::new(ChainSource::weighted(vec![(plain.clone(), 1.5)]));
    for source in [plain, weighted] {
        let config = LoaderConfig { max_bad_fraction: 0.5, ..config() };
        let loader = Loader::of_encoded(config.clone(), source.clone(), work()).unwrap();
        let samples = Samples::of_encoded(config, source, work()).unwrap();
        for batch in loader {
            let batch = batch.unwrap();
            let order = samples.order(batch.epoch);
            let mut replaced = Vec::new();
            for (at, item) in batch.items.iter().enumerate() {
                let made = samples.make(batch.epoch, order[4 * batch.step as usize + at]).unwrap();
                assert_eq!((made.item, made.index, made.label), (*item, batch.indices[at], batch.labels[at]));
                replaced.extend(made.replaced);
            }
            assert_eq!(replaced, batch.replaced);
        }
    }
}

#[test]
fn every_sample_once_per_epoch() {
    for (drop_last, per_epoch) in [(true, 5), (false, 6)] {
        let all = batches(LoaderConfig { drop_last, ..config() }, Memory::new(23, &[]));
        assert_eq!(all.len(), 3 * per_epoch);
        for (epoch, batches) in all.chunks(per_epoch).enumerate() {
            let mut seen: Vec<u64> = batches.iter().flat_map(|b| b.indices.clone()).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), if drop_last { 20 } else { 23 });
            for (step, batch) in batches.iter().enumerate() {
                assert_eq!((batch.epoch, batch.step), (epoch as u64, step as u64));
                assert_eq!(batch.last_in_epoch, step + 1 == per_epoch);
                let labels: Vec<_> = batch.indices.iter().map(|&i| Some(i as u32 % 3)).collect();
                assert_eq!(batch.labels, labels);
            }
        }
        assert_ne!(all[0].indices, all[per_epoch].indices);
    }
    let ordered = batches(LoaderConfig { shuffle: false, epochs: Some(1), ..config() }, Memory::new(9, &[]));
    assert_eq!(ordered[1].indices, [4, 5, 6, 7]);
}

#[test]
fn resuming_equals_never_stopping() {
    let source = Memory::new(23, &[3, 11]);
    let lenient = LoaderConfig { max_bad_fraction: 0.5, ..config() };
    let whole = batches(lenient.clone(), source.clone());
    for (done, batch) in whole.iter().enumerate() {
        let (start, bad_before_start) = (batch.next_position(), batch.bad_before_next());
        let rest = batches(LoaderConfig { start, bad_before_start, ..lenient.clone() }, source.clone());
        assert_eq!(rest, whole[done + 1..], "after batch {done}");
    }
    // The end of an epoch, written as a step, is the beginning of the next.
    let start = Position { epoch: 0, step: 5 };
    assert_eq!(batches(LoaderConfig { start, ..lenient.clone() }, source.clone()), whole[5..]);
    let start = Position { epoch: 0, step: 6 };
    let error = Loader::new(LoaderConfig { start, ..lenient }, source, work()).err().unwrap();
    assert!(matches!(error, LoaderError::StartOutside { steps: 5, .. }));
}

#[test]
fn ranks_share_the_global_batch() {
    let source = Memory::new(32, &[]);
    let one = batches(LoaderConfig { batch: 8, ..config() }, source.clone());
    let rank = |rank| batches(LoaderConfig { world_size: 2, rank, ..config() }, source.clone());
    for ((whole, first), second) in one.iter().zip(rank(0)).zip(rank(1)) {
        assert_eq!(whole.items, [first.items, second.items].concat());
    }
}

#[test]
fn unreadable_samples_are_replaced_and_counted() {
    let source = Memory::new(40, &[7, 20]);
    let config = LoaderConfig { max_bad_fraction: 0.05, ..config() };
    let all = batches(LoaderConfig { workers: 0, ..config.clone() }, source.clone());
    assert_eq!(all, batches(LoaderConfig { workers: 3, ..config.clone() }, source.clone()));
    for epoch in all.chunks(10) {
        let mut replaced: Vec<_> = epoch.iter().flat_map(|b| b.replaced.clone()).collect();
        replaced.sort_by_key(|r| r.index);
        assert_eq!(replaced.iter().map(|r| r.index).collect::<Vec<_>>(), [7, 20]);
        assert_eq!(replaced[0].name, "pic7.ppm");
        assert!(replaced[0].error.contains("truncated"), "{}", replaced[0].error);
        assert_eq!(epoch[9].bad_in_epoch, 2);
        let used: Vec<u64> = epoch.iter().flat_map(|b| b.indices.clone()).collect();
        assert!(!used.contains(&7) && !used.contains(&20));
        for (batch, r) in epoch.iter().flat_map(|b| b.replaced.iter().map(move |r| (b, r))) {
            assert!(batch.indices.contains(&r.by.unwrap()));
        }
    }
}

#[test]
fn unreadable_samples_can_be_left_out_instead() {
    let once = LoaderConfig { replace: false, shuffle: false, epochs: Some(1), ..config() };
    let config = LoaderConfig { max_bad_fraction: 0.2, ..once };
    let bad = [4, 5, 6, 7, 20];
    for workers in [0, 3] {
        let found = batches(LoaderConfig { workers, ..config.clone() }, Memory::new(40, &bad));
        let used: Vec<u64> = found.iter().flat_map(|b| b.indices.clone()).collect();
        let whole: Vec<u64> = (0..40).filter(|&at| !bad.contains(&(at as usize))).collect();
        assert_eq!(used, whole, "every readable image once and in order");
        assert!(found.iter().all(|b| b.items.len() == b.indices.len() && b.labels.len() == b.indices.len()));
        assert!(found[1].items.is_empty() && found[1].replaced.len() == 4);
        assert!(found.iter().flat_map(|b| &b.replaced).all(|r| r.by.is_none()));
        assert_eq!(found[9].bad_in_epoch, 5);
    }
}

#[test]
fn one_bad_file_among_few_is_not_the_end() {
    // 1 % of 12 images is none, and one is allowed all the same; 0 means none.
    let small = LoaderConfig { max_bad_fraction: 0.01, ..config() };
    assert_eq!(batches(small.clone(), Memory::new(12, &[7])).len(), 9);
    let (_, error) = verdict(small, Memory::new(12, &[7, 9]));
    let sentence = error.to_string();
    assert!(
        sentence.starts_with("2 of 12 images could not be used in epoch 0, more than the 1 that"),
        "{sentence}"
    );
    assert!(sentence.contains("data.max_bad_fraction allows (1 %): pic"), "{sentence}");
    let (_, error) = verdict(LoaderConfig { max_bad_fraction: 0.0, ..config() }, Memory::new(12, &[7]));
    assert!(matches!(error, LoaderError::TooManyBad { bad: 1, limit: 0, .. }));
}

/// What the loader says before it stops, and how many batches it gave.
fn verdict(config: LoaderConfig, source: Arc<dyn Source>) -> (usize, LoaderError) {
    let mut good = 0;
    let mut loader = Loader::new(config, source, work()).unwrap();
    for batch in loader.by_ref() {
        match batch {
            Ok(_) => good += 1,
            Err(error) => {
                assert!(loader.next().is_none(), "an error ends the iteration");
                return (good, error);
            }
        }
    }
    panic!("no error in {good} batches");
}

#[test]
fn too_many_unreadable_samples_stop_the_run() {
    let source = Memory::new(40, &[7, 20, 30]);
    let config = LoaderConfig { max_bad_fraction: 0.05, ..config() };
    let (good, error) = verdict(config.clone(), source.clone());
    let sentence = error.to_string();
    assert!(
        sentence
            .starts_with("3 of 40 images could not be used in epoch 0, more than the 2 that data.max_bad_fraction allows (5 %): pic"),
        "{sentence}"
    );
    assert!(sentence.ends_with("copy the file again"), "{sentence}");
    for workers in [0, 1, 7] {
        assert_eq!(
            verdict(LoaderConfig { workers, ..config.clone() }, source.clone()),
            (good, error.clone())
        );
    }
    // A loader that resumes behind the second bad sample must stop at the same batch.
    let lenient = batches(LoaderConfig { max_bad_fraction: 1.0, ..config.clone() }, source.clone());
    let second = lenient.iter().find(|b| b.bad_in_epoch == 2).unwrap();
    let resumed = LoaderConfig {
        start: second.next_position(),
        bad_before_start: second.bad_before_next(),
        ..config.clone()
    };
    let (rest, again) = verdict(resumed, source.clone());
    assert_eq!(second.step as usize + 1 + rest, good);
    assert!(matches!(again, LoaderError::TooManyBad { bad: 3, limit: 2, .. }));
    // The count starts anew with each epoch: two per epoch never stop three epochs.
    assert_eq!(batches(config, Memory::new(40, &[7, 20])).len(), 30);
}

#[test]
fn nothing_readable_is_said_at_once() {
    let all: Vec<usize> = (0..40).collect();
    let (good, error) = verdict(LoaderConfig { max_bad_fraction: 1.0, ..config() }, Memory::new(40, &all));
    assert_eq!(good, 0);
    assert!(
        error.to_string().contains("other samples drawn in its place could not be used either"),
        "{error}"
    );
}

#[test]
fn small_images_can_be_refused() {
    let config = LoaderConfig { min_side_px: 9, ..config() };
    let (_, error) = verdict(config, Memory::new(12, &[]));
    assert!(error.to_string().contains("the image is 9 x 8 pixels, smaller than the 9 wanted"), "{error}");
    assert_eq!(
        batches(LoaderConfig { min_side_px: 8, epochs: Some(1), ..self::config() }, Memory::new(12, &[]))
            .len(),
        3
    );
}

#[test]
fn a_panic_in_the_work_is_an_error() {
    for workers in [0, 3] {
        let work: Work = Arc::new(
            |_: &Image, info: &SampleInfo| {
                if info.index == 9 { panic!("boom") } else { Ok((0, 0)) }
            },
        );
        let config = LoaderConfig { workers, shuffle: false, ..config() };
        let results: Vec<_> = Loader::new(config, Memory::new(23, &[]), work).unwrap().collect();
        assert_eq!(results.len(), 3);
        assert_eq!(results[2].as_ref().unwrap_err().to_string(), "a data worker crashed on pic9.ppm: boom");
    }
}

#[test]
fn an_error_of_the_work_is_a_bad_sample() {
    let work: Work =
        Arc::new(|_: &Image, info: &SampleInfo| if info.index == 2 { Err("odd".into()) } else { Ok((0, 0)) });
    let config = LoaderConfig { max_bad_fraction: 0.2, epochs: Some(1), ..config() };
    let replaced: Vec<_> =
        Loader::new(config, Memory::new(20, &[]), work).unwrap().flat_map(|b| b.unwrap().replaced).collect();
    assert_eq!((replaced.len(), replaced[0].error.as_str()), (1, "odd"));
}

#[test]
fn memory_is_bounded_by_the_prefetch() {
    let started = Arc::new(AtomicUsize::new(0));
    let count = started.clone();
    let work: Work = Arc::new(move |_: &Image, _: &SampleInfo| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok((0, 0))
    });
    let config = LoaderConfig { prefetch_batches: 2, workers: 4, epochs: None, ..config() };
    let mut loader = Loader::new(config, Memory::new(23, &[]), work).unwrap();
    for taken in 0..5 {
        // However slow the machine, the workers get there; given time to spare, they go no further.
        while started.load(Ordering::SeqCst) < (taken + 2) * 4 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(started.load(Ordering::SeqCst), (taken + 2) * 4);
        loader.next().unwrap().unwrap();
    }
    assert_eq!(loader.position(), Position { epoch: 1, step: 0 });
}

#[test]
fn dropping_at_any_moment_leaves_nothing_behind() {
    let source = Memory::new(23, &[4]);
    for taken in 0..12 {
        let work = work();
        let config = LoaderConfig { workers: 3, epochs: None, max_bad_fraction: 1.0, ..config() };
        let mut loader = Loader::new(config, source.clone(), work.clone()).unwrap();
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        drop(loader);
        // Every thread held the work function and the source; only ours are left.
        assert_eq!((Arc::strong_count(&work), Arc::strong_count(&source)), (1, 1));
    }
}

#[test]
fn settings_are_checked() {
    let sentence =
        |config: LoaderConfig| Loader::new(config, Memory::new(23, &[]), work()).err().unwrap().to_string();
    assert_eq!(
        sentence(LoaderConfig { batch: 0, ..config() }),
        "loader setting batch is 0; it must be at least 1"
    );
    assert!(sentence(LoaderConfig { batch: 24, ..config() }).contains("use a batch of at most 23"));
    assert!(sentence(LoaderConfig { max_bad_fraction: 1.5, ..config() }).contains("max_bad_fraction is 1.5"));
    assert!(sentence(LoaderConfig { prefetch_batches: 0, ..config() }).contains("prefetch_batches"));
    assert!(sentence(LoaderConfig { workers: 5000, ..config() }).contains("workers is 5000"));
    assert!(
        sentence(LoaderConfig { rank: 1, ..config() }).contains("rank is 1; it must be below world_size, 1")
    );
    assert!(
        Loader::new(config(), Memory::new(0, &[]), work()).err().unwrap().to_string().contains("no samples")
    );
    assert_eq!(batches(LoaderConfig { epochs: Some(0), ..config() }, Memory::new(23, &[])).len(), 0);
}
