//! What a segmentation model predicts.

use std::sync::Arc;

use beit2_data::{Image, Sequence, SequenceConfig, Source};
use beit2_kernels::Backend;
use beit2_run::report::Examples;

use super::look::{Look, Spread};
use crate::error::Error;
use crate::segment::{
    Confusion, EXAMPLES, Predictor, SegmentExample, SegmentRecipe, Segmenter, SegmenterOptions, drawn,
    segmented,
};

/// IoU of each class and a few images with masks and predictions, by the newest weights of a run. (A run with validation
/// images keeps them at every evaluation.)
///
/// # Errors
/// Weights, images or masks that cannot be read; an interruption.
pub fn of_segmenter<B: Backend>(
    recipe: &SegmentRecipe,
    look: &mut Look<'_>,
    device: &B::Device,
) -> Result<Examples, Error> {
    let (file, origin) = look.weights()?;
    let options = SegmenterOptions { precision: recipe.precision, ..SegmenterOptions::default() };
    let segmenter = Segmenter::<B>::from_file(file, &origin, &options, device)?;
    let predictor = Predictor::new(&segmenter.model, &segmenter.config, &segmenter.infer)?;
    let options = recipe.masks.options(recipe.data.decode_options());
    let spec = recipe.data.val.as_ref().unwrap_or(&recipe.data.train);
    let source = look.assets.segment_source(spec, &options)?;
    let (total, workers) = (source.len(), recipe.data.workers);
    let spread = Arc::new(Spread::new(source.clone()));
    let decode = source.decode_options().clone();
    let config = SequenceConfig { workers, prefetch: workers + 1, decode, ..SequenceConfig::default() };
    let mut confusion = Confusion::new(segmenter.config.class_count());
    let (mut shown, mut images) = (Vec::new(), 0);
    for seen in Sequence::new(config, spread.clone(), |image: &Image| Ok::<_, Error>(image.clone()))? {
        let index = seen.index;
        let image = seen.item.map_err(|reason| Error::Image { path: spread.name(index).into(), reason })?;
        let mask = source.mask(spread.number(index))?;
        let predicted = predictor.label(&image)?;
        confusion.add(&predicted.data, &mask.data)?;
        images += 1;
        if shown.len() < EXAMPLES {
            let example = SegmentExample { image, mask, predicted };
            shown.push(drawn(&example, &segmenter.config.colours()));
        }
        if !look.goes_on(images, total as u64)? {
            break;
        }
    }
    let segmented = segmented(&segmenter.config, &confusion.scores(), shown);
    Ok(Examples { segmented: Some(segmented), ..look.examples(&recipe.data, images, total) })
}
