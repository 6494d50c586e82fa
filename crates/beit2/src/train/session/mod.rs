//! One run of one stage: its directory, metrics, checkpoints, interruption.
//!
//! A loop learns from the session where to start, tells it about every step, and lets it decide when to log,
//! to save and to stop. Whatever the loop must remember is in [`TrainState`] and in the tensors it hands
//! over at a checkpoint, so that a continued run repeats the uninterrupted one to the bit.

mod saving;
mod steps;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beit2_kernels::{Backend, Rank};
use beit2_run::throughput::{Interruptions, Throughput};
use beit2_run::{Cut, JsonlSink, Metrics, RunDir, Sink, TensorBoardSink};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bottleneck::{Timed, Waits};
use super::events::{Event, Observer};
use super::followed::Followed;
use super::in_step::InStep;
use super::prefetch::Prefetch;
use super::processes;
use super::recipe::{LoggingConfig, Plan, TrainConfig};
use super::state::{Env, Resumed, SharedResumed, StepReport, TrainState, open_run};
use crate::error::Error;

/// A forward pass costs about a third of a training step.
const EVALUATION_COST: f64 = 1.0 / 3.0;

/// Operations of a step that computes its forward pass twice: four thirds of one that does not, less what is not in blocks.
const RECOMPUTED: f64 = 1.3;

/// A running stage, as one of its ranks sees it. All ranks call the same methods in the same order; only the leader
/// writes and reports.
pub struct Session<'a, I: Backend> {
    env: Env<'a>,
    /// The leader's.
    run: Option<RunDir>,
    metrics: Metrics,
    throughput: Throughput,
    waits: Waits,
    logging: LoggingConfig,
    plan: Plan,
    stage: &'static str,
    pending: Vec<StepReport<I>>,
    /// Evaluations, and the images of one; `None` without validation images.
    evaluations: Option<(Interruptions, usize)>,
    saves: Interruptions,
    /// Since when an evaluation runs.
    evaluating: Option<Instant>,
    /// The running evaluation is the best so far.
    improved: bool,
    /// The metric that decides what is best, where a recipe can choose it.
    followed: Option<Followed>,
    /// When values were last told; `None` before the first step.
    told: Option<Instant>,
    /// What the next checkpoint will say.
    pub state: TrainState,
    since: Instant,
    warned_upscaling: bool,
    /// A stop was requested, and all ranks know.
    stopping: bool,
    /// What a follower has to say at the next step.
    warnings: Vec<String>,
    in_step: InStep,
    /// A step was cut off, and all ranks know.
    cut_off: bool,
    /// The step of the newest checkpoint.
    saved_at: Option<u64>,
    /// All ranks save after the step that is done, so that processes compare their models then. Threads leave it to the
    /// leader to save what is best.
    all_save: bool,
}

