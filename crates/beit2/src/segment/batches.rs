//! Augmented images and masks as batches on the device.

use std::sync::Arc;

use beit2_data::segment::{SegmentDataError, SegmentSource, SegmentTrainParams, SegmentTrainView};
use beit2_data::{Image, Loader, RngStream, SampleInfo, TransformError, batch_hwc};
use beit2_kernels::{Backend, Rank, clear_outside};
use beit2_weights::Normalization;
use burn::tensor::{Int, Tensor};

use super::{SegmentRecipe, label_tensor};
use crate::error::Error;
use crate::pixels;
use crate::train::{DataPosition, TrainingItem, loader_config};

impl TrainingItem for SegmentTrainView {
    /// Enlarging is a part of the recipe here, not a sign of small images.
    fn is_upscaled(&self) -> bool {
        false
    }
}

/// Why a pair cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Mask(#[from] SegmentDataError),
    #[error(transparent)]
    View(#[from] TransformError),
}

/// A loader of a rank's training crops.
///
/// # Errors
/// Settings out of range.
pub(super) fn training_loader(
    source: &Arc<SegmentSource>,
    recipe: &SegmentRecipe,
    start: DataPosition,
    rank: &Rank,
) -> Result<Loader<SegmentTrainView>, Error> {
    let augment = recipe.augmentation();
    augment.validate()?;
    let masks = source.clone();
    let work = Arc::new(move |image: &Image, info: &SampleInfo| {
        let mask = masks.mask(info.index as usize)?;
        let params = SegmentTrainParams::draw(&augment, &mask, &info.key(RngStream::Augment))?;
        Ok::<_, Unusable>(params.apply(&augment, image, &mask)?)
    });
    let config = loader_config(&recipe.data, recipe.schedule.batch_size, recipe.seed, start, rank);
    Ok(Loader::new(config, source.clone(), work)?)
}

/// Standardised crops `[B, 3, S, S]`, 0 where they are padded, and their classes `[B, S, S]`.
///
/// # Errors
/// No crops, a class past the end.
pub(super) fn inputs<B: Backend>(
    items: &[SegmentTrainView],
    classes: usize,
    normalization: Option<&Normalization>,
    device: &B::Device,
) -> Result<(Tensor<B, 4>, Tensor<B, 3, Int>), Error> {
    let Some(first) = items.first() else {
        return Err(Error::Training("an empty batch".into()));
    };
    let (height, width) = (first.image.height as usize, first.image.width as usize);
    let images = batch_hwc(items.iter().map(|item| &item.image))?;
    let x = pixels::from_bytes(&images, [height, width, 3], device);
    let contents: Vec<_> =
        items.iter().map(|item| [item.content.0 as usize, item.content.1 as usize]).collect();
    let x = clear_outside(pixels::normalise(x, normalization), &contents);
    let ids = items.iter().flat_map(|item| item.mask.data.iter().copied()).collect();
    Ok((x, label_tensor(ids, [items.len(), height, width], classes, device)?))
}
