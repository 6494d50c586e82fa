//! Images of what was learned, for the report.
//!
//! The functions `of_…` look at a finished run of a stage: they load its newest weights, show them validation images
//! within a limit of time, and give what the run directory keeps ([`Examples`]). Nothing here is a part of training.

mod classes;
mod look;
mod segments;

use std::sync::Arc;

pub use self::classes::of_classifier;
pub use self::look::Look;
use self::look::Spread;
pub use self::segments::of_segmenter;

use beit2_data::segment::class_color;
use beit2_data::{Image, Source};
use beit2_kernels::{Backend, Rank};
use beit2_run::report::{Examples, Gallery, GalleryCode, MimSample, RgbImage};

use crate::error::Error;
use crate::pretrain::{self, MimModel, PretrainRecipe, inputs, validation_data};
use crate::tokenizer::{self, CodeUsage, TokenizerRecipe, VqKd};
use crate::train::{DataConfig, DataPosition, EvaluationData, to_device};
use crate::vit::DropPath;

/// Gray of a masked patch.
const MASKED_GREY: [u8; 3] = [128, 128, 128];
/// Tint of a patch whose token was not predicted.
const MISSED: [u8; 3] = [40, 40, 40];

/// What is drawn around masked patches in images of their tokens.
const VISIBLE: [u8; 3] = [236, 236, 236];

/// Codes shown in the gallery, and patches of each.
const GALLERY: (usize, usize) = (32, 12);
/// Images shown with their masks.
const SAMPLES: usize = 6;

/// The codes of a tokenizer with patches that carry them, by the newest weights of a run.
///
/// # Errors
/// Weights or images that cannot be read; an interruption.
pub fn of_tokenizer<B: Backend>(
    recipe: &TokenizerRecipe,
    look: &mut Look<'_>,
    device: &B::Device,
) -> Result<Examples, Error> {
    let (file, origin) = look.weights()?;
    let (config, mut tokenizer) = tokenizer::load::<B>(file, &origin, None, device)?;
    tokenizer.set_precision(recipe.precision);
    let tokenizer = tokenizer.freeze_encoder();
    let source = look.assets.source(recipe.data.val.as_ref().unwrap_or(&recipe.data.train))?;
    let total = source.len();
    let source: Arc<dyn Source> = Arc::new(Spread::new(source));
    let data_config = recipe.data.of_channels(config.in_chans);
    let data = EvaluationData {
        // Small batches, so that a large model does not go far beyond its time.
        batch_size: recipe.schedule.batch_size.min(16),
        ..EvaluationData::of_size(&source, &data_config, config.image_size)
    };
    let mut images = 0;
    let (codes, usage) = gallery_until(&tokenizer, config.codebook_size, &data, GALLERY, device, |met| {
        images = met;
        look.goes_on(met, total as u64)
    })?;
    let gallery = Gallery { counts: usage.counts().to_vec(), codes };
    Ok(Examples { gallery: Some(gallery), ..look.examples(&recipe.data, images, total) })
}

/// Masks and predictions of a masked image model, by the newest weights of a run.
///
/// # Errors
/// Weights, tokenizer or images that cannot be read.
pub fn of_masked_image_model<B: Backend>(
    recipe: &PretrainRecipe,
    look: &mut Look<'_>,
    device: &B::Device,
) -> Result<Examples, Error> {
    let (file, origin) = look.weights()?;
    let (_, mut model) = pretrain::load::<B>(file, &origin, device)?;
    model.set_precision(recipe.precision);
    let (config, mut tokenizer) = recipe.tokenizer.open::<B>(look.assets, device)?;
    tokenizer.set_precision(recipe.precision);
    let tokenizer = tokenizer.freeze_encoder();
    let source = look.assets.source(recipe.data.val.as_ref().unwrap_or(&recipe.data.train))?;
    let total = source.len();
    let mim_samples = mim_samples(&model, &tokenizer, config.image_size, source, recipe, SAMPLES, device)?;
    let images = mim_samples.len() as u64;
    Ok(Examples { mim_samples, ..look.examples(&recipe.data, images, total) })
}

