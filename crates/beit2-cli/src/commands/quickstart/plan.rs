//! How many steps the quickstart takes, so that `--minutes N` is how long it lasts, and how long each stage will take.
//!
//! The machine's speed is measured in the seconds of one tokenizer step. What everything else costs in such steps hardly
//! depends on the machine; the constants are from two cores in f32 (docs/benchmarks/quickstart.md).

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::{Env, Event, Observer, on_devices};
use beit2_kernels::AutodiffBackend;
use beit2_run::atomic::write_bytes_atomic;
use beit2_run::{StopFlag, format_duration};
use serde::{Deserialize, Serialize};

use crate::assets::AssetStore;
use crate::backend::{self, GroupJob};
use crate::device::DeviceSpec;
use crate::errors::usage;
use crate::signals::Signals;
use crate::stage::Stage;

/// Steps of the recipes.
const STEPS: [f64; 2] = [1600.0, 3200.0];
/// A pretraining step in tokenizer steps.
const PRETRAIN_STEP: f64 = 0.75;
/// What a training does beside its steps, in tokenizer steps: reading, whitening, k-means, evaluation, checkpoints.
const AROUND: [f64; 2] = [40.0, 10.0];
/// Features, probes and the report, in tokenizer steps.
const PROBES: f64 = 230.0;
/// The shortest trainings, relative to the recipes'.
const LEAST: f64 = 0.0125;

/// Steps that are timed, and those before them that are not: the first ones are slower.
const TIMED_STEPS: u64 = 20;
const UNTIMED_STEPS: u64 = 4;
/// A slow machine times fewer.
const TIMED_SECONDS: f64 = 4.0;

/// What a run was begun with, in `plan.json`. The steps follow from a measurement, which would not give the same ones when the
/// run is continued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `--minutes`.
    minutes: f64,
    /// The tokenizer's training, relative to the recipe's.
    pub tokenizer: f64,
    /// The same of pretraining, once the tokenizer is trained.
    pub pretrain: Option<f64>,
}

impl Plan {
    fn path(out: &Path) -> PathBuf {
        out.join("plan.json")
    }

    /// The plan of the run in `out`, if it was begun with one.
    ///
    /// # Errors
    /// A run in `out` that was begun with other minutes.
    pub fn find(out: &Path, minutes: Option<f64>) -> anyhow::Result<Option<Self>> {
        let path = Self::path(out);
        let found: Option<Self> = match std::fs::read(&path) {
            Ok(text) => {
                let broken = || format!("{} cannot be read; begin again with --restart", path.display());
                Some(serde_json::from_slice(&text).with_context(broken)?)
            }
            Err(_) => None,
        };
        let begun = found.is_some() || out.join(TokenizerRecipe::NAME).join("run.toml").exists();
        let flag = |minutes: Option<f64>| match minutes {
            Some(minutes) => format!("with --minutes {minutes}"),
            None => "without --minutes".to_owned(),
        };
        let before = found.as_ref().map(|plan| plan.minutes);
        if begun && before != minutes {
            return usage(format!(
                "the quickstart in {} was begun {}; give the same to continue it, another --out, or --restart",
                out.display(),
                flag(before)
            ));
        }
        Ok(found)
    }

    /// A plan for `minutes`, of which `spent` seconds are over. On a machine where that is too short, the shortest trainings.
    pub fn new(minutes: f64, spent: f64, step: f64) -> Self {
        let steps = (60.0 * minutes - spent) / step - AROUND[0] - AROUND[1] - PROBES;
        let scale = steps / (STEPS[0] + STEPS[1] * PRETRAIN_STEP);
        Self { minutes, tokenizer: scale.max(LEAST), pretrain: None }
    }

    /// The scale of pretraining, by what is left after `spent` seconds, with the tokenizer trained.
    pub fn with_pretraining(mut self, spent: f64, step: f64) -> Self {
        let steps = (60.0 * self.minutes - spent) / step - AROUND[1] - PROBES;
        self.pretrain = Some((steps / (STEPS[1] * PRETRAIN_STEP)).max(LEAST));
        self
    }

