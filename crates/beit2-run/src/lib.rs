//! Everything about a *run* that needs no tensors: recipes become resolved settings, a run has a directory
//! that cannot be lost, checkpoints are complete or absent, metrics are one stream with several sinks, and a
//! report shows how it went.
//!
//! This crate refuses to compute on tensors, to print anything, and to read flags or environment variables:
//! it takes values and returns values, files and errors of one sentence. Start reading at [`recipe`],
//! [`dir`], [`metrics`] or [`report`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod atomic;
pub mod best;
pub mod checkpoint;
mod csv;
pub mod dir;
pub mod environment;
mod format;
pub mod metrics;
pub mod recipe;
pub mod report;
pub mod stop;
mod suggest;
pub mod tensorboard;
pub mod throughput;
mod tree;

pub use best::{Best, best};
pub use checkpoint::{Checkpoint, CheckpointError, CheckpointWriter, Keep, Latest};
pub use csv::csv_cell;
pub use dir::{Existing, Opened, RunDir, RunError};
pub use format::{format_duration, thousands};
pub use metrics::{Cut, JsonlSink, Kind, Metrics, Record, Sink};
pub use recipe::RecipeError;
pub use report::ReportData;
pub use stop::StopFlag;
pub use suggest::suggest;
pub use tensorboard::TensorBoardSink;
