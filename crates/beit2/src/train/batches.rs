//! Images to device batches for the training stages.

use std::sync::Arc;

use beit2_data::{
    BlockMaskConfig, EvalConfig, Image, Loader, LoaderConfig, Position, RngStream, SampleInfo, Source,
    TransformError, TwoViewConfig, ViewParams, sample_block_mask, stack_hwc,
};
use beit2_kernels::{Backend, Rank};
use burn::tensor::Tensor;

use super::recipe::{DataConfig, ScheduleConfig};
use crate::error::Error;
use crate::pixels;

/// One augmented image.
#[derive(Debug, Clone)]
pub struct Item {
    /// The student's view.
    pub patch: Image,
    /// The tokenizer's or teacher's view when it has other pixels.
    pub token: Option<Image>,
    /// Masked patches, ascending; empty without a mask.
    pub masked: Vec<u32>,
    /// The crop had fewer pixels than a view.
    pub upscaled: bool,
}

/// A training image of any stage.
pub trait TrainingItem {
    /// Whether its crop had fewer pixels than the view made of it.
    fn is_upscaled(&self) -> bool;
}

impl TrainingItem for Item {
    fn is_upscaled(&self) -> bool {
        self.upscaled
    }
}

/// Where a loader starts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DataPosition {
    /// Next batch.
    pub at: Position,
    /// Unusable images already met in its epoch.
    pub bad: u64,
}

/// The settings of a rank's share of the batches that `config` describes. Its threads are shared too.
pub(crate) fn for_rank(config: LoaderConfig, rank: &Rank) -> LoaderConfig {
    let world = rank.world();
    LoaderConfig {
        batch: config.batch / world,
        workers: config.workers.div_ceil(world),
        world_size: world as u64,
        rank: rank.index() as u64,
        ..config
    }
}

/// A loader of a rank's share of augmented, optionally masked training batches.
///
/// # Errors
/// Settings out of range.
#[allow(clippy::too_many_arguments)] // a run's settings, each used by its name once
pub fn training_loader(
    source: Arc<dyn Source>,
    data: &DataConfig,
    schedule: &ScheduleConfig,
    views: TwoViewConfig,
    mask: Option<BlockMaskConfig>,
    seed: u64,
    start: DataPosition,
    rank: &Rank,
) -> Result<Loader<Item>, Error> {
    views.validate()?;
    if let Some(mask) = &mask {
        mask.validate()?;
    }
    let work = Arc::new(move |image: &Image, info: &SampleInfo| {
        let params = ViewParams::draw(&views, image.width, image.height, &info.key(RngStream::Augment));
        let made = params.apply(&views, image)?;
        let masked = match &mask {
            Some(mask) => sample_block_mask(&mut info.key(RngStream::Mask).rng(), mask).masked_indices(),
            None => Vec::new(),
        };
        Ok::<_, TransformError>(Item {
            patch: made.patch,
            token: made.token,
            masked,
            upscaled: params.upscales(&views),
        })
    });
    let config = LoaderConfig {
        batch: schedule.batch_size,
        workers: data.workers,
        seed,
        start: start.at,
        bad_before_start: start.bad,
        min_side_px: data.min_side_px,
        max_bad_fraction: data.max_bad_fraction,
        ..LoaderConfig::default()
    };
    Ok(Loader::new(for_rank(config, rank), source, work)?)
}

/// Images of a batch in [0, 1]: the student's view and, when it has other pixels, the second view.
///
/// # Errors
/// Images of different sizes in one batch (never from [`training_loader`]).
#[allow(clippy::type_complexity)] // two tensors of the same kind
pub fn to_device<B: Backend>(
    items: &[Item],
    device: &B::Device,
) -> Result<(Tensor<B, 4>, Option<Tensor<B, 4>>), Error> {
    let tensor = |images: Vec<&Image>| -> Result<Tensor<B, 4>, Error> {
        let Some(first) = images.first() else {
            return Err(Error::Training("an empty batch".into()));
        };
        let (height, width, count) = (first.height as usize, first.width as usize, images.len());
        Ok(pixels::from_bytes(stack_hwc(images)?, count, height, width, device))
    };
    let patch = tensor(items.iter().map(|item| &item.patch).collect())?;
    let token: Option<Vec<&Image>> = items.iter().map(|item| item.token.as_ref()).collect();
    Ok((patch, token.map(tensor).transpose()?))
}

/// Every image once, in order, through the evaluation transform.
///
/// # Errors
/// Settings out of range.
pub fn evaluation_loader(
    source: Arc<dyn Source>,
    data: &DataConfig,
    batch: usize,
    view: EvalConfig,
) -> Result<Loader<Item>, Error> {
    view.validate()?;
    let work = Arc::new(move |image: &Image, _: &SampleInfo| {
        let patch = view.apply(image)?;
        Ok::<_, TransformError>(Item { patch, token: None, masked: Vec::new(), upscaled: false })
    });
    let config = LoaderConfig {
        batch: batch.min(source.len()).max(1),
        workers: data.workers,
        shuffle: false,
        drop_last: false,
        epochs: Some(1),
        max_bad_fraction: data.max_bad_fraction,
        ..LoaderConfig::default()
    };
    Ok(Loader::new(config, source, work)?)
}