    /// Keeps it for the next time.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn save(&self, out: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
        let text = serde_json::to_string_pretty(self)?;
        Ok(write_bytes_atomic(&Self::path(out), text.as_bytes())?)
    }

    /// Takes the plan of a run away that is begun again.
    pub fn forget(out: &Path) {
        // There may be none.
        let _ = std::fs::remove_file(Self::path(out));
    }

    /// The warning about minutes that are too few: the shortest run takes longer.
    pub fn too_short(&self, spent: f64, step: f64) -> Option<String> {
        let shortest = spent + seconds(step, LEAST).iter().sum::<f64>();
        (60.0 * self.minutes < shortest).then(|| {
            format!(
                "--minutes {} is too short on this machine: the shortest quickstart takes about {}, and that one runs",
                self.minutes,
                about(shortest)
            )
        })
    }
}

/// Seconds of the tokenizer, of pretraining and of the probes, by the scale of the trainings.
pub fn seconds(step: f64, scale: f64) -> [f64; 3] {
    let [tokenizer, pretrain] = STEPS.map(|steps| steps * scale);
    [step * (tokenizer + AROUND[0]), step * (pretrain * PRETRAIN_STEP + AROUND[1]), step * PROBES]
}

/// Seconds of one tokenizer step, by how long `steps` of them took in a run.
pub fn step_of(seconds: f64, steps: u64) -> f64 {
    seconds / (steps as f64 + AROUND[0])
}

/// A duration that is estimated: `40 s`, `3 min 10 s`, `1 h 5 min`.
pub fn about(seconds: f64) -> String {
    let unit = if seconds < 60.0 { 5.0 } else { 10.0 };
    format_duration(((seconds / unit).round() * unit).max(unit))
}

/// Seconds of one step of the tokenizer's training, measured in a run of a few steps that is not kept; `None` if a signal came.
///
/// # Errors
/// What the training itself would fail with.
pub fn measure(
    settings: &TokenizerRecipe,
    out: &Path,
    device: &DeviceSpec,
    assets: &AssetStore,
    signals: &Signals,
) -> anyhow::Result<Option<f64>> {
    let mut settings = settings.clone();
    let steps = UNTIMED_STEPS + TIMED_STEPS;
    (settings.schedule.steps, settings.schedule.warmup_steps) = (Some(steps), Some(1));
    (settings.model.kmeans_init, settings.codebook.kmeans_warmup_steps) = (false, 0);
    settings.targets.whiten = false;
    settings.data.val = None;
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    let dir = out.join(".speed");
    let _ = std::fs::remove_dir_all(&dir); // of a run that was killed here
    let mut clock =
        Clock { stop: StopFlag::new(), signals: &signals.stop, started: None, steps: 0, step: None };
    let stop = clock.stop.clone();
    let trained =
        backend::run(device, Steps { settings: &settings, dir: &dir, clock: &mut clock, assets, stop });
    let _ = std::fs::remove_dir_all(&dir);
    trained?;
    Ok(clock.step.filter(|_| !signals.stop.is_set()))
}

struct Steps<'a, 's> {
    settings: &'a TokenizerRecipe,
    dir: &'a Path,
    clock: &'a mut Clock<'s>,
    assets: &'a AssetStore,
    stop: StopFlag,
}

impl GroupJob for Steps<'_, '_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<()> {
        let Self { settings, dir, clock, assets, stop } = self;
        let env = Env { stop, ..Env::new(dir, clock, assets) };
        on_devices::<B>(devices, env, |env, device| settings.train::<B>(env, device))?;
        Ok(())
    }
}

/// Times steps by their events.
struct Clock<'a> {
    /// Ends the measurement.
    stop: StopFlag,
    signals: &'a StopFlag,
    started: Option<Instant>,
    steps: u64,
    step: Option<f64>,
}

