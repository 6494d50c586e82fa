//! Asking a run to stop: Ctrl-C and SIGTERM set a flag, the training loop looks at it between steps and
//! saves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// A flag shared by everyone who may ask the run to stop and the loop that obeys. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    set: Arc<AtomicBool>,
}

impl StopFlag {
    /// A flag that nobody has set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to save and stop.
    pub fn request(&self) {
        self.set.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Lets SIGINT (Ctrl-C) and SIGTERM set this flag; a second signal ends the process at once with exit
    /// code 130.
    ///
    /// Call it once, in the binary.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn install(&self) -> io::Result<()> {
        // Its own flag: after `request()` the first Ctrl-C must still leave time to save.
        let signalled = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the exit is registered first, so the first signal passes it before it sets
            // the flag.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&signalled))?;
            signal_hook::flag::register(signal, Arc::clone(&signalled))?;
            signal_hook::flag::register(signal, Arc::clone(&self.set))?;
        }
        Ok(())
    }
}
