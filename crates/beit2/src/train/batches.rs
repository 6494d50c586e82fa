//! Images to device batches for the training stages.

use std::sync::Arc;

use beit2_data::loader::EncodedWork;
use beit2_data::{
    Batch, BlockMaskConfig, EncodedImage, EvalConfig, Image, Loader, LoaderConfig, Position, RngStream,
    SampleError, SampleInfo, Samples, Source, TransformError, TwoViewConfig, ViewParams, batch_hwc,
    sample_block_mask,
};
use beit2_kernels::{self as kernels, Backend, PatchSpec, Rank};
use burn::tensor::Tensor;

use super::recipe::DataConfig;
use crate::error::Error;
use crate::pixels;
use crate::vit::Pixels;

/// One augmented image.
#[derive(Debug, Clone)]
pub struct Item {
    /// The student's view.
    pub patch: Image,
    /// The tokenizer's or teacher's view when it has other pixels.
    pub token: Option<Image>,
    /// Masked patches in ascending order; empty without a mask.
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

/// The loader settings of a rank, whose batches are its part of those of `batch_size` images. Of a process's decoding threads
/// it gets its part too.
pub(crate) fn loader_config(
    data: &DataConfig,
    batch_size: usize,
    seed: u64,
    start: DataPosition,
    rank: &Rank,
) -> LoaderConfig {
    let world = rank.world();
    LoaderConfig {
        batch: batch_size / world,
        workers: if rank.is_process() { data.workers } else { data.workers.div_ceil(world) },
        world_size: world as u64,
        rank: rank.index() as u64,
        seed,
        start: start.at,
        bad_before_start: start.bad,
        decode: data.decode_options(),
        min_side_px: data.min_side_px,
        max_bad_fraction: data.max_bad_fraction,
        cache: data.cache.limit(),
        ..LoaderConfig::default()
    }
}

/// What augmented, optionally masked training batches are made from.
#[derive(Clone)]
pub struct TrainingData<'a> {
    /// The images.
    pub source: Arc<dyn Source>,
    /// How they are read.
    pub config: &'a DataConfig,
    /// Images of a step, on all ranks together.
    pub batch_size: usize,
    /// The views of each image.
    pub views: TwoViewConfig,
    /// The mask of each image.
    pub mask: Option<BlockMaskConfig>,
    /// Seed of order, views and masks.
    pub seed: u64,
}

impl TrainingData<'_> {
    /// A rank's batches from `start` on, without end.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn loader(&self, start: DataPosition, rank: &Rank) -> Result<Loader<Item>, Error> {
        let config = loader_config(self.config, self.batch_size, self.seed, start, rank);
        Ok(Loader::of_encoded(config, self.source.clone(), self.work()?)?)
    }

    /// The samples of the same batches one by one.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn samples(&self) -> Result<Samples<Item>, Error> {
        let config = loader_config(self.config, 1, self.seed, DataPosition::default(), &Rank::alone());
        Ok(Samples::of_encoded(config, self.source.clone(), self.work()?)?)
    }

    /// What is made of an image.
    fn work(&self) -> Result<EncodedWork<Item, SampleError>, Error> {
        let (views, mask) = (self.views, self.mask);
        views.validate()?;
        if let Some(mask) = &mask {
            mask.validate()?;
        }
        Ok(Arc::new(move |image: &EncodedImage<'_>, info: &SampleInfo| {
            let (width, height) = (image.width(), image.height());
            let params = ViewParams::draw(&views, width, height, &info.key(RngStream::Augment));
            let made = params.apply_encoded(&views, image)?;
            let masked = match &mask {
                Some(mask) => sample_block_mask(&mut info.key(RngStream::Mask).rng(), mask).masked_indices(),
                None => Vec::new(),
            };
            Ok::<_, SampleError>(Item {
                patch: made.patch,
                token: made.token,
                masked,
                upscaled: params.upscales(&views),
            })
        }))
    }
}

/// Images of a batch in [0, 1]: the student's view and, when it has other pixels, the second view.
///
/// # Errors
/// Images of different sizes in one batch (never from [`TrainingData::loader`]).
#[allow(clippy::type_complexity)] // two tensors of the same kind
pub fn to_device<B: Backend>(
    items: &[Item],
    device: &B::Device,
) -> Result<(Tensor<B, 4>, Option<Tensor<B, 4>>), Error> {
    let tensor = |images: Vec<&Image>| -> Result<Tensor<B, 4>, Error> {
        let size = size(&images)?;
        Ok(pixels::from_bytes(&batch_hwc(images)?, size, device))
    };
    let (patch, token) = views(items);
    Ok((tensor(patch)?, token.map(tensor).transpose()?))
}

