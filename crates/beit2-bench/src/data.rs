//! The loader alone: images a second, and where the time goes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use beit2::Error;
use beit2::pretrain::PretrainRecipe;
use beit2_data::loader::EncodedWork;
use beit2_data::source::Account;
use beit2_data::timing::{StageTimes, stage_times};
use beit2_data::{
    BlockMaskConfig, CacheLimit, EvalConfig, FinetuneConfig, FinetuneParams, Image, Loader, LoaderConfig,
    Part, RngStream, SampleError, Source, SourceError, TwoViewConfig, Units, ViewParams, batch_hwc,
    sample_block_mask,
};

use crate::flops::MASKED;

/// What becomes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Pretraining: crop, jitter, flip, and a mask.
    Mim,
    /// The tokenizer's training: crop and flip.
    Tokenizer,
    /// Fine-tuning: crop, flip, RandAugment.
    Finetune,
    /// Evaluation: resize and central crop.
    Eval,
    /// Nothing: it is decoded.
    None,
}

impl Transform {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Mim, Self::Tokenizer, Self::Finetune, Self::Eval, Self::None];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mim => "mim",
            Self::Tokenizer => "tokenizer",
            Self::Finetune => "finetune",
            Self::Eval => "eval",
            Self::None => "none",
        }
    }
}

/// What is measured.
#[derive(Clone)]
pub struct DataSetup {
    /// The images.
    pub source: Arc<dyn Source>,
    /// What becomes of them.
    pub transform: Transform,
    /// Side of the crops in pixels.
    pub image_size: u32,
    /// Images of a batch.
    pub batch_size: usize,
    /// Threads that make images; 0 makes them between batches.
    pub workers: usize,
    /// Images of a round, at least; whole batches are measured.
    pub images: usize,
    /// Whether decoded images stay in memory.
    pub cache: CacheLimit,
    /// A disk that gives only so many bytes a second, whoever asks.
    pub read_bytes_per_second: Option<f64>,
}

/// One round's measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataRound {
    /// Images that the threads made and that came in batches; the smaller number, should one lag behind the other.
    pub images: u64,
    /// From the first batch to the last.
    pub seconds: f64,
    /// What the threads spent, of all of the images that they made in this time.
    pub spent: StageTimes,
    /// What joining the images of each batch took, all together.
    pub batch: Duration,
    /// Threads that made images.
    pub threads: usize,
}

impl DataRound {
    /// Images a second.
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }

    /// Microseconds of one image in a stage of which all images took `time`.
    pub fn micros(&self, time: Duration) -> f64 {
        1e6 * time.as_secs_f64() / self.spent.images.max(1) as f64
    }

    /// Share of the threads' time that is none of the stages: handing out images, putting them in order, waiting. Without
    /// threads of its own the loader's time is that of all stages, joining included.
    pub fn overhead(&self) -> f64 {
        let own = if self.threads == 0 { self.batch } else { Duration::ZERO };
        1.0 - (self.spent.sum() + own).as_secs_f64() / (self.seconds * self.threads.max(1) as f64)
    }
}

impl DataSetup {
    /// Puts the slow disk under the source, if there is to be one, and decodes every image once where they stay in memory:
    /// what is measured is an epoch in the middle of a run.
    ///
    /// # Errors
    /// As [`data_round`].
    pub fn prepare(&mut self, go_on: impl FnMut() -> bool) -> Result<(), Error> {
        if let Some(rate) = self.read_bytes_per_second {
            self.source = Arc::new(SlowSource { inner: self.source.clone(), rate, free: Mutex::new(None) });
        }
        if self.cache != CacheLimit::Off {
            // The batch that is not counted is a part of it.
            let epoch = Self { images: self.source.len(), transform: Transform::None, ..self.clone() };
            data_round(&epoch, 0, go_on)?;
        }
        Ok(())
    }
}

