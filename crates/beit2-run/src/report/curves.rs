//! From a stage's records to its charts: which metrics share a chart, in which order, on which scale.

use std::fmt::Write;

use super::Stage;
use super::axis::number;
use super::chart::{Chart, Series};
use super::html::{Page, escape};
use crate::format::format_duration;
use crate::format::thousands;
use crate::metrics::{Kind, Record};

/// Metrics that are read together.
struct Family {
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
const FAMILIES: [Family; 11] = [
    Family { words: &["loss"], nature: Nature::Size },
    Family {
        words: &[
            "accuracy", "acc", "acc1", "acc5", "top1", "top5", "map", "knn", "probe", "miou", "macc", "aacc",
        ],
        nature: Nature::Fraction,
    },
    Family { words: &["rank", "uniformity", "drift"], nature: Nature::Count },
    Family { words: &["usage"], nature: Nature::Fraction },
    Family { words: &["perplexity"], nature: Nature::Count },
    Family { words: &["dead", "unused"], nature: Nature::Count },
    Family { words: &["grad", "gradient"], nature: Nature::Size },
    Family { words: &["lr"], nature: Nature::Schedule },
    Family { words: &["wd", "decay"], nature: Nature::Schedule },
    Family { words: &["throughput", "images"], nature: Nature::Count },
    Family { words: &["wait"], nature: Nature::Fraction },
];

/// Quantities whose names in the records do not read well.
const TITLES: [(&str, &str); 26] = [
    ("loss", "Loss"),
    ("loss_1", "Loss, last block"),
    ("loss_2", "Loss, patch aggregation"),
    ("mim_loss", "MIM loss"),
    ("mim_acc", "MIM accuracy"),
    ("mim_acc_1", "MIM accuracy, last block"),
    ("mim_acc_2", "MIM accuracy, patch aggregation"),
    ("rec_loss", "Reconstruction loss"),
    ("decode_loss", "Loss of the decode head"),
    ("acc1", "Top-1 accuracy"),
    ("acc5", "Top-5 accuracy"),
    ("map", "mAP"),
    ("miou", "Mean IoU"),
    ("macc", "Mean accuracy of the classes"),
    ("aacc", "Pixel accuracy"),
    ("knn_top1", "k-NN accuracy"),
    ("cls_knn_top1", "k-NN accuracy of CLS"),
    ("effective_rank", "Effective rank of the features"),
    ("uniformity", "Uniformity of CLS (lower is more even)"),
    ("drift", "Drift of the features from the start"),
    ("top1_lost", "k-NN accuracy lost since the start"),
    ("codebook_dead", "Unused codes"),
    ("grad_norm", "Gradient norm"),
    ("lr", "Learning rate"),
    ("images_per_second", "Images per second"),
    ("data_wait", "Waiting for images"),
];

/// What a run does, rather than what it reaches.
const OF_RUNS: [&str; 3] = ["grad_norm", "images_per_second", "data_wait"];

/// What a metric measures, and on which images and weights: `ema_val_acc1` is the quantity `acc1`. The same quantity has
/// one chart.
fn quantity(name: &str) -> (&str, &'static str) {
    const SIDES: [(&str, &str); 4] = [
        ("ema_val_", "validation, moving average"),
        ("val_", "validation"),
        ("monitor_", "monitored images"),
        ("forgetting_", "images of before"),
    ];
    let of = |(prefix, side): (&str, &'static str)| Some((name.strip_prefix(prefix)?, side));
    let (base, side) = SIDES.into_iter().find_map(of).unwrap_or((name, "training"));
    // What training counts under another name.
    let base = match base {
        "class_acc" => "acc1",
        "pixel_acc" => "aacc",
        base => base,
    };
    (base, side)
}

/// What a metric of the records is called and measured on: `ema_val_acc1` is `Top-1 accuracy` on
/// `validation, moving average`.
pub fn metric_title(name: &str) -> (String, &'static str) {
    let (base, side) = quantity(name);
    (title(base), side)
}

/// The quantity that a number at the end tells apart, such as `loss` for `loss_1` and `loss_2`: such charts have equal
/// axes. So have top-1 and top-5 accuracy.
fn pair(base: &str) -> &str {
    match base {
        "acc1" | "acc5" => "acc",
        "miou" | "macc" | "aacc" => "segmentation",
        // Not the name without the number, which may be that of the sum.
        _ if base.ends_with("_1") || base.ends_with("_2") => &base[..base.len() - 1],
        _ => base,
    }
}

/// The title of a quantity's chart.
fn title(base: &str) -> String {
    let known = TITLES.iter().find(|(name, _)| *name == base).map(|(_, title)| (*title).to_owned());
    known.unwrap_or_else(|| {
        let text = base.replace('_', " ");
        let mut chars = text.chars();
        chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
    })
}

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

/// The charts of a stage, and the metrics that never changed (name and value), which need no chart. Training and
/// validation of a quantity share a chart.
fn charts(records: &[Record]) -> (Vec<Chart>, Vec<(String, f64)>) {
    let mut found: Vec<Group> = Vec::new();
    for (name, series) in all_series(records) {
        let (base, side) = quantity(&name);
        let series = Series { name: side.to_owned(), ..series };
        match found.iter_mut().find(|group| group.base == base) {
            Some(group) => group.series.push(series),
            None => found.push(Group { base: base.to_owned(), title: title(base), series: vec![series] }),
        }
    }
    let mut constant = Vec::new();
    found.retain(|group| {
        let value = constant_value(&group.series);
        constant.extend(value.map(|value| (group.base.replace('_', " "), value)));
        value.is_none()
    });
    (arrange(found, x_label(records)), constant)
}

/// The charts of several runs, named by `names`: one for each metric, with a line for each run that has it.
pub(super) fn overlaid(names: &[String], records: &[&[Record]]) -> Vec<Chart> {
    let mut found: Vec<Group> = Vec::new();
    for (run, records) in names.iter().zip(records) {
        for (name, series) in all_series(records) {
            let (base, side) = quantity(&name);
            // A pace or a setting is the run's, not measured on images.
            let of_run = nature(base) == Nature::Schedule || OF_RUNS.contains(&base);
            let title = if of_run { title(base) } else { format!("{}, {side}", title(base)) };
            let series = Series { name: run.clone(), ..series };
            match found.iter_mut().find(|group| group.title == title) {
                Some(group) => group.series.push(series),
                None => found.push(Group { base: base.to_owned(), title, series: vec![series] }),
            }
        }
    }
    found.retain(|group| constant_value(&group.series).is_none());
    arrange(found, records.iter().find(|records| !records.is_empty()).map_or("step", |one| x_label(one)))
}

/// Series that share a chart.
struct Group {
    base: String,
    title: String,
    series: Vec<Series>,
}

/// The value of series that have one value throughout, over more than a point.
fn constant_value(series: &[Series]) -> Option<f64> {
    let mut points = series.iter().flat_map(|series| series.points.iter().map(|point| point.1));
    let first = points.next()?;
    let longer = series.iter().any(|series| series.points.len() > 1);
    (longer && points.all(|value| value == first)).then_some(first)
}

/// One chart for each quantity, in the order of the page. All have the same horizontal axis, and those that belong
/// together the same vertical one.
fn arrange(mut found: Vec<Group>, x_label: &str) -> Vec<Chart> {
    found.sort_by_key(|group| family(&group.base).unwrap_or(FAMILIES.len()));
    let points = |group: &'_ Group| -> Vec<(f64, f64)> {
        group.series.iter().flat_map(|series| series.points.iter().copied()).collect()
    };
    let x = range(found.iter().flat_map(points).map(|point| point.0));
    let chart = |group: &Group| {
        let together = found.iter().filter(|other| pair(&other.base) == pair(&group.base));
        let y = range(together.flat_map(points).map(|point| point.1));
        let (low, high) = y.unwrap_or((0.0, 0.0));
        let nature = nature(&group.base);
        Chart {
            title: group.title.clone(),
            x_label: x_label.to_owned(),
            series: group.series.clone(),
            // From a factor of fifty on, the smaller half of the values would lie on the axis.
            log: nature == Nature::Size && low > 0.0 && high / low > 50.0,
            percent: nature == Nature::Fraction && low >= 0.0 && high <= 1.0,
            x,
            y,
        }
    };
    found.iter().map(chart).collect()
}

/// The lowest and the highest of the values that can be drawn.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
    })
}

