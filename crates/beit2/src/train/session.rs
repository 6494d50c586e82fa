//! One run of one stage: its directory, metrics, checkpoints, interruption.
//!
//! A loop learns from the session where to start, tells it about every step, and lets it decide when to log,
//! to save and to stop. Whatever the loop must remember is in [`TrainState`] and in the tensors it hands
//! over at a checkpoint, so that a continued run repeats the uninterrupted one to the bit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beit2_data::Batch;
use beit2_kernels::{self as kernels, Backend, Rank};
use beit2_run::throughput::{Interruptions, Throughput};
use beit2_run::{Cut, JsonlSink, Keep, Metrics, RunDir, Sink, TensorBoardSink};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::batches::{DataPosition, TrainingItem, unusable};
use super::bottleneck::{Bottleneck, Timed, Waits};
use super::events::{Event, Observer};
use super::followed::Followed;
use super::in_step::InStep;
use super::prefetch::Prefetch;
use super::processes;
use super::recipe::{LoggingConfig, Plan, TrainConfig};
use super::state::{AVERAGES, Env, Outcome, Resumed, Saved, SharedResumed, StepReport, TrainState, open_run};
use crate::error::Error;
use crate::weights;

/// Time after which the averages so far are told although no record is due: steps that take up to twice as long still
/// give a line every 30 seconds.
const AVERAGES_EVERY: Duration = Duration::from_secs(15);

/// A forward pass costs about a third of a training step.
const EVALUATION_COST: f64 = 1.0 / 3.0;

/// Operations of a step that computes its forward pass twice: four thirds of one that does not, less what is not in blocks.
const RECOMPUTED: f64 = 1.3;

