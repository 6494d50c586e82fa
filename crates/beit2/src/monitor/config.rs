//! `[monitor]` of a recipe: what is watched, how often, and what follows from it.

use beit2_run::best::Better;
use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::train::{Followed, Plan, check_interval};

/// `[monitor]`: what is measured of the features while a model trains. No weight depends on it, except that `patience` can end
/// a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Images to watch, best with classes: k-NN needs them. Absent: the validation set, without one the training images.
    pub folder: Option<String>,
    /// Images of what the model could do before, to see what it forgets; absent: none.
    pub forgetting_folder: Option<String>,
    /// Most images of each folder; 0 turns monitors off. With classes there are at least five of each.
    pub max_images: usize,
    /// Epochs between measurements; absent: as many as keep their cost at 2 %.
    pub every_epochs: Option<u64>,
    /// The metric whose best value decides which checkpoint is `best`; absent: `val_loss`.
    pub best: Option<String>,
    /// Values of that metric in a row that are no improvement, after which a run ends; absent: it does not end early.
    pub patience: Option<u64>,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            folder: None,
            forgetting_folder: None,
            max_images: 1000,
            every_epochs: None,
            best: None,
            patience: None,
        }
    }
}

/// Images of a class that k-NN has at least, where there are as many.
pub(super) const LEAST_OF_A_CLASS: usize = 5;

/// What measurements at the start and at the end may cost of the time of a run, and those in between.
const ENDS: f64 = 0.01;
const BETWEEN: f64 = 0.02;

/// A measurement costs at most this part of training on as many images (docs/monitors.md): both stages have a forward and a
/// backward pass there, and the forward pass of a frozen model.
const COST: f64 = 0.5;

/// Fewer images say little about features.
const LEAST_IMAGES: f64 = 100.0;

/// The names of metrics that `best` can follow, and which of their values are better.
pub const FOLLOWED: [(&str, Better); 13] = [
    ("val_loss", Better::Lower),
    ("monitor_knn_top1", Better::Higher),
    ("monitor_cls_knn_top1", Better::Higher),
    ("monitor_effective_rank", Better::Higher),
    ("monitor_uniformity", Better::Lower),
    ("monitor_drift", Better::Lower),
    ("monitor_codebook_usage", Better::Higher),
    ("monitor_codebook_perplexity", Better::Higher),
    ("forgetting_knn_top1", Better::Higher),
    ("forgetting_cls_knn_top1", Better::Higher),
    ("forgetting_effective_rank", Better::Higher),
    ("forgetting_uniformity", Better::Lower),
    ("forgetting_drift", Better::Lower),
];

