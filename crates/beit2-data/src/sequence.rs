//! Every image of a source once, in order, decoded by threads.
//!
//! For results that belong to single images. A [`Loader`](crate::Loader) fills the place of an image that
//! cannot be used, because a training batch must be full; here the caller gets the reason, and decides.

use std::fmt::Display;
use std::sync::Arc;

use crate::decode::DecodeOptions;
use crate::error::LoaderError;
use crate::image::Image;
use crate::pool::{Pool, guarded};
use crate::sample::Preparer;
use crate::source::Source;

/// Settings of a [`Sequence`].
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceConfig {
    /// Number of the first image. Default 0.
    pub start: usize,
    /// Worker threads; 0 does the work inside `next()`. Default 2.
    pub workers: usize,
    /// Images to prefetch, which bounds the memory. Default 64.
    pub prefetch: usize,
    /// DecodeOptions on decoding.
    pub decode: DecodeOptions,
}

impl Default for SequenceConfig {
    fn default() -> Self {
        Self { start: 0, workers: 2, prefetch: 64, decode: DecodeOptions::default() }
    }
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// Its number in the source.
    pub index: usize,
    /// What the work function made of it, or a sentence about why it cannot be used.
    pub item: Result<T, String>,
}

/// Iterator over the images of a source. Dropping it stops and joins the workers, at any moment.
pub struct Sequence<T> {
    preparer: Arc<Preparer<T>>,
    pool: Option<Pool<usize, Result<T, String>>>,
    prefetch: usize,
    submitted: usize,
    next: usize,
}

impl<T: Send + 'static> Sequence<T> {
    /// Starts the workers on the first images.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn new<E: Display + 'static>(
        config: SequenceConfig,
        source: Arc<dyn Source>,
        work: impl Fn(&Image) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, LoaderError> {
        let preparer = Arc::new(Preparer {
            source,
            decode: config.decode,
            min_side_px: 0,
            seed: 0,
            replace: false,
            cache: None,
            work: Box::new(move |image, _| {
                let image = image.whole().map_err(|error| error.to_string())?;
                work(&image).map_err(|error| error.to_string())
            }),
        });
        let pool = match config.workers {
            0 => None,
            n => {
                let preparer = preparer.clone();
                let pool = Pool::start(n, move |index| prepared(&preparer, index));
                Some(pool.map_err(|error| LoaderError::Spawn(error.to_string()))?)
            }
        };
        let (start, prefetch) = (config.start, config.prefetch.max(1));
        Ok(Self { preparer, pool, prefetch, submitted: start, next: start })
    }
}

fn prepared<T>(preparer: &Preparer<T>, index: usize) -> Result<T, String> {
    preparer.attempt(0, index as u64, index as u64).map(|(item, _)| item)
}

impl<T: Send + 'static> Iterator for Sequence<T> {
    type Item = Seen<T>;

    fn next(&mut self) -> Option<Seen<T>> {
        let len = self.preparer.source.len();
        if self.next >= len {
            return None;
        }
        let index = self.next;
        self.next += 1;
        let outcome = match &self.pool {
            None => guarded(|| prepared(&self.preparer, index)),
            Some(pool) => {
                let end = len.min(index.saturating_add(self.prefetch));
                pool.submit((self.submitted..end).map(|index| (index as u64, index)));
                self.submitted = self.submitted.max(end);
                pool.wait(index as u64)
            }
        };
        let item = outcome.unwrap_or_else(|panic| Err(format!("working on it crashed ({panic})")));
        Some(Seen { index, item })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FilesSource;

    #[test]
    fn every_image_in_its_place_and_reasons_for_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..9u8).map(|at| dir.path().join(format!("{at}.ppm"))).collect();
        for (at, file) in files.iter().enumerate() {
            let bytes = [b"P6 1 1 255\n".as_slice(), &[at as u8; 3]].concat();
            std::fs::write(file, if at == 4 { b"no image".to_vec() } else { bytes }).unwrap();
        }
        std::fs::remove_file(&files[7]).unwrap();
        let source: Arc<dyn Source> = Arc::new(FilesSource::new(files));
        let work = |image: &Image| match image.data[0] {
            2 => panic!("two"),
            5 => Err("five"),
            value => Ok(value),
        };
        let mut all = Vec::new();
        for (workers, prefetch) in [(0, 1), (1, 1), (3, 4), (2, 100)] {
            let config = SequenceConfig { start: 1, workers, prefetch, ..SequenceConfig::default() };
            all.push(Sequence::new(config, source.clone(), work).unwrap().collect::<Vec<_>>());
        }
        let found: Vec<_> = all[0].iter().map(|seen| (seen.index, seen.item.as_ref().ok())).collect();
        assert_eq!(found[0], (1, Some(&1)));
        let good: Vec<u8> = found.iter().filter_map(|(_, item)| item.copied()).collect();
        assert_eq!((found.len(), good), (8, vec![1, 3, 6, 8]));
        let why = |index: usize| all[0][index - 1].item.clone().unwrap_err();
        assert!(why(2).contains("two") && why(5) == "five" && why(7).contains("7.ppm"), "{}", why(7));
        assert!(why(4).contains("not a JPEG"), "{}", why(4));
        assert!(all.iter().all(|one| *one == all[0]), "the same for any number of workers");
    }
}