/// Validation images as the model saw them and what it predicted for the masked patches: input, masked input, visual
/// tokens, predicted ones, and the input with only those masked patches shown whose token was predicted (by either
/// branch).
///
/// # Errors
/// Images that cannot be read.
pub fn mim_samples<B: Backend>(
    model: &MimModel<B>,
    tokenizer: &VqKd<B>,
    token_px: usize,
    source: Arc<dyn Source>,
    recipe: &PretrainRecipe,
    count: usize,
    device: &B::Device,
) -> Result<Vec<MimSample>, Error> {
    let count = count.min(source.len()).max(1);
    let config = DataConfig { min_side_px: 0, ..recipe.data.of_channels(recipe.model.vit.in_chans) };
    let data = validation_data(source, &config, recipe, token_px, count);
    let mut loader = data.loader(DataPosition::default(), &Rank::alone())?;
    let Some(batch) = loader.next() else { return Ok(Vec::new()) };
    let batch = batch?;
    let (x, mask, labels) = inputs(model, tokenizer, &batch.items, &recipe.model.vit, device)?;
    let logits = model.forward(x, &mask, &DropPath::none());
    let labels = ids(labels);
    let predicted: Vec<Vec<i64>> = std::iter::once(logits.last)
        .chain(logits.patch_aggregation)
        .map(|l| ids(l.argmax(1).squeeze_dim(1)))
        .collect();
    let grid = recipe.model.vit.grid();
    let mut samples = Vec::new();
    let numbers = |ids: &[i64]| ids.iter().map(|&id| id as u32).collect::<Vec<u32>>();
    for (image, item) in batch.items.iter().enumerate() {
        let per_image = item.masked.len();
        let own = image * per_image..(image + 1) * per_image;
        let (tokens, guesses) = (numbers(&labels[own.clone()]), numbers(&predicted[0][own]));
        let colour = colours(&tokens, &guesses);
        let right: Vec<bool> = (image * per_image..(image + 1) * per_image)
            .map(|at| predicted.iter().any(|branch| branch[at] == labels[at]))
            .collect();
        let input = shown(&item.patch);
        let (mut masked, mut correct) = (input.clone(), input.clone());
        let mut blank = input.clone();
        blank.data.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&VISIBLE));
        let drawn = |ids: &[u32]| {
            let mut image = blank.clone();
            for (&patch, id) in item.masked.iter().zip(ids) {
                paint(&mut image, grid, patch as usize, colour(*id));
            }
            image_of(&image)
        };
        for (&patch, &right) in item.masked.iter().zip(&right) {
            paint(&mut masked, grid, patch as usize, MASKED_GREY);
            if !right {
                paint(&mut correct, grid, patch as usize, MISSED);
            }
        }
        let hits = right.iter().filter(|r| **r).count();
        samples.push(MimSample {
            input: image_of(&input),
            masked: image_of(&masked),
            correct: image_of(&correct),
            caption: format!("{hits} of {per_image} masked patches"),
            masked_patches: item.masked.clone(),
            tokens_drawn: drawn(&tokens),
            predicted_drawn: drawn(&guesses),
            tokens,
            predicted: guesses,
        });
    }
    Ok(samples)
}

/// The most used codes over a source, each with some of the patches that carry it (with the patches
/// around them, without which a small patch says nothing), and the uses of all codes.
///
/// # Errors
/// Images that cannot be read.
pub fn gallery<B: Backend>(
    tokenizer: &VqKd<B>,
    codes: usize,
    image_size: usize,
    source: Arc<dyn Source>,
    data: &DataConfig,
    (most, patches_each): (usize, usize),
    device: &B::Device,
) -> Result<(Vec<GalleryCode>, CodeUsage), Error> {
    let data = EvaluationData::of_size(&source, data, image_size);
    gallery_until(tokenizer, codes, &data, (most, patches_each), device, |_| Ok(true))
}

