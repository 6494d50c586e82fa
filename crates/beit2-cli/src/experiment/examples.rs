//! What a finished run keeps for its report: looked at once, after training.

use std::time::{Duration, Instant};

use beit2::train::Outcome;
use beit2::visualize::Look;
use beit2_kernels::AutodiffBackend;
use beit2_run::StopFlag;
use beit2_run::report::Examples;

use super::Run;
use crate::assets::AssetStore;
use crate::backend::{self, GroupJob};
use crate::errors;
use crate::output;
use crate::progress::Progress;
use crate::stage::Stage;

/// A look takes at most so long, or this part of the training time where that is longer.
const AT_MOST: Duration = Duration::from_secs(30);
const PART_OF_TRAINING: f64 = 0.01;

impl Run<'_> {
    /// Looks at the finished run and keeps what its report shows, unless it is there already. A run is never lost by that:
    /// what goes wrong is a warning.
    pub(super) fn keep_examples<S: Stage>(&self, settings: &S, outcome: &Outcome) {
        let kept = || Examples::load(self.dir).ok().flatten().is_some_and(|kept| kept.step == outcome.step);
        if !outcome.complete || self.signals.stop.is_set() || kept() {
            return;
        }
        let long = Duration::try_from_secs_f64(PART_OF_TRAINING * outcome.seconds).unwrap_or_default();
        let mut progress = Progress::new(self.output, self.signals);
        let job = Looking {
            settings,
            step: outcome.step,
            run: self.dir,
            assets: self.assets,
            until: Instant::now() + AT_MOST.max(long),
            progress: &mut progress,
            stop: &self.signals.stop,
        };
        // A driver's panic is no reason to lose a run's end either.
        let found = errors::tried(|| backend::run(&self.device.first(), job));
        progress.close();
        let problem = match found {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => panic,
        };
        if !self.signals.stop.is_set() {
            output::note(&format!("warning: the report has no images, because {problem}"));
        }
    }
}

struct Looking<'a, S> {
    settings: &'a S,
    step: u64,
    run: &'a std::path::Path,
    assets: &'a AssetStore,
    until: Instant,
    progress: &'a mut Progress,
    stop: &'a StopFlag,
}

impl<S: Stage> GroupJob for Looking<'_, S> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<()> {
        let Self { settings, step, run, assets, until, progress, stop } = self;
        let Some(device) = devices.first() else { return Ok(()) };
        let mut look = Look { run, step, assets, until, observer: progress, stop };
        if let Some(examples) = settings.examples::<B::InnerBackend>(&mut look, device)? {
            examples.save(run)?;
        }
        Ok(())
    }
}
