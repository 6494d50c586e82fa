//! Fine-tuning a Vision Transformer as a classifier (docs/method.md §4).

mod batches;
mod ema;
mod head;
mod recipe;
mod train;

pub use batches::training_samples;
pub use ema::Ema;
pub use head::{HeadMatch, HeadRows};
pub use recipe::{FinetuneRecipe, GroupsConfig, InitConfig};
pub use train::{Loading, load_plan, train};
