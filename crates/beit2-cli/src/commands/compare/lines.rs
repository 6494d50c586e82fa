//! The lines of the table of results.

use beit2_run::best::{Best, Better, Score, Split};
use beit2_run::report::{Line, metric_title};
use beit2_run::{Kind, Record, format_duration, thousands};

use super::side::{Part, Side};
use crate::display::{metric, speed};
use crate::report::NO_RESULTS;

/// Lines about metrics.
pub struct Metrics {
    pub lines: Vec<Line>,
    /// The runs with the best value of the metric that counts.
    pub winners: Vec<usize>,
    /// That not the same metric counts in all runs.
    pub warning: Option<String>,
}

/// The best and the last value of the metric that counts, then the other metrics of the last epoch. The best values are
/// marked only where they are comparable.
pub fn results(sides: &[Side], comparable: bool) -> Metrics {
    let mut kinds: Vec<(&'static str, Split, Better)> = Vec::new();
    for best in sides.iter().filter_map(|side| side.best.as_ref()) {
        let kind = (best.label, best.split, best.better);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let (mut lines, mut winners, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for &(label, split, better) in &kinds {
        let of_kind = |side: &'_ Side| -> Option<Best> {
            side.best.clone().filter(|best| (best.label, best.split) == (label, split))
        };
        let found: Vec<Option<Best>> = sides.iter().map(of_kind).collect();
        let line = |which: &str, score: fn(&Best) -> &Score| {
            let values: Vec<Option<f64>> =
                found.iter().map(|best| best.as_ref().map(|best| score(best).value)).collect();
            let cell = |best: &Best| {
                let Score { name, value, epoch, step, .. } = score(best);
                let average = if name.starts_with("ema_") { ", moving average" } else { "" };
                let at = if *epoch > 0 { format!("epoch {epoch}") } else { format!("step {step}") };
                format!("{} ({at}{average})", metric(name, *value))
            };
            let cells = found.iter().map(|best| best.as_ref().map(cell)).collect();
            let best = if comparable { winners_of(&values, better) } else { Vec::new() };
            Line { label: format!("{which} {label}, {split}"), cells, best }
        };
        let best = line("Best", |best| &best.best);
        if kinds.len() == 1 {
            winners.clone_from(&best.best);
        }
        lines.extend([best, line("Last", |best| &best.last)]);
        told.extend(found.iter().flatten().map(|best| best.last.name.clone()));
    }
    lines.extend(last_epoch(sides, &told, comparable));
    let warning = (kinds.len() > 1).then(|| {
        let kind = |side: &Side| match &side.best {
            Some(best) => format!("{}: {}, {}", side.name, best.label, best.split),
            None => format!("{}: nothing yet", side.name),
        };
        format!(
            "not the same metric counts in all runs ({})",
            sides.iter().map(kind).collect::<Vec<_>>().join("; ")
        )
    });
    Metrics { lines, winners, warning }
}

/// Metrics of the last epoch that are not `told` yet.
fn last_epoch(sides: &[Side], told: &[String], comparable: bool) -> Vec<Line> {
    let last = |side: &'_ Side| -> Option<Record> {
        side.stage.records.iter().rev().find(|record| record.kind == Kind::Epoch).cloned()
    };
    let records: Vec<Option<Record>> = sides.iter().map(last).collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in records.iter().flatten().flat_map(|record| &record.values) {
        if !names.contains(&name.as_str()) && !NO_RESULTS.contains(&name.as_str()) && !told.contains(name) {
            names.push(name);
        }
    }
    let line = |name: &&str| {
        let (title, side) = metric_title(name);
        let values: Vec<Option<f64>> =
            records.iter().map(|record| record.as_ref().and_then(|record| record.get(name))).collect();
        let cells = values.iter().map(|value| value.map(|value| metric(name, value))).collect();
        // A low loss on training images is no merit by itself.
        let judged = comparable && side != "training";
        let best = match better(name).filter(|_| judged) {
            Some(better) => winners_of(&values, better),
            None => Vec::new(),
        };
        Line { label: format!("{title}, {side}"), cells, best }
    };
    names.iter().map(line).collect()
}

/// Which values of a metric are better, where that is known.
fn better(name: &str) -> Option<Better> {
    let has = |word: &str| name.contains(word);
    match () {
        () if has("loss") => Some(Better::Lower),
        () if has("acc") || has("map") || has("miou") || has("usage") || has("perplexity") => {
            Some(Better::Higher)
        }
        () => None,
    }
}

/// The runs with the best value; none where there is only one value, or all are equal.
fn winners_of(values: &[Option<f64>], better: Better) -> Vec<usize> {
    let known: Vec<(usize, f64)> = values
        .iter()
        .enumerate()
        .filter_map(|(at, value)| Some((at, value.filter(|value| value.is_finite())?)))
        .collect();
    let pick = |a: f64, b: f64| match better {
        Better::Lower => a.min(b),
        Better::Higher => a.max(b),
    };
    let Some(best) = known.iter().map(|(_, value)| *value).reduce(pick) else { return Vec::new() };
    let winners: Vec<usize> = known.iter().filter(|(_, value)| *value == best).map(|(at, _)| *at).collect();
    if known.len() < 2 || winners.len() == known.len() { Vec::new() } else { winners }
}

/// Length, speed, machine and data.
pub fn others(sides: &[Side]) -> Vec<Line> {
    let line = |label: &str, cell: &dyn Fn(&Side) -> Option<String>| Line {
        label: label.to_owned(),
        cells: sides.iter().map(cell).collect(),
        best: Vec::new(),
    };
    let mut lines = vec![
        line("Steps", &|side| side.steps().map(thousands)),
        line("Training time", &|side| side.stage.seconds.map(format_duration)),
        line("Speed", &|side| side.stage.images_per_second.map(speed)),
    ];
    for (label, key) in [("Device", "device"), ("Processor", "cpu"), ("Threads", "threads")] {
        let machine =
            line(label, &|side| Some(side.text(&format!("environment.{key}"))).filter(|t| !t.is_empty()));
        if machine.cells.windows(2).any(|pair| pair[0] != pair[1]) {
            lines.push(machine);
        }
    }
    for (label, part) in [
        ("Training images", Part::Train),
        ("Validation images", Part::Validation),
        ("Weights", Part::Weights),
    ] {
        let equal = match Side::agree(sides, part) {
            Some(true) => "equal",
            Some(false) => "different",
            None => continue,
        };
        let label = format!("{label} ({equal})");
        lines.push(line(&label, &|side| Some(side.spec(part)).filter(|spec| !spec.is_empty())));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_marked_where_there_is_one() {
        let some = |values: &[f64]| values.iter().map(|value| Some(*value)).collect::<Vec<_>>();
        assert_eq!(winners_of(&some(&[0.5, 0.7, 0.7]), Better::Higher), [1, 2]);
        assert_eq!(winners_of(&some(&[0.5, 0.7]), Better::Lower), [0]);
        assert!(winners_of(&some(&[0.5, 0.5]), Better::Lower).is_empty(), "a draw");
        assert!(winners_of(&[Some(0.5), None, Some(f64::NAN)], Better::Lower).is_empty(), "alone");
        assert!(better("codebook_dead").is_none());
    }
}
