//! Fine-tuning a Vision Transformer as a classifier (docs/method.md §4).

mod batches;
mod ema;
mod loss;
mod recipe;
mod train;

pub use ema::Ema;
pub use loss::{hard_cross_entropy, smooth_targets, soft_cross_entropy, top_k_hits};
pub(crate) use recipe::take_sizes;
pub use recipe::{EvalTable, FinetuneRecipe, GroupsConfig, InitConfig, SCRATCH};
pub use train::{load_plan, train};
