//! How fast a run goes and how long it still takes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Images per second over a sliding window of time.
#[derive(Debug, Clone)]
pub struct Throughput {
    window: Duration,
    total: u64,
    // (when, images done until then), oldest first; the first one is the left end of the window.
    marks: VecDeque<(Instant, u64)>,
}

impl Throughput {
    /// Starts measuring now.
    pub fn new(window: Duration) -> Self {
        Self::starting_at(window, Instant::now())
    }

    /// Starts measuring at `now`.
    pub fn starting_at(window: Duration, now: Instant) -> Self {
        Self { window, total: 0, marks: VecDeque::from([(now, 0)]) }
    }

    /// Notes that `images` more are done now.
    pub fn record(&mut self, images: u64) {
        self.record_at(images, Instant::now());
    }

    /// Notes that `images` more were done at `now`; times must not go back.
    pub fn record_at(&mut self, images: u64, now: Instant) {
        self.total += images;
        self.marks.push_back((now, self.total));
        // At least one interval stays, however long a step takes.
        while self.marks.len() > 2 && now.duration_since(self.marks[1].0) >= self.window {
            self.marks.pop_front();
        }
    }

    /// Forgets the window but not the total: after an evaluation, which is not training time.
    pub fn resume_at(&mut self, now: Instant) {
        self.marks = VecDeque::from([(now, self.total)]);
    }

    /// Images since the start.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Images per second over the window; `None` before the first images.
    pub fn per_second(&self) -> Option<f64> {
        let (&(start, before), &(end, after)) = (self.marks.front()?, self.marks.back()?);
        let seconds = end.duration_since(start).as_secs_f64();
        (after > before && seconds > 0.0).then(|| (after - before) as f64 / seconds)
    }

    /// Time that `remaining` images take at the present speed.
    pub fn eta(&self, remaining: u64) -> Option<Duration> {
        // Not `from_secs_f64`, which panics: a stalled run may be centuries from its end.
        Duration::try_from_secs_f64(remaining as f64 / self.per_second()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn follows_the_window() {
        let t0 = Instant::now();
        let mut t = Throughput::starting_at(s(10), t0);
        assert_eq!(t.per_second(), None);
        t.record_at(10, t0 + s(1));
        assert_eq!(t.per_second(), Some(10.0));
        for i in 2..=40 {
            t.record_at(20, t0 + s(i));
        }
        assert_eq!(t.per_second(), Some(20.0), "the slow beginning is out of the window");
        assert_eq!(t.eta(200), Some(s(10)));
        assert_eq!(t.total(), 790);
        t.resume_at(t0 + s(100));
        t.record_at(5, t0 + s(101));
        assert_eq!(t.per_second(), Some(5.0), "a pause does not count");
    }

    #[test]
    fn one_step_longer_than_the_window_still_counts() {
        let t0 = Instant::now();
        let mut t = Throughput::starting_at(s(1), t0);
        t.record_at(10, t0 + s(20));
        t.record_at(10, t0 + s(40));
        assert_eq!(t.per_second(), Some(0.5));
        assert!(t.eta(u64::MAX).is_none_or(|eta| eta > s(1_000_000)));
    }
}
