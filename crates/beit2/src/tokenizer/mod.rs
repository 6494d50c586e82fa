//! The visual tokenizer: vector-quantized knowledge distillation (VQ-KD, section 3.1 of the paper).

mod config;
mod health;
mod kmeans;
mod quantizer;
pub mod teachers;
mod vqkd;

pub use config::{ProcessType, TokenizerConfig};
pub use health::{CodeUsage, CodebookHealth};
pub use kmeans::{KMeans, draw_start, kmeans};
pub use quantizer::{Quantized, Quantizer};
pub use vqkd::{TokenizerLoss, VqKd, cosine_loss};
