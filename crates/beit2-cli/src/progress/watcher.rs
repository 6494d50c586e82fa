//! What is told while a step runs, by a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use beit2::train::InStep;
use indicatif::ProgressBar;

use crate::output;
use crate::signals::Signals;

/// A step that takes longer is shown in parts.
const LONG: Duration = Duration::from_secs(3);

/// Seconds between plain lines about a part of the first step, and of a later one.
const LINES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(30)];

/// Confirms a Ctrl-C at once, and tells how far a long step is.
pub(super) struct Watcher {
    done: Arc<AtomicBool>,
    shown: Arc<Mutex<Shown>>,
    thread: Option<JoinHandle<()>>,
}

/// What there is to tell, and where.
struct Shown {
    bar: ProgressBar,
    /// Without a terminal: lines instead of the bar.
    lines: bool,
    step: Option<InStep>,
    /// Whether no step is done yet.
    first: bool,
    /// When the running step began, and the last line about it.
    since: Instant,
    line: Instant,
    /// What the bar said when the last step was done.
    message: String,
}

impl Shown {
    /// Tells the part of a long step that is done.
    fn tell(&mut self) {
        if self.since.elapsed() < LONG {
            return;
        }
        let Some(share) = self.step.as_ref().and_then(InStep::share) else { return };
        let what = if self.first { "first step" } else { "this step" };
        let text = format!("{what}: {:.0} %", 100.0 * share);
        if !self.lines {
            let before = if self.message.is_empty() { "" } else { "  " };
            self.bar.set_message(format!("{}{before}{text}", self.message));
        } else if self.line.elapsed() >= LINES[usize::from(!self.first)] {
            self.line = Instant::now();
            output::note(&text);
        }
    }
}

impl Watcher {
    pub(super) fn start(signals: &Signals, bar: ProgressBar, lines: bool) -> Self {
        let (stop, done) = (signals.stop.clone(), Arc::new(AtomicBool::new(false)));
        let now = Instant::now();
        let shown =
            Shown { bar, lines, step: None, first: true, since: now, line: now, message: String::new() };
        let shown = Arc::new(Mutex::new(shown));
        let (seen, telling) = (done.clone(), shown.clone());
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                if stop.is_set() {
                    let bar = lock(&telling).bar.clone();
                    bar.suspend(|| {
                        output::note(
                            "stopping: a step that takes longer than a moment is given up, and all steps before it are \
                             saved; interrupt again to end at once",
                        );
                    });
                    return;
                }
                lock(&telling).tell();
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        Self { done, shown, thread: thread.ok() }
    }

    pub(super) fn follow(&self, bar: &ProgressBar) {
        lock(&self.shown).bar = bar.clone();
    }

    /// Steps begin.
    pub(super) fn steps(&self, step: InStep) {
        let mut shown = lock(&self.shown);
        (shown.step, shown.first) = (Some(step), true);
        (shown.since, shown.line) = (Instant::now(), Instant::now());
    }

    /// A step is done, or other work between steps.
    pub(super) fn stepped(&self, is_step: bool) {
        let mut shown = lock(&self.shown);
        shown.first &= !is_step;
        (shown.since, shown.line) = (Instant::now(), Instant::now());
        shown.message = shown.bar.message();
    }

    /// Steps are over.
    pub(super) fn ended(&self) {
        lock(&self.shown).step = None;
    }
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
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
