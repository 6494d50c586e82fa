//! What becomes of a run's warnings: each is shown once when it comes, all go to `warnings.log`, and at the end they are
//! listed again, where nothing pushes them away.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use beit2_run::thousands;

/// Different warnings that are shown and listed.
const SHOWN: usize = 10;

/// Different warnings that are told apart; beyond them all count as new.
const TOLD_APART: usize = 10_000;

/// Warnings of a command. A run over a million images may replace thousands, and their names should not be lost on a
/// screen.
pub(super) struct WarningLog {
    /// `None` where there is no run directory.
    path: Option<PathBuf>,
    file: Option<File>,
    /// The run directory is ours; before that nothing may be written into it.
    ready: bool,
    early: Vec<String>,
    /// The first different ones, and how often each came.
    listed: Vec<(String, u64)>,
    seen: HashMap<String, usize>,
    count: u64,
    distinct: u64,
}

impl WarningLog {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            file: None,
            ready: false,
            early: Vec::new(),
            listed: Vec::new(),
            seen: HashMap::new(),
            count: 0,
            distinct: 0,
        }
    }

    pub(super) fn begin(&mut self) {
        self.ready = true;
        for text in std::mem::take(&mut self.early) {
            self.write(&text);
        }
    }

    /// Takes note of a warning; true if it should be shown now.
    pub(super) fn add(&mut self, text: &str) -> bool {
        self.count += 1;
        match (self.ready, &self.path) {
            (_, None) => {}
            (true, Some(_)) => self.write(text),
            (false, Some(_)) => self.early.push(text.to_owned()),
        }
        if let Some(at) = self.seen.get(text) {
            if let Some((_, times)) = self.listed.get_mut(*at) {
                *times += 1;
            }
            return false;
        }
        self.distinct += 1;
        if self.seen.len() < TOLD_APART {
            self.seen.insert(text.to_owned(), self.seen.len());
        }
        let shown = self.listed.len() < SHOWN;
        if shown {
            self.listed.push((text.to_owned(), 1));
        }
        shown
    }

    /// The first different warnings, each with how often it came.
    pub(super) fn listed(&self) -> &[(String, u64)] {
        &self.listed
    }

    /// How many came.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Where all of them are, if there were any and there is a place.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref().filter(|_| self.count > 0)
    }

    /// What was not shown, in a sentence.
    pub(super) fn hidden(&self) -> Option<String> {
        let hidden = self.distinct.saturating_sub(self.listed.len() as u64);
        let place = match &self.path {
            Some(path) => format!("in {}", path.display()),
            None => "not shown".to_owned(),
        };
        match hidden {
            0 => None,
            1 => Some(format!("1 more warning is {place}")),
            _ => Some(format!("{} more warnings are {place}", thousands(hidden))),
        }
    }

    /// The list for the end of a run; empty without warnings.
    pub(super) fn summary(&self) -> Vec<String> {
        if self.count == 0 {
            return Vec::new();
        }
        let warnings = if self.count == 1 { "warning" } else { "warnings" };
        let mut lines = vec![format!("{} {warnings}:", thousands(self.count))];
        for (text, times) in &self.listed {
            let times = if *times > 1 { format!(" ({} times)", thousands(*times)) } else { String::new() };
            lines.push(format!("  - {text}{times}"));
        }
        lines.extend(self.hidden().map(|hidden| format!("  - {hidden}")));
        lines
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_warnings_is_counted_and_the_first_ones_are_listed() {
        let mut log = WarningLog::new(None);
        assert!(log.summary().is_empty());
        assert!(log.add("same"));
        assert!(!log.add("same"), "shown once");
        assert_eq!(log.summary(), ["2 warnings:", "  - same (2 times)"]);
        let shown = (0..1_500).filter(|at| log.add(&format!("image {at}"))).count();
        assert_eq!((shown, log.count()), (9, 1_502));
        let summary = log.summary();
        assert_eq!((summary.len(), summary[0].as_str()), (12, "1,502 warnings:"));
        assert_eq!(summary[11], "  - 1,491 more warnings are not shown");
    }
}