impl<'a, I: Backend> Session<'a, I> {
    /// Opens the run directory and finds where the run stands.
    ///
    /// # Errors
    /// A directory that belongs to another run or cannot be written, a checkpoint that cannot be read.
    pub fn open<R>(
        mut env: Env<'a>,
        stage: &'static str,
        recipe: &R,
        logging: LoggingConfig,
        plan: Plan,
        mut summary: Vec<(String, String)>,
    ) -> Result<(Self, Option<Resumed>), Error>
    where
        R: Serialize + DeserializeOwned + Default,
    {
        let rank = env.rank.clone();
        processes::check_settings(&rank, recipe, &env.provenance)?;
        let (run, resumed) = match rank.leads() {
            _ if env.rehearsal => (None, None),
            true => {
                let (run, resumed) = open_run(&mut env, recipe, &plan)?;
                (Some(run), rank.broadcast(Some(resumed.map(|found| SharedResumed(Arc::new(found)))))?)
            }
            false => (None, rank.broadcast(None)?),
        };
        let resumed = resumed.map(|SharedResumed(found)| Arc::unwrap_or_clone(found));
        let cut = Cut { stage: stage.into(), step: resumed.as_ref().map(|r| r.state.step) };
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if let Some(run) = &run {
            let (jsonl, _) = JsonlSink::open(&run.metrics(), Some(&cut))?;
            sinks.push(Box::new(jsonl));
            sinks.push(Box::new(TensorBoardSink::open(run.path(), Some(&cut))?));
        }
        let mut metrics = Metrics::new(stage, sinks, 20);
        let mut state = TrainState { stage: stage.into(), ..TrainState::default() };
        if let Some(resumed) = &resumed {
            state = resumed.state.clone();
            if let Some(averages) = state.metrics.clone() {
                metrics.restore(averages);
            }
        }
        let world = rank.world();
        if let Some(resumed) = resumed.as_ref().filter(|resumed| resumed.state.devices != world) {
            let before = resumed.state.devices;
            env.observer.event(Event::Note(format!(
                "the run goes on with {world} devices instead of {before}: its metrics differ by rounding"
            )));
        }
        state.devices = world;
        let (steps, batch) = (plan.total_steps, plan.batch_size);
        summary.push(("images".into(), plan.images.to_string()));
        summary.push(("schedule".into(), format!("{steps} steps of {batch} images")));
        summary.extend(plan.told_extension().map(|told| ("extended".into(), told)));
        if world > 1 {
            let each = batch / world;
            summary.push(("devices".into(), format!("{world}, {each} images of each step on every one")));
        }
        env.observer.event(Event::Started {
            stage,
            summary,
            total_steps: plan.total_steps,
            steps_per_epoch: plan.steps_per_epoch,
            resumed_at: resumed.as_ref().map(|r| r.state.step),
            eta_seconds: resumed.as_ref().and_then(|r| r.state.eta_seconds(steps)),
        });
        let checkpoint_every = logging.checkpoint_every.unwrap_or(plan.steps_per_epoch);
        let stop = env.stop.clone();
        let in_step = InStep::new(move || stop.is_set(), env.patience);
        env.observer.event(Event::Steps(in_step.clone()));
        let session = Self {
            env,
            run,
            metrics,
            throughput: Throughput::new(Duration::from_secs(20)),
            waits: Waits::new(),
            saves: Interruptions::new(Some(checkpoint_every), plan.total_steps),
            evaluations: None,
            evaluating: None,
            improved: false,
            followed: None,
            told: None,
            logging,
            plan,
            stage,
            pending: Vec::new(),
            warned_upscaling: state.step > 0,
            state,
            since: Instant::now(),
            stopping: false,
            warnings: Vec::new(),
            in_step,
            cut_off: false,
            saved_at: resumed.as_ref().map(|r| r.state.step),
            all_save: false,
        };
        Ok((session, resumed))
    }

    /// Whether all steps are done, or the run has ended early.
    pub fn is_complete(&self) -> bool {
        self.state.ended || self.state.step >= self.plan.total_steps
    }

    /// Lets a metric of the epochs' records decide which checkpoint is `best`, and when to end.
    pub(crate) fn follow(&mut self, followed: Followed) {
        self.followed = Some(followed);
    }

