//! One of the runs that are compared.

use std::path::{Path, PathBuf};

use beit2_run::Kind;
use beit2_run::best::{Best, Score, best};
use beit2_run::report::Stage;
use serde_json::{Map, Value, json};
use toml::Table;

use crate::report;

/// A run.
pub struct Side {
    /// As the user named it.
    pub path: PathBuf,
    /// A short name that no other run here has.
    pub name: String,
    /// `run.toml`.
    pub settings: Table,
    /// Records, speed and time.
    pub stage: Stage,
    /// The metric that counts.
    pub best: Option<Best>,
}

/// Data that a run reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Train,
    Validation,
    Weights,
}

impl Part {
    /// Its key in `[fingerprint]`.
    fn key(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Weights => "weights",
        }
    }
}

impl Side {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let settings = report::settings(path)?;
        let (stage, _) = report::stage(path, &settings)?;
        let best = best(&stage.name, &stage.records, report::followed(&settings));
        Ok(Self { path: path.to_owned(), name: String::new(), settings, stage, best })
    }

    /// A setting by its dotted name.
    pub fn setting(&self, key: &str) -> Option<&toml::Value> {
        let mut keys = key.split('.');
        let first = self.settings.get(keys.next()?)?;
        keys.try_fold(first, |value, key| value.get(key))
    }

    /// The same as text; empty where it is absent or empty.
    pub fn text(&self, key: &str) -> String {
        match self.setting(key) {
            Some(toml::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// Where a part of its data is, as the recipe names it.
    pub fn spec(&self, part: Part) -> String {
        match part {
            Part::Train => self.text("data.train"),
            Part::Validation => self.text("data.val"),
            Part::Weights => ["teacher.weights", "tokenizer.weights", "init.weights"]
                .iter()
                .map(|key| self.text(key))
                .find(|spec| !spec.is_empty())
                .unwrap_or_default(),
        }
    }

    /// What identifies it; `None` where the run has none.
    pub fn fingerprint(&self, part: Part) -> Option<&str> {
        self.settings.get("fingerprint")?.get(part.key())?.as_str()
    }

    /// Whether a part of the data is the same in all runs; `None` where none of them has it.
    pub fn agree(sides: &[Self], part: Part) -> Option<bool> {
        let found: Vec<Option<&str>> = sides.iter().map(|side| side.fingerprint(part)).collect();
        let any = found.iter().any(Option::is_some);
        any.then(|| found.windows(2).all(|pair| pair[0] == pair[1]))
    }

    /// Whether two runs have a part and it differs: what a run lacks misleads nobody.
    pub fn conflict(sides: &[Self], part: Part) -> bool {
        let known: Vec<&str> = sides.iter().filter_map(|side| side.fingerprint(part)).collect();
        known.windows(2).any(|pair| pair[0] != pair[1])
    }

    /// `a: images; b: other`.
    pub fn specs(sides: &[Self], part: Part) -> String {
        let spec = |side: &Self| {
            let spec = side.spec(part);
            format!("{}: {}", side.name, if spec.is_empty() { "none" } else { &spec })
        };
        sides.iter().map(spec).collect::<Vec<_>>().join("; ")
    }

    /// Steps done.
    pub fn steps(&self) -> Option<u64> {
        self.stage.records.iter().map(|record| record.step).max()
    }

    pub fn json(&self) -> Value {
        let last = self.stage.records.iter().rev().find(|record| record.kind == Kind::Epoch);
        let metrics = last.map(|record| {
            record.values.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>()
        });
        let score = |score: &Score| json!({ "metric": score.name, "value": score.value, "epoch": score.epoch, "step": score.step });
        json!({
            "run": self.path,
            "name": self.name,
            "counts": self.best.as_ref().map(|best| best.label),
            "split": self.best.as_ref().map(|best| best.split.to_string()),
            "best": self.best.as_ref().map(|best| score(&best.best)),
            "last": self.best.as_ref().map(|best| score(&best.last)),
            "metrics": metrics,
            "steps": self.steps(),
            "seconds": self.stage.seconds,
            "images_per_second": self.stage.images_per_second,
            "data": {
                "train": self.spec(Part::Train),
                "val": self.setting("data.val"),
                "weights": self.spec(Part::Weights),
            },
            "fingerprint": self.settings.get("fingerprint"),
        })
    }
}

/// Gives each run a name: its folder's, or its path where folders of several runs have one name.
pub fn name(sides: &mut [Side]) {
    let folder = |side: &Side| {
        let full = side.path.canonicalize().unwrap_or_else(|_| side.path.clone());
        full.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
    };
    let names: Vec<String> = sides.iter().map(folder).collect();
    for (at, side) in sides.iter_mut().enumerate() {
        let taken = names.iter().filter(|name| **name == names[at]).count() > 1;
        side.name = if taken { side.path.display().to_string() } else { names[at].clone() };
    }
}
