//! A few threads that turn numbered jobs into numbered results. Knows nothing of images.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What a job gives, or the message of its panic.
pub(crate) type Outcome<R> = Result<R, String>;

/// Lets the process keep some 30 MB that it has freed, instead of giving it back to the system after each image and asking for
/// it again, which was measured to take a third of the time of a JPEG's views: 350 page faults of more than a microsecond.
///
/// glibc keeps twice as much as the largest mapped block that was ever freed, at first 256 kB. Training frees large blocks
/// itself sooner or later; a process that only reads images never does. Elsewhere this does nothing.
pub fn keep_freed_memory() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20))));
}

/// Worker threads with a queue. Dropping it throws the queue away, waits for the jobs at hand and
/// joins every thread.
pub(crate) struct Pool<J, R> {
    shared: Arc<Shared<J, R>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<J, R> {
    state: Mutex<State<J, R>>,
    job_added: Condvar,
    result_added: Condvar,
}

struct State<J, R> {
    jobs: VecDeque<(u64, J)>,
    results: HashMap<u64, Outcome<R>>,
    /// Results that somebody waits for, and how many of them are missing.
    wanted: Range<u64>,
    missing: usize,
    closing: bool,
}

impl<J: Send + 'static, R: Send + 'static> Pool<J, R> {
    /// Starts `workers` threads that run `handle` on each job.
    pub(crate) fn start(
        workers: usize,
        handle: impl Fn(J) -> R + Send + Sync + 'static,
    ) -> Result<Self, std::io::Error> {
        let state = State {
            jobs: VecDeque::new(),
            results: HashMap::new(),
            wanted: 0..0,
            missing: 0,
            closing: false,
        };
        let shared =
            Shared { state: Mutex::new(state), job_added: Condvar::new(), result_added: Condvar::new() };
        keep_freed_memory();
        let mut pool = Self { shared: Arc::new(shared), threads: Vec::with_capacity(workers) };
        let handle = Arc::new(handle);
        for number in 0..workers {
            let (shared, handle) = (pool.shared.clone(), handle.clone());
            let builder = std::thread::Builder::new().name(format!("beit2-data-{number}"));
            // When this fails, dropping `pool` stops the threads that did start.
            pool.threads.push(builder.spawn(move || shared.work(&*handle))?);
        }
        Ok(pool)
    }

    /// Queues jobs under their numbers.
    pub(crate) fn submit(&self, jobs: impl IntoIterator<Item = (u64, J)>) {
        self.shared.lock().jobs.extend(jobs);
        self.shared.job_added.notify_all();
    }

    /// Waits for the result of a job that was submitted, and takes it out.
    pub(crate) fn wait(&self, number: u64) -> Outcome<R> {
        // One job, one result.
        self.wait_all(number..number + 1).pop().unwrap_or_else(|| Err("there is no such job".into()))
    }

    /// Waits for the results of jobs that were submitted, and takes them out in order. One thread waits at a time.
    ///
    /// It is woken once, when the last of them is there: a wake-up for each image would take a thread off its core each
    /// time where all cores are busy.
    pub(crate) fn wait_all(&self, numbers: Range<u64>) -> Vec<Outcome<R>> {
        let mut state = self.shared.lock();
        state.missing = numbers.clone().filter(|number| !state.results.contains_key(number)).count();
        state.wanted = numbers.clone();
        while state.missing > 0 {
            state = self.shared.result_added.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.wanted = 0..0;
        numbers.filter_map(|number| state.results.remove(&number)).collect()
    }
}

impl<J, R> Drop for Pool<J, R> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.jobs.clear();
        drop(state);
        self.shared.job_added.notify_all();
        for thread in self.threads.drain(..) {
            // A worker's panics are caught and reported as results, so there is nothing to learn
            // from joining.
            let _ = thread.join();
        }
    }
}

impl<J, R> Shared<J, R> {
    // Why poisoning is ignored: no user code runs under the lock, so the state is sound even after
    // a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, handle: &dyn Fn(J) -> R) {
        while let Some((number, job)) = self.next_job() {
            let result = guarded(|| handle(job));
            let mut state = self.lock();
            state.results.insert(number, result);
            if state.wanted.contains(&number) {
                state.missing -= 1;
                if state.missing == 0 {
                    self.result_added.notify_all();
                }
            }
        }
    }

    /// The next job, waiting for one; `None` when the pool closes.
    fn next_job(&self) -> Option<(u64, J)> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.job_added.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Runs a function and turns a panic into its message.
pub(crate) fn guarded<R>(run: impl FnOnce() -> R) -> Outcome<R> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| panic_message(&*panic))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_by_number_and_panics_as_messages() {
        let pool = Pool::start(3, |n: u64| if n == 5 { panic!("five") } else { n * n }).unwrap();
        pool.submit((0..10).map(|n| (n, n)));
        for n in (0..10).rev() {
            let expected = if n == 5 { Err("five".to_owned()) } else { Ok(n * n) };
            assert_eq!(pool.wait(n), expected);
        }
        pool.submit((10..90).map(|n| (n, n)));
        assert_eq!(pool.wait_all(50..90), (50..90).map(|n| Ok(n * n)).collect::<Vec<_>>());
        assert_eq!(pool.wait_all(10..50), (10..50).map(|n| Ok(n * n)).collect::<Vec<_>>());
        assert!(pool.wait_all(90..90).is_empty());
    }

    #[test]
    fn dropping_joins_and_drops_the_handler() {
        let alive = Arc::new(());
        let held = alive.clone();
        let pool = Pool::start(4, move |n: u64| {
            let _ = &held;
            std::thread::sleep(std::time::Duration::from_millis(2));
            n
        })
        .unwrap();
        pool.submit((0..1000).map(|n| (n, n)));
        drop(pool);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
