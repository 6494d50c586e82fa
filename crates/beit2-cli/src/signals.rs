//! Ctrl-C and SIGTERM: the first one makes the run save and stop, the second one ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use beit2_run::StopFlag;
use signal_hook::consts::{SIGINT, SIGTERM};

/// The flag that running work looks at, and which signal set it.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Set by the first signal.
    pub stop: StopFlag,
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Listens from now on.
    pub fn install() -> anyhow::Result<Self> {
        let signals = Self::default();
        let install = || -> std::io::Result<()> {
            for signal in [SIGINT, SIGTERM] {
                signal_hook::flag::register_usize(signal, signals.last.clone(), signal as usize)?;
            }
            signals.stop.install()
        };
        install().context("this program cannot listen for Ctrl-C")?;
        Ok(signals)
    }

    /// The exit code of a program that a signal ended: 128 + the signal's number, as shells count.
    pub fn exit_code(&self) -> u8 {
        match self.last.load(Ordering::SeqCst) {
            0 => 128 + SIGINT as u8,
            signal => 128 + signal as u8,
        }
    }
}
