//! Images to batches: where the images come from, how they are decoded, augmented, masked and put
//! in order.
//!
//! This crate knows nothing of models, tensors, devices, terminals or environment variables, and it
//! never guesses: what it cannot read is an error that names the file. Every random number is a
//! function of `(seed, epoch, sample index, stream)` ([`rng::Key`]), so a batch is the same for
//! any number of worker threads and after any interruption. Start reading at [`loader::Loader`].
//!
//! ```
//! use std::sync::Arc;
//! use beit2_data::{
//!     BlockMaskConfig, Image, Loader, LoaderConfig, RngStream, SampleInfo, TwoViewConfig, ViewParams, sample_block_mask, source,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # for i in 0..4u8 {
//! #     let mut ppm = b"P6 40 30 255\n".to_vec();
//! #     ppm.extend((0..40 * 30 * 3).map(|k| (k as u8).wrapping_mul(i + 1)));
//! #     std::fs::write(dir.path().join(format!("{i}.ppm")), ppm)?;
//! # }
//! # let folder = dir.path().display().to_string();
//! let source = source::open(&folder)?; // a folder of images, tar shards, or `shard-{000..003}.tar`
//! let views = TwoViewConfig { input_size: 32, second_size: 32, ..TwoViewConfig::default() };
//! let mask = BlockMaskConfig { grid_h: 4, grid_w: 4, masked: 6, min_patches: 2, ..BlockMaskConfig::default() };
//! views.validate()?;
//! mask.validate()?;
//!
//! let work = Arc::new(move |image: &Image, info: &SampleInfo| {
//!     let params = ViewParams::draw(&views, image.width, image.height, &info.key(RngStream::Augment));
//!     let crop = params.apply(&views, image)?.patch;
//!     let masked = sample_block_mask(&mut info.key(RngStream::Mask).rng(), &mask).masked_indices();
//!     Ok::<_, beit2_data::TransformError>((crop, masked))
//! });
//! let config = LoaderConfig { batch: 2, workers: 2, epochs: Some(1), ..LoaderConfig::default() };
//! for batch in Loader::new(config, source, work)? {
//!     let batch = batch?;
//!     for (crop, masked) in &batch.items {
//!         assert_eq!((crop.width, crop.height, masked.len()), (32, 32, 6));
//!     }
//! }
//! # Ok(())
//! # }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cache;
pub mod check;
pub mod classes;
pub mod decode;
pub mod division;
mod encoded;
mod error;
pub mod finetune;
mod fingerprint;
pub mod image;
mod jpeg;
pub mod loader;
pub mod mask;
pub mod order;
pub mod pack;
mod pool;
pub mod rng;
mod sample;
mod samples;
pub mod segment;
pub mod sequence;
mod shard_index;
pub mod simd;
pub mod source;
pub mod timing;
pub mod transform;
pub mod views;

pub use cache::{CacheLimit, CachePlan, cache_plan, cached_bytes};
pub use decode::{
    Background, DecodeOptions, ExifOrientation, ImageFacts, PixelRange, decode, decode_with_facts,
    foreign_format,
};
pub use encoded::EncodedImage;
pub use error::{
    DecodeError, LoaderError, MaskError, SampleError, SourceError, TransformError, advice_on_bad_images,
};
pub use finetune::{Color, FinetuneConfig, FinetuneParams, TrainCrop};
pub use fingerprint::fnv1a;
pub use image::{Image, batch_hwc};
pub use loader::{Batch, Loader, LoaderConfig, Position, Replaced, SampleInfo};
pub use mask::{BlockMaskConfig, Mask, sample_block_mask};
pub use order::{EpochOrder, Part, Units};
pub use pool::keep_freed_memory;
pub use rng::{Key, RngStream};
pub use samples::{Made, Samples};
pub use segment::{LabelMap, SegmentDataError, SegmentDataOptions, SegmentSource, open_segment};
pub use sequence::{Seen, Sequence, SequenceConfig};
pub use source::Source;
pub use transform::{
    AugmentOp, CropBox, CropMode, EraseConfig, EraseFill, EraseParams, EvalConfig, Interpolation, JitterOp,
    JitterParams, MixConfig, MixParams, RandAugmentConfig,
};
pub use views::{TwoViewConfig, ViewParams, Views};