impl MonitorConfig {
    /// Checks the settings against each other; `validates`: there is a validation set.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self, validates: bool) -> Result<(), Error> {
        check_interval("monitor.every_epochs", self.every_epochs)?;
        check_interval("monitor.patience", self.patience)?;
        let followed = self.followed()?.name;
        let given = [("folder", &self.folder), ("forgetting_folder", &self.forgetting_folder)];
        if self.max_images == 0
            && let Some((name, _)) = given.iter().find(|(_, folder)| folder.is_some())
        {
            return config_error(format!(
                "monitor.{name} is given, but monitor.max_images is 0, which turns monitors off; leave one of them out"
            ));
        }
        match followed {
            "val_loss" if (self.best.is_some() || self.patience.is_some()) && !validates => {
                let key = if self.best.is_some() { "monitor.best" } else { "monitor.patience" };
                config_error(format!(
                    "{key} follows val_loss, but there is no validation set; give one (--val) or follow another metric (--best)"
                ))
            }
            name if name.starts_with("forgetting_") && self.forgetting_folder.is_none() => {
                config_error(format!(
                    "monitor.best is {name}, but there is no monitor.forgetting_folder (--monitor-forgetting)"
                ))
            }
            name if name != "val_loss" && self.max_images == 0 => config_error(format!(
                "monitor.best is {name}, but monitor.max_images is 0, which turns monitors off"
            )),
            _ => Ok(()),
        }
    }

    /// The metric that decides which checkpoint is `best`, and when to end.
    ///
    /// # Errors
    /// A metric that cannot be followed.
    pub fn followed(&self) -> Result<Followed, Error> {
        let name = self.best.as_deref().unwrap_or("val_loss");
        match FOLLOWED.iter().find(|(known, _)| *known == name) {
            Some(&(name, better)) => Ok(Followed { name, better, patience: self.patience }),
            None => {
                let names: Vec<&str> = FOLLOWED.iter().map(|(name, _)| *name).collect();
                config_error(format!(
                    "monitor.best is {name}, which cannot be followed; choose one of {}",
                    names.join(", ")
                ))
            }
        }
    }

    /// Whether folders were named, so that they are watched whatever it costs.
    pub(super) fn is_asked_for(&self) -> bool {
        self.folder.is_some()
            || self.forgetting_folder.is_some()
            || self.every_epochs.is_some()
            || self.best.is_some()
    }

    /// Images of a folder that can be watched at the start and at the end for a hundredth of the time of the run; `None`: the
    /// run is too short for any.
    pub(super) fn affordable(&self, plan: &Plan) -> Option<usize> {
        let images = plan.total_steps as f64 * plan.batch_size as f64;
        let most = ENDS * images / COST / 2.0;
        (most >= LEAST_IMAGES).then(|| self.max_images.min(most as usize))
    }

    /// Epochs between measurements of so many images in all.
    pub(super) fn every(&self, images: usize, plan: &Plan) -> u64 {
        let epoch = plan.steps_per_epoch as f64 * plan.batch_size as f64;
        let paid_by = images as f64 * COST / BETWEEN;
        self.every_epochs.unwrap_or((paid_by / epoch.max(1.0)).ceil().max(1.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{OptimizerConfig, ScheduleConfig};

    fn plan(images: usize, batch: usize, epochs: u64) -> Plan {
        let schedule = ScheduleConfig { epochs, warmup_epochs: 0.0, batch_size: batch, ..Default::default() };
        Plan::new(&schedule, &OptimizerConfig::default(), images).unwrap()
    }

    #[test]
    fn costs_are_bounded() {
        let config = MonitorConfig::default();
        // 1,000 images are worth training on 500: 2 % of 25,000.
        assert_eq!(config.every(1000, &plan(5000, 50, 100)), 5);
        assert_eq!(config.every(1000, &plan(50_000, 50, 100)), 1);
        assert_eq!(config.every(2000, &plan(1000, 50, 100)), 50);
        assert_eq!(
            MonitorConfig { every_epochs: Some(3), ..config.clone() }.every(2000, &plan(1000, 50, 100)),
            3
        );
        assert_eq!(config.affordable(&plan(5000, 50, 100)), Some(1000));
        assert_eq!(config.affordable(&plan(5000, 50, 4)), Some(200));
        assert_eq!(config.affordable(&plan(100, 10, 2)), None);
    }

    #[test]
    fn contradictions_are_named() {
        let sentence = |change: fn(&mut MonitorConfig), validates| {
            let mut config = MonitorConfig::default();
            change(&mut config);
            config.validate(validates).unwrap_err().to_string()
        };
        MonitorConfig::default().validate(false).unwrap();
        let found = sentence(|c| c.patience = Some(3), false);
        assert!(found.contains("monitor.patience follows val_loss") && found.contains("--val"), "{found}");
        let found = sentence(|c| c.best = Some("knn".into()), true);
        assert!(found.contains("cannot be followed") && found.contains("monitor_knn_top1"), "{found}");
        let found = sentence(|c| c.best = Some("forgetting_drift".into()), true);
        assert!(found.contains("--monitor-forgetting"), "{found}");
        let found = sentence(|c| (c.max_images, c.folder) = (0, Some("x".into())), true);
        assert!(found.contains("turns monitors off"), "{found}");
        assert!(sentence(|c| c.patience = Some(0), true).contains("monitor.patience is 0"));
    }
}
