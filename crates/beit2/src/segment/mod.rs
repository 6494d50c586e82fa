//! Semantic segmentation: UPerNet (Xiao et al. 2018) on a Vision Transformer (docs/method.md §5).
//!
//! Maps are channels-last, `[B, H, W, C]`, from the tokens of the backbone to the logits; only images come
//! in as `[B, 3, H, W]`. Start with [`UperNet`], the model, or with [`Segmenter`], a trained one from a file.

mod backbone;
mod batches;
mod config;
mod evaluate;
mod examples;
mod fcn_head;
mod infer;
mod layers;
mod load;
mod loss;
mod meta;
mod metrics;
mod model;
mod overlay;
mod recipe;
mod segmenter;
mod stitch;
mod train;
mod uper_head;

pub use backbone::{Backbone, Upscale};
pub use beit2_kernels::IGNORE;
pub use config::SegmenterConfig;
pub use evaluate::{SegmentEvaluation, SegmentExample, evaluate};
pub(crate) use examples::{EXAMPLES, drawn, segmented};
pub use fcn_head::FcnHead;
pub use infer::{InferConfig, Mode, Predictor};
pub use layers::{BatchNorm, Conv, ConvBnRelu, Deconv, Moments, Pass};
pub use load::load_backbone;
pub use loss::{PixelLosses, label_tensor, pixel_losses};
pub use metrics::{Confusion, SegmentScores};
pub use model::{HeadDropout, TrainLogits, UperNet};
pub use overlay::{Overlay, compared};
pub use recipe::{MasksConfig, SegmentEval, SegmentGroups, SegmentInit, SegmentRecipe};
pub use segmenter::{Segmenter, SegmenterOptions};
pub use stitch::{Rows, Sizes, Stitcher, origins};
pub use train::train;
pub use uper_head::{PoolBranch, UperHead};
