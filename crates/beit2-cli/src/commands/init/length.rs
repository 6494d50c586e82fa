//! How long a stage runs: batch and steps from seconds, speed and images.

/// What a stage's length follows from.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Seconds for the stage, evaluations included.
    pub seconds: f64,
    pub images_per_second: f64,
    /// Training images.
    pub images: usize,
    /// Validation images.
    pub val_images: usize,
    /// Batch where nothing stands against it.
    pub batch: usize,
    /// Fewest steps that can teach anything.
    pub least_steps: u64,
    /// Steps below which the batch is halved, as many small steps teach more.
    pub good_steps: u64,
    /// Most epochs that make sense.
    pub most_epochs: f64,
    /// Evaluations, where it is long enough.
    pub evaluations: u64,
}

/// The length of a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Length {
    pub batch: usize,
    pub steps: u64,
    pub epochs: f64,
    /// Seconds in all.
    pub seconds: f64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Epochs between evaluations; `None`: only at the end.
    pub eval_every_epochs: Option<u64>,
    /// What decided the number of steps.
    pub limit: Limit,
}

/// What decided the number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Time,
    /// More epochs would not help.
    Epochs,
    /// Fewer steps would teach nothing.
    Least,
}

/// Seconds until the first step, and for the last checkpoint and the report.
const AROUND: f64 = 4.0;
/// The smallest batch that is chosen.
const SMALL: usize = 16;
/// A stage that is shorter is evaluated at its end only.
const SHORT: f64 = 300.0;
/// Cost of an evaluated image as part of a trained one.
const EVALUATION: f64 = 0.4;

impl Budget {
    /// Batch, steps and intervals.
    pub fn length(&self) -> Length {
        // Even, as mixing pairs images and micro-batches halve a batch.
        let fitting = (self.images / 4 * 2).max(2);
        let mut batch = self.batch.min(fitting);
        let evaluations = if self.seconds < SHORT { 1 } else { self.evaluations.max(1) };
        let evaluating =
            |times: u64| times as f64 * EVALUATION * self.val_images as f64 / self.images_per_second;
        let training = self.seconds - AROUND - evaluating(evaluations);
        let seen = (training * self.images_per_second).max(0.0);
        while batch > SMALL && seen / (batch as f64) < self.good_steps as f64 {
            batch = (batch / 2).max(SMALL);
        }
        let most = (self.most_epochs * self.images as f64 / batch as f64).max(1.0);
        let by_time = seen / batch as f64;
        let (wanted, limit) = match by_time {
            _ if by_time > most => (most, Limit::Epochs),
            _ if by_time < self.least_steps as f64 => (self.least_steps as f64, Limit::Least),
            _ => (by_time, Limit::Time),
        };
        let steps = round(wanted);
        let seconds_of_training = (steps as usize * batch) as f64 / self.images_per_second;
        let epochs = (steps as usize * batch) as f64 / self.images as f64;
        let seconds = AROUND + evaluating(evaluations) + seconds_of_training;
        // Every seventy seconds in short stages, at least every quarter of an hour in long ones.
        let interval = (seconds / 20.0).clamp(72.0, 900.0);
        let checkpoints = (seconds / interval).round().max(1.0);
        let often = (self.val_images > 0 && evaluations > 1)
            .then(|| (epochs / evaluations as f64).ceil().max(1.0) as u64);
        Length {
            batch,
            steps,
            epochs,
            seconds,
            checkpoint_every: ((steps as f64 / checkpoints).round() as u64).max(1),
            eval_every_epochs: often,
            limit,
        }
    }
}

/// To two significant digits: estimates are no better, and such numbers can be read.
fn round(value: f64) -> u64 {
    let scale = 10f64.powf(value.max(1.0).log10().floor() - 1.0).max(1.0);
    ((value / scale).round() * scale).max(1.0) as u64
}

impl Length {
    /// A part of the steps, to two digits, below them and at least one.
    pub fn part(&self, share: f64) -> u64 {
        round(self.steps as f64 * share).clamp(1, self.steps.saturating_sub(1).max(1))
    }

    /// Why there are so many steps.
    pub fn why(&self) -> String {
        let epochs = match self.epochs {
            few if few < 10.0 => format!("{few:.1}"),
            many => format!("{many:.0}"),
        };
        match self.limit {
            Limit::Time => format!("{epochs} epochs, as many as the time allows"),
            Limit::Epochs => format!("{epochs} epochs; more would not help"),
            Limit::Least => format!(
                "{epochs} epochs; fewer steps would teach nothing, so this takes longer than was wanted"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget {
            seconds: 144.0,
            images_per_second: 100.0,
            images: 2000,
            val_images: 400,
            batch: 16,
            least_steps: 100,
            good_steps: 500,
            most_epochs: 300.0,
            evaluations: 20,
        }
    }

    #[test]
    fn steps_fill_the_time() {
        let length = budget().length();
        assert_eq!((length.batch, length.limit, length.eval_every_epochs), (16, Limit::Time, None));
        assert!((length.seconds - 144.0).abs() < 5.0, "{length:?}");
        let long = Budget { seconds: 3600.0, ..budget() }.length();
        assert!((long.seconds - 3600.0).abs() < 100.0 && long.eval_every_epochs == Some(9), "{long:?}");
    }

    #[test]
    fn limits_are_kept() {
        let few = Budget { images: 50, seconds: 7200.0, ..budget() }.length();
        assert!(few.limit == Limit::Epochs && (290.0..310.0).contains(&few.epochs), "{few:?}");
        let hurry = Budget { seconds: 5.0, ..budget() }.length();
        assert_eq!((hurry.steps, hurry.limit), (100, Limit::Least));
        let tiny = Budget { images: 20, batch: 64, ..budget() }.length();
        assert_eq!(tiny.batch, 10);
        let slow = Budget { batch: 512, ..budget() }.length();
        assert!(slow.batch < 64 && slow.steps >= 500, "{slow:?}");
        assert_eq!([round(804.4), round(2049.0), round(7.4), round(0.2)], [800, 2000, 7, 1]);
    }
}
