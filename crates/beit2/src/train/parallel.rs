//! Data parallel: one training loop on every device of a group, each in a thread of this process or in a process of its own.
//!
//! All ranks run the same loop on their part of each batch, in step. The first one writes, evaluates and reports; the
//! others only compute. A batch is the recipe's whatever the number of devices, and every random number belongs to an
//! image or a step, so a run on two devices equals one on a single device up to rounding.

use beit2_kernels::{ArrivedMeans, AutodiffBackend, Rank};
use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Device;

use super::events::Silent;
use super::state::{Env, Outcome};
use crate::error::{Error, config_error};

/// Runs `stage` on every device at once, the first of them in this thread if it can. Where the environment's rank is one of several
/// processes, it is the rank of the one device.
///
/// # Errors
/// What stopped the first rank that failed.
pub fn on_devices<B: AutodiffBackend>(
    devices: &[B::Device],
    env: Env<'_>,
    stage: impl Fn(Env<'_>, &B::Device) -> Result<Outcome, Error> + Sync,
) -> Result<Outcome, Error> {
    let [first, others @ ..] = devices else {
        return config_error("a run needs a device");
    };
    if env.rank.is_process() {
        return match others {
            [] => in_process::<B>(first, env, stage),
            _ => config_error(format!(
                "each process of a group trains on one device, and --device names {} here; start one process for each of them",
                devices.len()
            )),
        };
    }
    let ids: Vec<_> = devices.iter().map(|device| device.to_id()).collect();
    let mut ranks = Rank::group(&ids).into_iter();
    let lead = ranks.next().unwrap_or_else(Rank::alone);
    std::thread::scope(|scope| {
        // First, so that threads that are there already end too when the next cannot be started.
        let stay = lead.stay();
        let mut threads = Vec::new();
        for (rank, device) in ranks.zip(others) {
            let (assets, dir, existing, stage) = (env.assets, env.dir.clone(), env.existing, &stage);
            let (stop, patience, rehearsal) = (env.stop.clone(), env.patience, env.rehearsal);
            let work = move || {
                let _stay = rank.stay();
                // The leader reports and writes.
                let mut silent = Silent;
                let env = Env::new(dir, &mut silent, assets);
                stage(Env { existing, stop, patience, rehearsal, rank, ..env }, device)
            };
            threads.push(std::thread::Builder::new().spawn_scoped(scope, work).map_err(|error| {
                Error::Training(format!("the system refuses a thread for device {device:?}: {error}"))
            })?);
        }
        let work = || {
            let _stay = stay;
            stage(Env { rank: lead, ..env }, first)
        };
        let outcome = if !threads.is_empty() && beit2_kernels::computes_alone() {
            // At the end of its backward pass Burn waits for the graphs of the other ranks, asleep. They would wait for this
            // thread's time, so it does nothing but compute for all of them.
            let lead = scope.spawn(work);
            beit2_kernels::help_until(|| {
                lead.is_finished() && threads.iter().all(|thread| thread.is_finished())
            });
            lead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        } else {
            work()
        };
        let followers = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(drop));
        // Why not the first error at once: one rank fails, and the others say that it left.
        let errors: Vec<Error> = followers.filter_map(Result::err).collect();
        match outcome {
            Err(Error::PeerLeft(left)) => {
                let cause = errors.into_iter().find(|error| !matches!(error, Error::PeerLeft(_)));
                Err(cause.unwrap_or(Error::PeerLeft(left)))
            }
            outcome => outcome,
        }
    })
}

/// Runs `stage` as the rank that this process is.
fn in_process<B: AutodiffBackend>(
    device: &B::Device,
    env: Env<'_>,
    stage: impl Fn(Env<'_>, &B::Device) -> Result<Outcome, Error>,
) -> Result<Outcome, Error> {
    let rank = env.rank.clone().on(device.to_id());
    let mut silent = Silent;
    let observer = if rank.leads() { env.observer } else { &mut silent };
    let outcome = stage(Env { rank: rank.clone(), observer, ..env }, device);
    if let Err(error) = &outcome {
        // The others say it too, where they would only know that this one is gone.
        rank.leave(Some(&error.to_string()));
    }
    outcome
}

/// The mean over the ranks of all trained parameters' gradients; one that a rank has no gradient for (every image
/// dropped by drop path) counts as 0 there. Takes what [`beit2_kernels::backward`] gave; means that it took itself are not taken
/// again.
///
/// # Errors
/// Another rank has ended, or the ranks' backward passes took the means of different parameters.
pub(crate) fn average_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    (mut grads, mut means): (B::Gradients, ArrivedMeans<B::InnerBackend>),
    rank: &Rank,
) -> Result<B::Gradients, Error> {
    if rank.world() == 1 {
        return Ok(grads);
    }
    let mut taken = Take { grads: &mut grads, means: &mut means, flat: Vec::new(), open: Vec::new() };
    model.visit(&mut taken);
    let Take { flat, open, .. } = taken;
    let strange = means.left();
    assert!(
        strange == 0,
        "a backward pass took the means of {strange} tensors that are no parameters of the model"
    );
    if rank.overlaps::<B::InnerBackend>() {
        let all = rank.gather(open.clone())?;
        if all.iter().any(|others| *others != open) {
            return Err(Error::Training("the devices exchanged gradients of different parameters".into()));
        }
    }
    let means = rank.means(flat).into_iter();
    model.visit(&mut Put { grads: &mut grads, means, open: open.into_iter() });
    Ok(grads)
}

struct Take<'a, B: AutodiffBackend> {
    grads: &'a mut B::Gradients,
    means: &'a mut ArrivedMeans<B::InnerBackend>,
    /// What a mean is still to be taken of.
    flat: Vec<Tensor<B::InnerBackend, 1>>,
    /// For each trained parameter, whether it is in `flat`.
    open: Vec<bool>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Take<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        if !value.is_require_grad() {
            return;
        }
        let grad = match (self.means.take(&value), value.grad_remove(self.grads)) {
            (Some(mean), None) => {
                value.grad_replace(self.grads, mean);
                self.open.push(false);
                return;
            }
            // Used elsewhere too: the mean of means is the mean, so that their sum is one after this.
            (Some(mean), Some(own)) => mean + own,
            (None, Some(own)) => own,
            (None, None) => value.inner().zeros_like(),
        };
        let count = grad.shape().num_elements();
        self.flat.push(grad.reshape([count]));
        self.open.push(true);
    }
}

struct Put<'a, B: AutodiffBackend, I> {
    grads: &'a mut B::Gradients,
    means: I,
    open: std::vec::IntoIter<bool>,
}

impl<B: AutodiffBackend, I> ModuleVisitor<B> for Put<'_, B, I>
where
    I: Iterator<Item = Tensor<B::InnerBackend, 1>>,
{
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        if value.is_require_grad()
            && self.open.next() == Some(true)
            && let Some(mean) = self.means.next()
        {
            value.grad_replace(self.grads, mean.reshape(value.shape()));
        }
    }
}
