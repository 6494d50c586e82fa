//! What is told while a step runs, by a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::output;
use crate::signals::Signals;

/// Confirms a Ctrl-C at once, although the running step may take a while.
pub(super) struct Watcher {
    done: Arc<AtomicBool>,
    bar: Arc<std::sync::Mutex<ProgressBar>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start(signals: &Signals, bar: ProgressBar) -> Self {
        let (stop, done) = (signals.stop.clone(), Arc::new(AtomicBool::new(false)));
        let bar = Arc::new(std::sync::Mutex::new(bar));
        let (seen, shown) = (done.clone(), bar.clone());
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                if stop.is_set() {
                    let bar = shown.lock().unwrap_or_else(|e| e.into_inner()).clone();
                    bar.suspend(|| {
                        output::note(
                            "stopping after this step, which is saved; interrupt again to end at once",
                        );
                    });
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        Self { done, bar, thread: thread.ok() }
    }

    pub(super) fn follow(&self, bar: &ProgressBar) {
        *self.bar.lock().unwrap_or_else(|e| e.into_inner()) = bar.clone();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
