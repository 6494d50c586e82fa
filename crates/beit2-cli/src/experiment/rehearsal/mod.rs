//! A rehearsal: what a run would do, tried out on a few images, without a run directory.
//!
//! It trains by the run's own function ([`Stage::train`]) for two steps, so that whatever keeps a run from starting keeps the
//! rehearsal from succeeding, with the same sentence: weights of another kind or size, a device without the precision. The
//! second step is timed. What a run takes is computed from that and from [`Cost`].

mod few;
mod tell;

use std::time::Instant;

use beit2::cost::Cost;
use beit2::train::{Assets, Env, Event, Observer, Plan, on_devices};
use beit2::{Error, Precision};
use beit2_kernels::AutodiffBackend;
use beit2_run::environment::peak_memory_bytes;

use crate::backend::{self, GroupJob};
use crate::device::{DeviceSpec, Kind};
use crate::signals::Signals;
use crate::stage::Stage;
use few::FewImages;

pub use tell::{Place, tell};

/// Operations of a rehearsed step: a moment on a processor. A large model takes one image.
const OPERATIONS: f64 = 60e9;

/// A step that takes longer is not repeated with more images.
const QUICK_SECONDS: f64 = 4.0;

/// What a run takes, predicted and measured.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// Predicted from the settings.
    pub cost: Cost,
    /// The same with blocks that are computed again in the backward pass; `None` where they are so anyway.
    pub recomputing: Option<Cost>,
    /// Devices.
    pub devices: usize,
    /// Images of a micro-batch on each device.
    pub micro_batch: usize,
    /// Images of a step on each device.
    pub batch: usize,
    /// Images of the largest rehearsed step, on each device.
    pub images: usize,
    /// Seconds of a whole step, from the rehearsed ones.
    pub step_seconds: f64,
    /// Most memory of this process so far, which is that of the rehearsed step; on the CPU.
    pub peak_bytes: Option<u64>,
    /// Seconds of one evaluation of the validation set.
    pub evaluation_seconds: f64,
    /// Evaluations in the whole run.
    pub evaluations: u64,
    /// Steps of an epoch, and of the run.
    pub steps: (u64, u64),
    /// The precision of the matmuls.
    pub precision: Option<Precision>,
}

impl Rehearsal {
    /// Bytes of the run: of the process on CPUs, of one device on GPUs.
    pub fn bytes(&self, on_cpu: bool) -> u64 {
        self.predicted(self.batch, self.micro_batch, on_cpu)
    }

    /// Bytes that were predicted for the rehearsed step, which writes no checkpoint.
    pub fn rehearsed_bytes(&self, on_cpu: bool) -> u64 {
        let copies = self.cost.checkpoint_bytes() * if on_cpu { self.devices as u64 } else { 1 };
        self.predicted(self.images, self.images, on_cpu).saturating_sub(copies)
    }

    /// Micro-batches of a step on each device.
    pub fn micro_batches(&self) -> usize {
        self.batch / self.micro_batch
    }

    fn predicted(&self, batch: usize, micro_batch: usize, on_cpu: bool) -> u64 {
        self.predicted_of(&self.cost, batch, micro_batch, on_cpu)
    }

    fn predicted_of(&self, cost: &Cost, batch: usize, micro_batch: usize, on_cpu: bool) -> u64 {
        let processes = if on_cpu { self.devices as u64 } else { 1 };
        cost.bytes(batch, micro_batch).saturating_mul(processes)
    }

    /// Seconds of an epoch, without evaluation.
    pub fn epoch_seconds(&self) -> f64 {
        self.steps.0 as f64 * self.step_seconds
    }

    /// Seconds of the whole run, evaluations included.
    pub fn run_seconds(&self) -> f64 {
        self.steps.1 as f64 * self.step_seconds + self.evaluations as f64 * self.evaluation_seconds
    }
}

