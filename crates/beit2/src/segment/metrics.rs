//! How well masks agree: intersection over union, accuracies.

use serde::Serialize;

use super::IGNORE;
use crate::error::{Error, config_error};

/// Pixels counted by class, over any number of pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    /// Pixels of each class that are predicted as it.
    intersection: Vec<u64>,
    /// Pixels predicted as each class.
    predicted: Vec<u64>,
    /// Pixels of each class.
    labelled: Vec<u64>,
}

/// Scores in [0, 1]. NaN (`null` in JSON) where there is nothing to score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentScores {
    /// Mean of [`SegmentScores::iou`] over the classes that have one.
    pub miou: f64,
    /// Mean of [`SegmentScores::acc`] over the classes that have one.
    pub macc: f64,
    /// Share of all pixels that are right.
    pub aacc: f64,
    /// Intersection over union of each class; NaN for one that is neither in the masks nor predicted.
    pub iou: Vec<f64>,
    /// Share of each class's pixels that are right; NaN for one that is not in the masks.
    pub acc: Vec<f64>,
}

impl Confusion {
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        let zeros = || vec![0; classes];
        Self { intersection: zeros(), predicted: zeros(), labelled: zeros() }
    }

    /// Counts a picture: what was predicted and what is right, pixel by pixel. Pixels labelled [`IGNORE`] are left out.
    ///
    /// # Errors
    /// Different lengths, an id that is no class. Nothing is counted then.
    pub fn add(&mut self, predicted: &[u8], labels: &[u8]) -> Result<(), Error> {
        let classes = self.labelled.len();
        if predicted.len() != labels.len() {
            return config_error(format!("{} predicted pixels for a mask of {}", predicted.len(), labels.len()));
        }
        let pairs = || predicted.iter().zip(labels).filter(|(_, label)| **label != IGNORE);
        if let Some(id) = pairs().flat_map(|(p, l)| [p, l]).find(|id| usize::from(**id) >= classes) {
            return config_error(format!("pixel class {id} is not one of {classes} classes"));
        }
        for (&predicted, &label) in pairs() {
            self.predicted[usize::from(predicted)] += 1;
            self.labelled[usize::from(label)] += 1;
            self.intersection[usize::from(label)] += u64::from(predicted == label);
        }
        Ok(())
    }

    /// Takes in what another one has counted, of the same classes.
    pub fn merge(&mut self, other: &Self) {
        let add = |own: &mut Vec<u64>, other: &[u64]| own.iter_mut().zip(other).for_each(|(own, n)| *own += n);
        add(&mut self.intersection, &other.intersection);
        add(&mut self.predicted, &other.predicted);
        add(&mut self.labelled, &other.labelled);
    }

    /// Pixels of each class in the masks.
    pub fn labelled(&self) -> &[u64] {
        &self.labelled
    }

    /// The scores so far.
    pub fn scores(&self) -> SegmentScores {
        let share = |part: u64, whole: u64| if whole == 0 { f64::NAN } else { part as f64 / whole as f64 };
        let classes = 0..self.labelled.len();
        let union = |class: usize| self.predicted[class] + self.labelled[class] - self.intersection[class];
        let iou: Vec<f64> = classes.clone().map(|class| share(self.intersection[class], union(class))).collect();
        let acc: Vec<f64> = classes.map(|class| share(self.intersection[class], self.labelled[class])).collect();
        let aacc = share(self.intersection.iter().sum(), self.labelled.iter().sum());
        SegmentScores { miou: mean(&iou), macc: mean(&acc), aacc, iou, acc }
    }
}

/// Mean of the numbers that are not NaN.
fn mean(values: &[f64]) -> f64 {
    let known: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    known.iter().sum::<f64>() / known.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut confusion = Confusion::new(4);
        // Class 2 is never right, class 3 is nowhere.
        confusion.add(&[0, 0, 1, 1, 0, 2], &[0, 1, 1, 1, 2, IGNORE]).unwrap();
        let scores = confusion.scores();
        assert_eq!(scores.iou[..3], [1.0 / 3.0, 2.0 / 3.0, 0.0]);
        assert_eq!(scores.acc[..3], [1.0, 2.0 / 3.0, 0.0]);
        assert!(scores.iou[3].is_nan() && scores.acc[3].is_nan());
        assert!((scores.miou - 1.0 / 3.0).abs() < 1e-15 && (scores.macc - 5.0 / 9.0).abs() < 1e-15);
        assert_eq!(scores.aacc, 3.0 / 5.0);
        assert!(serde_json::to_string(&scores).unwrap().contains("null"));
    }

    #[test]
    fn pieces_add_up() {
        let mut whole = Confusion::new(3);
        whole.add(&[0, 1, 2, 2], &[0, 2, 2, IGNORE]).unwrap();
        let mut parts = [Confusion::new(3), Confusion::new(3)];
        parts[0].add(&[0, 1], &[0, 2]).unwrap();
        parts[1].add(&[2, 2], &[2, IGNORE]).unwrap();
        let [mut first, second] = parts;
        first.merge(&second);
        assert_eq!(first, whole);
        assert_eq!(first.labelled(), [1, 0, 2]);
        assert!(Confusion::new(3).scores().miou.is_nan());
    }

    #[test]
    fn refuses_what_it_cannot_count() {
        let mut confusion = Confusion::new(2);
        let error = confusion.add(&[0, 1], &[0]).unwrap_err().to_string();
        assert_eq!(error, "2 predicted pixels for a mask of 1");
        let error = confusion.add(&[0, 2], &[0, 1]).unwrap_err().to_string();
        assert_eq!(error, "pixel class 2 is not one of 2 classes");
        assert_eq!(confusion, Confusion::new(2));
    }
}
