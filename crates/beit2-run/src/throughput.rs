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

    /// Leaves out a time that was no training and has just ended: an evaluation, a checkpoint.
    pub fn leave_out(&mut self, pause: Duration) {
        self.marks.iter_mut().for_each(|(at, _)| *at += pause);
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

/// Work that interrupts the steps again and again: evaluations, checkpoints.
#[derive(Debug, Clone)]
pub struct Interruptions {
    every: Option<u64>,
    total_steps: u64,
    spent: Duration,
    times: u32,
}

impl Interruptions {
    /// One after every `every` steps and after the last of `total_steps`; without `every` only that one.
    pub fn new(every: Option<u64>, total_steps: u64) -> Self {
        Self { every: every.filter(|every| *every > 0), total_steps, spent: Duration::ZERO, times: 0 }
    }

    /// Notes how long one took.
    pub fn took(&mut self, time: Duration) {
        self.spent += time;
        self.times += 1;
    }

    /// How many are still to come when `step` steps are done and the one that may follow them is not.
    pub fn left(&self, step: u64) -> u64 {
        if step > self.total_steps {
            return 0;
        }
        let Some(every) = self.every else { return 1 };
        let until = self.total_steps / every;
        let before = step.saturating_sub(1) / every;
        until - before + u64::from(!self.total_steps.is_multiple_of(every))
    }

    /// The time of those still to come: as long as the mean so far, or `guess` each before the first.
    pub fn eta(&self, step: u64, guess: Option<Duration>) -> Duration {
        let each = if self.times > 0 { self.spent / self.times } else { guess.unwrap_or_default() };
        Duration::try_from_secs_f64(each.as_secs_f64() * self.left(step) as f64).unwrap_or(Duration::MAX)
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
        t.leave_out(s(60));
        t.record_at(20, t0 + s(101));
        assert_eq!(t.per_second(), Some(20.0), "a pause does not count");
    }

    #[test]
    fn what_interrupts_the_steps_is_part_of_the_rest() {
        let mut evaluations = Interruptions::new(Some(10), 35);
        assert_eq!(
            [1, 9, 10, 11, 30, 31, 35, 36].map(|step| evaluations.left(step)),
            [4, 4, 4, 3, 2, 1, 1, 0]
        );
        assert_eq!(Interruptions::new(Some(10), 30).left(21), 1, "the last one is at an interval");
        assert_eq!(Interruptions::new(None, 30).left(29), 1, "only at the end");
        assert_eq!(evaluations.eta(1, None), s(0));
        assert_eq!(evaluations.eta(1, Some(s(5))), s(20), "a guess before the first");
        evaluations.took(s(10));
        evaluations.took(s(20));
        assert_eq!(evaluations.eta(21, Some(s(5))), s(30), "two to come, of 15 s on average");
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
