//! How far a running step is, and its end before it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use beit2_kernels::Watch;

/// How far the running step is, told at any time and from any thread. Clones share it.
#[derive(Debug, Clone)]
pub struct InStep {
    /// Of the thread that trains.
    own: Watch,
    /// Of the thread that prepares inputs, one batch ahead.
    ahead: Watch,
    numbers: Arc<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Steps that were begun.
    begun: AtomicU64,
    /// Operations of a step.
    total: AtomicU64,
    /// Of them, those of the thread that prepares.
    prepared: AtomicU64,
    /// What the thread that trains had done when the step began.
    before: AtomicU64,
}

impl InStep {
    /// Before the first step. Work ends when `asked` has been true for as long as `patience`.
    pub(super) fn new(asked: impl Fn() -> bool + Send + Sync + 'static, patience: Duration) -> Self {
        let own = Watch::new(asked, patience);
        Self { ahead: own.sibling(), own, numbers: Arc::default() }
    }

    /// The watch of the thread that trains.
    pub(super) fn own(&self) -> &Watch {
        &self.own
    }

    /// The watch of the thread that prepares.
    pub(super) fn ahead(&self) -> &Watch {
        &self.ahead
    }

    /// Says how many operations a step has.
    pub(super) fn expect(&self, operations: f64) {
        self.numbers.total.store(operations as u64, Ordering::Relaxed);
    }

    /// The inputs of a step are there.
    pub(super) fn begin(&self) {
        let Numbers { begun, prepared, before, .. } = &*self.numbers;
        before.store(self.own.operations(), Ordering::Relaxed);
        if begun.fetch_add(1, Ordering::Relaxed) == 0 {
            // Later the thread is somewhere in the next batch; every batch takes it the same.
            prepared.store(self.ahead.operations(), Ordering::Relaxed);
        }
    }

    /// Steps that were begun since the run started or continued.
    pub fn begun(&self) -> u64 {
        self.numbers.begun.load(Ordering::Relaxed)
    }

    /// The share of the running step that is done, below 1; `None` before its length is known.
    pub fn share(&self) -> Option<f64> {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let Numbers { begun, total, prepared, before } = &*self.numbers;
        let done = match read(begun) {
            0 => self.ahead.operations(),
            _ => read(prepared) + self.own.operations().saturating_sub(read(before)),
        };
        // Dropped branches are not computed, and sums take time as well: the end is told by the step itself.
        (read(total) > 0).then(|| (done as f64 / read(total) as f64).min(0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_at_first() {
        let step = InStep::new(|| false, Duration::ZERO);
        assert_eq!(step.share(), None);
        step.expect(100.0);
        assert_eq!(step.share(), Some(0.0));
        step.begin();
        assert_eq!(step.share(), Some(0.0));
    }
}
