//! What is told when a run has ended.

use std::path::{Path, PathBuf};

use beit2::train::Outcome;
use beit2_run::best::{Best, Score, Split};
use beit2_run::metrics::read_jsonl;
use beit2_run::{checkpoint, format_duration, thousands};
use serde_json::{Value, json};

use super::inputs::Inputs;
use super::provenance::continue_command;
use crate::display::{metric, speed};
use crate::errors::Ending;
use crate::flags::OutputArgs;
use crate::progress::RunWarnings;
use crate::{output, report};

/// A run that has ended.
pub(super) struct Ended<'a> {
    pub(super) stage: &'a str,
    pub(super) dir: &'a Path,
    pub(super) outcome: &'a Outcome,
    pub(super) inputs: &'a Inputs,
    pub(super) warnings: &'a RunWarnings,
    /// The command that comes next; of complete runs.
    pub(super) next: Option<String>,
    /// Whether this is the result of the command.
    pub(super) is_last: bool,
}

impl Ended<'_> {
    /// Writes the report and tells what came of the run.
    pub(super) fn tell(&self, output: OutputArgs) -> anyhow::Result<Ending> {
        let Self { dir, outcome, .. } = self;
        let report = match report::write(dir) {
            // There is nothing to report.
            _ if outcome.step == 0 => None,
            Ok(path) => Some(path),
            // The run is what counts, and it is saved.
            Err(error) => {
                output::warning(&format!("the report was not written: {error:#}"));
                None
            }
        };
        let records = read_jsonl(&dir.join("metrics.jsonl")).map(|found| found.records).unwrap_or_default();
        let settings = report::settings(dir).unwrap_or_default();
        let best = beit2_run::best(self.stage, &records, report::followed(&settings));
        let again = continue_command();
        if outcome.step == 0 {
            output::note(&format!(
                "stopped in the first step, with nothing to save yet; begin again with: {again}"
            ));
        } else if !outcome.complete {
            output::note(&format!(
                "stopped after step {} and saved in {}; continue with: {again}",
                thousands(outcome.step),
                outcome.checkpoint.display()
            ));
        }
        if !self.is_last && outcome.complete {
            if !output.quiet {
                output::note(output::pairs(&self.rows(best.as_ref(), report)).trim_end());
            }
        } else if output.json {
            output::json(&self.json(best.as_ref(), report.as_deref(), &again))?;
        } else if outcome.complete {
            output::result(&output::pairs(&self.rows(best.as_ref(), report)))?;
        }
        Ok(if outcome.complete { Ending::Done } else { Ending::Stopped })
    }

    fn per_second(&self) -> Option<f64> {
        let Outcome { seconds, images, .. } = *self.outcome;
        (seconds > 0.0).then(|| images as f64 / seconds)
    }

    /// `best`, where it is a checkpoint.
    fn best_checkpoint(&self) -> Option<PathBuf> {
        checkpoint::best(self.dir).map(|_| self.dir.join("best"))
    }

    fn rows(&self, best: Option<&Best>, report: Option<PathBuf>) -> Vec<(&'static str, String)> {
        let outcome = self.outcome;
        let pace = self.per_second().map(|pace| format!(", {}", speed(pace))).unwrap_or_default();
        let took = format_duration(outcome.seconds);
        let mut rows = vec![("done", format!("{} steps in {took}{pace}", thousands(outcome.step)))];
        if let Some(found) = best {
            let of = |score: &Score| format!("{} {}", found.label, metric(&score.name, score.value));
            let at =
                |score: &Score| format!("epoch {} (step {})", thousands(score.epoch), thousands(score.step));
            match found.split {
                Split::Validation | Split::Monitored => {
                    let place = self.best_checkpoint().map(|path| format!(": {}", path.display()));
                    let place = place.unwrap_or_default();
                    rows.push((
                        "best",
                        format!("{} {} in {}{place}", found.split, of(&found.best), at(&found.best)),
                    ));
                    rows.push((
                        "last",
                        format!("{} {} in {}", found.split, of(&found.last), at(&found.last)),
                    ));
                }
                Split::Training => {
                    rows.push((
                        "last",
                        format!("training {} (there are no validation images)", of(&found.last)),
                    ));
                }
            }
        }
        rows.push(("weights", outcome.checkpoint.join("model.safetensors").display().to_string()));
        rows.extend(report.map(|path| ("report", path.display().to_string())));
        rows.extend(self.next.clone().map(|next| ("next", next)));
        rows
    }

    fn json(&self, best: Option<&Best>, report: Option<&Path>, again: &str) -> Value {
        let outcome = self.outcome;
        let score = |score: &Score| json!({ "metric": score.name, "value": score.value, "epoch": score.epoch, "step": score.step });
        let validated = best.filter(|best| best.split != Split::Training);
        let best_value = validated.map(|found| {
            let mut value = score(&found.best);
            value["checkpoint"] = json!(self.best_checkpoint());
            value
        });
        let warnings: Vec<Value> =
            self.warnings.first.iter().map(|(text, times)| json!({ "text": text, "times": times })).collect();
        json!({
            "run": self.dir,
            "complete": outcome.complete,
            "steps": outcome.step,
            "images": outcome.images,
            "seconds": outcome.seconds,
            "images_per_second": self.per_second(),
            "checkpoint": (outcome.step > 0).then_some(&outcome.checkpoint),
            "report": report,
            "metrics": report::last_epoch(self.dir),
            "best": best_value,
            "last": best.map(|best| score(&best.last)),
            "warnings": {
                "count": self.warnings.count,
                "first": warnings,
                "log": self.warnings.log,
            },
            "account": self.inputs.accounts_json(),
            "next": self.next,
            "continue": (!outcome.complete).then_some(again),
        })
    }
}