/// What two models see of a batch: the first its patch views, the second its token views if there are such, else the same.
///
/// # Errors
/// An empty batch.
///
/// # Panics
/// If a view can't be cut into patches.
pub fn patches_to_device<B: Backend>(
    items: &[Item],
    specs: [PatchSpec<'_>; 2],
    device: &B::Device,
) -> Result<[Pixels<B>; 2], Error> {
    let pixels = |images: Vec<&Image>, specs: &[PatchSpec<'_>]| -> Result<Vec<Pixels<B>>, Error> {
        let size @ [height, width, _] = size(&images)?;
        let patches = kernels::patches_from_bytes(&batch_hwc(images)?, size, specs, device);
        let grid = |spec: &PatchSpec<'_>| [height / spec.patch, width / spec.patch];
        Ok(patches
            .into_iter()
            .zip(specs)
            .map(|(patches, spec)| Pixels::Patches(patches, grid(spec)))
            .collect())
    };
    let (patch, token) = views(items);
    let found = match token {
        None => pixels(patch, &specs)?,
        Some(token) => [pixels(patch, &specs[..1])?, pixels(token, &specs[1..])?].concat(),
    };
    Ok(found.try_into().unwrap_or_else(|_| unreachable!("one for each model")))
}

/// The images of both views; the second only where every item has one.
fn views(items: &[Item]) -> (Vec<&Image>, Option<Vec<&Image>>) {
    (items.iter().map(|item| &item.patch).collect(), items.iter().map(|item| item.token.as_ref()).collect())
}

fn size(images: &[&Image]) -> Result<[usize; 3], Error> {
    let first = images.first().ok_or_else(|| Error::Training("an empty batch".into()))?;
    Ok(pixels::size(first))
}

/// What evaluation batches are made from: every image once, in order, through the evaluation transform.
#[derive(Clone)]
pub struct EvaluationData<'a> {
    /// The images.
    pub source: Arc<dyn Source>,
    /// How they are read.
    pub config: &'a DataConfig,
    /// The view of each image.
    pub view: EvalConfig,
    /// Images of a batch; the last one may have fewer.
    pub batch_size: usize,
}

impl<'a> EvaluationData<'a> {
    /// Views of `px`×`px` pixels, with the defaults of the evaluation transform, in batches of 64.
    pub fn of_size(source: &Arc<dyn Source>, config: &'a DataConfig, px: usize) -> Self {
        let view = EvalConfig::of_size(px as u32);
        Self { source: source.clone(), config, view, batch_size: 64 }
    }

    /// The batches. An image that cannot be used is left out ([`Batch::replaced`] names it), so that none counts twice; a
    /// batch without any usable image is empty.
    ///
    /// [`Batch::replaced`]: beit2_data::Batch::replaced
    ///
    /// # Errors
    /// Settings out of range.
    pub fn loader(&self) -> Result<Loader<Item>, Error> {
        let view = self.view;
        view.validate()?;
        let work = Arc::new(move |image: &Image, _: &SampleInfo| {
            let patch = view.apply(image)?;
            Ok::<_, TransformError>(Item { patch, token: None, masked: Vec::new(), upscaled: false })
        });
        let config = LoaderConfig {
            batch: self.batch_size.min(self.source.len()).max(1),
            workers: self.config.workers,
            shuffle: false,
            drop_last: false,
            epochs: Some(1),
            decode: self.config.decode_options(),
            max_bad_fraction: self.config.max_bad_fraction,
            replace: false,
            cache: self.config.cache.limit(),
            ..LoaderConfig::default()
        };
        Ok(Loader::new(config, self.source.clone(), work)?)
    }
}

/// A sentence for each image of a batch that could not be used.
pub(crate) fn unusable<T>(batch: &Batch<T>) -> impl Iterator<Item = String> {
    batch.replaced.iter().map(|bad| {
        let instead = if bad.by.is_some() { "another image took its place" } else { "it was left out" };
        // A source's own errors begin with the name.
        match bad.error.strip_prefix(&bad.name) {
            Some(why) => {
                format!("{} could not be used ({}); {instead}", bad.name, why.trim_start_matches(": "))
            }
            None => format!("{} could not be used ({}); {instead}", bad.name, bad.error),
        }
    })
}
