//! What a person sees while something runs: a bar on a terminal, plain lines elsewhere.

mod lines;
mod warnings;
mod watcher;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use beit2::train::{Bottleneck, Event, Observer};
use beit2_run::{format_duration, thousands};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::display::{metric, speed};
use crate::flags::OutputArgs;
use crate::output;
use crate::signals::Signals;

use lines::spelled;
use warnings::WarningLog;
use watcher::Watcher;

/// Warnings shown in full; all of them go to `warnings.log`.
const SHOWN_WARNINGS: usize = 10;

/// Seconds between plain lines about work that is not training.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Seconds between lines about epochs above a bar: with few images an epoch is over in no time.
const EPOCH_EVERY: Duration = Duration::from_secs(3);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
    Quiet,
}

/// Shows events on stderr.
pub struct Progress {
    style: Style,
    bar: ProgressBar,
    /// What the bar counts now.
    counting: String,
    /// The last loss, for the bar.
    loss: Option<f64>,
    /// What the run waited for when it was last looked at, for the bar.
    bottleneck: Option<Bottleneck>,
    last_line: Option<Instant>,
    /// When a line about an epoch was last shown, and the one that was held back since.
    last_epoch: Option<Instant>,
    held_back: Option<String>,
    log: WarningLog,
    watcher: Option<Watcher>,
}

impl Progress {
    /// Progress of a command that has no run directory: warnings are shown and not kept.
    pub fn new(output: OutputArgs, signals: &Signals) -> Self {
        Self::with_log(output, signals, None)
    }

    /// Progress of a run in `dir`, which keeps all warnings.
    pub fn of_run(output: OutputArgs, signals: &Signals, dir: &Path) -> Self {
        Self::with_log(output, signals, Some(dir.join("warnings.log")))
    }

    fn with_log(output: OutputArgs, signals: &Signals, log: Option<PathBuf>) -> Self {
        let style = match (output.quiet, std::io::stderr().is_terminal()) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let watcher = (style != Style::Quiet).then(|| Watcher::start(signals, bar.clone()));
        Self {
            style,
            bar,
            counting: String::new(),
            loss: None,
            bottleneck: None,
            last_line: None,
            last_epoch: None,
            held_back: None,
            log: WarningLog::new(log),
            watcher,
        }
    }

    /// Takes the bar away and says what was held back.
    pub fn close(&mut self) {
        self.bar.finish_and_clear();
        self.watcher.take();
        let hidden = self.log.count.saturating_sub(SHOWN_WARNINGS);
        if hidden > 0 {
            let place = match &self.log.path {
                Some(path) => format!("are in {}", path.display()),
                None => "are not shown".to_owned(),
            };
            output::note(&format!("warning: {} more warnings {place}", thousands(hidden as u64)));
        }
    }

    /// Tells something that is neither a result nor a warning.
    pub fn note(&self, text: &str) {
        if self.style != Style::Quiet {
            self.line(text);
        }
    }

    /// A line of its own, above the bar.
    fn line(&self, text: &str) {
        self.bar.suspend(|| output::note(text));
    }

    /// Points the bar at other work.
    fn count(&mut self, what: &str, total: u64, done: u64, template: &str) {
        if self.counting == what {
            return;
        }
        self.counting = what.to_owned();
        self.last_line = None;
        if self.style == Style::Bar {
            self.bar.finish_and_clear();
            // A template that does not parse would be a mistake in this file; the default bar still works.
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
            self.bar.set_style(style.progress_chars("━╸ "));
            self.bar.set_position(done);
            if let Some(watcher) = &self.watcher {
                watcher.follow(&self.bar);
            }
        }
    }

    fn started(&mut self, stage: &str, summary: &[(String, String)], total: u64, resumed: Option<u64>) {
        self.log.begin();
        if self.style != Style::Quiet {
            // The header has told the images and the schedule.
            let told = |name: &str| ["images", "schedule"].contains(&name);
            let rows: Vec<_> = summary.iter().filter(|(name, _)| !told(name)).collect();
            let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("settings".len());
            for (name, value) in rows {
                self.line(&format!("{name:width$}  {value}"));
            }
            if let Some(step) = resumed {
                self.line(&format!(
                    "{:width$}  at step {} of {}",
                    "continues",
                    thousands(step),
                    thousands(total)
                ));
            }
        }
        self.count(stage, total, resumed.unwrap_or(0), "{prefix} {bar:24} {human_pos}/{human_len}  {msg}");
        self.bar.set_prefix(stage.to_owned());
    }

