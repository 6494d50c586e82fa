//! How well masks agree: intersection over union, accuracies.

use beit2_run::csv_cell;
use serde::Serialize;

use super::IGNORE;
use crate::error::{Error, config_error};

/// Pixels counted by their class and the class that they were taken for, over any number of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[classes, classes]`: the pixels of a class (row) that were taken for another (column), or for itself.
    counts: Vec<u64>,
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
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts an image: what was predicted and what is right, pixel by pixel. Pixels labelled [`IGNORE`] are left out.
    ///
    /// # Errors
    /// Different lengths, an id that is no class. Nothing is counted then.
    pub fn add(&mut self, predicted: &[u8], labels: &[u8]) -> Result<(), Error> {
        let classes = self.classes;
        if predicted.len() != labels.len() {
            return config_error(format!(
                "{} predicted pixels for a mask of {}",
                predicted.len(),
                labels.len()
            ));
        }
        let pairs = || predicted.iter().zip(labels).filter(|(_, label)| **label != IGNORE);
        if let Some(id) = pairs().flat_map(|(p, l)| [p, l]).find(|id| usize::from(**id) >= classes) {
            return config_error(format!("pixel class {id} is not one of {classes} classes"));
        }
        for (&predicted, &label) in pairs() {
            self.counts[usize::from(label) * classes + usize::from(predicted)] += 1;
        }
        Ok(())
    }

    /// Takes in what another one has counted, of the same classes.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, n)| *own += n);
    }

    /// Pixels of each class in the masks.
    pub fn labelled(&self) -> Vec<u64> {
        self.counts.chunks(self.classes.max(1)).map(|row| row.iter().sum()).collect()
    }

    /// Pixels of a class that were taken for another, or for itself.
    pub fn count(&self, class: usize, predicted: usize) -> u64 {
        self.counts[class * self.classes + predicted]
    }

    /// The scores so far.
    pub fn scores(&self) -> SegmentScores {
        let share = |part: u64, whole: u64| if whole == 0 { f64::NAN } else { part as f64 / whole as f64 };
        let classes = 0..self.classes;
        let labelled = self.labelled();
        let right: Vec<u64> = classes.clone().map(|class| self.count(class, class)).collect();
        let predicted = |class: usize| classes.clone().map(|label| self.count(label, class)).sum::<u64>();
        let union = |class: usize| predicted(class) + labelled[class] - right[class];
        let iou: Vec<f64> = classes.clone().map(|class| share(right[class], union(class))).collect();
        let acc: Vec<f64> = classes.clone().map(|class| share(right[class], labelled[class])).collect();
        let aacc = share(right.iter().sum(), labelled.iter().sum());
        SegmentScores { miou: mean(&iou), macc: mean(&acc), aacc, iou, acc }
    }
}

impl SegmentScores {
    /// The classes as a CSV table: number, name, intersection over union, accuracy; empty where there is nothing to score.
    pub fn csv(&self, names: &[String]) -> String {
        let share = |share: f64| if share.is_nan() { String::new() } else { format!("{share:.6}") };
        let mut table = "class,name,iou,accuracy\n".to_owned();
        for (class, (&iou, &acc)) in self.iou.iter().zip(&self.acc).enumerate() {
            let name = csv_cell(names.get(class).map_or("", String::as_str));
            table += &format!("{class},{name},{},{}\n", share(iou), share(acc));
        }
        table
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
        let names = ["a", "b,c", "d", "e"].map(str::to_owned);
        assert_eq!(scores.csv(&names).lines().nth(2), Some("1,\"b,c\",0.666667,0.666667"));
        assert!(scores.csv(&names).ends_with("\n3,e,,\n"));
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
