//! What a person sees while something runs: one line that moves on a terminal, plain lines elsewhere.

mod bar;
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

use bar::Part;
use lines::spelled;
use warnings::WarningLog;
use watcher::Watcher;

/// Time between plain lines about work that is not training.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Least time between plain lines of one kind: with small models and few images, steps and epochs are over in no time.
const LEAST: Duration = Duration::from_secs(1);

/// The same for lines about epochs above a bar.
const EPOCH_LEAST: Duration = Duration::from_secs(3);

/// Columns of the names in front of what is told at the start of a run, in the header and here.
pub const NAMES: usize = 13;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
    Quiet,
}

/// What is known of a running stage.
#[derive(Debug, Default)]
struct Training {
    stage: &'static str,
    step: u64,
    total: u64,
    epoch: u64,
    steps_per_epoch: u64,
    /// The last loss that was told.
    loss: Option<f64>,
    per_second: Option<f64>,
    eta_seconds: Option<f64>,
    /// What the run waited for when it was last looked at.
    bottleneck: Option<Bottleneck>,
}

impl Training {
    /// `epoch 3/10`.
    fn epoch(&self) -> String {
        let epochs = self.total.div_ceil(self.steps_per_epoch.max(1));
        format!("epoch {}/{}", thousands(self.epoch + 1), thousands(epochs.max(self.epoch + 1)))
    }

    fn left(&self) -> Option<String> {
        self.eta_seconds.map(|eta| format!("{} left", format_duration(eta)))
    }

    /// For the bar.
    fn line(&self) -> String {
        let parts = [
            Some(Part::new(5, self.epoch())),
            self.loss.map(|loss| Part::new(1, format!("loss {}", metric("loss", loss)))),
            self.per_second.map(|pace| Part::new(2, speed(pace))),
            self.left().map(|left| Part::new(0, left)),
            self.bottleneck.map(|bottleneck| {
                // What holds a run up is worth more than the epoch; that the device computes is as it should be.
                Part::new(if bottleneck == Bottleneck::Device { 6 } else { 3 }, bottleneck.to_string())
            }),
        ];
        bar::line(self.stage, (self.step, self.total), parts.into_iter().flatten().collect(), bar::columns())
    }
}

/// What is known of other work.
#[derive(Debug)]
struct Work {
    what: String,
    since: Instant,
    /// Done when it was first told of.
    before: u64,
    last_line: Option<Instant>,
}

impl Work {
    /// For the bar.
    fn line(&self, done: u64, total: u64) -> String {
        let seconds = self.since.elapsed().as_secs_f64();
        let pace = (done > self.before && seconds > 0.0).then(|| (done - self.before) as f64 / seconds);
        let left = pace.map(|pace| format_duration(total.saturating_sub(done) as f64 / pace));
        let parts = [
            pace.map(|pace| Part::new(2, format!("{}/s", metric("", pace)))),
            left.map(|left| Part::new(1, format!("{left} left"))),
        ];
        bar::line(&self.what, (done, total), parts.into_iter().flatten().collect(), bar::columns())
    }
}

