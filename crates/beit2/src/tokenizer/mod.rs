//! The visual tokenizer: vector-quantized knowledge distillation (VQ-KD; docs/method.md §2).

mod codebook;
mod config;
mod encode;
mod evaluate;
mod inputs;
mod kmeans;
mod load;
mod quantizer;
mod recipe;
mod start;
pub mod teachers;
mod train;
mod vqkd;

pub use crate::code_usage::{CodeUsage, CodebookHealth};
pub use beit2_kernels::cosine_loss;
pub use config::{ProcessType, TokenizerConfig};
pub use encode::{Tokenizer, TokenizerOptions};
pub use evaluate::{TokenizerEvaluation, evaluate};
pub use kmeans::{KMeans, draw_start, kmeans};
pub use load::load;
pub use quantizer::{Quantized, Quantizer};
pub use recipe::{CodebookOptions, TargetOptions, TokenizerAugment, TokenizerRecipe};
pub use start::load_plan;
pub use train::train;
pub(crate) use vqkd::scaling;
pub use vqkd::{TokenizerLoss, VqKd};
