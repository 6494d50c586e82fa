//! What `data check` prints.

use beit2_data::check::{Duplicates, ImageReport, Spread};
use beit2_data::segment::DataReport;
use beit2_run::thousands;
use serde_json::{Value, json};

use super::check::{Checked, Found};
use crate::output;

/// Classes that are listed one by one on the terminal.
const LISTED: usize = 20;

/// One object.
pub(super) fn json(checked: &Checked) -> anyhow::Result<()> {
    let mut object = of_set(&checked.train);
    object["warnings"] = json!(checked.findings.warnings);
    object["errors"] = json!(checked.findings.errors);
    if let Some(val) = &checked.val {
        object["val"] = of_set(val);
    }
    if let Some(images) = &checked.images {
        object["decoded"] = json!(images);
    }
    output::json(&object)
}

fn of_set(set: &Found) -> Value {
    let mut object = json!({
        "data": set.spec,
        "used": set.account.used,
        "skipped": set.account.skipped,
        "classes": set.classes,
    });
    if let Some(sampled) = set.sampled {
        object["classes_counted_in"] = json!(sampled);
    }
    if let Some(masks) = &set.masks {
        object["masks"] = json!(masks);
    }
    object
}

/// Lines for people.
pub(super) fn text(checked: &Checked) -> anyhow::Result<()> {
    let mut text = String::new();
    for set in std::iter::once(&checked.train).chain(&checked.val) {
        text += &format!("{}: {}\n", set.spec, set.account);
        for (reason, skipped) in &set.account.skipped {
            let more = if skipped.count > skipped.names.len() { ", …" } else { "" };
            text += &format!("  {}: {}{more}\n", reason.words(skipped.count), skipped.names.join(", "));
        }
        text += &classes(set);
        text += &set.masks.as_ref().map_or_else(String::new, masks);
    }
    text += &checked.images.as_ref().map_or_else(String::new, images);
    for warning in &checked.findings.warnings {
        text += &format!("warning  {warning}\n");
    }
    for error in &checked.findings.errors {
        text += &format!("error    {error}\n");
    }
    output::result(&text)
}

fn classes(set: &Found) -> String {
    let (unit, all) = match (set.sampled, set.masks.is_some()) {
        (Some(sampled), _) => (format!("masks of a sample of {sampled}"), set.classes.len()),
        _ => ("images".to_owned(), set.classes.len()),
    };
    match set.masks.is_some() || all == 0 {
        true => String::new(),
        false => {
            let shown = set.classes.iter().take(LISTED);
            let mut rows: Vec<Vec<String>> =
                shown.map(|(name, &count)| vec![name.clone(), thousands(count)]).collect();
            if all > LISTED {
                rows.push(vec![format!("… {} more", all - LISTED), String::new()]);
            }
            output::table(&["class", &unit], &rows)
        }
    }
}

/// How many pixels and images each class has.
pub(in crate::commands) fn masks(report: &DataReport) -> String {
    let all: u64 = report.classes.iter().map(|class| class.pixels).sum::<u64>() + report.ignored_pixels;
    let share = |pixels: u64| format!("{:.2} %", 100.0 * pixels as f64 / all.max(1) as f64);
    let mut rows: Vec<Vec<String>> = report
        .classes
        .iter()
        .map(|class| vec![class.name.clone(), share(class.pixels), thousands(class.images)])
        .collect();
    rows.push(vec!["(no label)".into(), share(report.ignored_pixels), String::new()]);
    let mut text = output::table(&["class", "pixels", "images"], &rows);
    for warning in &report.warnings {
        text += &format!("warning  {warning}\n");
    }
    text
}

fn images(report: &ImageReport) -> String {
    let px = |spread: &Spread<u32>| format!("{} / {} / {}", spread.min, spread.median, spread.max);
    let counts = |pairs: Vec<(String, usize)>| {
        pairs
            .iter()
            .map(|(what, count)| format!("{what}: {}", thousands(*count as u64)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let list = |values: &[f64]| values.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(", ");
    let copies = |found: &Duplicates| match found.across {
        0 => thousands(found.extra as u64),
        across => format!(
            "{}, {} of them across training and validation",
            thousands(found.extra as u64),
            thousands(across as u64)
        ),
    };
    let Spread { min, median, max } = report.aspect;
    let mut rows = vec![
        ("decoded", thousands(report.checked as u64)),
        ("unreadable", thousands(report.unreadable.count as u64)),
        ("width", format!("{} px (min / median / max)", px(&report.width))),
        ("height", format!("{} px", px(&report.height))),
        ("aspect", format!("{min:.2} / {median:.2} / {max:.2}")),
        ("formats", counts(report.formats.iter().map(|(k, v)| (k.clone(), *v)).collect())),
        ("channels", counts(report.channels.iter().map(|(k, v)| (k.to_string(), *v)).collect())),
        ("bits", counts(report.bits.iter().map(|(k, v)| (k.to_string(), *v)).collect())),
        ("EXIF turned", thousands(report.orientation.values().sum::<usize>() as u64)),
        ("several pages", thousands(report.several_pages.count as u64)),
        ("small", format!("{} below {} px", thousands(report.small.count as u64), report.image_size)),
        ("one colour", thousands(report.constant.count as u64)),
        ("duplicates", copies(&report.duplicates)),
        ("near-duplicates", copies(&report.near_duplicates)),
    ];
    if !report.mean.is_empty() {
        rows.push(("mean", list(&report.mean)));
        rows.push(("std", list(&report.std)));
    }
    output::pairs(&rows)
}
