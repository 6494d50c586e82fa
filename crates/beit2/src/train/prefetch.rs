//! Work that needs no gradients, done for the next batch while the current one trains.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use beit2_kernels::Watch;

use crate::error::Error;

/// Batches with what a frozen model computes from them (targets, token ids), prefetched one batch at a time on a thread of its own.
///
/// The frozen half of a step and the training half overlap, so that small batches, which a machine cannot spread over all
/// of its cores, still keep them busy. Nothing depends on the thread's pace: the order is that of the batches.
pub struct Prefetch<T> {
    received: Option<Receiver<Result<T, Error>>>,
    worker: Option<JoinHandle<()>>,
    watch: Watch,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts to prepare `batches`.
    pub fn new<L, S, E, F>(batches: L, prepare: F) -> Self
    where
        L: Iterator<Item = Result<S, E>> + Send + 'static,
        Error: From<E>,
        F: FnMut(S) -> Result<T, Error> + Send + 'static,
    {
        Self::watched(Watch::new(|| false, Duration::MAX), batches, prepare)
    }

    /// As [`Prefetch::new`]; the watch counts the work, and when it ends it, the batches end.
    pub fn watched<L, S, E, F>(watch: Watch, batches: L, mut prepare: F) -> Self
    where
        L: Iterator<Item = Result<S, E>> + Send + 'static,
        Error: From<E>,
        F: FnMut(S) -> Result<T, Error> + Send + 'static,
    {
        let (send, received) = sync_channel(1);
        let own = watch.clone();
        let worker = std::thread::spawn(move || {
            for batch in batches {
                let work = || batch.map_err(Error::from).and_then(&mut prepare);
                let Some(prepared) = own.run(work) else { break };
                let failed = prepared.is_err();
                // The other side hangs up when the run ends.
                if send.send(prepared).is_err() || failed {
                    break;
                }
            }
        });
        Self { received: Some(received), worker: Some(worker), watch }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = received(self.received.as_ref()?, &self.watch);
        if next.is_none()
            && !self.watch.is_stopping()
            && let Some(Err(panic)) = self.worker.take().map(JoinHandle::join)
        {
            std::panic::resume_unwind(panic);
        }
        next
    }
}

/// The next value, or `None` when the other side is gone or work is cut off. This thread may be one of those that operations run on
/// (`beit2_kernels::join_threads`), so it helps the other side instead of sleeping.
fn received<T>(from: &Receiver<T>, watch: &Watch) -> Option<T> {
    loop {
        if watch.is_stopping() {
            return None;
        }
        match from.try_recv() {
            Ok(value) => return Some(value),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            continue;
        }
        match from.recv_timeout(PAUSE) {
            Ok(value) => return Some(value),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// How long to sleep when there is nothing to help with: short beside an operation of a large model.
const PAUSE: Duration = Duration::from_micros(200);

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.received = None;
        if let Some(worker) = self.worker.take() {
            if self.watch.is_stopping() {
                // It may wait for images, which nobody can cut off, and nobody wants its results. It ends by itself.
                return;
            }
            // It may be in the middle of an operation that waits for this thread's help.
            beit2_kernels::help_until(|| worker.is_finished());
            // A panic there has been passed on by `next`, or nobody wanted the rest.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A run that stopped early with one thread waited for ever: the thread in the middle of an operation waited for
    /// the thread that waited for it.
    #[test]
    fn a_run_that_stops_early_lets_the_operation_end() {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
        let operations = pool.clone();
        pool.install(|| {
            let batches = (0..).map(Ok::<_, Error>);
            let mut prefetch = Prefetch::new(batches, move |batch| Ok(operations.install(|| batch + 1)));
            assert_eq!(prefetch.next().transpose().unwrap(), Some(1));
        });
    }
}
