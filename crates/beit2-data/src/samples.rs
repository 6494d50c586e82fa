//! Samples one by one, in any order: for callers that make batches of their own.

use std::fmt::Display;
use std::sync::Arc;

use crate::error::LoaderError;
use crate::loader::LoaderConfig;
use crate::order::EpochOrder;
use crate::sample::{EncodedWork, Preparer, Replaced};
use crate::source::Source;

/// One sample of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Made<T> {
    /// Number of the sample whose image it is (that of the stand-in, where there is one).
    pub index: u64,
    /// What the work function made of it.
    pub item: T,
    /// Class of the image.
    pub label: Option<u32>,
    /// The unusable sample that it stands in for.
    pub replaced: Option<Replaced>,
}

/// What a [`Loader`](crate::Loader) of the same settings makes of each sample of an epoch.
pub struct Samples<T> {
    order: EpochOrder,
    preparer: Preparer<T>,
}

impl<T> Samples<T> {
    /// From the settings of a loader, of which batch size, workers and the first batch do not matter.
    ///
    /// # Errors
    /// As [`Loader::of_encoded`](crate::Loader::of_encoded).
    pub fn of_encoded<E: Display + 'static>(
        config: LoaderConfig,
        source: Arc<dyn Source>,
        work: EncodedWork<T, E>,
    ) -> Result<Self, LoaderError>
    where
        T: 'static,
    {
        let config = LoaderConfig { batch: 1, drop_last: false, ..config };
        let order = config.order(source.as_ref())?;
        let preparer = Preparer {
            source,
            decode: config.decode,
            min_side_px: config.min_side_px,
            seed: config.seed,
            replace: true,
            cache: None,
            work: Box::new(move |image, info| work(image, info).map_err(|error| error.to_string())),
        };
        Ok(Self { order, preparer })
    }

    /// The slots of an epoch in its order; [`sample_of`](crate::order::sample_of) gives the number of a slot's sample, which is
    /// the slot itself in a collection that has each sample once.
    #[must_use]
    pub fn order(&self, epoch: u64) -> Vec<u64> {
        self.order.permutation(epoch)
    }

    /// Reads, decodes and works on the sample of a slot, or its stand-in.
    ///
    /// # Errors
    /// No sample can be used.
    pub fn make(&self, epoch: u64, slot: u64) -> Result<Made<T>, LoaderError> {
        let sample = self.preparer.prepare(epoch, slot)?;
        match (sample.item, sample.replaced) {
            (Some((index, item, label)), replaced) => Ok(Made { index, item, label, replaced }),
            // Never: with `replace` there is an item or an error.
            (None, _) => Err(LoaderError::EmptySource),
        }
    }
}
