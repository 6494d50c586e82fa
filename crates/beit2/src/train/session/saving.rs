//! When a session saves, what is best, and when it ends.

use std::collections::BTreeMap;
use std::time::Instant;

use beit2_kernels::Backend;
use beit2_run::Keep;

use super::super::events::Event;
use super::super::processes;
use super::super::state::{AVERAGES, Outcome, Saved};
use super::Session;
use crate::error::Error;
use crate::weights;

impl<I: Backend> Session<'_, I> {
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
    /// Ranks in other processes whose models have become others; a full or read-only disk, a loss that is not finite; earlier
    /// checkpoints stay as they are.
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
}