/// Shows events on stderr.
pub struct Progress {
    style: Style,
    bar: ProgressBar,
    training: Option<Training>,
    /// Other work than training, while it goes on.
    work: Option<Work>,
    /// When plain lines about steps and about epochs were last shown, and the one that was held back since.
    last_step: Option<Instant>,
    last_epoch: Option<Instant>,
    last_save: Option<Instant>,
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
        let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
        let style = match (output.quiet, std::io::stderr().is_terminal() && !dumb) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let lines = style == Style::Lines;
        let watcher = (style != Style::Quiet).then(|| Watcher::start(signals, bar.clone(), lines));
        Self {
            style,
            bar,
            training: None,
            work: None,
            last_step: None,
            last_epoch: None,
            last_save: None,
            held_back: None,
            log: WarningLog::new(log),
            watcher,
        }
    }

    /// Takes the bar away and says which warnings were not shown.
    pub fn close(&mut self) {
        self.end_lines();
        if let Some(hidden) = self.log.hidden() {
            output::warning(&hidden);
        }
    }

    /// Takes the bar away and lists the warnings of the run.
    pub fn close_run(&mut self) -> RunWarnings {
        self.end_lines();
        match self.style {
            Style::Quiet => self.close(),
            _ => self.log.summary().iter().for_each(|line| output::note(line)),
        }
        RunWarnings {
            count: self.log.count(),
            first: self.log.listed().to_vec(),
            log: self.log.path().cloned(),
        }
    }

    fn end_lines(&mut self) {
        self.bar.finish_and_clear();
        self.watcher.take();
        if let Some(text) = self.held_back.take() {
            self.line(&text);
        }
    }

    /// Tells something that is neither a result nor a warning.
    pub fn note(&self, text: &str) {
        if self.style != Style::Quiet {
            self.line(text);
        }
    }

    /// Takes note of a warning that was shown before there was a run.
    pub fn told(&mut self, warning: &str) {
        self.log.add(warning);
    }

    /// A line of its own, above the bar.
    fn line(&self, text: &str) {
        self.bar.suspend(|| output::note(text));
    }

    /// Makes this the line that moves.
    fn show(&mut self, line: String) {
        if self.bar.is_hidden() || self.bar.is_finished() {
            self.bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            // A template that does not parse would be a mistake in this file; the default bar still works.
            let style =
                ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar.set_style(style);
            // Lines that come within a fifth of a second of another are drawn later.
            self.bar.enable_steady_tick(Duration::from_millis(500));
            if let Some(watcher) = &self.watcher {
                watcher.follow(&self.bar);
            }
        }
        self.bar.set_message(line);
    }

    fn show_training(&mut self) {
        if self.style == Style::Bar
            && let Some(training) = &self.training
        {
            let line = training.line();
            self.show(line);
        }
    }

    fn started(&mut self, training: Training, summary: &[(String, String)], resumed: Option<u64>) {
        self.log.begin();
        if self.style != Style::Quiet {
            // The header has told the images and the schedule.
            let told = |name: &str| ["images", "schedule"].contains(&name);
            for (name, value) in summary.iter().filter(|(name, _)| !told(name)) {
                self.line(&format!("{name:NAMES$}  {value}"));
            }
            if let Some(step) = resumed {
                let left = training.left().map(|left| format!(", about {left}")).unwrap_or_default();
                let total = thousands(training.total);
                self.line(&format!("{:NAMES$}  at step {} of {total}{left}", "continues", thousands(step)));
            }
        }
        (self.training, self.work) = (Some(training), None);
        self.show_training();
    }

    /// A plain line about the last step: always at the end, else not too often.
    fn step_line(&mut self, values: &[(String, f64)]) {
        let Some(training) = &self.training else { return };
        let soon = self.last_step.is_some_and(|at| at.elapsed() < LEAST);
        if soon && training.step < training.total {
            return;
        }
        let at = format!("step {}/{}", thousands(training.step), thousands(training.total));
        let parts = [
            Some(at),
            Some(training.epoch()),
            Some(spelled(training.stage, values)),
            training.per_second.map(speed),
            training.left(),
            training.bottleneck.map(|bottleneck| bottleneck.to_string()),
        ];
        self.line(&parts.into_iter().flatten().collect::<Vec<_>>().join("  "));
        self.last_step = Some(Instant::now());
    }

    fn values(&mut self, values: &[(String, f64)]) {
        if let (Some(training), Some((_, loss))) =
            (&mut self.training, values.iter().find(|(name, _)| name == "loss"))
        {
            training.loss = Some(*loss);
        }
        if self.style == Style::Lines && !values.is_empty() {
            self.step_line(values);
        }
        self.show_training();
    }

    fn watched(&self, tell: impl FnOnce(&Watcher)) {
        if let Some(watcher) = &self.watcher {
            tell(watcher);
        }
    }

    fn epoch(&mut self, text: String) {
        let least = if self.style == Style::Bar { EPOCH_LEAST } else { LEAST };
        if self.last_epoch.is_some_and(|at| at.elapsed() < least) {
            self.held_back = Some(text);
            return;
        }
        self.held_back = None;
        self.last_epoch = Some(Instant::now());
        self.line(&text);
    }

    fn part(&mut self, what: String, done: u64, total: u64) {
        let work = match &mut self.work {
            Some(work) if work.what == what => work,
            work => work.insert(Work { what, since: Instant::now(), before: done, last_line: None }),
        };
        match self.style {
            Style::Quiet => {}
            Style::Bar => {
                let line = work.line(done, total);
                self.show(line);
            }
            Style::Lines => {
                // Evaluations that are over in no time would come between the epochs' lines.
                let training = self.training.is_some();
                let due = match work.last_line {
                    Some(at) => at.elapsed() >= LINE_EVERY,
                    None => !training || work.since.elapsed() >= LINE_EVERY,
                };
                if due || (done >= total && (!training || work.last_line.is_some())) {
                    work.last_line = Some(Instant::now());
                    let text = format!("{}  {}/{}", work.what, thousands(done), thousands(total));
                    self.line(&text);
                }
            }
        }
        if done >= total {
            self.work = None;
            match self.training {
                Some(_) => self.show_training(),
                None => self.bar.finish_and_clear(),
            }
        }
    }
}

