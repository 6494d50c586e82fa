//! Fine-tuning a Vision Transformer as a classifier (docs/method.md §4).

mod batches;
mod ema;
mod recipe;
mod train;

pub use ema::Ema;
pub use recipe::{FinetuneRecipe, GroupsConfig, InitConfig};
pub use train::{load_plan, train};
