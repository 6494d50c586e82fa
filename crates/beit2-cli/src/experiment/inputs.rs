//! What a run reads, looked at before anything starts.

use anyhow::Context;
use beit2::train::{Plan, SCRATCH};
use beit2_run::thousands;

use crate::assets::AssetStore;
use crate::errors::usage;
use crate::stage::{Stage, Tables};

/// Images and weights of a run, opened once.
pub struct Inputs {
    /// Training images.
    pub(super) images: usize,
    /// Classes of the training images.
    pub(super) classes: usize,
    /// Steps of the whole run.
    steps: u64,
    /// Name and value of what identifies the inputs.
    pub(super) fingerprints: Vec<(&'static str, String)>,
}

impl Inputs {
    /// Opens everything that the recipe names, without computing.
    pub fn check<S: Stage>(settings: &S, assets: &AssetStore) -> anyhow::Result<Self> {
        let Tables { data, schedule, optimizer, weights: (key, weights) } = settings.tables();
        if data.train.is_empty() {
            return usage("no training images are named; use --data DIR, or set data.train in the recipe");
        }
        if weights.is_empty() {
            return usage(format!("{key} is empty; use --set {key}=FILE{}", by_flag(key)));
        }
        settings.check()?;
        let train = settings.source(assets, &data.train)?;
        let val = data.val.as_deref().map(|val| settings.source(assets, val)).transpose()?;
        if S::USES_CLASSES {
            [Some(&train), val.as_ref()]
                .into_iter()
                .flatten()
                .try_for_each(|source| source.check_labels())?;
        }
        let plan = Plan::new(schedule, optimizer, train.epoch_len())?;
        let mut fingerprints = vec![("train", train.fingerprint())];
        fingerprints.extend(val.map(|val| ("val", val.fingerprint())));
        if weights != SCRATCH {
            fingerprints.push(("weights", assets.weights_fingerprint(weights).context(key)?));
        }
        let (images, classes) = (train.len(), train.classes().len());
        Ok(Self { images, classes, steps: plan.total_steps, fingerprints })
    }

    /// `250,200 steps of 512 images = 128,102,400 images`.
    pub fn budget<S: Stage>(&self, settings: &S) -> String {
        let batch = settings.tables().schedule.batch_size as u64;
        let (steps, all) = (thousands(self.steps), thousands(self.steps.saturating_mul(batch)));
        format!("{steps} steps of {batch} images = {all} images")
    }
}

fn by_flag(key: &str) -> &'static str {
    match key {
        "tokenizer.weights" => " or --tokenizer RUN",
        "init.weights" => " or --init RUN (--init scratch starts from random weights)",
        _ => "",
    }
}
