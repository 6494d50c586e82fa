//! A finished run that is made longer: when that can be, and how its learning rate goes on.
//!
//! The run goes on as if it had been planned with its new length, with one difference: it had come down to its last
//! learning rate. From there the rate rises again, over [`RISE`] of the new steps, to where the longer schedule is by then,
//! and follows it to the end. So a run that is made a little longer is hardly disturbed, and one that is made twice as long
//! rises to about half of its peak. Weight decay follows the longer schedule at once.
//!
//! `run.toml` says so in `[extension]`: `at` are the steps at which the run was complete, `keeps` the checkpoints of the
//! finished run that stay until the extension is complete.

use std::path::Path;

use beit2_run::dir::{differences, list};
use beit2_run::{Existing, atomic, checkpoint, recipe, thousands};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::recipe::Plan;
use super::state::{Env, MAY_DIFFER, TrainState};
use crate::error::{Error, config_error};

/// Share of the new steps in which the learning rate rises again.
const RISE: f64 = 0.05;

/// Keys that say how long a run is.
const LENGTH: [&str; 2] = ["schedule.epochs", "schedule.steps"];

/// That a finished run was made longer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Extension {
    /// Steps at which the run was complete, oldest first.
    at: Vec<u64>,
    /// Steps of the finished run's checkpoints that stay.
    keeps: Vec<u64>,
    /// The record of the finished run does not say so yet.
    #[serde(skip)]
    is_new: bool,
}

impl Extension {
    /// What may differ between the run in a folder and this one.
    pub(super) fn may_differ(extension: Option<&Self>) -> Vec<&'static str> {
        let length = LENGTH.into_iter().filter(|_| extension.is_some_and(|extension| extension.is_new));
        MAY_DIFFER.into_iter().chain(length).collect()
    }

    /// `[extension]` of `run.toml`.
    pub(super) fn to_toml(&self) -> String {
        let list = |steps: &[u64]| steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        format!("\n[extension]\nat = [{}]\nkeeps = [{}]\n", list(&self.at), list(&self.keeps))
    }

    /// Keeps the record of the finished run beside the one that takes its place.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(super) fn keep_record(&self, dir: &Path) -> Result<(), Error> {
        let Some(at) = self.at.last().filter(|_| self.is_new) else { return Ok(()) };
        let file = dir.join("run.toml");
        let text = std::fs::read(&file).map_err(|source| Error::Io { path: file, source })?;
        Ok(atomic::write_bytes_atomic(&dir.join(format!("run-until-step-{at:07}.toml")), &text)?)
    }
}

