//! From a stage's records to its charts: which metrics share a chart, in which order, on which scale.

use std::fmt::Write;

use super::Stage;
use super::axis::number;
use super::chart::{COLOURS, Chart, Series};
use super::html::{Page, escape};
use crate::format::format_duration;
use crate::format::thousands;
use crate::metrics::{Kind, Record};

/// Metrics that are read together.
struct Family {
    title: &'static str,
    /// A metric belongs here if its name has one of these words.
    words: &'static [&'static str],
    /// What its values are, which decides the axis.
    nature: Nature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// Noisy, and may span orders of magnitude.
    Size,
    /// Noisy, 0 to 1: shown as percent, never on a log axis.
    Fraction,
    /// A count or a speed: noisy, linear.
    Count,
    /// Set, not measured: smoothing would draw something that never was.
    Schedule,
}

/// The order is the order on the page.
const FAMILIES: [Family; 10] = [
    Family { title: "Loss", words: &["loss"], nature: Nature::Size },
    Family {
        title: "Accuracy",
        words: &["accuracy", "acc", "top1", "top5", "map", "knn", "probe", "miou", "macc", "aacc"],
        nature: Nature::Fraction,
    },
    Family { title: "Codebook usage", words: &["usage"], nature: Nature::Fraction },
    Family { title: "Codebook perplexity", words: &["perplexity"], nature: Nature::Count },
    Family { title: "Unused codes", words: &["dead", "unused"], nature: Nature::Count },
    Family { title: "Gradient norm", words: &["grad", "gradient"], nature: Nature::Size },
    Family { title: "Learning rate", words: &["lr"], nature: Nature::Schedule },
    Family { title: "Weight decay", words: &["wd", "decay"], nature: Nature::Schedule },
    Family { title: "Images per second", words: &["throughput", "images"], nature: Nature::Count },
    Family { title: "Waiting for images", words: &["wait"], nature: Nature::Fraction },
];

/// A section of charts per stage.
pub(super) fn stages(page: &mut Page, stages: &[Stage]) {
    for stage in stages {
        let mut html = String::new();
        let line = summary(stage);
        if !line.is_empty() {
            let _ = writeln!(html, "<p class=\"muted\">{line}</p>");
        }
        let (charts, constant) = charts(&stage.records);
        if charts.is_empty() && constant.is_empty() {
            html.push_str("<p class=\"empty\">No metrics were recorded in this stage.</p>\n");
        }
        if !charts.is_empty() {
            html.push_str("<div class=\"charts\">\n");
            for chart in charts {
                html.push_str(&chart.render());
            }
            html.push_str("</div>\n");
        }
        if !constant.is_empty() {
            let list: Vec<String> =
                constant.iter().map(|(name, value)| format!("{} {}", escape(name), number(*value))).collect();
            let _ = writeln!(html, "<p class=\"muted\">Constant throughout: {}.</p>", list.join(", "));
        }
        page.section(&format!("Stage: {}", stage.name), html);
    }
}

/// Steps, epochs, time and speed of a stage in a line.
fn summary(stage: &Stage) -> String {
    let mut parts = Vec::new();
    if let Some(last) = stage.records.last() {
        let count = |n: u64, unit: &str| format!("{} {unit}{}", thousands(n), if n == 1 { "" } else { "s" });
        parts.push(count(last.step, "step"));
        if last.epoch > 0 {
            parts.push(count(last.epoch, "epoch"));
        }
    }
    if let Some(seconds) = stage.seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
        parts.push(format_duration(seconds));
    }
    if let Some(speed) = stage.images_per_second.filter(|speed| speed.is_finite()) {
        parts.push(format!("{} images/s", number(speed)));
    }
    parts.join(" · ")
}

/// How many recorded values of a stage are not finite.
pub(super) fn not_finite(records: &[Record]) -> usize {
    records.iter().flat_map(|record| &record.values).filter(|(_, value)| !value.is_finite()).count()
}

