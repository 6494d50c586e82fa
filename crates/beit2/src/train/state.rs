//! What surrounds a run, what it must remember, and how it is found again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use beit2_kernels::{Backend, Rank};
use beit2_run::{Existing, RunDir, StopFlag};
use burn::tensor::Tensor;
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::batches::DataPosition;
use super::events::{Event, Observer};
use super::extension::Extension;
use super::recipe::Plan;
use crate::error::Error;
use crate::weights::{self, Tensors};

/// Everything around a run that its recipe does not say.
pub struct Env<'a> {
    /// The run directory.
    pub dir: PathBuf,
    /// What to do with a run that is already there.
    pub existing: Existing,
    /// What `run.toml` says after the recipe, as TOML: what identifies the inputs, and where and how the run runs.
    pub provenance: String,
    /// Set when the run should save and stop.
    pub stop: StopFlag,
    /// How long the running step may go on then. Most end by themselves in this time; one that does not is given up, and the
    /// run ends with the step before it.
    pub patience: Duration,
    /// Told what happens.
    pub observer: &'a mut dyn Observer,
    /// Opens images and weights.
    pub assets: &'a dyn super::Assets,
    /// This loop's place among those that train together.
    pub rank: Rank,
    /// Whether this only tries out what a run would do: there is no run directory then, and nothing is written.
    pub rehearsal: bool,
}

impl<'a> Env<'a> {
    /// A run alone in `dir`, continued if it is already there, that nobody stops.
    pub fn new(
        dir: impl Into<PathBuf>,
        observer: &'a mut dyn Observer,
        assets: &'a dyn super::Assets,
    ) -> Self {
        let (existing, stop, rank) = (Existing::Continue, StopFlag::new(), Rank::alone());
        let (dir, provenance) = (dir.into(), String::new());
        let patience = Duration::from_secs(2);
        Self { dir, existing, provenance, stop, patience, observer, assets, rank, rehearsal: false }
    }
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// All steps are done; otherwise the run was told to stop and has saved.
    pub complete: bool,
    /// Steps done.
    pub step: u64,
    /// Seconds of training in all, interruptions left out.
    pub seconds: f64,
    /// Images seen in all.
    pub images: u64,
    /// The folder of the last checkpoint.
    pub checkpoint: PathBuf,
}

/// The part of a run's state that is not tensors (`state.json`).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TrainState {
    /// `tokenizer`, `pretrain`, …
    pub stage: String,
    /// Optimiser steps done.
    pub step: u64,
    /// Where the data continues.
    pub data: DataPosition,
    /// Steps since each code was used; empty without revival.
    pub unused_for: Vec<u32>,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Images so far.
    pub images: u64,
    /// Best value so far of the metric that decides which checkpoint is `best`, as a loss: accuracies are negative.
    pub best: Option<f64>,
    /// Values of that metric since then.
    #[serde(default)]
    pub since_best: u64,
    /// Whether the run ended before its last step, because that metric stopped improving.
    #[serde(default)]
    pub ended: bool,
    /// Enlarged crops in the first epoch.
    pub upscaled: u64,
    /// Running averages of the metrics.
    pub metrics: Option<beit2_run::metrics::MetricsState>,
    /// Devices that the last step ran on.
    #[serde(default = "one")]
    pub devices: usize,
}

impl TrainState {
    /// Seconds that a run of `total_steps` still takes at the pace so far.
    pub(super) fn eta_seconds(&self, total_steps: u64) -> Option<f64> {
        let left = total_steps.saturating_sub(self.step) as f64;
        (self.step > 0 && self.seconds > 0.0).then(|| self.seconds / self.step as f64 * left)
    }
}

fn one() -> usize {
    1
}

/// What a checkpoint held.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// Its state.
    pub state: TrainState,
    /// `model.safetensors`.
    pub model: Tensors,
    /// `optimizer.safetensors`.
    pub optimizer: Tensors,
    /// `model_ema.safetensors`, of runs that keep averages.
    pub averages: Option<Tensors>,
}

/// A checkpoint as the leader tells it to the other ranks: those in its process share it.
#[derive(Clone)]
pub(super) struct SharedResumed(pub Arc<Resumed>);

