//! Images to measure with.

use std::sync::{Arc, Mutex, PoisonError};

use beit2::Error;
use beit2::pretrain::PretrainRecipe;
use beit2::train::{DataConfig, DataPosition, ImageCaching, Item, TrainingData};
use beit2_data::{BlockMaskConfig, Image, Key, RngStream, Source, sample_block_mask};
use beit2_kernels::Rank;
use rand::Rng;

use crate::flops::MASKED;

/// A batch on the host.
pub(crate) type HostBatch = Arc<Vec<Item>>;

/// Where the images come from.
#[derive(Clone)]
pub enum Images {
    /// One batch of random bytes, again and again: the computation alone.
    Random,
    /// A source, through the loader and the augmentation of pretraining, with so many threads.
    Real(Arc<dyn Source>, usize),
}

/// Batches without end; a handle that threads can share.
#[derive(Clone)]
pub(crate) struct Stream(Arc<Mutex<Batches>>);

type Batches = Box<dyn Iterator<Item = Result<HostBatch, Error>> + Send>;

impl Stream {
    /// Batches of `batch` images of `side` pixels in patches of 16.
    pub(crate) fn new(images: Images, batch: usize, side: usize) -> Result<Self, Error> {
        let mask = PretrainRecipe::default().block_mask();
        let mask = BlockMaskConfig { masked: MASKED, ..mask };
        let batches: Batches = match images {
            Images::Random => {
                let same = Arc::new((0..batch).map(|at| random(at, side, &mask)).collect::<Result<_, _>>()?);
                Box::new(std::iter::repeat_with(move || Ok(Arc::clone(&same))))
            }
            Images::Real(source, workers) => {
                // Decoding is part of what is measured.
                let config = DataConfig { workers, cache: ImageCaching::Off, ..DataConfig::default() };
                let (config, views) = (&config, PretrainRecipe::default().views(side));
                let data =
                    TrainingData { source, config, batch_size: batch, views, mask: Some(mask), seed: 0 };
                let loader = data.loader(DataPosition::default(), &Rank::alone())?;
                Box::new(loader.map(|batch| Ok(Arc::new(batch?.items))))
            }
        };
        Ok(Self(Arc::new(Mutex::new(batches))))
    }
}

impl Iterator for Stream {
    type Item = Result<HostBatch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

fn random(at: usize, side: usize, mask: &BlockMaskConfig) -> Result<Item, Error> {
    let mut rng = Key { seed: 0, epoch: 0, index: at as u64, stream: RngStream::Mask }.rng();
    let masked = sample_block_mask(&mut rng, mask).masked_indices();
    let mut bytes = vec![0; side * side * 3];
    rng.fill_bytes(&mut bytes);
    Ok(Item { patch: Image::new(side as u32, side as u32, bytes)?, token: None, masked, upscaled: false })
}
