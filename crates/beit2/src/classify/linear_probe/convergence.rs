//! When a linear probe's score is not the last word.

use super::{LinearProbe, RateChoice};

/// Share of the training loss that a doubling of the epochs may still take away without a warning.
const STEADY: f64 = 0.05;
/// A training loss above this share of the first one has hardly fallen.
const LITTLE: f64 = 0.95;
/// Fewer steps teach too little, whatever the rate.
const FEW_STEPS: u64 = 100;
/// A probe that tells this share of its training images apart learns nothing more from them.
const LEARNED: f64 = 0.99;

impl LinearProbe {
    /// Why a longer training or other rates may score higher, one sentence each; none if nothing says so.
    pub fn warnings(&self) -> Vec<String> {
        if self.train >= LEARNED {
            return self.at_the_edge().into_iter().collect();
        }
        self.at_the_edge().or_else(|| self.too_short()).or_else(|| self.unfinished()).into_iter().collect()
    }

    fn too_short(&self) -> Option<String> {
        let enough = self.epochs * FEW_STEPS.div_ceil(self.steps.max(1));
        (self.steps < FEW_STEPS).then(|| {
            format!(
                "the linear probe has not converged: it took only {} steps; try --epochs {enough}",
                self.steps
            )
        })
    }

    /// The share of the training loss that a doubling of the epochs would take away, by how the loss fell; `None` if there
    /// were too few steps to tell.
    ///
    /// The loss of a linear model falls about evenly with the logarithm of the sum of the learning rates of its steps. Of a
    /// cosine's sum 24 % lie in the first quarter of the steps and 41 % in the first half, which is 0.78 doublings. The second
    /// half says little: rates are small there, and noise goes.
    pub fn still_falling(&self) -> Option<f64> {
        let losses = &self.losses;
        let mean = |from: usize, to: usize| losses[from..to].iter().sum::<f64>() / (to - from) as f64;
        (losses.len() == 20).then(|| (mean(4, 6) - mean(9, 11)) / 0.78 / mean(18, 20))
    }

    fn unfinished(&self) -> Option<String> {
        let (first, last) = (self.losses.first()?, self.losses.last()?);
        let how = match self.still_falling() {
            // A rate so low that the loss falls by as much in every step falls by next to nothing in twice as many.
            _ if *last > LITTLE * first => format!("hardly fell, from {first:.4} to {last:.4}"),
            Some(share) if share > STEADY => {
                format!("was still falling, by about {:.0} % for a doubling of the epochs", 100.0 * share)
            }
            _ => return None,
        };
        let other = match self.choice {
            RateChoice::Given => "leave out --lr, so that a rate is chosen",
            RateChoice::NoSplit => "a higher --lr",
            // A higher rate goes further in the same steps. Where it scored less, going further does not help.
            RateChoice::Sweep { .. } => return None,
        };
        Some(format!(
            "the linear probe has not converged: its training loss {how}; try --epochs {}, or {other}",
            2 * self.epochs
        ))
    }