impl Serialize for SharedResumed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Resumed { state, model, optimizer, averages } = &*self.0;
        // As in `state.json`, of which the leader has it.
        let state = serde_json::to_string(state).map_err(ser::Error::custom)?;
        (state, model, optimizer, averages).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedResumed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (state, model, optimizer, averages) = <(String, _, _, _)>::deserialize(deserializer)?;
        let state = serde_json::from_str(&state).map_err(de::Error::custom)?;
        Ok(Self(Arc::new(Resumed { state, model, optimizer, averages })))
    }
}

/// Values of one step, still on the device.
pub struct StepReport<I: Backend> {
    /// Named scalars `[1]`, the same names in every step.
    pub scalars: Vec<(&'static str, Tensor<I, 1>)>,
    /// Numbers that the host knows already.
    pub known: Vec<(&'static str, f64)>,
}

/// The tensors of a checkpoint.
pub struct Saved {
    /// `model.safetensors`.
    pub model: Tensors,
    /// `optimizer.safetensors`.
    pub optimizer: Tensors,
    /// `model_ema.safetensors`, of runs that keep averages.
    pub averages: Option<Tensors>,
}

pub(super) use crate::weights::AVERAGES;

/// What may differ when a run is continued. Paths may: what is in them is in the run's `fingerprint`. So may the division of a
/// step, as the number of devices: another machine has other memory.
pub(super) const MAY_DIFFER: [&str; 18] = [
    "environment",
    "extension",
    "logging",
    "data.cache",
    "data.workers",
    "data.train",
    "data.val",
    "teacher.weights",
    "tokenizer.weights",
    "tokenizer.cache",
    "init.weights",
    "schedule.grad_accum_steps",
    "schedule.max_micro_batch",
    "train",
    "monitor.folder",
    "monitor.forgetting_folder",
    "monitor.max_images",
    "monitor.every_epochs",
];

/// The step at which a run of this recipe and `plan` would go on in `dir`; `None` if it would begin. Nothing is written.
///
/// # Errors
/// What would keep the run from being started there: see [`RunDir::open`].
pub fn look_at_run<R: Serialize + DeserializeOwned + Default>(
    dir: &Path,
    recipe: &R,
    plan: &Plan,
    provenance: &str,
    existing: Existing,
) -> Result<Option<u64>, Error> {
    let run_toml = format!("{}\n{provenance}", beit2_run::recipe::to_toml(recipe)?);
    let may_differ = Extension::may_differ(plan.extension.as_ref());
    if !RunDir::look(dir, &run_toml, &may_differ, existing)? {
        return Ok(None);
    }
    let Some(checkpoint) = beit2_run::checkpoint::latest(dir)?.checkpoint else { return Ok(None) };
    let state: TrainState = checkpoint.state()?;
    Ok(Some(state.step))
}

/// Opens the run directory and reads the newest checkpoint that is whole.
pub(super) fn open_run<R>(
    env: &mut Env<'_>,
    recipe: &R,
    plan: &Plan,
) -> Result<(RunDir, Option<Resumed>), Error>
where
    R: Serialize + DeserializeOwned + Default,
{
    let mut run_toml = format!("{}\n{}", beit2_run::recipe::to_toml(recipe)?, env.provenance);
    let may_differ = Extension::may_differ(plan.extension.as_ref());
    if let Some(extension) = &plan.extension {
        run_toml.push_str(&extension.to_toml());
        extension.keep_record(&env.dir)?;
    }
    let opened = RunDir::open(&env.dir, &run_toml, &may_differ, env.existing)?;
    if let Some(aside) = &opened.set_aside {
        env.observer.event(Event::Warning(format!("the run that was here is now {}", aside.display())));
    }
    let latest = opened.run.latest_checkpoint()?;
    for skipped in &latest.skipped {
        let text = format!(
            "checkpoint {} is damaged ({}); an older one is used",
            skipped.path.display(),
            skipped.reason
        );
        env.observer.event(Event::Warning(text));
    }
    let resumed = match &latest.checkpoint {
        Some(checkpoint) => Some(Resumed {
            state: checkpoint.state()?,
            model: weights::read(&checkpoint.file("model.safetensors"))?.tensors,
            optimizer: weights::read(&checkpoint.file("optimizer.safetensors"))?.tensors,
            averages: match checkpoint.file(AVERAGES) {
                path if path.is_file() => Some(weights::read(&path)?.tensors),
                _ => None,
            },
        }),
        None => None,
    };
    Ok((opened.run, resumed))
}
