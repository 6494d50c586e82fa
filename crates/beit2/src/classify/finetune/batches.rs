//! Labelled, augmented, mixed batches.

use std::ops::Range;
use std::sync::Arc;

use beit2_data::finetune::Place;
use beit2_data::transform::{multi_hot_targets, soft_targets};
use beit2_data::{
    Batch, EncodedImage, EraseParams, FinetuneConfig, FinetuneParams, Image, Loader, MixParams, RngStream,
    SampleError, SampleInfo, Samples, Source, TransformError, batch_hwc,
};
use beit2_kernels::{self as kernels, Backend, ImageBox, PairMix, Rank};
use beit2_weights::Normalization;
use burn::tensor::{Tensor, TensorData};

use super::FinetuneRecipe;
use crate::error::{Error, config_error};
use crate::pixels;
use crate::train::{DataPosition, loader_config};

/// One augmented image.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its pixels, not yet erased.
    pub image: Image,
    /// What is erased after normalisation.
    pub erase: Option<EraseParams>,
    /// The crop had fewer pixels than the image made of it.
    pub upscaled: bool,
}

/// A loader of augmented training images.
///
/// # Errors
/// Settings out of range.
pub(super) fn training_loader(
    source: Arc<dyn Source>,
    recipe: &FinetuneRecipe,
    start: DataPosition,
    rank: &Rank,
) -> Result<Loader<Item>, Error> {
    let augment = recipe.augmentation();
    augment.validate()?;
    let work = Arc::new(move |image: &EncodedImage<'_>, info: &SampleInfo| augmented(&augment, image, info));
    let config = loader_config(
        &recipe.data.of_channels(recipe.model.vit.in_chans),
        recipe.schedule.batch_size,
        recipe.seed,
        start,
        rank,
    );
    Ok(Loader::of_encoded(config, source, work)?)
}

/// The images of training one by one, as training's batches have them: before what happens on the device, where boxes are erased
/// and images are mixed.
///
/// # Errors
/// Settings out of range.
pub fn training_samples(
    source: Arc<dyn Source>,
    recipe: &FinetuneRecipe,
) -> Result<Samples<crate::train::Item>, Error> {
    let augment = recipe.augmentation();
    augment.validate()?;
    let work = Arc::new(move |image: &EncodedImage<'_>, info: &SampleInfo| {
        let Item { image: patch, upscaled, .. } = augmented(&augment, image, info)?;
        Ok::<_, SampleError>(crate::train::Item { patch, token: None, masked: Vec::new(), upscaled })
    });
    let data = recipe.data.of_channels(recipe.model.vit.in_chans);
    let config = loader_config(&data, 1, recipe.seed, DataPosition::default(), &Rank::alone());
    Ok(Samples::of_encoded(config, source, work)?)
}

fn augmented(
    augment: &FinetuneConfig,
    image: &EncodedImage<'_>,
    info: &SampleInfo,
) -> Result<Item, SampleError> {
    let (width, height) = (image.width(), image.height());
    let params = FinetuneParams::draw(augment, width, height, &info.key(RngStream::Augment));
    let upscaled = match params.place {
        Place::Resized(area) => area.width.min(area.height) < augment.input_size,
        Place::Padded { .. } => false,
    };
    Ok(Item { image: params.apply_encoded(augment, image)?, erase: params.erase, upscaled })
}

/// The classes of a batch's images.
pub(super) enum Labels {
    /// One each.
    One(Vec<u32>),
    /// Any number each.
    Many(Vec<Vec<u32>>),
}

impl Labels {
    /// Those of a batch of `source`.
    ///
    /// # Errors
    /// An image without known classes.
    pub(super) fn of(batch: &Batch<Item>, source: &dyn Source) -> Result<Self, Error> {
        let known = match source.is_multi_label() {
            true => {
                let sets = batch.indices.iter().map(|&index| source.labels(index as usize));
                sets.collect::<Option<_>>().map(Self::Many)
            }
            false => batch.labels.iter().copied().collect::<Option<_>>().map(Self::One),
        };
        match known {
            Some(labels) => Ok(labels),
            None => config_error("a training image has no class; fine-tuning needs classes for all"),
        }
    }

    /// The targets `[n, classes]` of a micro-batch, mixed as its images are.
    fn targets(
        &self,
        part: Range<usize>,
        (classes, smoothing): (usize, f64),
        mix: MixParams,
    ) -> Result<Vec<f32>, TransformError> {
        match self {
            Self::One(labels) => soft_targets(&labels[part], classes, smoothing, mix.lambda),
            Self::Many(sets) => multi_hot_targets(&sets[part], classes, smoothing, mix.lambda),
        }
    }
}