    /// The record before the first step: what was measured of the model that the run starts from.
    pub(crate) fn starts_with(&mut self, values: &[(&'static str, f64)]) -> Result<(), Error> {
        let (epoch, step, steps_per_epoch) = (0, 0, self.plan.steps_per_epoch);
        self.evaluation_ends();
        let record = self.metrics.log_epoch(epoch, step, values)?;
        self.env.observer.event(Event::Epoch {
            epoch,
            step,
            steps_per_epoch,
            best: false,
            values: record.values,
        });
        Ok(())
    }

    /// Who is told what happens.
    pub fn observer(&mut self) -> &mut dyn Observer {
        self.env.observer
    }

    /// Says that there are evaluations, for the estimate of the time that is left: each of `images` images, every
    /// `every` steps and at the end.
    pub fn expect_evaluations(&mut self, every: Option<u64>, images: usize) {
        self.evaluations = Some((Interruptions::new(every, self.plan.total_steps), images));
    }

    /// Steps between evaluations where they are counted by epochs.
    pub fn steps_between_evaluations(&self) -> Option<u64> {
        self.logging.eval_every_epochs.map(|every| every * self.plan.steps_per_epoch)
    }

    /// An evaluation begins, if none runs yet. It ends with the epoch's record, and its time is no training time.
    pub fn evaluation_begins(&mut self) {
        if self.evaluating.is_some() {
            return;
        }
        if I::IS_ASYNC
            && let Some((_, last)) = self.pending.last().and_then(|report| report.scalars.first())
        {
            // What the device still has to do for the steps before belongs to them.
            let last = last.clone();
            self.waits.device(|| last.into_data());
        }
        self.evaluating = Some(Instant::now());
    }

    /// The time of the evaluation that runs, which is no training time.
    fn evaluation_ends(&mut self) -> Option<Duration> {
        let pause = self.evaluating.take()?.elapsed();
        self.leave_out(pause);
        Some(pause)
    }

    fn leave_out(&mut self, pause: Duration) {
        self.throughput.leave_out(pause);
        self.waits.leave_out(pause);
    }

    /// Seconds until the end: of steps, evaluations and checkpoints.
    fn eta_seconds(&self, images_per_step: u64) -> Option<f64> {
        let step = self.state.step;
        let steps = self.throughput.eta((self.plan.total_steps - step) * images_per_step)?;
        let evaluations = self.evaluations.as_ref().map_or(Duration::ZERO, |(evaluations, images)| {
            evaluations
                .eta(step, self.throughput.eta(*images as u64).map(|time| time.mul_f64(EVALUATION_COST)))
        });
        let saves = self.saves.eta(step, None);
        Some(steps.as_secs_f64() + evaluations.as_secs_f64() + saves.as_secs_f64())
    }

    /// The batches of a loader; the time spent waiting for them is counted.
    pub fn timed_batches<L>(&self, loader: L) -> Timed<L> {
        self.waits.timed_batches(loader)
    }

    /// The inputs of the loop when they are not the batches themselves; the time spent waiting for them is counted too.
    pub fn timed_inputs<L>(&mut self, prepared: L) -> Timed<L> {
        self.waits.timed_inputs(prepared)
    }

    /// As [`Prefetch::new`], with an end when the run is told to stop.
    pub fn prefetch<T, L, S, E, F>(&self, batches: L, prepare: F) -> Prefetch<T>
    where
        T: Send + 'static,
        L: Iterator<Item = Result<S, E>> + Send + 'static,
        Error: From<E>,
        F: FnMut(S) -> Result<T, Error> + Send + 'static,
    {
        Prefetch::watched(self.in_step.ahead().clone(), batches, prepare)
    }

    /// Says how many floating-point operations a step takes on each of its images, for showing how far it is.
    pub fn expect(&self, operations_per_image: f64, train: TrainConfig) {
        let images = self.plan.batch_size / self.rank().world();
        let again = if train.recomputes_blocks() { RECOMPUTED } else { 1.0 };
        self.in_step.expect(again * operations_per_image * images as f64);
    }

    /// Whether this process was told to stop; other ranks may not know yet.
    pub(crate) fn is_told_to_stop(&self) -> bool {
        self.env.stop.is_set()
    }

    /// Whether this only tries out what a run would do.
    pub fn is_rehearsal(&self) -> bool {
        self.env.rehearsal
    }

    /// The run directory.
    pub fn dir(&self) -> &Path {
        &self.env.dir
    }

    /// This loop's place among those that train together.
    pub fn rank(&self) -> &Rank {
        &self.env.rank
    }

    /// Whether this rank evaluates.
    pub fn leads(&self) -> bool {
        self.env.rank.leads()
    }

    /// Tells the observer something, by way of the leader.
    pub fn warn(&mut self, text: impl Into<String>) {
        match self.leads() {
            true => self.env.observer.event(Event::Warning(text.into())),
            false => self.warnings.push(text.into()),
        }
    }

    /// Tells the observer something that is no warning.
    pub fn note(&mut self, text: impl Into<String>) {
        self.env.observer.event(Event::Note(text.into()));
    }

    /// The stage's name.
    pub fn stage(&self) -> &'static str {
        self.stage
    }
}
