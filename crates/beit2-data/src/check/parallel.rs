//! The same work on many samples, on several threads, with results in order.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pool::{Outcome, guarded};

/// What `work` gives for each of `items`, in their order, on at least one thread. A panic becomes its message.
pub(super) fn map<T: Sync, R: Send>(
    items: &[T],
    workers: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<Outcome<R>> {
    if workers <= 1 || items.len() <= 1 {
        return items.iter().map(|item| guarded(|| work(item))).collect();
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Outcome<R>)>> = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..workers.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let result = guarded(|| work(item));
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|&(at, _)| at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u64> = (0..50).collect();
        let work = |&n: &u64| if n == 7 { panic!("seven") } else { n * n };
        let one = map(&items, 1, work);
        assert_eq!(one, map(&items, 4, work));
        assert_eq!((one[6].clone(), one[7].clone()), (Ok(36), Err("seven".to_owned())));
    }
}
