//! A few images in the place of all.

use std::sync::Arc;

use beit2::Error;
use beit2::train::Assets;
use beit2::weights::WeightFile;
use beit2_data::segment::{SegmentDataOptions, SegmentSource};
use beit2_data::source::SubsetSource;
use beit2_data::{DecodeOptions, Source, decode};

/// Images that are tried at most, beyond those that are wanted: a run leaves broken ones out.
const TRIED: usize = 64;

/// The weights of a run, and the first images of its sources that can be used.
pub(super) struct FewImages<'a> {
    pub assets: &'a dyn Assets,
    /// The training images by name, and how many of them; of others there is one.
    pub train: (&'a str, usize),
    pub decode: DecodeOptions,
    pub min_side_px: u32,
}

impl FewImages<'_> {
    fn count(&self, spec: &str) -> usize {
        if spec == self.train.0 { self.train.1 } else { 1 }
    }
}

impl Assets for FewImages<'_> {
    fn source(&self, spec: &str) -> Result<Arc<dyn Source>, Error> {
        let (all, count) = (self.assets.source(spec)?, self.count(spec));
        let is_usable = |&index: &usize| {
            let image = all.read(index).ok().and_then(|bytes| decode(&bytes, &self.decode).ok());
            image.is_some_and(|image| image.width.min(image.height) >= self.min_side_px)
        };
        let tried = 0..all.len().min(count + TRIED);
        let mut chosen: Vec<usize> = tried.filter(is_usable).take(count).collect();
        // Too few: training says what is wrong with the others.
        let others = (0..all.len()).filter(|index| !chosen.contains(index));
        let missing: Vec<usize> = others.take(count - chosen.len()).collect();
        chosen.extend(missing);
        Ok(Arc::new(SubsetSource::new(all, chosen)))
    }

    fn segment_source(&self, spec: &str, options: &SegmentDataOptions) -> Result<Arc<SegmentSource>, Error> {
        let all = self.assets.segment_source(spec, options)?;
        Ok(Arc::new(all.first(self.count(spec))))
    }

    fn weights(&self, spec: &str) -> Result<WeightFile, Error> {
        self.assets.weights(spec)
    }
}
