//! A pretrained model on a validation set.

use std::sync::Arc;

use beit2_data::Source;
use beit2_kernels::{Backend, Rank};
use burn::tensor::{Int, Tensor};

use super::{MimModel, PatchMask, PretrainRecipe};
use crate::error::Error;
use crate::pixels;
use crate::tokenizer::VqKd;
use crate::train::{DataConfig, DataPosition, Item, TrainingData, patches_to_device, scalar, unusable};
use crate::vit::{DropPath, Pixels, VitConfig};

/// Metrics of a validation set.
#[derive(Debug, Clone, PartialEq)]
pub struct MimEvaluation {
    /// Cross entropy of each branch.
    pub loss: Vec<f64>,
    /// Fraction of the masked patches whose token is predicted, of each branch.
    pub accuracy: Vec<f64>,
    /// A sentence for each image that could not be used; another one counts in its place.
    pub replaced: Vec<String>,
}

/// Largest batch of an evaluation.
const EVALUATION_BATCH: usize = 256;

/// Loss and accuracy on a validation set, under the crops and masks of `validation_data`. Each image counts once, except
/// for the few left over by batches of equal size.
///
/// # Errors
/// More images than `max_bad_fraction` allows that cannot be read.
pub fn evaluate<I: Backend>(
    model: &MimModel<I>,
    tokenizer: &VqKd<I>,
    source: Arc<dyn Source>,
    recipe: &PretrainRecipe,
    device: &I::Device,
) -> Result<MimEvaluation, Error> {
    let images = source.len();
    let batches = images.div_ceil(EVALUATION_BATCH.min(recipe.schedule.batch_size)).max(1);
    let token_px = tokenizer.encoder.trunk.patch_embed.proj.weight.dims()[2] * recipe.model.vit.grid();
    let config = DataConfig { min_side_px: 0, ..recipe.data.of_channels(recipe.model.vit.in_chans) };
    let data = validation_data(source, &config, recipe, token_px, images / batches);

    let mut replaced = Vec::new();
    let (mut loss, mut accuracy, mut count) = (Vec::new(), Vec::new(), 0.0);
    for batch in data.loader(DataPosition::default(), &Rank::alone())?.take(batches) {
        let batch = batch?;
        replaced.extend(unusable(&batch));
        let (x, mask, labels) = inputs(model, tokenizer, &batch.items, &recipe.model.vit, device)?;
        let found = model.forward_loss(x, &mask, labels, &DropPath::none());
        loss.resize(found.branches.len(), 0.0);
        accuracy.resize(found.branches.len(), 0.0);
        loss.iter_mut().zip(found.branches).for_each(|(sum, value)| *sum += scalar(value));
        accuracy.iter_mut().zip(found.accuracy).for_each(|(sum, value)| *sum += scalar(value));
        count += 1.0;
    }
    loss.iter_mut().chain(&mut accuracy).for_each(|sum| *sum /= count);
    Ok(MimEvaluation { loss, accuracy, replaced })
}

/// Crops and masks that do not depend on the run, so that runs and epochs can be compared: the training transform with a
/// fixed seed, without colour jitter and flips.
pub(crate) fn validation_data<'a>(
    source: Arc<dyn Source>,
    config: &'a DataConfig,
    recipe: &PretrainRecipe,
    token_px: usize,
    batch_size: usize,
) -> TrainingData<'a> {
    let mut views = recipe.views(token_px);
    (views.color_jitter, views.hflip, views.min_crop_scale) = (0.0, 0.0, 0.8);
    TrainingData { source, config, batch_size, views, mask: Some(recipe.block_mask()), seed: 0 }
}

/// What a model is given: the patches of images, their masks, and the target token ids `[B·M]`.
pub(crate) fn inputs<I: Backend>(
    model: &MimModel<I>,
    tokenizer: &VqKd<I>,
    items: &[Item],
    vit: &VitConfig,
    device: &I::Device,
) -> Result<Inputs<I>, Error> {
    let of_model = model.trunk.patch_embed.spec(pixels::scaling(vit.normalization.as_ref()));
    let [x, tokenizer_x] = patches_to_device::<I>(items, [of_model, tokenizer.patch_spec()], device)?;
    let mask = mask_of(items, vit.patches(), device);
    let labels = tokenizer.ids_at(tokenizer_x, mask.masked_tokens());
    Ok((x, mask, labels))
}

/// The masks of a batch.
pub(super) fn mask_of<I: Backend>(items: &[Item], patches: usize, device: &I::Device) -> PatchMask<I> {
    let masked: Vec<u32> = items.iter().flat_map(|item| item.masked.iter().copied()).collect();
    PatchMask::new(&masked, items.len(), patches, device)
}

type Inputs<I> = (Pixels<I>, PatchMask<I>, Tensor<I, 1, Int>);
