//! Small pure functions on images, with Pillow's and torchvision's arithmetic.
//!
//! Random parameters are drawn in one place per transform and passed in as plain values, so that
//! any augmentation can be logged and replayed. Nothing here draws while it touches pixels.

pub mod affine;
pub mod crop;
pub mod erase;
pub mod eval;
pub mod flip;
pub mod jitter;
pub mod mix;
mod pixel_steps;
pub mod randaugment;
mod resample;
pub mod resize;
pub(crate) mod rows;
pub mod tone;
pub mod window;

pub use affine::{Affine, warp};
pub use crop::{CropBox, CropConfig};
pub use erase::{EraseConfig, EraseFill, EraseParams};
pub use eval::{CropMode, EvalConfig, eval_crop, eval_resize_side, eval_view};
pub use flip::flip_horizontal;
pub use jitter::{JitterOp, JitterParams};
pub use mix::{MixConfig, MixParams, cut_box, multi_hot_targets, soft_targets};
pub use randaugment::{AugmentKind, AugmentOp, RandAugmentConfig};
pub use resize::{Interpolation, crop, crop_resize, resize};
pub use window::window;
