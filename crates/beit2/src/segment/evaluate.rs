//! A segmentation model on images with masks.

use std::sync::Arc;

use beit2_data::segment::{LabelMap, SegmentSource};
use beit2_data::{Image, Sequence, SequenceConfig, Source};
use beit2_kernels::Backend;
use beit2_run::StopFlag;

use super::{Confusion, Predictor};
use crate::error::Error;
use crate::train::{Event, Observer};

/// What came of an evaluation.
pub struct SegmentEvaluation {
    /// Pixels by class and predicted class.
    pub confusion: Confusion,
    /// The first images.
    pub examples: Vec<SegmentExample>,
}

/// An image with its mask and what was predicted.
pub struct SegmentExample {
    /// The image.
    pub image: Image,
    /// Its mask.
    pub mask: LabelMap,
    /// The prediction, as large as the mask.
    pub predicted: LabelMap,
}

/// Segments every image and compares with its mask, at the mask's size. Keeps the first `examples` images.
///
/// # Errors
/// An image or mask that cannot be used (the result would be one of other images), an interruption.
pub fn evaluate<B: Backend>(
    predictor: &Predictor<'_, B>,
    source: &Arc<SegmentSource>,
    workers: usize,
    examples: usize,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<SegmentEvaluation, Error> {
    let total = source.len();
    let confusion = Confusion::new(predictor.classes());
    let mut found = SegmentEvaluation { confusion, examples: Vec::new() };
    // Images keep their size here, and one takes the model longer than the next takes to decode.
    let decode = source.decode_options().clone();
    let config = SequenceConfig { workers, prefetch: workers + 1, decode, ..SequenceConfig::default() };
    let images = Sequence::new(config, source.clone(), |image: &Image| Ok::<_, Error>(image.clone()))?;
    for seen in images {
        if stop.is_set() {
            return Err(Error::Interrupted);
        }
        let name = source.name(seen.index);
        let image = seen.item.map_err(|reason| Error::Image { path: name.clone().into(), reason })?;
        let mask = source.mask(seen.index)?;
        if (mask.width, mask.height) != (image.width, image.height) {
            let reason = format!(
                "the image has {}×{} px and its mask {} has {}×{}",
                image.width,
                image.height,
                source.mask_name(seen.index),
                mask.width,
                mask.height
            );
            return Err(Error::Image { path: name.into(), reason });
        }
        let predicted = predictor.label(&image)?;
        found.confusion.add(&predicted.data, &mask.data)?;
        if found.examples.len() < examples {
            found.examples.push(SegmentExample { image, mask, predicted });
        }
        let (done, total) = (seen.index as u64 + 1, total as u64);
        observer.event(Event::Progress { what: "evaluation".to_owned(), done, total });
    }
    Ok(found)
}
