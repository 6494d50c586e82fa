//! The metric that decides which checkpoint is `best`, and when there is nothing more to hope for.

use beit2_run::best::Better;

/// A metric of the epochs' records.
#[derive(Debug, Clone, Copy)]
pub struct Followed {
    /// Its name.
    pub name: &'static str,
    /// Which of its values are better.
    pub better: Better,
    /// Values in a row that are no improvement, after which the run ends; `None`: it does not end early.
    pub patience: Option<u64>,
}

impl Followed {
    /// Its value in a record, turned so that lower is better.
    pub(super) fn as_loss(&self, values: &[(&str, f64)]) -> Option<f64> {
        let (_, value) = values.iter().find(|(name, _)| *name == self.name)?;
        Some(if self.better == Better::Higher { -value } else { *value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_losses() {
        let of = |name, better| {
            Followed { name, better, patience: None }
                .as_loss(&[("val_loss", 2.0), ("monitor_knn_top1", 0.25)])
        };
        assert_eq!(of("val_loss", Better::Lower), Some(2.0));
        assert_eq!(of("monitor_knn_top1", Better::Higher), Some(-0.25));
        assert_eq!(of("monitor_drift", Better::Lower), None);
    }
}
