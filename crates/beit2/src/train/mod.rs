//! What every training loop shares: recipes' tables, schedules, parameter groups, AdamW, the run.

mod accumulate;
mod assets;
mod batches;
mod bottleneck;
mod division;
mod events;
mod extension;
mod followed;
mod groups;
mod in_step;
mod init;
mod optimizer;
mod parallel;
mod prefetch;
mod processes;
mod recipe;
mod scalar;
mod schedule;
mod session;
mod state;
mod statistics;

pub use accumulate::{GradientSum, trained_parameters};
pub(crate) use accumulate::{Learned, learn, mean_of};
pub use assets::{Assets, Files, OpenOnce};
pub use batches::{
    DataPosition, EvaluationData, Item, TrainingData, TrainingItem, patches_to_device, to_device,
};
pub(crate) use batches::{loader_config, unusable};
pub use beit2_kernels::Rank;
pub use bottleneck::{Bottleneck, Timed};
pub use division::Division;
pub use events::{Event, Observer, Silent};
pub use followed::Followed;
pub use groups::{GroupRule, ParamGroup, no_weight_decay};
pub use in_step::InStep;
pub use init::InitWeights;
pub(crate) use init::{check_sizes, vit_sizes};
pub use optimizer::{AdamW, AdamWConfig, grad_norm, gradients};
pub(crate) use parallel::average_gradients;
pub use parallel::on_devices;
pub use prefetch::Prefetch;
pub(crate) use recipe::check_interval;
pub use recipe::{
    ActivationCheckpointing, DataConfig, ImageCaching, LoggingConfig, OptimizerConfig, Plan,
    SCHEDULE_ALTERNATIVES, SCRATCH, ScheduleConfig, TrainConfig, check_precision,
};
pub(crate) use scalar::scalar;
pub use schedule::{CosineSchedule, PolySchedule};
pub use session::Session;
pub use state::{Env, Outcome, Resumed, Saved, StepReport, TrainState, look_at_run};
pub(crate) use statistics::fill_normalization;
pub use statistics::measure_normalization;