impl Observer for Clock<'_> {
    fn event(&mut self, event: Event) {
        let Event::Step { step, .. } = event else { return };
        if self.signals.is_set() {
            self.stop.request();
        }
        match self.started {
            None if step >= UNTIMED_STEPS => self.started = Some(Instant::now()),
            None => {}
            Some(started) => {
                self.steps += 1;
                let spent = started.elapsed().as_secs_f64();
                self.step = Some(spent / self.steps as f64);
                if spent > TIMED_SECONDS {
                    self.stop.request();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_plan_lasts_as_long_as_it_should() {
        for step in [0.02, 0.1, 0.5] {
            for minutes in [5.0, 8.0, 90.0] {
                let plan = Plan::new(minutes, 3.0, step);
                let [tokenizer, pretrain, probes] = seconds(step, plan.tokenizer);
                let total = 3.0 + tokenizer + pretrain + probes;
                assert!((total - 60.0 * minutes).abs() < 1e-6, "{minutes} minutes at {step}: {total}");
                assert_eq!(plan.too_short(3.0, step), None);
                // The tokenizer took as long as was planned, so pretraining has the same scale.
                let second = plan.clone().with_pretraining(3.0 + tokenizer, step);
                assert!((second.pretrain.unwrap() - plan.tokenizer).abs() < 1e-9);
                // A machine that became half as fast does less, and is done in time.
                let slow = plan.clone().with_pretraining(3.0 + 2.0 * tokenizer, 2.0 * step);
                let [_, pretrain, probes] = seconds(2.0 * step, slow.pretrain.unwrap());
                let total = 3.0 + 2.0 * tokenizer + pretrain + probes;
                assert!(total <= 60.0 * minutes + 1e-6 || slow.pretrain == Some(LEAST), "{total}");
            }
        }
    }

    #[test]
    fn too_few_minutes_run_the_shortest() {
        let plan = Plan::new(0.1, 0.0, 0.1);
        assert_eq!(plan.tokenizer, LEAST);
        assert_eq!(plan.clone().with_pretraining(6.0, 0.1).pretrain, Some(LEAST));
        let shortest = seconds(0.1, LEAST).iter().sum::<f64>();
        let told = plan.too_short(0.0, 0.1).unwrap();
        assert!(
            told.starts_with(
                "--minutes 0.1 is too short on this machine: the shortest quickstart takes about "
            ),
            "{told}"
        );
        assert!(told.contains(&about(shortest)), "{told}");
    }

    #[test]
    fn a_run_keeps_its_plan() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep/run");
        assert_eq!(Plan::find(&out, Some(2.0)).unwrap(), None);
        let plan = Plan::new(2.0, 0.0, 0.1);
        plan.save(&out).unwrap();
        assert_eq!(Plan::find(&out, Some(2.0)).unwrap(), Some(plan.clone()));
        for other in [None, Some(3.0)] {
            let error = Plan::find(&out, other).unwrap_err().to_string();
            assert!(error.contains("begun with --minutes 2;") && error.contains("--restart"), "{error}");
        }
        Plan::forget(&out);
        assert_eq!(Plan::find(&out, None).unwrap(), None);
        std::fs::create_dir_all(out.join("tokenizer")).unwrap();
        std::fs::write(out.join("tokenizer/run.toml"), "").unwrap();
        assert_eq!(Plan::find(&out, None).unwrap(), None);
        let error = Plan::find(&out, Some(3.0)).unwrap_err().to_string();
        assert!(error.contains("begun without --minutes;"), "{error}");
        std::fs::write(out.join("plan.json"), "{").unwrap();
        assert!(Plan::find(&out, Some(3.0)).is_err());
    }

    #[test]
    fn estimates_are_round() {
        assert_eq!(
            [0.3, 12.0, 58.0, 94.0, 287.0, 4000.0].map(about),
            ["5.0 s", "10 s", "1 min 0 s", "1 min 30 s", "4 min 50 s", "1 h 6 min"]
        );
    }
}
