//! Where the threads of a group wait for each other.

use std::any::Any;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::PeerLeft;

/// What every rank brought, in the order of ranks.
type Brought = Arc<dyn Any + Send + Sync>;

#[derive(Default)]
struct State {
    /// What ranks have brought so far.
    slots: Vec<Option<Box<dyn Any + Send>>>,
    /// All of it, once all ranks are there; until the last one has taken it, the next round waits.
    complete: Option<Brought>,
    taken: usize,
    left: bool,
    /// Why, where somebody said so.
    why: Option<Arc<str>>,
}

/// A place where `world` threads meet again and again.
pub(super) struct Rendezvous {
    state: Mutex<State>,
    changed: Condvar,
    world: usize,
}

impl Rendezvous {
    pub(super) fn new(world: usize) -> Self {
        let state = State { slots: (0..world).map(|_| None).collect(), ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new(), world }
    }

    /// A thread that panicked in here has left; its guard says so.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all others not to wait any more, with the reason if there is one; the first one stays.
    pub(super) fn leave(&self, why: Option<&str>) {
        let mut state = self.lock();
        state.left = true;
        if let Some(why) = why {
            state.why.get_or_insert_with(|| why.into());
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What every rank brings, in the order of ranks. Everybody must bring the same type.
    pub(super) fn gather<T: Send + Sync + 'static>(
        &self,
        rank: usize,
        value: T,
    ) -> Result<Arc<Vec<T>>, PeerLeft> {
        let mut state = self.wait(|state| state.complete.is_none())?;
        state.slots[rank] = Some(Box::new(value));
        if state.slots.iter().all(Option::is_some) {
            let values = state.slots.iter_mut().filter_map(Option::take);
            let values: Vec<T> =
                values.filter_map(|value| value.downcast().ok()).map(|value: Box<T>| *value).collect();
            assert_eq!(values.len(), self.world, "ranks brought different things to one rendezvous");
            state.complete = Some(Arc::new(values));
            self.changed.notify_all();
        }
        drop(state);
        let mut state = self.wait(|state| state.complete.is_some())?;
        let brought = state.complete.clone();
        state.taken += 1;
        if state.taken == self.world {
            (state.complete, state.taken) = (None, 0);
            self.changed.notify_all();
        }
        drop(state);
        // Never `None`: all ranks bring the same type, and the wait was for it.
        brought.and_then(|brought| brought.downcast().ok()).ok_or_else(PeerLeft::default)
    }

    /// Waits until `ready`. A thread that operations run on (`join_threads`) helps them instead of sleeping: with
    /// one thread in all, the other ranks would never arrive.
    fn wait(&self, ready: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>, PeerLeft> {
        let mut state = self.lock();
        loop {
            if ready(&state) {
                return Ok(state);
            }
            if state.left {
                return Err(PeerLeft { why: state.why.clone() });
            }
            drop(state);
            let helped = rayon::yield_now() == Some(rayon::Yield::Executed);
            state = self.lock();
            if !helped && !ready(&state) && !state.left {
                let waited = self.changed.wait_timeout(state, PAUSE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// How long to sleep when there is nothing to help with: short beside a step.
const PAUSE: Duration = Duration::from_micros(500);
