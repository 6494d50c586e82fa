//! Counting the work of a thread, and cutting it off when somebody asked for it.
//!
//! A training step can take minutes. Long operations report their floating-point operations here when they end
//! ([`tick`]); on a thread that runs under a [`Watch`] the report is counted, and it unwinds out of the watched work once
//! a stop has been asked for some time ago. Operations leave the rest of their loops out then ([`Rest`]), because nobody will
//! see their results.
//!
//! Why unwinding: between a training loop and an operation of a backward pass lie Burn's functions, which have no errors.
//! Nothing is half done where it unwinds: operations have no state, Burn's locks are not poisoned, and whoever watches throws
//! the step away and keeps model and optimiser as they were before it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Whether to stop, asked often.
type Asked = Box<dyn Fn() -> bool + Send + Sync>;

struct Stop {
    asked: Asked,
    patience: Duration,
    /// When a wish to stop was first seen.
    since: OnceLock<Instant>,
    stopping: AtomicBool,
}

/// Counts the work of a thread and can end it. Clones share it.
#[derive(Clone)]
pub struct Watch {
    stop: Arc<Stop>,
    done: Arc<AtomicU64>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({} operations)", self.operations())
    }
}

/// What unwinds.
struct CutOff;

impl Watch {
    /// Work ends when `asked` has been true for as long as `patience`.
    pub fn new(asked: impl Fn() -> bool + Send + Sync + 'static, patience: Duration) -> Self {
        let (asked, since, stopping) = (Box::new(asked), OnceLock::new(), AtomicBool::new(false));
        Self { stop: Arc::new(Stop { asked, patience, since, stopping }), done: Arc::default() }
    }

    /// A watch that ends its work at the same moment and counts for itself: for a second thread. The moment must be the
    /// same, because a thread may lend its time to the operations of the other one.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self { stop: self.stop.clone(), done: Arc::default() }
    }

    /// Floating-point operations of matmuls and convolutions that were done under this watch.
    pub fn operations(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether work is being cut off.
    pub fn is_stopping(&self) -> bool {
        let Stop { asked, patience, since, stopping } = &*self.stop;
        if stopping.load(Ordering::SeqCst) {
            return true;
        }
        let stop = asked() && since.get_or_init(Instant::now).elapsed() >= *patience;
        if stop {
            stopping.store(true, Ordering::SeqCst);
        }
        stop
    }

    /// Does `work` on this thread under the watch; `None` if it was cut off, also where its last operation left something
    /// out and nothing after it noticed.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let before = WATCH.replace(Some(self.clone()));
        let result = catch_unwind(AssertUnwindSafe(work));
        WATCH.set(before);
        match result {
            Ok(value) => (!self.stop.stopping.load(Ordering::SeqCst)).then_some(value),
            Err(panic) if panic.is::<CutOff>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Whether this thread's work may be cut off.
pub(crate) fn is_watched() -> bool {
    WATCH.with_borrow(Option::is_some)
}

/// Reports an operation that ended. Unwinds out of watched work that is being cut off.
pub(crate) fn tick(operations: usize) {
    WATCH.with_borrow(|watch| {
        let Some(watch) = watch else { return };
        watch.done.fetch_add(operations as u64, Ordering::Relaxed);
        if watch.is_stopping() {
            resume_unwind(Box::new(CutOff));
        }
    });
}

/// What is left of an operation's loop, which may run on several threads.
#[derive(Clone)]
pub(crate) struct Rest(Option<Watch>);

impl Rest {
    /// Of an operation that this thread begins.
    pub fn here() -> Self {
        Self(WATCH.with_borrow(Clone::clone))
    }

    /// Whether to leave it out: [`tick`] then throws the operation away.
    pub fn is_left_out(&self) -> bool {
        self.0.as_ref().is_some_and(Watch::is_stopping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_cut_off() {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let patience = Duration::from_millis(50);
        let watch = Watch::new(move || asked.load(Ordering::Relaxed), patience);
        let steps = |count: usize| (0..count).for_each(|_| tick(5));
        assert_eq!(watch.run(|| steps(3)), Some(()));
        steps(7);
        assert_eq!(watch.operations(), 15, "what runs outside is not counted");
        stop.store(true, Ordering::Relaxed);
        let asked_at = Instant::now();
        let cut = watch.run(|| {
            loop {
                tick(1);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(cut.is_none() && watch.operations() > 16 && asked_at.elapsed() >= patience);
        let mut left_out = false;
        assert!(
            watch.run(|| left_out = Rest::here().is_left_out()).is_none() && left_out,
            "unnoticed, but no result"
        );
        steps(1);
        assert!(!Rest::here().is_left_out());
    }

    #[test]
    fn other_panics_go_on() {
        let watch = Watch::new(|| true, Duration::MAX);
        let caught = catch_unwind(AssertUnwindSafe(|| watch.run(|| panic!("mine")))).unwrap_err();
        assert_eq!(caught.downcast_ref::<&str>(), Some(&"mine"));
    }
}