/// What a rank tells the others after each step.
#[derive(Serialize, Deserialize)]
struct RankStatus {
    /// The leader's: the averages so far should be told.
    wants_averages: bool,
    stop: bool,
    bad: u64,
    warnings: Vec<String>,
}

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

    /// Does the part of a step that changes nothing: from its inputs to the gradients. `None` when a request to stop came and
    /// this part would take longer than a moment: on all ranks the step is then not done, and what it gave is thrown away.
    /// The loop ends and calls [`Session::close`].
    ///
    /// # Errors
    /// Those of `work`; another rank that ended.
    pub fn unless_stopped<T>(&mut self, work: impl FnOnce() -> Result<T, Error>) -> Result<Option<T>, Error> {
        self.in_step.begin();
        let done = self.in_step.own().run(work).transpose()?;
        self.cut_off = !self.all_done(done.is_some())?;
        Ok(done.filter(|_| !self.cut_off))
    }

    /// As [`Session::unless_stopped`] for work in which ranks wait for each other: it is done as soon as all ranks have what
    /// they need for it. `None` if one of them was told to stop before.
    ///
    /// # Errors
    /// Those of `work`; another rank that ended.
    pub fn to_the_end<T>(&mut self, work: impl FnOnce() -> Result<T, Error>) -> Result<Option<T>, Error> {
        self.in_step.begin();
        // A rank whose inputs were cut off says so in `close`.
        if self.rank().world() > 1 && !self.all_done(true)? {
            self.cut_off = true;
            return Ok(None);
        }
        work().map(Some)
    }

    /// [`Session::to_the_end`] where ranks wait for each other in `work`, else [`Session::unless_stopped`].
    ///
    /// # Errors
    /// Those of `work`; another rank that ended.
    pub fn learn<T>(
        &mut self,
        together: bool,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if together { self.to_the_end(work) } else { self.unless_stopped(work) }
    }

    /// Whether all ranks have done their part of the step.
    fn all_done(&self, own: bool) -> Result<bool, Error> {
        Ok(self.rank().gather(own)?.iter().all(|&done| done))
    }

    /// After the loop: saves the last step that is done, if a later one was cut off. Called by all ranks.
    ///
    /// # Errors
    /// As [`Session::save`].
    pub fn close(
        &mut self,
        state: impl FnOnce() -> Saved,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let agreed = self.is_complete() || self.stopping || self.cut_off;
        if !agreed {
            // The inputs of the next step were cut off: this rank has not met the others in it.
            self.cut_off = !self.all_done(false)?;
        }
        match self.state.step > 0 && self.saved_at != Some(self.state.step) {
            true => self.save(state, metadata, false),
            false => Ok(()),
        }
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

    /// Takes note of a batch's unusable and enlarged images.
    pub fn note_batch<T: TrainingItem>(&mut self, batch: &Batch<T>) {
        unusable(batch).for_each(|sentence| self.warn(sentence));
        if batch.epoch == 0 {
            self.state.upscaled += batch.items.iter().filter(|item| item.is_upscaled()).count() as u64;
        }
        let seen = (batch.step + 1) * batch.items.len() as u64;
        let first_epoch_ends = batch.epoch == 0 && batch.last_in_epoch;
        if first_epoch_ends && !self.warned_upscaling && 2 * self.state.upscaled > seen {
            self.warned_upscaling = true;
            let share = 100 * self.state.upscaled / seen.max(1);
            self.warn(format!(
                "{share} % of the crops have fewer pixels than the model's input and are enlarged; use larger \
                 images, a smaller image_size or a larger min_crop_scale"
            ));
        }
    }

    /// Counts a finished step and logs when it is time.
    ///
    /// # Errors
    /// A loss that is not finite, a metrics file that cannot be written, another rank that ended.
    pub fn step_done<T>(&mut self, batch: &Batch<T>, report: StepReport<I>) -> Result<(), Error> {
        let images = (batch.items.len() * self.rank().world()) as u64;
        self.state.step += 1;
        self.state.images += images;
        self.throughput.record(images);
        self.pending.push(report);
        let log_now = self.state.step.is_multiple_of(self.logging.log_every.max(1)) || self.is_complete();
        let (values, bottleneck) = match log_now {
            true => self.log(batch.epoch).map(|(values, bottleneck)| (values, Some(bottleneck)))?,
            false => Default::default(),
        };
        if log_now {
            self.told = Some(Instant::now());
        }
        self.env.observer.event(Event::Step {
            step: self.state.step,
            total_steps: self.plan.total_steps,
            epoch: batch.epoch,
            images_per_second: self.throughput.per_second(),
            eta_seconds: self.eta_seconds(images),
            values,
            bottleneck,
        });
        // After the step is told, so that a request to stop counts for the step at which it came.
        let (bad, wants_averages) = self.agree(batch.bad_before_next())?;
        self.state.data = DataPosition { at: batch.next_position(), bad };
        self.all_save = false;
        self.all_save = self.should_save(batch.last_in_epoch);
        if wants_averages {
            // To read them early changes no average: the order of the steps stays.
            self.flush()?;
            self.told = Some(Instant::now());
            self.env.observer.event(Event::Averages(self.metrics.so_far()));
        }
        Ok(())
    }

    /// What all ranks must know the same of: whether to stop, the most unusable images that one of them has met, and
    /// whether the averages so far should be told.
    fn agree(&mut self, bad: u64) -> Result<(u64, bool), Error> {
        let (stop, warnings) = (self.env.stop.is_set(), std::mem::take(&mut self.warnings));
        // After the first step too: whoever has just started a run wants to see its loss.
        let long_ago = self.told.is_none_or(|told| told.elapsed() >= AVERAGES_EVERY);
        let wants_averages = self.leads() && long_ago;
        let statuses = self.rank().gather(RankStatus { wants_averages, stop, bad, warnings })?;
        self.stopping |= statuses.iter().any(|status| status.stop);
        if self.leads() {
            statuses.iter().flat_map(|status| &status.warnings).for_each(|text| self.warn(text));
        }
        let bad = statuses.iter().map(|status| status.bad).max().unwrap_or(bad);
        Ok((bad, statuses.iter().any(|status| status.wants_averages)))
    }

    /// Fetches what the steps since the last record left on the device: the means over the ranks.
    fn flush(&mut self) -> Result<(), Error> {
        let pending: Vec<StepReport<I>> = self.pending.drain(..).collect();
        if pending.is_empty() {
            // Then it is so on all ranks.
            return Ok(());
        }
        // As one tensor, so that there is one read from the device.
        let scalars = pending.iter().flat_map(|report| &report.scalars).map(|(_, value)| value.clone());
        let own = self.waits.device(|| kernels::join_scalars(scalars.collect()).into_data());
        let own = own.convert::<f64>().into_vec::<f64>().unwrap_or_default();
        let all = self.rank().gather(own)?;
        let mean = |at: usize| all.iter().map(|values| values[at]).sum::<f64>() / all.len() as f64;
        let mut means = (0..all[0].len()).map(mean);
        for report in pending {
            for (name, _) in report.scalars {
                let value = means.next().unwrap_or(f64::NAN);
                if name == "loss" && !value.is_finite() {
                    return Err(Error::Training(format!(
                        "the loss became {value} before step {}; the run stopped and its last checkpoint is intact: \
                         lower optimizer.lr, lengthen the warm-up or set optimizer.clip_grad",
                        self.state.step
                    )));
                }
                self.metrics.observe(name, value, 1.0);
            }
            for (name, value) in report.known {
                self.metrics.set(name, value);
            }
        }
        Ok(())
    }

    fn log(&mut self, epoch: u64) -> Result<(Vec<(String, f64)>, Bottleneck), Error> {
        self.flush()?;
        if let Some(speed) = self.throughput.per_second() {
            self.metrics.set("images_per_second", speed);
        }
        let (data_wait, bottleneck) = self.waits.verdict(I::IS_ASYNC);
        self.metrics.set("data_wait", data_wait);
        Ok((self.metrics.log_step(epoch, self.state.step)?.values, bottleneck))
    }

    /// Writes an epoch's record.
    ///
    /// # Errors
    /// A loss that is not finite, a metrics file that cannot be written.
    pub fn epoch_done(&mut self, epoch: u64, extra: &[(&str, f64)]) -> Result<(), Error> {
        if let Some(pause) = self.evaluation_ends()
            && let Some((evaluations, _)) = &mut self.evaluations
        {
            evaluations.took(pause);
        }
        self.flush()?;
        if self.rank().is_process() {
            self.all_save |= self.rank().gather(self.improved)?.contains(&true);
        }
        let record = self.metrics.log_epoch(epoch + 1, self.state.step, extra)?;
        self.env.observer.event(Event::Epoch {
            epoch: epoch + 1,
            step: self.state.step,
            steps_per_epoch: self.plan.steps_per_epoch,
            best: std::mem::take(&mut self.improved),
            values: record.values,
        });
        self.end_early()
    }

    /// Ends the run on all ranks where the metric that it follows has not improved for long enough.
    fn end_early(&mut self) -> Result<(), Error> {
        let Some((followed, patience)) = self.followed.and_then(|found| Some((found, found.patience?)))
        else {
            return Ok(());
        };
        // Only the leader measures.
        let enough = self.leads() && self.state.since_best >= patience && !self.is_complete();
        if self.rank().gather(enough)?.contains(&true) {
            self.state.ended = true;
            let (name, step) = (followed.name, self.state.step);
            self.note(format!(
                "the run ends after step {step}: {name} has not improved {patience} times in a row"
            ));
        }
        Ok(())
    }

    /// Whether to save after this step: at the interval, at the end, or because a stop was requested.
    pub fn should_save(&self, last_in_epoch: bool) -> bool {
        let due = match self.logging.checkpoint_every {
            Some(every) => self.state.step.is_multiple_of(every),
            None => last_in_epoch,
        };
        due || self.is_complete() || self.stop_requested() || self.all_save
    }

    /// Alone, a request counts at once; in a group, when all ranks know of it.
    fn stop_requested(&self) -> bool {
        self.stopping || (self.rank().world() == 1 && self.env.stop.is_set())
    }

    /// Whether an epoch's end calls for an evaluation, which the leader does.
    pub fn should_evaluate(&self, epoch: u64) -> bool {
        let due = self.logging.eval_every_epochs.is_some_and(|every| (epoch + 1).is_multiple_of(every));
        self.leads() && (due || self.is_complete())
    }

    /// Updates the best validation loss; true if this one is the lowest so far. Its checkpoint becomes `best`.
    pub fn update_best(&mut self, loss: f64) -> bool {
        let better = loss.is_finite() && self.state.best.is_none_or(|best| loss < best);
        if better {
            self.state.best = Some(loss);
        }
        self.improved = better;
        better
    }

    /// Takes the metric that the run follows out of an epoch's values; true if it is the best so far.
    pub(crate) fn judge(&mut self, values: &[(&'static str, f64)]) -> bool {
        let Some(loss) = self.followed.and_then(|followed| followed.as_loss(values)) else { return false };
        let better = self.update_best(loss);
        self.state.since_best = if better { 0 } else { self.state.since_best + 1 };
        better
    }

    /// Whether the loop should end.
    pub fn should_stop(&self) -> bool {
        self.is_complete() || self.stop_requested()
    }

    /// Writes a complete checkpoint of what `state` gives, or nothing. Called by all ranks; the leader writes.
    ///
    /// # Errors
    /// Ranks in other processes whose models have become others; a full or read-only disk, a loss that is not finite; earlier checkpoints stay as they are.
    pub fn save(
        &mut self,
        state: impl FnOnce() -> Saved,
        metadata: &BTreeMap<String, String>,
        best: bool,
    ) -> Result<(), Error> {
        self.flush()?;
        let began = Instant::now();
        let compares = self.rank().is_process() && self.all_save;
        let saved = if self.run.is_some() || compares { Some(state()) } else { None };
        if let Some(saved) = saved.as_ref().filter(|_| compares) {
            processes::check_copies(self.rank(), saved, self.state.step)?;
        }
        let (Some(run), Some(Saved { model, optimizer, averages })) = (&self.run, saved) else {
            self.saved_at = Some(self.state.step);
            return Ok(());
        };
        self.metrics.sync()?;
        self.state.seconds += self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        self.state.metrics = Some(self.metrics.state().clone());
        // Until an extension is complete, the finished run that it goes on from stays as it was.
        let kept = self.plan.kept_checkpoints(self.state.step);
        let mut writer = run.begin_checkpoint(self.state.step)?.keeping(kept);
        let none = BTreeMap::new();
        let files = [("model.safetensors", &model, metadata), ("optimizer.safetensors", &optimizer, &none)];
        let averages = averages.as_ref().map(|tensors| (AVERAGES, tensors, metadata));
        for (name, tensors, metadata) in files.into_iter().chain(averages) {
            writer.add(name, |w| weights::encode_to(w, tensors, metadata).map_err(std::io::Error::other))?;
        }
        let keep = Keep { last: self.logging.keep_checkpoints, best };
        let checkpoint = writer.commit(&self.state, keep)?;
        self.saves.took(began.elapsed());
        self.leave_out(began.elapsed());
        self.saved_at = Some(self.state.step);
        self.env.observer.event(Event::Checkpoint(checkpoint.path));
        Ok(())
    }

    /// Ends the stage.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub fn finish(self) -> Result<Outcome, Error> {
        let complete = self.is_complete();
        self.env.observer.event(Event::Finished { complete, step: self.state.step });
        let checkpoint = match &self.run {
            Some(run) => run.latest_checkpoint()?.checkpoint,
            None => None,
        };
        Ok(Outcome {
            complete,
            step: self.state.step,
            seconds: self.state.seconds,
            images: self.state.images,
            checkpoint: checkpoint.map(|c| c.path).unwrap_or_default(),
        })
    }

    /// The stage's name.
    pub fn stage(&self) -> &'static str {
        self.stage
    }
}