    /// The best rate is the lowest or the highest one that was tried, and better than its neighbour.
    fn at_the_edge(&self) -> Option<String> {
        let RateChoice::Sweep { scores, .. } = &self.choice else { return None };
        let (lowest, highest) = (scores.first()?, scores.last()?);
        let beats = |(_, score): &(f64, Option<f64>), neighbour: usize| {
            scores.get(neighbour).is_some_and(|(_, other)| score > other)
        };
        if self.lr == lowest.0 && beats(lowest, 1) {
            let (rate, lower) = (lowest.0, lowest.0 / 10.0);
            return Some(format!(
                "the best learning rate is the lowest that was tried, {rate:e}; try lower ones too, such as --lr \
                 {lower:e},{rate:e}"
            ));
        }
        if self.lr == highest.0 && beats(highest, scores.len().wrapping_sub(2)) {
            let (rate, higher) = (highest.0, highest.0 * 10.0);
            return Some(format!(
                "the best learning rate is the highest that was tried, {rate:e}; try higher ones too, such as --lr \
                 {rate:e},{higher:e}, or --epochs {}",
                2 * self.epochs
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::bootstrap::of_share;

    fn found(lr: f64, choice: RateChoice, train: f64, losses: Vec<f64>) -> LinearProbe {
        LinearProbe { lr, choice, train, val: of_share(1, 2), losses, epochs: 100, steps: 1500 }
    }

    fn sweep(scores: &[Option<f64>]) -> RateChoice {
        let rates = [1e-3, 1e-2, 1e-1];
        let scores = rates.into_iter().zip(scores.iter().copied()).collect();
        RateChoice::Sweep { scores, held_out: 10, epochs: 100 }
    }

    /// Losses that lose `fall` for every doubling of the sum of a cosine's rates, and end at 1.
    fn losses(fall: f64) -> Vec<f64> {
        let sum = |t: f64| t / 2.0 + (std::f64::consts::PI * t).sin() / (2.0 * std::f64::consts::PI);
        (0..20).map(|part| 1.0 - fall * (sum((f64::from(part) + 0.5) / 20.0) / 0.5).log2()).collect()
    }

    #[test]
    fn a_loss_that_still_falls() {
        for fall in [0.01, 0.1, 0.3] {
            let share = found(1e-3, RateChoice::Given, 0.5, losses(fall)).still_falling();
            assert!(share.is_some_and(|share| (share - fall).abs() < 0.1 * fall), "{fall}: {share:?}");
        }
        let warnings = found(1e-3, RateChoice::Given, 0.5, losses(0.1)).warnings();
        assert!(
            matches!(&warnings[..], [one] if one.contains("has not converged") && one.contains("--epochs 200")
            && one.contains("leave out --lr")),
            "{warnings:?}"
        );
        assert_eq!(found(1e-3, RateChoice::Given, 0.5, losses(0.03)).warnings(), [""; 0]);
        assert_eq!(found(1e-3, RateChoice::Given, 0.995, losses(0.1)).warnings(), [""; 0]);
        let warnings = found(1e-6, RateChoice::Given, 0.4, vec![1.0435; 20]).warnings();
        let text = "has not converged: its training loss hardly fell, from 1.0435 to 1.0435";
        assert!(matches!(&warnings[..], [one] if one.contains(text)), "{warnings:?}");
        let chosen = sweep(&[Some(0.3), Some(0.5), Some(0.4)]);
        assert_eq!(found(1e-2, chosen.clone(), 0.5, losses(0.1)).warnings(), [""; 0]);
        let short = LinearProbe { steps: 15, epochs: 1, ..found(1e-2, chosen, 0.5, vec![2.0; 15]) };
        let warnings = short.warnings();
        assert!(
            matches!(&warnings[..], [one] if one.contains("only 15 steps; try --epochs 7")),
            "{warnings:?}"
        );
    }

    #[test]
    fn rates_at_the_edge() {
        let at = |lr, scores: &[Option<f64>]| found(lr, sweep(scores), 0.5, losses(0.1)).warnings().join("");
        let low = at(1e-3, &[Some(0.5), Some(0.4), Some(0.3)]);
        assert!(low.contains("the lowest that was tried, 1e-3") && low.contains("--lr 1e-4,1e-3"), "{low}");
        let high = at(1e-1, &[Some(0.3), Some(0.4), Some(0.5)]);
        assert!(
            high.contains("the highest that was tried, 1e-1") && high.contains("--lr 1e-1,1e0"),
            "{high}"
        );
        // Of equal scores the lower loss chose: nothing says that lower rates would do better. A rate that diverged is worse.
        assert_eq!(at(1e-3, &[Some(0.5), Some(0.5), Some(0.3)]), "");
        assert!(!at(1e-1, &[None, None, Some(0.3)]).is_empty());
        assert_eq!(at(1e-2, &[Some(0.3), Some(0.5), None]), "");
    }
}
