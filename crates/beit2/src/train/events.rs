//! What a training loop tells its caller while it runs. The library prints nothing; the binary does.

use std::path::PathBuf;

use super::bottleneck::Bottleneck;
use super::in_step::InStep;

/// A moment in a run.
#[derive(Debug, Clone)]
pub enum Event {
    /// A stage begins or continues.
    Started {
        /// `tokenizer`, `pretrain`, …
        stage: &'static str,
        /// What will run: parameters, images, steps.
        summary: Vec<(String, String)>,
        /// Steps of the run.
        total_steps: u64,
        /// Steps of an epoch.
        steps_per_epoch: u64,
        /// Steps already done.
        resumed_at: Option<u64>,
        /// Seconds to go at the pace of the steps already done.
        eta_seconds: Option<f64>,
    },
    /// Steps begin; this tells at any time how far the running one is.
    Steps(InStep),
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps of the run.
        total_steps: u64,
        /// Running epoch, from 0.
        epoch: u64,
        /// Images per second, recently.
        images_per_second: Option<f64>,
        /// Seconds to go at this pace, with the evaluations and checkpoints that are still to come.
        eta_seconds: Option<f64>,
        /// Averages of a record just written; empty between records.
        values: Vec<(String, f64)>,
        /// What the steps since the last record waited for most; only with a record.
        bottleneck: Option<Bottleneck>,
    },
    /// The averages since the last record, where records are far apart: at least every 30 seconds, as far as steps end
    /// that often. They are in no file.
    Averages(Vec<(String, f64)>),
    /// An epoch or an evaluation is done.
    Epoch {
        /// Epochs done; the running one counts.
        epoch: u64,
        /// Steps done.
        step: u64,
        /// Steps of an epoch.
        steps_per_epoch: u64,
        /// Its evaluation is the best so far, and its checkpoint becomes `best`.
        best: bool,
        /// Its record.
        values: Vec<(String, f64)>,
    },
    /// A part of other work than training.
    Progress {
        /// What is being done.
        what: String,
        /// Done so far.
        done: u64,
        /// Of this many.
        total: u64,
    },
    /// Something that the user should know.
    Warning(String),
    /// Something that the user may want to know.
    Note(String),
    /// A checkpoint is complete.
    Checkpoint(PathBuf),
    /// A stage ended.
    Finished {
        /// Whether all its steps are done (otherwise it was told to stop).
        complete: bool,
        /// Steps done.
        step: u64,
    },
}

/// Takes events.
pub trait Observer: Send {
    /// Called from the training thread, which may be another one than the caller's; should return at once.
    fn event(&mut self, event: Event);
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _event: Event) {}
}
