//! What a session does in each step and at an epoch's end: all ranks go on, stop and log together.

use std::time::{Duration, Instant};

use beit2_data::Batch;
use beit2_kernels::{self as kernels, Backend};
use serde::{Deserialize, Serialize};

use super::super::batches::{DataPosition, TrainingItem, unusable};
use super::super::bottleneck::Bottleneck;
use super::super::events::Event;
use super::super::state::StepReport;
use super::Session;
use crate::error::Error;

/// Time after which the averages so far are told although no record is due: steps that take up to twice as long still
/// give a line every 30 seconds.
const AVERAGES_EVERY: Duration = Duration::from_secs(15);

/// What a rank tells the others after each step.
#[derive(Serialize, Deserialize)]
struct RankStatus {
    /// The leader's: the averages so far should be told.
    wants_averages: bool,
    stop: bool,
    bad: u64,
    warnings: Vec<String>,
}

impl<I: Backend> Session<'_, I> {
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
    pub(super) fn all_done(&self, own: bool) -> Result<bool, Error> {
        Ok(self.rank().gather(own)?.iter().all(|&done| done))
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
    pub(super) fn flush(&mut self) -> Result<(), Error> {
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
}
