//! Pieces of files in memory (row groups, runs of a shard): read once, by whoever asks first, and kept while they are in
//! use.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Encoded images that an epoch mixes with each other, in bytes: 256 MiB.
const WINDOW_BYTES: u64 = 256 << 20;

/// What fingerprints have of the order: a source that is read in pieces has another order of its samples than one that is
/// not, so a run begun on the one cannot be continued exactly on the other.
pub(super) const ORDER: &str = "read in pieces, each sample moved back within a window";

/// Pieces of `count` with `bytes` in all whose images an epoch mixes.
pub(super) fn window(bytes: u64, count: usize) -> usize {
    let mean = (bytes / count.max(1) as u64).max(1);
    (WINDOW_BYTES / mean).clamp(2, 1 << 16) as usize
}

/// A piece that is being read, or is read; or why it cannot be.
type Slot<T> = Arc<OnceLock<Result<Arc<T>, String>>>;

/// The pieces that were used last.
#[derive(Debug)]
pub(super) struct Pieces<T> {
    kept: usize,
    /// The one that was used last is at the end.
    slots: Mutex<VecDeque<(usize, Slot<T>)>>,
}

impl<T> Pieces<T> {
    /// Keeps two windows of pieces: batches are prepared before those of earlier pieces are done with.
    pub(super) fn of_window(window: usize) -> Self {
        Self::new(2 * window)
    }

    /// Keeps the last `kept` pieces, at least one.
    fn new(kept: usize) -> Self {
        Self { kept: kept.max(1), slots: Mutex::default() }
    }

    /// Piece `number`, read by `read` unless it is there. Threads that ask for the same piece wait for one.
    pub(super) fn get(
        &self,
        number: usize,
        read: impl FnOnce() -> Result<T, String>,
    ) -> Result<Arc<T>, String> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let found = slots.iter().position(|(piece, _)| *piece == number);
            let (_, slot) = found.and_then(|at| slots.remove(at)).unwrap_or_default();
            slots.push_back((number, slot.clone()));
            while slots.len() > self.kept {
                slots.pop_front();
            }
            slot
        };
        slot.get_or_init(|| read().map(Arc::new)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_used_last_stay() {
        let pieces = Pieces::new(2);
        let mut read_in_turn = Vec::new();
        for number in [0, 1, 0, 2, 0, 1] {
            let rows = pieces.get(number, || {
                read_in_turn.push(number);
                Ok(vec![(); number])
            });
            assert_eq!(rows.unwrap().len(), number);
        }
        assert_eq!(read_in_turn, [0, 1, 2, 1]);
        assert_eq!(pieces.get(7, || Err("bad".into())).unwrap_err(), "bad");
    }
}