/// What the horizontal axis counts.
fn x_label(records: &[Record]) -> &'static str {
    if has_steps(records) { "step" } else { "epoch" }
}

/// One series per metric, with the metric's name: from the step records, or from the epoch records where there are too
/// few of those.
fn all_series(records: &[Record]) -> Vec<(String, Series)> {
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
        let smooth = noisy && nature(name) != Nature::Schedule;
        let points = if noisy { steps } else { epochs };
        (name.to_owned(), Series { name: name.to_owned(), points, smooth })
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
    fn training_and_validation_of_a_quantity_share_a_chart() {
        let mut records: Vec<Record> = (1..=50)
            .map(|i| {
                let x = i as f64;
                let values =
                    [("loss", 5.0 / x), ("lr", x), ("class_acc", x / 100.0), ("wd", 0.05), ("mystery", x)];
                record(Kind::Step, i, &values)
            })
            .collect();
        let values = [("val_loss", 1.0), ("loss", 2.0), ("val_acc1", 0.9), ("ema_val_acc1", 0.8)];
        records.push(record(Kind::Epoch, 50, &values));
        let (charts, constant) = charts(&records);
        let titles: Vec<&str> = charts.iter().map(|c| c.title.as_str()).collect();
        assert_eq!(titles, ["Loss", "Top-1 accuracy", "Learning rate", "Mystery"]);
        let names = |at: usize| charts[at].series.iter().map(|s| s.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names(0), ["training", "validation"]);
        assert_eq!(names(1), ["training", "validation", "validation, moving average"]);
        assert_eq!(charts[0].series[0].points.len(), 50, "steps win over the single epoch");
        assert!(charts[1].percent && !charts[2].series[0].smooth);
        assert!(charts.iter().all(|chart| chart.x == Some((1.0, 50.0))));
        assert_eq!(constant, [("wd".to_owned(), 0.05)]);
    }

    #[test]
    fn pairs_have_equal_axes() {
        let values = |x: f64| {
            [
                ("loss_1", 3.0 * x),
                ("loss_2", 5.0 / x),
                ("mim_acc_1", 0.1 * x),
                ("mim_acc_2", 0.05 * x),
                ("loss", x),
            ]
        };
        let records: Vec<Record> = [1.0, 2.0].map(|x| record(Kind::Step, 10 * x as u64, &values(x))).to_vec();
        let (charts, _) = charts(&records);
        let y = |title: &str| charts.iter().find(|chart| chart.title == title).unwrap().y.unwrap();
        assert_eq!((y("Loss, last block"), y("Loss, patch aggregation")), ((2.5, 6.0), (2.5, 6.0)));
        assert_eq!(y("MIM accuracy, last block"), y("MIM accuracy, patch aggregation"));
        assert_eq!(y("Loss"), (1.0, 2.0), "the sum has an axis of its own");
    }

    #[test]
    fn families_are_found_by_whole_words() {
        assert_eq!(family("loss_cls"), Some(0));
        assert_eq!(family("glossy"), None);
        assert_eq!(family("effective_rank"), Some(2));
        assert_eq!(family("grad_norm"), Some(6));
        assert_eq!(family("images_per_second"), Some(9));
        assert_eq!(family("data_wait"), Some(10));
    }
}
