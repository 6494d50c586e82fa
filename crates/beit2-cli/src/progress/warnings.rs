//! What becomes of a run's warnings.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

/// All warnings of a run, one a line, in `warnings.log`: a run over a million images may replace thousands,
/// and their names should not be lost on a screen.
pub(super) struct WarningLog {
    /// `None` where there is no run directory.
    pub(super) path: Option<PathBuf>,
    file: Option<File>,
    /// The run directory is ours; before that nothing may be written into it.
    ready: bool,
    early: Vec<String>,
    pub(super) count: usize,
}

impl WarningLog {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, file: None, ready: false, early: Vec::new(), count: 0 }
    }

    pub(super) fn begin(&mut self) {
        self.ready = true;
        for text in std::mem::take(&mut self.early) {
            self.write(&text);
        }
    }

    pub(super) fn add(&mut self, text: &str) {
        self.count += 1;
        match (self.ready, &self.path) {
            (_, None) => {}
            (true, Some(_)) => self.write(text),
            (false, Some(_)) => self.early.push(text.to_owned()),
        }
    }

    fn write(&mut self, text: &str) {
        if let (None, Some(path)) = (&self.file, &self.path) {
            self.file = OpenOptions::new().create(true).append(true).open(path).ok();
        }
        // A log that cannot be written is no reason to lose the run; the run's own files will complain.
        if let Some(file) = &mut self.file {
            let line = format!("{}  {}\n", beit2_run::environment::now_utc(), text.replace('\n', " "));
            let _ = file.write_all(line.as_bytes());
        }
    }
}
