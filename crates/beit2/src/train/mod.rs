//! What every training loop shares: schedules, parameter groups, AdamW.

mod groups;
mod optimizer;
mod schedule;

pub use groups::{GroupRule, ParamGroup, no_weight_decay};
pub use optimizer::{AdamW, AdamWConfig, grad_norm, gradients};
pub use schedule::{CosineSchedule, ScheduleError};
