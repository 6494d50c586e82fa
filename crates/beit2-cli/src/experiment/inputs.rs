//! What a run reads, looked at before anything starts.

use std::sync::Arc;

use anyhow::Context;
use beit2::train::{Plan, SCRATCH};
use beit2_data::{CacheLimit, Source, cache_plan};
use beit2_run::thousands;
use serde_json::Value;

use crate::account;
use crate::assets::AssetStore;
use crate::errors::usage;
use crate::flags::OutputArgs;
use crate::stage::{Stage, Tables};

/// Images and weights of a run, opened once.
pub struct Inputs {
    /// The schedule.
    pub(super) plan: Plan,
    /// Training and validation images.
    sources: Vec<(&'static str, String, Arc<dyn Source>)>,
    /// Name and value of what identifies the inputs.
    pub(super) fingerprints: Vec<(&'static str, String)>,
}

impl Inputs {
    /// Opens everything that the recipe names, without computing.
    pub fn check<S: Stage>(settings: &S, assets: &AssetStore) -> anyhow::Result<Self> {
        let Tables { data, schedule, optimizer, weights: (key, weights), init } = settings.tables();
        if data.train.is_empty() {
            return usage("no training images are named; use --data DIR, or set data.train in the recipe");
        }
        if weights.is_empty() {
            return usage(format!("{key} is empty; {}", how_to_name(S::NAME, key)));
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
        let (batch, most) = (schedule.batch_size, train.epoch_len());
        if batch > most {
            return usage(format!(
                "schedule.batch_size {batch} is more than the {most} training images, and a step needs a whole batch; use \
                 one from 1 to {most}, such as --batch-size {most}"
            ));
        }
        let plan = Plan::new(schedule, optimizer, most)?;
        settings.check_steps(plan.total_steps)?;
        let mut fingerprints = vec![("train", train.fingerprint())];
        fingerprints.extend(val.as_ref().map(|val| ("val", val.fingerprint())));
        if weights != SCRATCH {
            fingerprints.push(("weights", assets.weights_fingerprint(weights).context(key)?));
        }
        if let Some(init) = init {
            fingerprints.push(("init", assets.weights_fingerprint(init).context("init.weights")?));
        }
        let mut sources = vec![("train", data.train.clone(), train)];
        sources.extend(data.val.clone().zip(val).map(|(spec, val)| ("val", spec, val)));
        Ok(Self { plan, sources, fingerprints })
    }

    /// The run's steps.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The training images.
    pub fn train(&self) -> &dyn Source {
        self.sources[0].2.as_ref()
    }

    /// Bytes of the decoded images that will stay in memory; `None` when none will.
    pub(super) fn cached_bytes<S: Stage>(&self, settings: &S) -> Option<u64> {
        let data = settings.tables().data.of_channels(settings.channels());
        let limit = data.cache.limit();
        let (CacheLimit::IfAllFit(most) | CacheLimit::UpTo(most)) = limit else { return None };
        let plans = self.sources.iter().filter_map(|(_, _, source)| {
            cache_plan(source, &data.decode_options(), limit).filter(|plan| plan.kept)
        });
        let bytes: u64 = plans.map(|plan| plan.bytes).sum();
        (bytes > 0).then(|| bytes.min(most))
    }

    /// Tells what is used and what is left out.
    pub fn tell(&self, output: OutputArgs) {
        self.sources.iter().for_each(|(_, spec, source)| account::tell(output, spec, source.as_ref()));
    }

    /// The training (`train`) or validation images (`val`).
    pub(super) fn source(&self, which: &str) -> Option<&dyn Source> {
        self.sources.iter().find(|(name, ..)| *name == which).map(|(_, _, source)| source.as_ref())
    }

    /// How they were named.
    pub(super) fn spec(&self, which: &str) -> Option<&str> {
        self.sources.iter().find(|(name, ..)| *name == which).map(|(_, spec, _)| spec.as_str())
    }

    /// What looks wrong about what is used and left out.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.sources.iter().flat_map(|(_, _, source)| source.account().warnings).collect()
    }

    /// What is used and left out, for the header.
    pub(super) fn rows(&self, uses_classes: bool) -> Vec<(&'static str, String)> {
        let row = |(name, spec, source): &(&'static str, String, Arc<dyn Source>)| {
            let classes = match source.classes().len() {
                0 => String::new(),
                n if uses_classes => format!("; {n} classes"),
                n => format!("; {n} classes (not used)"),
            };
            let name = if *name == "train" { "data" } else { "validation" };
            (name, format!("{spec}: {}{classes}", source.account()))
        };
        let mut rows: Vec<_> = self.sources.iter().map(row).collect();
        if rows.len() == 1 {
            rows.push(("validation", "none (--val names images that are not trained on)".to_owned()));
        }
        rows
    }

    /// The same for JSON.
    pub fn accounts_json(&self) -> Value {
        let account = |(name, _, source): &(&'static str, String, Arc<dyn Source>)| {
            ((*name).to_owned(), account::json(&source.account()))
        };
        Value::Object(self.sources.iter().map(account).collect())
    }

    /// A rehearsal's JSON with the settings and the account of the images.
    pub(super) fn with_accounts<S: Stage>(&self, mut told: Value, settings: &S) -> anyhow::Result<Value> {
        told["settings"] = serde_json::to_value(settings)?;
        told["account"] = self.accounts_json();
        Ok(told)
    }

    /// `250,200 steps of 512 images = 128,102,400 images`.
    pub fn budget<S: Stage>(&self, settings: &S) -> String {
        let batch = settings.tables().schedule.batch_size as u64;
        let (steps, all) =
            (thousands(self.plan.total_steps), thousands(self.plan.total_steps.saturating_mul(batch)));
        format!("{steps} steps of {batch} images = {all} images")
    }
}

/// What to write for the weights that a stage needs.
fn how_to_name(stage: &str, key: &str) -> String {
    match (stage, key) {
        (_, "tokenizer.weights") => {
            "use --tokenizer RUN, with a run of `beit2 tokenizer train` or a published file".to_owned()
        }
        (_, "init.weights") => "use --init RUN (--init scratch starts from random weights)".to_owned(),
        ("tokenizer", _) => format!(
            "use --set {key}=FILE (`beit2 weights fetch` lists teachers to download), or the recipe quickstart_tokenizer, \
             whose teacher is inside the program"
        ),
        _ => format!("use --set {key}=FILE (`beit2 weights fetch` lists teachers to download)"),
    }
}
