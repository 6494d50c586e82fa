//! What a finished run is looked at with: its newest weights, its validation images, and a limit of time.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use beit2_data::Source;
use beit2_data::SourceError;
use beit2_data::source::Account;
use beit2_run::StopFlag;
use beit2_run::report::Examples;

use crate::error::Error;
use crate::train::{Assets, DataConfig, Event, Observer};
use crate::weights::{self, WeightFile};

/// Images that are looked at however long they take.
const LEAST: u64 = 8;

/// A look at a finished run.
pub struct Look<'a> {
    /// The run directory.
    pub run: &'a Path,
    /// Steps of the run, which its newest weights have.
    pub step: u64,
    /// Opens images and weights.
    pub assets: &'a dyn Assets,
    /// When to stop and be content with the images seen so far.
    pub until: Instant,
    /// Told what happens.
    pub observer: &'a mut dyn Observer,
    /// Set when the user wants to leave.
    pub stop: &'a StopFlag,
}

impl Look<'_> {
    /// The run's newest weights, and how messages call them.
    pub(super) fn weights(&self) -> Result<(WeightFile, String), Error> {
        Ok((weights::open(self.run)?, self.run.display().to_string()))
    }

    /// Whether there is time for more after so many images of a whole.
    pub(super) fn goes_on(&mut self, images: u64, of: u64) -> Result<bool, Error> {
        if self.stop.is_set() {
            return Err(Error::Interrupted);
        }
        self.observer.event(Event::Progress { what: "report".to_owned(), done: images, total: of });
        Ok(images < LEAST || Instant::now() < self.until)
    }

    /// Examples without any content yet.
    pub(super) fn examples(&self, data: &DataConfig, images: u64, of: usize) -> Examples {
        Examples { step: self.step, seen: data.seen(images, of), ..Examples::default() }
    }
}

/// The same images in an order in which any beginning is spread over all of them: where images are sorted by class, the
/// first thousand would show a few classes only.
pub(super) struct Spread {
    source: Arc<dyn Source>,
    /// Numbers in the source.
    order: Vec<u32>,
}

impl Spread {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        // Multiples of the golden section divide the circle most evenly, however many there are; their ranks are whole.
        let place = |at: u32| (f64::from(at) * 0.618_033_988_749_894_9).fract();
        let count = u32::try_from(source.len()).unwrap_or(u32::MAX);
        let mut by_place: Vec<u32> = (0..count).collect();
        by_place.sort_by(|&a, &b| place(a).total_cmp(&place(b)));
        let mut order = vec![0; by_place.len()];
        for (rank, at) in (0..).zip(by_place) {
            order[at as usize] = rank;
        }
        Self { source, order }
    }

    /// The image's number in the source itself.
    pub(super) fn number(&self, index: usize) -> usize {
        self.order.get(index).map_or(index, |&number| number as usize)
    }
}

impl Source for Spread {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        self.source.read(self.number(index))
    }

    fn name(&self, index: usize) -> String {
        self.source.name(self.number(index))
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        self.source.name_bytes(self.number(index))
    }

    fn key(&self, index: usize) -> String {
        self.source.key(self.number(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(self.number(index))
    }

    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        self.source.labels(self.number(index))
    }

    fn is_multi_label(&self) -> bool {
        self.source.is_multi_label()
    }

    fn image_size(&self, index: usize) -> Option<(u32, u32)> {
        self.source.image_size(self.number(index))
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn fingerprint(&self) -> String {
        self.source.fingerprint()
    }

    fn account(&self) -> Account {
        self.source.account()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beit2_data::source::FilesSource;

    #[test]
    fn every_image_once_and_spread() {
        for len in [1usize, 2, 3, 10, 12, 100, 409] {
            let files = (0..len).map(|at| format!("{at}.png").into()).collect();
            let spread = Spread::new(Arc::new(FilesSource::new(files)));
            let order: Vec<usize> = (0..len).map(|index| spread.number(index)).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            assert_eq!(spread.name(len - 1), format!("{}.png", order[len - 1]));
            if len == 100 {
                // The first ten have at least six of the ten tenths.
                let tenths: std::collections::BTreeSet<usize> =
                    order[..10].iter().map(|at| at / 10).collect();
                assert!(tenths.len() >= 6, "{order:?}");
            }
            assert_eq!(spread.name(len), "");
        }
    }
}
