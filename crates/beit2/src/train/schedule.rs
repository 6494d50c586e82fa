//! Learning-rate and weight-decay schedules.

use crate::error::Error;

/// Linear warm-up, then half a cosine, per step (the reference's `cosine_scheduler`).
///
/// With W warm-up and L remaining steps: step i < W has `start + (base − start)·i/(W − 1)`, step W + i
/// has `end + ½(base − end)(1 + cos(πi/L))`. So steps W − 1 and W both have `base`, and the last value
/// is slightly above `end`.
#[derive(Debug, Clone, PartialEq)]
pub struct CosineSchedule {
    base: f64,
    end: f64,
    start: f64,
    warmup: u64,
    total: u64,
    again: Option<Again>,
}

/// A second warm-up: of a run that was complete after `from` steps and goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Again {
    from: u64,
    over: u64,
}

impl CosineSchedule {
    /// A schedule over `total` steps of which the first `warmup` rise from `start`.
    ///
    /// # Errors
    /// A warm-up longer than the run.
    pub fn new(base: f64, end: f64, total: u64, warmup: u64, start: f64) -> Result<Self, Error> {
        match warmup <= total {
            true => Ok(Self { base, end, start, warmup, total, again: None }),
            false => Err(Error::LongWarmup { warmup, total }),
        }
    }

    /// The same curve for a run that had come down to its end after `from` steps: `over` steps rise from the end value to
    /// where the curve is by then.
    #[must_use]
    pub fn rising_again(self, from: u64, over: u64) -> Self {
        Self { again: Some(Again { from, over }), ..self }
    }

    /// Number of steps.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The value of a step, from 0; steps beyond the last have the last one's.
    pub fn at(&self, step: u64) -> f64 {
        let step = step.min(self.total.saturating_sub(1));
        if let Some(Again { from, over }) = self.again
            && (from..from + over).contains(&step)
        {
            let top = self.curve((from + over).min(self.total.saturating_sub(1)));
            return self.end + (step - from) as f64 * ((top - self.end) / over as f64);
        }
        self.curve(step)
    }

    /// The value of a step of an undisturbed run.
    fn curve(&self, step: u64) -> f64 {
        if step < self.warmup {
            // NumPy's linspace: one point is the start, the last one is exactly the end.
            return match self.warmup - 1 {
                0 => self.start,
                last if step == last => self.base,
                last => self.start + step as f64 * ((self.base - self.start) / last as f64),
            };
        }
        let part = (step - self.warmup) as f64 / (self.total - self.warmup) as f64;
        self.end + 0.5 * (self.base - self.end) * (1.0 + (std::f64::consts::PI * part).cos())
    }
}

/// A fall by a power of what is left, with a linear warm-up on top (mmcv's `poly` policy; docs/method.md §5).
///
/// Step i of n has `reg = end + (base − end)·(1 − i/n)^power`; while i < W of the warm-up it is multiplied by
/// `1 − (1 − i/W)(1 − ratio)`. So the warm-up starts at `ratio · base`, not at 0, and the last step is one step
/// above `end`.
#[derive(Debug, Clone, PartialEq)]
pub struct PolySchedule {
    base: f64,
    end: f64,
    power: f64,
    total: u64,
    warmup: u64,
    ratio: f64,
}

impl PolySchedule {
    /// A schedule over `total` steps whose first `warmup` steps rise from `ratio` of their value.
    ///
    /// # Errors
    /// A warm-up longer than the run.
    pub fn new(base: f64, end: f64, power: f64, total: u64, warmup: u64, ratio: f64) -> Result<Self, Error> {
        match warmup <= total {
            true => Ok(Self { base, end, power, total, warmup, ratio }),
            false => Err(Error::LongWarmup { warmup, total }),
        }
    }

    /// Number of steps.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The value of a step, from 0; steps beyond the last have the last one's.
    pub fn at(&self, step: u64) -> f64 {
        let step = step.min(self.total.saturating_sub(1));
        let left = 1.0 - step as f64 / self.total.max(1) as f64;
        let regular = self.end + (self.base - self.end) * left.powf(self.power);
        match step < self.warmup {
            true => regular * (1.0 - (1.0 - step as f64 / self.warmup as f64) * (1.0 - self.ratio)),
            false => regular,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poly_by_hand() {
        let schedule = PolySchedule::new(1.0, 0.0, 1.0, 10, 4, 0.1).unwrap();
        let expected = [0.1, 0.9 * 0.325, 0.8 * 0.55, 0.7 * 0.775, 0.6, 0.5];
        for (step, value) in expected.into_iter().enumerate() {
            assert!((schedule.at(step as u64) - value).abs() < 1e-15, "step {step}");
        }
        assert!((schedule.at(9) - 0.1).abs() < 1e-15 && schedule.at(9) == schedule.at(99));
        let square = PolySchedule::new(1.0, 0.2, 2.0, 2, 0, 1.0).unwrap();
        assert_eq!([square.at(0), square.at(1)], [1.0, 0.4]);
        assert!(PolySchedule::new(1.0, 0.0, 1.0, 3, 4, 0.1).is_err());
    }

    #[test]
    fn a_longer_run_rises_to_where_its_curve_is() {
        let whole = CosineSchedule::new(1.0, 0.1, 40, 5, 0.0).unwrap();
        let longer = whole.clone().rising_again(20, 4);
        for step in (0..20).chain(24..45) {
            assert_eq!(longer.at(step), whole.at(step), "step {step}");
        }
        let rise: Vec<f64> = (20..25).map(|step| longer.at(step)).collect();
        assert_eq!((rise[0], rise[4]), (0.1, whole.at(24)));
        assert!(
            rise.windows(2).all(|pair| (pair[1] - pair[0] - (rise[4] - 0.1) / 4.0).abs() < 1e-12),
            "{rise:?}"
        );
        // One step more than before has nothing to rise to.
        let one = CosineSchedule::new(1.0, 0.1, 21, 5, 0.0).unwrap().rising_again(20, 1);
        assert_eq!(one.at(20), 0.1);
    }

    #[test]
    fn toy_schedule_of_method_10_3() {
        let schedule = CosineSchedule::new(1.0, 0.1, 20, 5, 0.0).unwrap();
        let expected = [
            0.,
            0.25,
            0.5,
            0.75,
            1.,
            1.,
            0.9901664203,
            0.9610954559,
            0.9140576475,
            0.8511087729,
            0.775,
            0.6890576475,
            0.5970378085,
            0.5029621915,
            0.4109423525,
            0.325,
            0.2488912271,
            0.1859423525,
            0.1389045441,
            0.1098335797,
        ];
        for (step, value) in expected.into_iter().enumerate() {
            assert!((schedule.at(step as u64) - value).abs() < 1e-10, "step {step}");
        }
        assert!(CosineSchedule::new(1.0, 0.1, 4, 5, 0.0).is_err());
    }
}
