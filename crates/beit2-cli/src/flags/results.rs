//! Files of an evaluation.

use std::fs;
use std::path::{Path, PathBuf};

use beit2_run::atomic::{FileError, write_bytes_atomic};
use clap::{Args, ValueHint};
use serde_json::Value;

use crate::errors::usage;

const FILES: [&str; 3] = ["result.json", "per_class.csv", "confusion.csv"];

/// Where an evaluation writes its files.
#[derive(Debug, Args)]
pub struct ResultArgs {
    /// Folder for result.json, per_class.csv and confusion.csv
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,

    /// Replace the files of an earlier evaluation in --out
    #[arg(long)]
    pub force: bool,
}

impl ResultArgs {
    /// Fails when a file would be replaced without --force.
    pub fn check(&self) -> anyhow::Result<()> {
        let path = |out: &PathBuf| FILES.iter().map(|name| out.join(name)).find(|path| path.exists());
        match self.out.as_ref().filter(|_| !self.force).and_then(path) {
            Some(path) => usage(format!("{} already exists; use --force to replace it", path.display())),
            None => Ok(()),
        }
    }

    /// Writes the files, if there is a folder to write them to. There is no confusion where images have several classes.
    pub fn write(&self, result: &Value, per_class: &str, confusion: Option<&str>) -> anyhow::Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        fs::create_dir_all(out).map_err(|error| FileError::new("create the folder", out, error))?;
        let texts = [Some(&*format!("{result:#}\n")), Some(per_class), confusion];
        for (name, text) in FILES.iter().zip(texts).filter_map(|(name, text)| Some((name, text?))) {
            write_bytes_atomic(&out.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// The folder, for the summary.
    pub fn row(&self) -> Option<(&'static str, String)> {
        self.out.as_deref().map(|out: &Path| ("files", out.display().to_string()))
    }
}