/// Measures a round: a loader is started, and from its second batch on, when its threads are ahead as in the middle of a
/// run, `images` are counted; as many are made in this time, so that what was ready before it does not pass for speed.
/// Rounds of other numbers have other orders and augmentations. `go_on` is asked after each batch.
///
/// # Errors
/// Settings out of range, a source of fewer images than a batch, more unusable images than a run would accept;
/// [`Error::Interrupted`].
pub fn data_round(
    setup: &DataSetup,
    number: u64,
    mut go_on: impl FnMut() -> bool,
) -> Result<DataRound, Error> {
    let workers = setup.workers;
    let config = LoaderConfig {
        batch: setup.batch_size,
        workers,
        seed: number,
        cache: setup.cache,
        ..LoaderConfig::default()
    };
    let mut loader =
        Loader::of_encoded(config, setup.source.clone(), work(setup.transform, setup.image_size)?)?;
    let mut joined = Vec::new();
    next_batch(&mut loader, &mut joined)?;
    let before = stage_times();
    let started = Instant::now();
    let (mut images, mut batch, mut spent) = (0, Duration::ZERO, StageTimes::default());
    while images.min(spent.images) < setup.images as u64 {
        let (count, joining) = next_batch(&mut loader, &mut joined)?;
        images += count;
        batch += joining;
        spent = stage_times().since(&before);
        if !go_on() {
            return Err(Error::Interrupted);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(DataRound { images: images.min(spent.images), seconds, spent, batch, threads: workers })
}

/// Takes the next batch and joins its images, as copying to a device does; gives their number and the time of joining.
fn next_batch(loader: &mut Loader<Vec<Image>>, joined: &mut Vec<u8>) -> Result<(u64, Duration), Error> {
    let batch = loader.next().ok_or(Error::Interrupted)??;
    let started = Instant::now();
    joined.clear();
    for views in &batch.items {
        for pixels in batch_hwc(views)? {
            joined.extend_from_slice(pixels);
        }
    }
    Ok((batch.items.len() as u64, started.elapsed()))
}

/// The work function of a stage's loader, with the settings of the paper's recipes.
fn work(transform: Transform, side: u32) -> Result<EncodedWork<Vec<Image>, SampleError>, Error> {
    let views = TwoViewConfig { input_size: side, second_size: side, ..TwoViewConfig::default() };
    Ok(match transform {
        // Whole images are of many sizes, and no batch is made of them.
        Transform::None => Arc::new(|image, _| Ok(image.whole().map(|_| Vec::new())?)),
        Transform::Eval => {
            let view = EvalConfig::of_size(side);
            view.validate()?;
            Arc::new(move |image, _| Ok(vec![view.apply(image.whole()?.as_ref())?]))
        }
        Transform::Finetune => {
            let config = FinetuneConfig { input_size: side, ..FinetuneConfig::default() };
            config.validate()?;
            Arc::new(move |image, info| {
                let key = info.key(RngStream::Augment);
                let params = FinetuneParams::draw(&config, image.width(), image.height(), &key);
                Ok(vec![params.apply_encoded(&config, image)?])
            })
        }
        Transform::Mim | Transform::Tokenizer => {
            let mask = (transform == Transform::Mim)
                .then(|| BlockMaskConfig { masked: MASKED, ..PretrainRecipe::default().block_mask() });
            let views = match transform {
                Transform::Tokenizer => TwoViewConfig { min_crop_scale: 0.08, color_jitter: 0.0, ..views },
                _ => views,
            };
            views.validate()?;
            Arc::new(move |image, info| {
                let key = info.key(RngStream::Augment);
                let params = ViewParams::draw(&views, image.width(), image.height(), &key);
                let made = params.apply_encoded(&views, image)?;
                if let Some(mask) = &mask {
                    let mask = sample_block_mask(&mut info.key(RngStream::Mask).rng(), mask);
                    std::hint::black_box(mask.masked_indices());
                }
                Ok(std::iter::once(made.patch).chain(made.token).collect())
            })
        }
    })
}

/// A source on a slow disk: it gives only so many bytes a second to all threads together.
struct SlowSource {
    inner: Arc<dyn Source>,
    /// Bytes a second.
    rate: f64,
    /// When the disk has given what was asked for so far.
    free: Mutex<Option<Instant>>,
}

impl Source for SlowSource {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let bytes = self.inner.read(index)?;
        let wait = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let done = free.map_or(now, |free| free.max(now))
                + Duration::from_secs_f64(bytes.len() as f64 / self.rate);
            *free = Some(done);
            done - now
        };
        std::thread::sleep(wait);
        Ok(bytes)
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(index)
    }

    fn classes(&self) -> &[String] {
        self.inner.classes()
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }

    fn account(&self) -> Account {
        self.inner.account()
    }

    fn units(&self) -> Option<Units> {
        self.inner.units()
    }

    fn parts(&self) -> Vec<Part> {
        self.inner.parts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(dir: &std::path::Path) -> Arc<dyn Source> {
        for number in 0..12u8 {
            let mut ppm = b"P6 40 30 255\n".to_vec();
            ppm.extend((0..40 * 30 * 3).map(|at| (at as u8).wrapping_mul(number + 1)));
            std::fs::write(dir.join(format!("{number}.ppm")), ppm).unwrap();
        }
        beit2_data::source::open(&dir.display().to_string()).unwrap()
    }

    #[test]
    fn every_transform_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path());
        for transform in Transform::ALL {
            for workers in [0, 2] {
                let mut setup = DataSetup {
                    source: source.clone(),
                    transform,
                    image_size: 224,
                    batch_size: 4,
                    workers,
                    images: 8,
                    cache: if workers == 0 { CacheLimit::Off } else { CacheLimit::UpTo(1 << 20) },
                    read_bytes_per_second: None,
                };
                setup.prepare(|| true).unwrap();
                let round = data_round(&setup, 0, || true).unwrap();
                assert!(round.images >= 8 && round.spent.images >= round.images, "{round:?}");
                assert!(round.seconds > 0.0 && round.overhead() < 1.0, "{round:?}");
                assert!(matches!(data_round(&setup, 1, || false), Err(Error::Interrupted)));
            }
        }
    }

    #[test]
    fn a_slow_disk_gives_so_many_bytes_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let inner = source(dir.path());
        let bytes = inner.read(0).unwrap().len() as f64;
        let slow = SlowSource { inner, rate: bytes * 200.0, free: Mutex::new(None) };
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..4).for_each(|index| drop(slow.read(index).unwrap())));
            }
        });
        assert!(started.elapsed() >= Duration::from_millis(58), "12 images at 200 a second");
    }
}
