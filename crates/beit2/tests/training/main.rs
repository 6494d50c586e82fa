//! Whole training stages on small images: what a step touches, and that no interruption changes a run.

#![allow(clippy::unwrap_used)]

mod accumulating;
mod checkpointing;
mod cut_off;
mod finetuning;
mod going_on;
mod gradients;
mod monitors;
mod opening;
mod parallel;
mod precision;
mod processes;
mod regression;
mod resume;
mod savings;
mod scene;
mod segmentation;
mod segmenting;
mod token_cache;
