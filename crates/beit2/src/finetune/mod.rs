//! Fine-tuning a Vision Transformer as a classifier (spec §4).

mod ema;
mod loss;

pub use ema::Ema;
pub use loss::{hard_cross_entropy, smooth_targets, soft_cross_entropy, top_k_hits};
