//! Images of what was learned, for the report.

use std::sync::Arc;

use beit2_data::{Image, Source};
use beit2_kernels::{Backend, Rank};
use beit2_run::report::{GalleryCode, MimSample, RgbImage};

use crate::error::Error;
use crate::pretrain::{MimModel, PretrainRecipe, inputs, validation_data};
use crate::tokenizer::{CodeUsage, VqKd};
use crate::train::{DataConfig, DataPosition, EvaluationData, to_device};
use crate::vit::DropPath;

/// Gray of a masked patch.
const MASKED_GREY: [u8; 3] = [128, 128, 128];
/// Tint of a patch whose token was not predicted.
const MISSED: [u8; 3] = [40, 40, 40];

/// Validation images as the model saw them and what it predicted for the masked patches: input, masked input,
/// and the input with only those masked patches shown whose token was predicted (by either branch).
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
    let (x, mask, labels) = inputs(tokenizer, &batch.items, &recipe.model.vit, device)?;
    let logits = model.forward(x, &mask, &DropPath::none());
    let labels = ids(labels);
    let predicted: Vec<Vec<i64>> = std::iter::once(logits.last)
        .chain(logits.patch_aggregation)
        .map(|l| ids(l.argmax(1).squeeze_dim(1)))
        .collect();
    let grid = recipe.model.vit.grid();
    let mut samples = Vec::new();
    for (image, item) in batch.items.iter().enumerate() {
        let per_image = item.masked.len();
        let right: Vec<bool> = (image * per_image..(image + 1) * per_image)
            .map(|at| predicted.iter().any(|branch| branch[at] == labels[at]))
            .collect();
        let input = shown(&item.patch);
        let (mut masked, mut correct) = (input.clone(), input.clone());
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
    let mut usage = CodeUsage::new(codes);
    let mut carriers: Vec<Vec<RgbImage>> = vec![Vec::new(); codes];
    for batch in EvaluationData::of_size(&source, data, image_size).loader()? {
        let batch = batch?;
        if batch.items.is_empty() {
            continue;
        }
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