/// The charts of a stage, and the metrics that never changed (name and value), which need no chart.
fn charts(records: &[Record]) -> (Vec<Chart>, Vec<(String, f64)>) {
    let mut families: Vec<(String, Vec<Series>)> =
        FAMILIES.iter().map(|family| (family.title.to_owned(), Vec::new())).collect();
    let mut constant = Vec::new();
    for series in all_series(records) {
        let first = series.points[0].1;
        if series.points.len() > 1 && series.points.iter().all(|p| p.1 == first) {
            constant.push((series.name, first));
            continue;
        }
        match family(&series.name) {
            Some(n) => families[n].1.push(series),
            None => families.push((series.name.clone(), vec![series])),
        }
    }
    let x_label = if has_steps(records) { "step" } else { "epoch" };
    let mut charts = Vec::new();
    for (title, series) in families {
        for part in series.chunks(COLOURS) {
            let nature = nature(&part[0].name);
            let title = match part {
                // Losses and accuracies differ by what they measure; one learning rate is the learning rate.
                [only] if matches!(nature, Nature::Size | Nature::Fraction) => only.name.replace('_', " "),
                _ => title.replace('_', " "),
            };
            let values = || part.iter().flat_map(|s| s.points.iter().map(|p| p.1)).filter(|v| v.is_finite());
            let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
            charts.push(Chart {
                title,
                x_label: x_label.to_owned(),
                series: part.to_vec(),
                // From a factor of fifty on, the smaller half of the values would lie on the axis.
                log: nature == Nature::Size && low > 0.0 && high / low > 50.0,
                percent: nature == Nature::Fraction && low >= 0.0 && high <= 1.0,
            });
        }
    }
    (charts, constant)
}

/// One series per metric: from the step records, or from the epoch records where there are too few of those.
fn all_series(records: &[Record]) -> Vec<Series> {
    let by_step = has_steps(records);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in records.iter().flat_map(|record| &record.values) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let points = |name: &str, kind: Kind| -> Vec<(f64, f64)> {
        let of_kind = records.iter().filter(|record| record.kind == kind);
        let mut points: Vec<(f64, f64)> = of_kind
            .filter_map(|r| Some((if by_step { r.step } else { r.epoch } as f64, r.get(name)?)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let series = names.into_iter().map(|name| {
        let (steps, epochs) = (points(name, Kind::Step), points(name, Kind::Epoch));
        let noisy = steps.len() >= epochs.len();
        Series {
            name: name.to_owned(),
            points: if noisy { steps } else { epochs },
            smooth: noisy && nature(name) != Nature::Schedule,
        }
    });
    series.collect()
}

/// What a metric's values are; unknown ones may be anything, which is what `Size` copes with.
fn nature(name: &str) -> Nature {
    family(name).map_or(Nature::Size, |n| FAMILIES[n].nature)
}

/// Whether the records can be told apart by their step.
fn has_steps(records: &[Record]) -> bool {
    records.iter().any(|record| record.step > 0)
}

/// The family that a name belongs to: the first one that has one of its words.
fn family(name: &str) -> Option<usize> {
    let lower = name.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).collect();
    FAMILIES.iter().position(|family| words.iter().any(|word| family.words.contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, step: u64, values: &[(&str, f64)]) -> Record {
        let values = values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        Record { kind, stage: "a".into(), epoch: step / 10, step, values }
    }

    #[test]
    fn related_metrics_share_a_chart() {
        let mut records: Vec<Record> = (1..=50)
            .map(|i| {
                let x = i as f64;
                let values =
                    [("loss", 5.0 / x), ("lr", x), ("mim_accuracy", x / 100.0), ("wd", 0.05), ("mystery", x)];
                record(Kind::Step, i, &values)
            })
            .collect();
        records.push(record(Kind::Epoch, 50, &[("val_loss", 1.0), ("loss", 2.0)]));
        let (charts, constant) = charts(&records);
        let titles: Vec<&str> = charts.iter().map(|c| c.title.as_str()).collect();
        assert_eq!(titles, ["Loss", "mim accuracy", "Learning rate", "mystery"]);
        let names: Vec<&str> = charts[0].series.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["loss", "val_loss"]);
        assert_eq!(charts[0].series[0].points.len(), 50, "steps win over the single epoch");
        assert!(charts[1].percent && !charts[2].series[0].smooth);
        assert_eq!(constant, [("wd".to_owned(), 0.05)]);
    }

    #[test]
    fn families_are_found_by_whole_words() {
        assert_eq!(family("loss_cls"), Some(0));
        assert_eq!(family("glossy"), None);
        assert_eq!(family("grad_norm"), Some(5));
        assert_eq!(family("images_per_second"), Some(8));
        assert_eq!(family("data_wait"), Some(9));
    }
}