    fn step(
        &mut self,
        step: u64,
        total: u64,
        epoch: u64,
        pace: (Option<f64>, Option<Bottleneck>, Option<f64>),
        values: &[(String, f64)],
    ) {
        if let Some((_, loss)) = values.iter().find(|(name, _)| name == "loss") {
            self.loss = Some(*loss);
        }
        let (per_second, bottleneck, eta) = pace;
        self.bottleneck = bottleneck.or(self.bottleneck);
        let eta = eta.map(|eta| format!("{} left", format_duration(eta)));
        let tail = [per_second.map(speed), self.bottleneck.map(|bottleneck| bottleneck.to_string()), eta];
        match self.style {
            Style::Quiet => {}
            Style::Bar => {
                let loss = self.loss.map(|loss| format!("loss {}", metric("loss", loss)));
                let parts = [Some(format!("epoch {}", epoch + 1)), loss].into_iter().chain(tail).flatten();
                self.bar.set_position(step);
                self.bar.set_message(parts.collect::<Vec<_>>().join("  "));
            }
            Style::Lines if values.is_empty() => {}
            Style::Lines => {
                let at = format!("step {}/{}  epoch {}", thousands(step), thousands(total), epoch + 1);
                let parts = [at, spelled(values)].into_iter().chain(tail.into_iter().flatten());
                self.line(&parts.collect::<Vec<_>>().join("  "));
            }
        }
    }

    fn epoch(&mut self, text: String) {
        let soon = self.last_epoch.is_some_and(|at| at.elapsed() < EPOCH_EVERY);
        if self.style == Style::Bar && soon {
            self.held_back = Some(text);
            return;
        }
        self.held_back = None;
        self.last_epoch = Some(Instant::now());
        self.line(&text);
    }

    fn part(&mut self, what: &str, done: u64, total: u64) {
        self.count(what, total, done, "{prefix} {bar:24} {human_pos}/{human_len}  {per_sec}, {eta} left");
        match self.style {
            Style::Quiet => {}
            Style::Bar => {
                self.bar.set_prefix(what.to_owned());
                self.bar.set_position(done);
                if done >= total {
                    self.bar.finish_and_clear();
                    self.counting.clear();
                }
            }
            Style::Lines => {
                let due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
                if due || done >= total {
                    self.last_line = Some(Instant::now());
                    self.line(&format!("{what}  {}/{}", thousands(done), thousands(total)));
                }
            }
        }
    }
}

impl Observer for Progress {
    fn event(&mut self, event: Event) {
        let talks = self.style != Style::Quiet;
        match event {
            Event::Started { stage, summary, total_steps, resumed_at } => {
                self.started(stage, &summary, total_steps, resumed_at);
            }
            Event::Step { step, total_steps, epoch, images_per_second, eta_seconds, values, bottleneck } => {
                let pace = (images_per_second, bottleneck, eta_seconds);
                self.step(step, total_steps, epoch, pace, &values);
            }
            Event::Epoch { epoch, values } if talks => {
                self.epoch(format!("epoch {epoch} done  {}", spelled(&values)));
            }
            Event::Progress { what, done, total } => self.part(&what, done, total),
            Event::Warning(text) => {
                self.log.add(&text);
                if self.log.count <= SHOWN_WARNINGS {
                    self.line(&format!("warning: {text}"));
                }
            }
            Event::Note(text) => self.note(&text),
            // On a terminal the bar tells the step, and a line for every checkpoint would push the rest away.
            Event::Checkpoint(path) if self.style == Style::Lines => {
                self.line(&format!("saved {}", path.display()));
            }
            Event::Finished { .. } => {
                self.bar.finish_and_clear();
                self.counting.clear();
                if let Some(text) = self.held_back.take() {
                    self.line(&text);
                }
            }
            Event::Epoch { .. } | Event::Checkpoint(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_wait_for_the_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let flags = OutputArgs { quiet: true, json: false };
        let mut progress = Progress::of_run(flags, &Signals::default(), &run);
        progress.event(Event::Warning("early".into()));
        assert!(!run.exists());
        std::fs::create_dir(&run).unwrap();
        progress.event(Event::Started { stage: "x", summary: vec![], total_steps: 1, resumed_at: None });
        progress.event(Event::Warning("late\nlines".into()));
        progress.close();
        let text = std::fs::read_to_string(run.join("warnings.log")).unwrap();
        let words: Vec<&str> = text.lines().filter_map(|line| line.split("UTC  ").nth(1)).collect();
        assert_eq!(words, ["early", "late lines"]);
    }
}
