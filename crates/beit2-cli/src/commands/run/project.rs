//! The list of stages that `beit2 init` wrote.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::commands::init::write::PROJECT;
use crate::errors::usage;

/// Version of the file that this program reads.
const VERSION: u32 = 1;

/// A project as its file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    version: u32,
    /// What the models are for.
    pub goal: String,
    /// Images to measure features on.
    pub images: Images,
    /// In order.
    pub stages: Vec<Entry>,
    /// The folder, absolute.
    #[serde(skip)]
    pub dir: PathBuf,
    /// The file.
    #[serde(skip)]
    pub file: PathBuf,
}

/// Training and validation images.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    pub train: String,
    pub val: Option<String>,
    /// Whether they have classes that k-NN can tell apart.
    #[serde(default)]
    pub labels: bool,
}

/// One stage.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `tokenizer`, `pretrain`, `finetune` or `segment`.
    pub stage: String,
    /// Its recipe, from the project's folder.
    pub recipe: PathBuf,
    /// Its run directory, from the project's folder.
    pub run: PathBuf,
    /// What was expected.
    #[serde(default)]
    #[allow(dead_code)] // for people
    minutes: Option<f64>,
}

impl Project {
    /// Reads the project in a folder.
    ///
    /// # Errors
    /// A folder that is none, a file that cannot be understood.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(PROJECT);
        if !dir.exists() {
            anyhow::bail!("{}: no such folder; `beit2 init --data IMAGES` makes one to run", dir.display());
        }
        if !dir.is_dir() {
            return usage(format!(
                "{} is not a folder; `beit2 init --data IMAGES` makes one to run",
                dir.display()
            ));
        }
        if !file.is_file() {
            return usage(format!(
                "{} is not a project: it has no {PROJECT}; `beit2 init --data IMAGES` makes one",
                dir.display()
            ));
        }
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut project: Self = match toml::from_str(&text) {
            Ok(project) => project,
            Err(error) => {
                let why: Vec<&str> = error.message().lines().map(str::trim).collect();
                return usage(format!("{} cannot be understood: {}", file.display(), why.join(", ")));
            }
        };
        if project.version != VERSION {
            return usage(format!(
                "{} has version {}, and this program reads version {VERSION}; make the project again with `beit2 init`",
                file.display(),
                project.version
            ));
        }
        project.dir = std::path::absolute(dir)?;
        project.file = file;
        Ok(project)
    }
}
