//! What a run waits for: images, this program's own work, or the device.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What would have to be faster for the run to be faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bottleneck {
    /// Reading, decoding and augmenting images.
    Data,
    /// Giving the device its work.
    Host,
    /// Computing.
    Device,
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data-bound",
            Self::Host => "host-bound",
            Self::Device => "device-bound",
        })
    }
}

/// Time spent waiting for the items of an iterator, in nanoseconds. Clones share it.
#[derive(Debug, Clone, Default)]
struct Waited(Arc<AtomicU64>);

impl Waited {
    fn take(&self) -> Duration {
        Duration::from_nanos(self.0.swap(0, Ordering::Relaxed))
    }
}

/// An iterator whose waits are counted.
pub struct Timed<I> {
    items: I,
    waited: Waited,
}

impl<I: Iterator> Iterator for Timed<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<Self::Item> {
        let start = Instant::now();
        let item = self.items.next();
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.0.fetch_add(nanos, Ordering::Relaxed);
        item
    }
}

/// Where the time between two records goes.
#[derive(Debug)]
pub(super) struct Waits {
    data: Waited,
    inputs: Option<Waited>,
    device: Duration,
    since: Instant,
}

impl Waits {
    pub(super) fn new() -> Self {
        Self { data: Waited::default(), inputs: None, device: Duration::ZERO, since: Instant::now() }
    }

    /// Batches from a loader, perhaps on a thread of their own.
    pub(super) fn timed_batches<I>(&self, items: I) -> Timed<I> {
        Timed { items, waited: self.data.clone() }
    }

    /// What the loop itself waits for, when a frozen model works on the batches in between.
    pub(super) fn timed_inputs<I>(&mut self, items: I) -> Timed<I> {
        Timed { items, waited: self.inputs.get_or_insert_default().clone() }
    }

    /// Does `work`, which waits until the device has done what it was given.
    pub(super) fn device<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.device += start.elapsed();
        done
    }

    /// Leaves out a time that was no training and has just ended.
    pub(super) fn leave_out(&mut self, pause: Duration) {
        self.since += pause;
    }

    /// The share of the time since the last call in which the loop waited for images, and what held it up most.
    /// `queues`: the device has a queue, and its operations return before they are done.
    pub(super) fn verdict(&mut self, queues: bool) -> (f64, Bottleneck) {
        let elapsed = self.since.elapsed();
        self.since = Instant::now();
        let (data, inputs) = (self.data.take(), self.inputs.as_ref().map(Waited::take));
        judge(elapsed, data, inputs, std::mem::take(&mut self.device), queues)
    }
}

fn judge(
    elapsed: Duration,
    data: Duration,
    inputs: Option<Duration>,
    device: Duration,
    queues: bool,
) -> (f64, Bottleneck) {
    let share = |waited: Duration| (waited.as_secs_f64() / elapsed.as_secs_f64().max(1e-9)).min(1.0);
    // A loop that waits for inputs waits for images only as long as the thread that makes inputs does so too.
    let data = share(inputs.map_or(data, |inputs| data.min(inputs)));
    let device = share(device);
    let rest = (1.0 - data - device).max(0.0);
    let (host, device) = if queues { (rest, device) } else { (0.0, device + rest) };
    let most = if data > host.max(device) {
        Bottleneck::Data
    } else if host > device {
        Bottleneck::Host
    } else {
        Bottleneck::Device
    };
    (data, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_is_named() {
        let judge = |[all, data, device]: [u64; 3], inputs: Option<u64>, queues| {
            let of = Duration::from_millis;
            judge(of(all), of(data), inputs.map(of), of(device), queues)
        };
        assert_eq!(judge([100, 60, 0], None, true), (0.6, Bottleneck::Data));
        assert_eq!(judge([100, 30, 10], None, true), (0.3, Bottleneck::Host));
        assert_eq!(judge([100, 30, 60], None, true), (0.3, Bottleneck::Device));
        // An operation that is done when it returns is the device's time.
        assert_eq!(judge([100, 30, 0], None, false), (0.3, Bottleneck::Device));
        // The loop waits, but for a frozen model; or the images are slow, and the computation hides it.
        assert_eq!(judge([100, 0, 0], Some(90), false), (0.0, Bottleneck::Device));
        assert_eq!(judge([100, 90, 0], Some(0), false), (0.0, Bottleneck::Device));
        assert_eq!(judge([0, 0, 0], None, true), (0.0, Bottleneck::Host));
    }

    #[test]
    fn waits_are_counted_once() {
        const UNIT: Duration = Duration::from_millis(20);
        let mut waits = Waits::new();
        let mut batches = waits.timed_batches(std::iter::repeat_with(|| std::thread::sleep(UNIT)));
        batches.next();
        waits.device(|| std::thread::sleep(UNIT));
        assert!(waits.data.take() >= UNIT && waits.device >= UNIT);
        assert_eq!(waits.data.take(), Duration::ZERO);
        assert_eq!(
            [Bottleneck::Data, Bottleneck::Host].map(|kind| kind.to_string()),
            ["data-bound", "host-bound"]
        );
    }
}
