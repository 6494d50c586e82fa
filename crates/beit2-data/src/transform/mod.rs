//! Small pure functions on pictures, with Pillow's and torchvision's arithmetic.
//!
//! Random parameters are drawn in one place per transform and passed in as plain values, so that
//! any augmentation can be logged and replayed. Nothing here draws while it touches pixels.

pub mod crop;
pub mod eval;
pub mod flip;
pub mod jitter;
mod pixel_steps;
mod resample;
pub mod resize;

pub use crop::{CropBox, CropConfig};
pub use eval::{eval_crop, eval_resize_side, eval_view};
pub use flip::flip_horizontal;
pub use jitter::{JitterOp, JitterParams};
pub use resize::{Interpolation, crop, crop_resize, resize};
