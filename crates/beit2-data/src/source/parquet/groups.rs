//! Row groups in memory: decoded once, whoever asks first, and kept while they are in use.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use parquet::data_type::ByteArray;

/// Encoded images of a row group; `None` where the value is missing.
pub(super) type Rows = Vec<Option<ByteArray>>;

/// A row group that is being decoded, or is decoded; or why it cannot be.
type Slot = Arc<OnceLock<Result<Arc<Rows>, String>>>;

/// The row groups that were used last.
pub(super) struct Cache {
    kept: usize,
    /// The one that was used last is at the end.
    slots: Mutex<VecDeque<(usize, Slot)>>,
}

impl Cache {
    /// Keeps the last `kept` groups, at least one.
    pub(super) fn new(kept: usize) -> Self {
        Self { kept: kept.max(1), slots: Mutex::default() }
    }

    /// Group `number`, decoded by `decode` unless it is there. Threads that ask for the same group wait for one.
    pub(super) fn get(
        &self,
        number: usize,
        decode: impl FnOnce() -> Result<Rows, String>,
    ) -> Result<Arc<Rows>, String> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let found = slots.iter().position(|(group, _)| *group == number);
            let (_, slot) = found.and_then(|at| slots.remove(at)).unwrap_or_default();
            slots.push_back((number, slot.clone()));
            while slots.len() > self.kept {
                slots.pop_front();
            }
            slot
        };
        slot.get_or_init(|| decode().map(Arc::new)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_used_last_stay() {
        let cache = Cache::new(2);
        let mut decoded = Vec::new();
        for number in [0, 1, 0, 2, 0, 1] {
            let rows = cache.get(number, || {
                decoded.push(number);
                Ok(vec![None; number])
            });
            assert_eq!(rows.unwrap().len(), number);
        }
        assert_eq!(decoded, [0, 1, 2, 1]);
        assert_eq!(cache.get(7, || Err("bad".into())).unwrap_err(), "bad");
    }
}