/// Tries out a run of these settings. Nothing is written.
///
/// # Errors
/// What would keep the run from starting; a signal.
pub fn rehearse<S: Stage>(
    settings: &S,
    plan: &Plan,
    assets: &dyn Assets,
    device: &DeviceSpec,
    signals: &Signals,
) -> anyhow::Result<Rehearsal> {
    backend::run(device, Job { settings, plan, assets, signals, on_cpu: device.kind == Kind::Cpu })
}

struct Job<'a, S> {
    settings: &'a S,
    plan: &'a Plan,
    assets: &'a dyn Assets,
    signals: &'a Signals,
    on_cpu: bool,
}

impl<S: Stage> GroupJob for Job<'_, S> {
    type Output = Rehearsal;

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<Rehearsal> {
        let Self { settings, plan, assets, .. } = self;
        settings.check_run(plan.total_steps, devices.len())?;
        let cost = settings.cost(assets)?;
        let division = settings.division(devices.len())?;
        let (batch, micro_batch) = (division.per_rank, division.micro_batch());
        let fewest = settings.fewest_images().min(micro_batch);
        let fitting = |images: usize| (images.min(micro_batch) / fewest * fewest).max(fewest);
        let mut images = fitting((OPERATIONS / cost.flops_per_image) as usize);
        let first = self.step_seconds::<B>(devices, images)?;
        // The optimiser takes as long for one image as for many.
        let (mut image_seconds, mut fixed_seconds) = (first / images as f64, 0.0);
        let more = fitting(4 * images);
        if more > images && first < QUICK_SECONDS {
            let second = self.step_seconds::<B>(devices, more)?;
            let each = (second - first) / (more - images) as f64;
            // On a busy machine the smaller step may take longer.
            image_seconds = if each > 0.1 * second / more as f64 { each } else { second / more as f64 };
            fixed_seconds = (second - image_seconds * more as f64).max(0.0);
            images = more;
        }
        let val = settings.tables().data.val.as_deref();
        let val_images =
            val.map(|spec| settings.source(assets, spec)).transpose()?.map_or(0, |val| val.len());
        Ok(Rehearsal {
            cost,
            recomputing: settings.recomputing_cost(assets)?,
            devices: devices.len(),
            micro_batch,
            batch,
            images,
            step_seconds: fixed_seconds + image_seconds * batch as f64,
            peak_bytes: self.on_cpu.then(peak_memory_bytes).flatten(),
            // A forward pass is a third of a step; one device evaluates.
            evaluation_seconds: image_seconds * val_images as f64 / 3.0,
            evaluations: if val_images > 0 { settings.evaluations(plan) } else { 0 },
            steps: (plan.steps_per_epoch, plan.total_steps),
            precision: settings.precision(),
        })
    }
}

impl<S: Stage> Job<'_, S> {
    /// Trains with this many images on each device, and evaluates one → seconds of a step.
    fn step_seconds<B: AutodiffBackend>(&self, devices: &[B::Device], images: usize) -> anyhow::Result<f64> {
        let all = images * devices.len();
        let (short, data) = (self.settings.rehearsed(all), self.settings.tables().data);
        let assets = FewImages {
            assets: self.assets,
            train: (&data.train, all),
            decode: data.of_channels(self.settings.channels()).decode_options(),
            min_side_px: data.min_side_px,
        };
        let mut steps = Stopwatch(Vec::new());
        let stop = self.signals.stop.clone();
        let env = Env { stop, rehearsal: true, ..Env::new("", &mut steps, &assets) };
        let outcome = on_devices::<B>(devices, env, |env, device| short.train::<B>(env, device))?;
        if !outcome.complete {
            return Err(Error::Interrupted.into());
        }
        Ok(match steps.0.as_slice() {
            [.., before, last] => last.duration_since(*before).as_secs_f64(),
            _ => 0.0,
        })
    }
}

/// When steps were done.
struct Stopwatch(Vec<Instant>);

impl Observer for Stopwatch {
    fn event(&mut self, event: Event) {
        if let Event::Step { .. } = event {
            self.0.push(Instant::now());
        }
    }
}
