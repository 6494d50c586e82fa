//! Masked image modeling: predict the visual tokens of masked patches (docs/method.md §3).

mod config;
mod evaluate;
mod load;
mod model;
mod recipe;
mod start;
mod token_cache;
mod train;

pub use config::MimConfig;
pub use evaluate::{MimEvaluation, evaluate};
pub(crate) use evaluate::{inputs, validation_data};
pub use load::load;
pub use model::{MimLogits, MimLoss, MimModel, PatchMask, masked_labels};
pub use recipe::{MaskConfig, PretrainAugment, PretrainRecipe, TokenizerSource};
pub use start::load_plan;
pub use train::train;
