//! Data of semantic segmentation (docs/method.md §5): pairs of image and mask, the check of such data, and
//! the views for training and evaluation.
//!
//! Masks are PNG files of class ids or colours; in memory they are [`LabelMap`]s of class numbers, in
//! which [`IGNORE`] means "no label". Start reading at [`open_segment`]; the folder layouts are described in
//! `docs/formats/segmentation-data.md`. Predictions and scores are not this crate's.
//!
//! ```
//! use std::sync::Arc;
//! use beit2_data::segment::{
//!     SegmentDataOptions, SegmentTrainConfig, SegmentTrainParams, open_segment,
//! };
//! use beit2_data::{Image, Loader, LoaderConfig, RngStream, SampleInfo};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # for name in ["images", "masks"] { std::fs::create_dir(dir.path().join(name))?; }
//! # for i in 0..2u8 {
//! #     let mut ppm = b"P6 40 30 255\n".to_vec();
//! #     ppm.extend((0..40 * 30 * 3).map(|k| (k as u8).wrapping_mul(i + 1)));
//! #     std::fs::write(dir.path().join(format!("images/{i}.ppm")), ppm)?;
//! #     let file = std::fs::File::create(dir.path().join(format!("masks/{i}.png")))?;
//! #     let mut png = png::Encoder::new(file, 40, 30);
//! #     png.set_color(png::ColorType::Grayscale);
//! #     let ids: Vec<u8> = (0..1200).map(|k| (k / 7 % 3) as u8).collect();
//! #     png.write_header()?.write_image_data(&ids)?;
//! # }
//! # let folder = dir.path().display().to_string();
//! let options = SegmentDataOptions { classes: Some(3), ..SegmentDataOptions::default() };
//! let source = open_segment(&folder, &options)?; // images/ and masks/
//! let config = SegmentTrainConfig { crop_size: 32, ..SegmentTrainConfig::default() };
//! config.validate()?;
//!
//! let masks = source.clone();
//! let work = Arc::new(move |image: &Image, info: &SampleInfo| {
//!     let mask = masks.mask(info.index as usize)?;
//!     let params = SegmentTrainParams::draw(&config, &mask, &info.key(RngStream::Augment))?;
//!     Ok::<_, Box<dyn std::error::Error>>(params.apply(&config, image, &mask)?)
//! });
//! let loading = LoaderConfig { batch: 2, epochs: Some(1), ..LoaderConfig::default() };
//! for batch in Loader::new(loading, source, work)? {
//!     for view in &batch?.items {
//!         assert_eq!((view.image.data.len(), view.mask.data.len()), (32 * 32 * 3, 32 * 32));
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod check;
mod classes;
mod error;
mod hsv;
mod label_map;
mod layout;
mod list;
mod mask_png;
mod photometric;
mod resize;
mod rule;
mod source;
mod test_view;
mod train_view;

pub use self::check::{CheckConfig, ClassShare, DataReport, Finding, FindingKind, check};
pub use self::classes::class_color;
pub use self::error::{MaskProblem, SegmentDataError};
pub use self::label_map::{IGNORE, LabelMap};
pub use self::layout::{ReduceZeroLabel, SegmentDataOptions, open_segment};
pub use self::photometric::{PhotometricConfig, PhotometricParams};
pub use self::resize::{resize_linear, resize_linear_crop};
pub use self::rule::{IdMap, LabelRule, MAX_CLASSES};
pub(crate) use self::source::MaskLook;
pub use self::source::{SegmentSource, Unpaired};
pub use self::test_view::SegmentTestConfig;
pub use self::train_view::{SegmentTrainConfig, SegmentTrainParams, SegmentTrainView};