/// The same, for as long as `goes_on` says after so many images.
fn gallery_until<B: Backend>(
    tokenizer: &VqKd<B>,
    codes: usize,
    data: &EvaluationData<'_>,
    (most, patches_each): (usize, usize),
    device: &B::Device,
    mut goes_on: impl FnMut(u64) -> Result<bool, Error>,
) -> Result<(Vec<GalleryCode>, CodeUsage), Error> {
    let mut usage = CodeUsage::new(codes);
    let mut carriers: Vec<Vec<RgbImage>> = vec![Vec::new(); codes];
    let mut images_met = 0;
    for batch in data.loader()? {
        let batch = batch?;
        if batch.items.is_empty() {
            continue;
        }
        images_met += batch.items.len() as u64;
        let (images, _) = to_device::<B>(&batch.items, device)?;
        let found = tokenizer.ids(tokenizer.preprocess(images));
        let [_, patches] = found.dims();
        let grid = patches.isqrt();
        for (item, row) in batch.items.iter().zip(ids(found.reshape([-1])).chunks(patches)) {
            usage.add(row.iter().map(|&id| id as usize));
            // One patch of a code per image, so that the gallery shows what its carriers share.
            let mut seen = std::collections::HashSet::new();
            let image = shown(&item.patch);
            for (patch, &id) in row.iter().enumerate() {
                let of_code = &mut carriers[id as usize];
                if of_code.len() < patches_each && seen.insert(id) {
                    of_code.push(around(&image, grid, patch));
                }
            }
        }
        if !goes_on(images_met)? {
            break;
        }
    }
    let gallery = usage
        .most_used(most)
        .into_iter()
        .map(|(code, count)| GalleryCode {
            code,
            count,
            patches: std::mem::take(&mut carriers[code as usize]),
        })
        .collect();
    Ok((gallery, usage))
}

/// A colour for each token of an image, the same in both lists.
fn colours(tokens: &[u32], predicted: &[u32]) -> impl Fn(u32) -> [u8; 3] + use<> {
    let mut known: Vec<u32> = tokens.iter().chain(predicted).copied().collect();
    known.sort_unstable();
    known.dedup();
    move |id| class_color((known.partition_point(|&other| other < id) % 255) as u8)
}

fn ids<B: Backend>(tensor: burn::tensor::Tensor<B, 1, burn::tensor::Int>) -> Vec<i64> {
    tensor.into_data().convert::<i64>().into_vec().unwrap_or_default()
}

/// An image as a person sees it: of other than three channels, the first ones stand for red, green and blue.
fn shown(image: &Image) -> Image {
    let last = image.channels.saturating_sub(1);
    match image.channels {
        3 => image.clone(),
        _ => image.rgb_of([0, 1.min(last), 2.min(last)]).unwrap_or_else(|_| image.clone()),
    }
}

fn image_of(image: &Image) -> RgbImage {
    RgbImage { width: image.width, height: image.height, rgb: image.data.clone() }
}

/// Pixels of a patch as (top, left, side).
fn place(image: &Image, grid: usize, patch: usize) -> (usize, usize, usize) {
    let side = image.width as usize / grid.max(1);
    (patch / grid * side, patch % grid * side, side)
}

fn paint(image: &mut Image, grid: usize, patch: usize, colour: [u8; 3]) {
    let (top, left, side) = place(image, grid, patch);
    for y in top..top + side {
        let row = (y * image.width as usize + left) * 3;
        for pixel in image.data[row..row + side * 3].chunks_exact_mut(3) {
            pixel.copy_from_slice(&colour);
        }
    }
}

/// A patch with half a patch around it, cut off at the image's edge by repeating the edge.
fn around(image: &Image, grid: usize, patch: usize) -> RgbImage {
    let (top, left, side) = place(image, grid, patch);
    let (border, width, height) = (side / 2, image.width as usize, image.height as usize);
    let span = side + 2 * border;
    let mut rgb = Vec::with_capacity(span * span * 3);
    for y in 0..span {
        let from_y = (top + y).saturating_sub(border).min(height - 1);
        for x in 0..span {
            let from_x = (left + x).saturating_sub(border).min(width - 1);
            let at = (from_y * width + from_x) * 3;
            rgb.extend_from_slice(&image.data[at..at + 3]);
        }
    }
    RgbImage { width: span as u32, height: span as u32, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_found_and_painted() {
        let mut image = Image::new(8, 8, (0..192).map(|v| v as u8).collect()).unwrap();
        assert_eq!(place(&image, 4, 5), (2, 2, 2));
        let cut = around(&image, 4, 0);
        assert_eq!((cut.width, cut.height), (4, 4));
        assert_eq!(&cut.rgb[..6], [0, 1, 2, 0, 1, 2], "the edge repeats");
        paint(&mut image, 4, 5, MASKED_GREY);
        assert_eq!(&image.data[(2 * 8 + 2) * 3..][..6], [128; 6]);
        assert_eq!(image.data[(2 * 8 + 4) * 3], 60);
    }
}