/// The warnings of a run, for its end.
#[derive(Debug, Clone, Default)]
pub struct RunWarnings {
    /// How many there were.
    pub count: u64,
    /// The first different ones, each with how often it came.
    pub first: Vec<(String, u64)>,
    /// The file that holds all of them.
    pub log: Option<PathBuf>,
}

impl Observer for Progress {
    fn event(&mut self, event: Event) {
        let talks = self.style != Style::Quiet;
        match event {
            Event::Started { stage, summary, total_steps, steps_per_epoch, resumed_at, eta_seconds } => {
                let step = resumed_at.unwrap_or(0);
                let training = Training {
                    stage,
                    step,
                    total: total_steps,
                    epoch: step.min(total_steps.saturating_sub(1)) / steps_per_epoch.max(1),
                    steps_per_epoch,
                    eta_seconds,
                    ..Training::default()
                };
                self.started(training, &summary, resumed_at);
            }
            Event::Step { step, epoch, images_per_second, eta_seconds, values, bottleneck, .. } => {
                if let Some(training) = &mut self.training {
                    (training.step, training.epoch) = (step, epoch);
                    (training.per_second, training.eta_seconds) = (images_per_second, eta_seconds);
                    training.bottleneck = bottleneck.or(training.bottleneck);
                }
                self.values(&values);
                self.watched(|watcher| watcher.stepped(true));
            }
            Event::Steps(step) => self.watched(|watcher| watcher.steps(step)),
            Event::Averages(values) => self.values(&values),
            Event::Epoch { step, steps_per_epoch, best, values, .. } if talks => {
                let Some(training) = &self.training else { return };
                let at = match step.is_multiple_of(steps_per_epoch) {
                    _ if step == 0 => "start".to_owned(),
                    true => training.epoch(),
                    // An evaluation or the end within an epoch.
                    false => format!("step {}", thousands(step)),
                };
                let best = if best { "  best" } else { "" };
                let done = if step > 0 && step.is_multiple_of(steps_per_epoch) { " done" } else { "" };
                self.epoch(format!("{at}{done}  {}{best}", spelled(training.stage, &values)));
                self.watched(|watcher| watcher.stepped(false));
            }
            Event::Progress { what, done, total } => {
                self.part(what, done, total);
                self.watched(|watcher| watcher.stepped(false));
            }
            Event::Warning(text) => {
                if self.log.add(&text) {
                    self.bar.suspend(|| output::warning(&text));
                }
            }
            Event::Note(text) => self.note(&text),
            // On a terminal the bar tells the step, and a line for every checkpoint would push the rest away. Elsewhere a
            // fast run would do so too.
            Event::Checkpoint(path) if self.style == Style::Lines => {
                let soon = self.last_save.is_some_and(|at| at.elapsed() < LEAST);
                let over = self.training.as_ref().is_none_or(|training| training.step >= training.total);
                if !soon || over {
                    self.last_save = Some(Instant::now());
                    self.line(&format!("saved {}", path.display()));
                }
            }
            Event::Finished { .. } => {
                self.watched(|watcher| watcher.ended());
                self.bar.finish_and_clear();
                (self.training, self.work) = (None, None);
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

    fn started(stage: &'static str, total_steps: u64) -> Event {
        let (summary, resumed_at, eta_seconds) = (Vec::new(), None, None);
        Event::Started { stage, summary, total_steps, steps_per_epoch: 3, resumed_at, eta_seconds }
    }

    #[test]
    fn warnings_wait_for_the_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let flags = OutputArgs { quiet: true, json: false };
        let mut progress = Progress::of_run(flags, &Signals::default(), &run);
        progress.event(Event::Warning("early".into()));
        assert!(!run.exists());
        std::fs::create_dir(&run).unwrap();
        progress.event(started("x", 1));
        progress.event(Event::Warning("late\nlines".into()));
        progress.close();
        let text = std::fs::read_to_string(run.join("warnings.log")).unwrap();
        let words: Vec<&str> = text.lines().filter_map(|line| line.split("UTC  ").nth(1)).collect();
        assert_eq!(words, ["early", "late lines"]);
    }
}