/// Standardised, erased and mixed images `[B, 3, S, S]` of a micro-batch, which has `part` of the batch's labels, and their
/// targets `[B, classes]`.
///
/// # Errors
/// A class past the end, an odd batch that is mixed.
pub(super) fn inputs<B: Backend>(
    items: &[Item],
    (labels, part): (&Labels, Range<usize>),
    mix: MixParams,
    (classes, smoothing): (usize, f64),
    normalization: Option<&Normalization>,
    device: &B::Device,
) -> Result<(Tensor<B, 4>, Tensor<B, 2>), Error> {
    let Some(first) = items.first() else {
        return Err(Error::Training("an empty batch".into()));
    };
    let channels = first.image.channels as usize;
    let images = batch_hwc(items.iter().map(|item| &item.image))?;
    let x = pixels::from_bytes(&images, pixels::size(&first.image), device);
    let x = pixels::normalise(x, normalization);
    let (mut boxes, mut values) = (Vec::new(), Vec::new());
    for (image, erase) in items.iter().enumerate().filter_map(|(at, item)| Some((at, item.erase?))) {
        let (rows, columns) = region(erase.area);
        boxes.push(ImageBox { image, rows, columns });
        values.extend(erase.values(channels));
    }
    let x = kernels::paste_boxes(x, &boxes, values);
    let targets = labels.targets(part, (classes, smoothing), mix)?;
    let targets = kernels::upload(TensorData::new(targets, [items.len(), classes]), device);
    Ok((mixed(x, mix), targets))
}

fn region(area: beit2_data::CropBox) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let range = |start: u32, length: u32| start as usize..(start + length) as usize;
    (range(area.top, area.height), range(area.left, area.width))
}

/// Each image with its partner, image B − 1 − i.
fn mixed<B: Backend>(x: Tensor<B, 4>, mix: MixParams) -> Tensor<B, 4> {
    match mix.cut {
        Some(area) => {
            let (rows, columns) = region(area);
            kernels::mix_pairs(x, PairMix::Cut { rows, columns })
        }
        None if mix.lambda < 1.0 => kernels::mix_pairs(x, PairMix::Blend(mix.lambda)),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beit2_data::{CropBox, EraseFill};
    use burn::backend::Flex;

    fn item(value: u8) -> Item {
        Item { image: Image::new(4, 4, vec![value; 48]).unwrap(), erase: None, upscaled: false }
    }

    fn values(x: Tensor<Flex, 4>) -> Vec<f32> {
        x.into_data().into_vec().unwrap()
    }

    #[test]
    fn mixing_pairs_the_ends() {
        let items = [item(0), item(255)];
        let mix = MixParams { lambda: 0.75, cut: None };
        let device = Default::default();
        let labels = Labels::One(vec![0, 2]);
        let (x, targets) = inputs::<Flex>(&items, (&labels, 0..2), mix, (3, 0.0), None, &device).unwrap();
        let red =
            |x: &[f32], at: usize| f64::from(x[at * 48]) * pixels::IMAGENET_STD[0] + pixels::IMAGENET_MEAN[0];
        let found = values(x);
        assert!((red(&found, 0) - 0.25).abs() < 1e-6 && (red(&found, 1) - 0.75).abs() < 1e-6);
        let targets: Vec<f32> = targets.into_data().into_vec().unwrap();
        assert_eq!(targets, [0.75, 0.0, 0.25, 0.25, 0.0, 0.75]);

        let area = CropBox { top: 1, left: 0, height: 2, width: 3 };
        let mix = MixParams { lambda: 1.0 - 6.0 / 16.0, cut: Some(area) };
        let (x, _) = inputs::<Flex>(&items, (&labels, 0..2), mix, (3, 0.0), None, &device).unwrap();
        let found = values(x);
        let white =
            |at: usize| f64::from(found[at]) * pixels::IMAGENET_STD[0] + pixels::IMAGENET_MEAN[0] > 0.5;
        let expected = |at: usize| (1..3).contains(&(at / 4)) && at % 4 < 3;
        assert!((0..16).all(|at| white(at) == expected(at) && white(48 + at) != expected(at)));
    }

    #[test]
    fn several_classes_are_mixed_too() {
        let labels = Labels::Many(vec![vec![0, 2], vec![2], vec![], vec![1]]);
        let items = [item(0), item(255)];
        let mix = MixParams { lambda: 0.75, cut: None };
        let targets = |part, smoothing| {
            let (_, targets) =
                inputs::<Flex>(&items, (&labels, part), mix, (3, smoothing), None, &Default::default())
                    .unwrap();
            targets.into_data().into_vec::<f32>().unwrap()
        };
        assert_eq!(targets(0..2, 0.0), [0.75, 0.0, 1.0, 0.25, 0.0, 1.0]);
        assert_eq!(targets(2..4, 0.5), [0.25, 0.375, 0.25, 0.25, 0.625, 0.25]);
    }

    #[test]
    fn erased_boxes_hold_their_values_and_nothing_else_changes() {
        let area = CropBox { top: 2, left: 1, height: 1, width: 2 };
        let erase = EraseParams { area, fill: EraseFill::Pixel, noise_seed: 3 };
        let items = [item(9), Item { erase: Some(erase), ..item(9) }];
        let (device, labels) = (Default::default(), Labels::One(vec![0, 1]));
        let labels = (&labels, 0..2);
        let (x, _) = inputs::<Flex>(&items, labels, MixParams::NONE, (2, 0.1), None, &device).unwrap();
        let found = values(x);
        let mut expected = found[..48].to_vec();
        erase.apply_chw(&mut expected, 4, 4).unwrap();
        assert_eq!(&found[48..], expected);
        assert_ne!(&found[..48], &found[48..]);
    }
}
