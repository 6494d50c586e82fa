//! A few images in the place of all.

use std::sync::Arc;

use beit2::Error;
use beit2::train::Assets;
use beit2::weights::WeightFile;
use beit2_data::segment::{SegmentDataOptions, SegmentSource};
use beit2_data::{DecodeOptions, Source, SourceError, decode};

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
        Ok(Arc::new(Few { all, chosen }))
    }

    fn segment_source(&self, spec: &str, options: &SegmentDataOptions) -> Result<Arc<SegmentSource>, Error> {
        let all = self.assets.segment_source(spec, options)?;
        Ok(Arc::new(all.first(self.count(spec))))
    }

    fn weights(&self, spec: &str) -> Result<WeightFile, Error> {
        self.assets.weights(spec)
    }
}

/// Some images of a source, in an order of their own.
struct Few {
    all: Arc<dyn Source>,
    chosen: Vec<usize>,
}

impl Few {
    /// The number in the source; past its end for one past ours.
    fn at(&self, index: usize) -> usize {
        self.chosen.get(index).copied().unwrap_or(usize::MAX)
    }
}

impl Source for Few {
    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        self.all.read(self.at(index))
    }

    fn name(&self, index: usize) -> String {
        self.all.name(self.at(index))
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        self.all.name_bytes(self.at(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.all.label(self.at(index))
    }

    fn labels(&self, index: usize) -> Option<Vec<u32>> {
        self.all.labels(self.at(index))
    }

    fn is_multi_label(&self) -> bool {
        self.all.is_multi_label()
    }

    fn image_size(&self, index: usize) -> Option<(u32, u32)> {
        self.all.image_size(self.at(index))
    }

    fn classes(&self) -> &[String] {
        self.all.classes()
    }

    fn fingerprint(&self) -> String {
        self.all.fingerprint()
    }
}