impl Plan {
    /// This plan for the run of an environment ([`Plan::in_dir`]), in which the leader looks.
    ///
    /// # Errors
    /// As [`Plan::in_dir`]; another rank that ended.
    pub fn in_run<R>(self, env: &Env<'_>, recipe: &R) -> Result<Self, Error>
    where
        R: Serialize + DeserializeOwned + Default,
    {
        if env.rehearsal {
            return Ok(self);
        }
        let found = match env.rank.leads() {
            true => Some(self.clone().in_dir(&env.dir, recipe, &env.provenance, env.existing)?.extension),
            false => None,
        };
        Ok(self.extended(env.rank.broadcast(found)?))
    }

    /// This plan for the run in `dir`: where that run is complete with fewer steps and this recipe differs from it in its
    /// length only, the learning rate goes on from the end as the module's description says.
    ///
    /// # Errors
    /// A longer schedule for a run that is not complete, or with other settings too; a record that cannot be read.
    pub fn in_dir<R>(
        self,
        dir: &Path,
        recipe: &R,
        provenance: &str,
        existing: Existing,
    ) -> Result<Self, Error>
    where
        R: Serialize + DeserializeOwned + Default,
    {
        let file = dir.join("run.toml");
        if existing == Existing::SetAside || !file.is_file() {
            return Ok(self);
        }
        let text = std::fs::read_to_string(&file).map_err(|source| Error::Io { path: file, source })?;
        // A record that is damaged is said where it is opened.
        let Ok(old) = text.parse::<Table>() else { return Ok(self) };
        let Ok(new) = format!("{}\n{provenance}", recipe::to_toml(recipe)?).parse::<Table>() else {
            return Ok(self);
        };
        let before = old.get("extension").cloned().and_then(|table| table.try_into::<Extension>().ok());
        let mut extension = before.unwrap_or_default();
        if let Some(at) = self.lengthened(dir, &old, &new)? {
            extension.at.push(at);
            let best = checkpoint::best(dir).map(|best| best.step).filter(|best| *best != at);
            extension.keeps = best.into_iter().chain([at]).collect();
            extension.is_new = true;
        }
        Ok(self.extended(Some(extension)))
    }

    /// This plan for a run that was made longer, if it was.
    fn extended(mut self, extension: Option<Extension>) -> Self {
        let Some(extension) = extension else { return self };
        if let Some(&at) = extension.at.last() {
            let rise = (RISE * self.total_steps.saturating_sub(at) as f64).ceil() as u64;
            self.lr = self.lr.rising_again(at, rise.max(1));
            self.extension = Some(extension);
        }
        self
    }

    /// The step at which the run in `dir` was complete, if this plan makes it longer. A shorter one is left to the
    /// comparison of settings.
    fn lengthened(&self, dir: &Path, old: &Table, new: &Table) -> Result<Option<u64>, Error> {
        let steps = |run: &Table| {
            let schedule = run.get("schedule")?.as_table()?;
            let number = |key: &str| u64::try_from(schedule.get(key).and_then(Value::as_integer)?).ok();
            number("steps").or_else(|| number("epochs")?.checked_mul(self.steps_per_epoch))
        };
        let (Some(before), Some(now)) = (steps(old), steps(new)) else { return Ok(None) };
        let same_length = differences(old, new, &MAY_DIFFER).iter().all(|one| !LENGTH.contains(&&*one.key));
        if same_length || now <= before || old.get("stage") != new.get("stage") {
            return Ok(None);
        }
        let name = dir.display();
        let others = differences(old, new, &[&MAY_DIFFER[..], &LENGTH[..]].concat());
        if !others.is_empty() {
            return config_error(format!(
                "{name} can be made longer only with its other settings as they are, and this would change {}; take that back, \
                 or choose another folder with --out",
                list(&others)
            ));
        }
        let newest = checkpoint::latest(dir)?.checkpoint;
        let done = newest.as_ref().map_or(0, |newest| newest.step);
        if let Some(newest) = &newest
            && newest.state::<TrainState>()?.ended
        {
            return config_error(format!(
                "{name} ended early at step {}, because the metric that it follows stopped improving, so it has no end of its \
                 schedule to go on from; start from its weights with --init {name} and another --out",
                thousands(done)
            ));
        }
        match done >= before {
            true => Ok(Some(done)),
            false => config_error(format!(
                "{name} is at step {} of {}, and only a finished run can be made longer; finish it with the command that \
                 began it, then give the new length",
                thousands(done),
                thousands(before)
            )),
        }
    }

    /// What is told of an extension, in one line.
    pub fn told_extension(&self) -> Option<String> {
        let &at = self.extension.as_ref()?.at.last()?;
        let rise = (RISE * self.total_steps.saturating_sub(at) as f64).ceil().max(1.0) as u64;
        let epochs = |steps: u64| (steps as f64 / self.steps_per_epoch.max(1) as f64 * 10.0).round() / 10.0;
        Some(format!(
            "from {} to {} steps ({} to {} epochs): the learning rate rises again from {:.2e} to {:.2e} in {} steps, where a \
             run of {} steps is by then, and falls with it",
            thousands(at),
            thousands(self.total_steps),
            epochs(at),
            epochs(self.total_steps),
            self.lr.at(at),
            self.lr.at(at + rise),
            thousands(rise),
            thousands(self.total_steps),
        ))
    }

    /// Steps of checkpoints that must stay when that of `step` is saved.
    pub(super) fn kept_checkpoints(&self, step: u64) -> &[u64] {
        match &self.extension {
            Some(extension) if step < self.total_steps => &extension.keeps,
            _ => &[],
        }
    }
}
