//! Weights by name: a file, a run, or what is published, which is downloaded once.

use std::path::Path;

use beit2_weights::published;

use crate::commands::weights::{cached, fetched};
use crate::errors::usage;
use crate::signals::Signals;

/// How names become files.
pub struct Names<'a> {
    /// Addresses to try first.
    pub mirrors: &'a [String],
    /// A rehearsal downloads nothing.
    pub may_download: bool,
    pub quiet: bool,
    pub signals: &'a Signals,
}

impl Names<'_> {
    /// What a training command takes: the name itself, or the file of a published name; `None` when a signal came.
    ///
    /// # Errors
    /// A published file that cannot be downloaded, or that a rehearsal does not find.
    pub fn find(&self, spec: &str, flag: &str) -> anyhow::Result<Option<String>> {
        let is_published = published::find(spec).is_some() || published::teacher(spec).is_some();
        if !is_published || Path::new(spec).exists() {
            return Ok(Some(spec.to_owned()));
        }
        if let Some(file) = cached(spec) {
            return Ok(Some(file.display().to_string()));
        }
        if !self.may_download {
            return usage(format!(
                "{flag} {spec} is not here yet, and a rehearsal downloads nothing; get it with: beit2 weights fetch {spec}"
            ));
        }
        let file = fetched(spec, self.mirrors, self.quiet, self.signals)?;
        Ok(file.map(|file| file.display().to_string()))
    }
}

/// The file's name of a path.
pub fn last_part(spec: &str) -> String {
    Path::new(spec).file_name().map_or_else(|| spec.to_owned(), |name| name.to_string_lossy().into_owned())
}
