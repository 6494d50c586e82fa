//! What a command works with beside its flags, and its way from `--device` to code for a backend.

use beit2_kernels::AutodiffBackend;

use crate::assets::{AssetStore, Reading};
use crate::backend::{self, GroupJob};
use crate::device::DeviceSpec;
use crate::errors::usage;
use crate::flags::OutputArgs;
use crate::progress::Progress;
use crate::signals::Signals;

/// Images and weights, signals and progress of one command.
pub struct Session<'a> {
    /// Opens images and weights, each once.
    pub assets: AssetStore,
    /// Ctrl-C and SIGTERM.
    pub signals: &'a Signals,
    /// Told what happens.
    pub progress: Progress,
}

/// Work of a command that is written once for every backend and runs on one device.
pub trait Job {
    /// What comes out.
    type Output;

    /// Does it.
    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Self::Output>;
}

impl<'a> Session<'a> {
    /// A session of a command that has no run directory.
    pub fn new(output: OutputArgs, signals: &'a Signals) -> Self {
        let assets = AssetStore::reading(Reading::default(), output.quiet);
        Self { assets, signals, progress: Progress::new(output, signals) }
    }

    /// As [`Session::new`], for a command whose flags say how weights are read.
    pub fn reading(output: OutputArgs, signals: &'a Signals, reading: Reading) -> Self {
        Self { assets: AssetStore::reading(reading, output.quiet), ..Self::new(output, signals) }
    }

    /// Runs a job on the device that `--device` names, then takes the progress bar away.
    pub fn on<J: Job>(&mut self, device: &DeviceSpec, job: J) -> anyhow::Result<J::Output> {
        let result = backend::run(device, OnOne { job, session: self, device });
        self.progress.close();
        result
    }
}

/// A job for one device as one for a group.
struct OnOne<'a, 's, J> {
    job: J,
    session: &'a mut Session<'s>,
    device: &'a DeviceSpec,
}

impl<J: Job> GroupJob for OnOne<'_, '_, J> {
    type Output = J::Output;

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<J::Output> {
        match devices {
            [device] => self.job.run::<B>(self.session, device),
            _ => usage(format!(
                "--device {} names {} devices, but this command runs on one; only training uses several",
                self.device,
                devices.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Job for Nothing {
        type Output = ();

        fn run<B: AutodiffBackend>(self, _: &mut Session<'_>, _: &B::Device) -> anyhow::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_group_is_for_training() {
        let signals = Signals::default();
        let mut session = Session::new(OutputArgs { quiet: true, json: false }, &signals);
        assert!(session.on(&"cpu".parse().unwrap(), Nothing).is_ok());
        let why = session.on(&"cpu,cpu".parse().unwrap(), Nothing).unwrap_err().to_string();
        assert!(why.contains("names 2 devices") && why.contains("only training"), "{why}");
    }
}
