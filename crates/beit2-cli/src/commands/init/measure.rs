//! A few steps of every stage in a temporary folder: how fast they are here, and that the recipes run.

use std::path::Path;
use std::time::{Duration, Instant};

use beit2::train::{Env, Event, Observer, on_devices};
use beit2_kernels::AutodiffBackend;
use beit2_run::StopFlag;

use super::plan::{Plan, Settings, Speed};
use crate::backend::{self, GroupJob};
use crate::device::DeviceSpec;
use crate::session::Session;
use crate::signals::Signals;
use crate::stage::Stage;

/// Seconds of steps in a stage, after the first ones.
const SECONDS: f64 = 3.0;
/// Steps that warm up: kernels are chosen, buffers made, the loader fills.
const WARM: usize = 2;
/// Most steps.
const STEPS: u64 = 40;

/// Images a second of each stage of a plan.
pub fn measure(
    plan: &Plan,
    device: &DeviceSpec,
    folder: &Path,
    session: &Session<'_>,
) -> anyhow::Result<Vec<f64>> {
    let mut speeds = Vec::new();
    for stage in &plan.stages {
        let dir = folder.join(stage.name);
        let before = |name: &str| folder.join(name).display().to_string();
        // Batches of the plan, but none so large that a step takes long.
        let batch = ((stage.images_per_second * SECONDS / 4.0) as usize / 2 * 2).clamp(2, stage.batch);
        let short = Short { batch, device, dir: &dir, session };
        let per_second = match &stage.settings {
            Settings::Tokenizer(settings) => short.run(settings.as_ref(), |s| s.data.val = None)?,
            Settings::Pretrain(settings) => short.run(settings.as_ref(), |s| {
                (s.data.val, s.tokenizer.weights) = (None, before("tokenizer"));
            })?,
            Settings::Finetune(settings) => short.run(settings.as_ref(), |s| {
                (s.data.val, s.init.weights) = (None, before("pretrain"));
            })?,
            Settings::Segment(settings) => short.run(settings.as_ref(), |s| {
                (s.data.val, s.init.weights) = (None, before("pretrain"));
            })?,
        };
        speeds.push(per_second);
    }
    Ok(speeds)
}

/// The achieved operations a second, from images a second.
pub fn speed(per_second: &[f64], plan: &Plan) -> Speed {
    let flops = |at: usize| {
        let measured = per_second.get(at).zip(plan.stages.get(at));
        measured.map_or(0.0, |(images, stage)| images * stage.cost.flops_per_image)
    };
    Speed { tokenizer: flops(0), pretrain: flops(1), task: flops(2) }
}

struct Short<'a, 's> {
    batch: usize,
    device: &'a DeviceSpec,
    dir: &'a Path,
    session: &'a Session<'s>,
}

impl Short<'_, '_> {
    /// Images a second of steps as in a rehearsal, but more of them, with a checkpoint that the next stage starts from.
    fn run<S: Stage>(&self, settings: &S, change: impl FnOnce(&mut S)) -> anyhow::Result<f64> {
        let mut settings = settings.rehearsed(self.batch);
        settings.tables_mut().0.steps = Some(STEPS);
        settings.logging_mut().checkpoint_every = Some(STEPS);
        change(&mut settings);
        settings.resolve(&self.session.assets)?;
        let settings = &settings;
        let mut watch = Watch::new(self.session.signals);
        let stop = watch.stop.clone();
        let env = Env { stop, ..Env::new(self.dir, &mut watch, &self.session.assets) };
        let device = self.device.first();
        backend::run(&device, Steps { settings, env })?;
        if self.session.signals.stop.is_set() {
            return Err(beit2::Error::Interrupted.into());
        }
        Ok(self.batch as f64 / watch.seconds_per_step().max(1e-6))
    }
}

struct Steps<'a, S> {
    settings: &'a S,
    env: Env<'a>,
}

impl<S: Stage> GroupJob for Steps<'_, S> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<()> {
        let Self { settings, env } = self;
        on_devices::<B>(devices, env, |env, device| settings.train::<B>(env, device))?;
        Ok(())
    }
}

/// Notes when steps end, and asks to stop once there are enough.
struct Watch<'a> {
    signals: &'a Signals,
    stop: StopFlag,
    ends: Vec<Instant>,
}

impl<'a> Watch<'a> {
    fn new(signals: &'a Signals) -> Self {
        Self { signals, stop: StopFlag::new(), ends: Vec::new() }
    }

    /// The mean after the first steps: where images are read slower than they are learned from, some steps wait long.
    fn seconds_per_step(&self) -> f64 {
        let warm = self.ends.get(WARM.min(self.ends.len().saturating_sub(2))..).unwrap_or_default();
        match warm {
            [first, .., last] => (*last - *first).as_secs_f64() / (warm.len() - 1) as f64,
            _ => 1.0,
        }
    }
}

impl Observer for Watch<'_> {
    fn event(&mut self, event: Event) {
        if let Event::Step { .. } = event {
            self.ends.push(Instant::now());
        }
        let enough =
            self.ends.get(WARM).is_some_and(|since| since.elapsed() > Duration::from_secs_f64(SECONDS));
        if enough || self.signals.stop.is_set() {
            self.stop.request();
        }
    }
}
