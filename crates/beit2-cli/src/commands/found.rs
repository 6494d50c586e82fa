//! What `knn` and `probe` print: one result, or one for each block.

use serde_json::json;

use super::evaluate::{PIXELS, Subject};
use crate::display::grouped;
use crate::output;

/// What was measured.
pub(super) struct Found {
    pub train: usize,
    pub val: usize,
    pub classes: usize,
    pub dim: usize,
    pub layer: Option<usize>,
}

impl Found {
    fn json(&self, subject: &Subject) -> serde_json::Map<String, serde_json::Value> {
        let pairs = [
            ("weights", json!(subject.weights)),
            ("precision", json!(subject.precision.precision)),
            ("features", json!(subject.features.name())),
            ("layer", json!(self.layer)),
            ("dim", json!(self.dim)),
            ("train", json!(self.train)),
            ("val", json!(self.val)),
            ("classes", json!(self.classes)),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn rows(&self, subject: &Subject) -> Vec<(String, String)> {
        let layer = self.layer.map(|n| format!(" after block {n}")).unwrap_or_default();
        let what = match subject.weights.as_str() {
            PIXELS => format!("{} values", self.dim),
            _ => format!("{}{layer}, {} values", subject.features.name(), self.dim),
        };
        let [train, val] = [self.train, self.val].map(|n| grouped(n as u64));
        vec![
            ("weights".to_owned(), subject.weights.clone()),
            ("features".to_owned(), what),
            ("images".to_owned(), format!("{train} to learn from, {val} to judge, {} classes", self.classes)),
        ]
    }
}

/// One object; with --all-layers one with a list of layers and the number of the best.
pub(super) fn print_json<T>(
    subject: &Subject,
    results: &[(Found, T)],
    name: &str,
    value: impl Fn(&T) -> serde_json::Value,
    score: impl Fn(&T) -> f64,
    extra: serde_json::Value,
) -> anyhow::Result<()> {
    let Some((first, result)) = results.first() else { return Ok(()) };
    let mut object = first.json(subject);
    object.extend(extra.as_object().cloned().unwrap_or_default());
    if subject.all_layers {
        let layers =
            results.iter().map(|(found, result)| json!({ "layer": found.layer, name: value(result) }));
        object.insert("layers".into(), layers.collect());
        object.insert("layer".into(), json!(best_of(results, score).and_then(|found| found.layer)));
    } else {
        object.insert(name.into(), value(result));
    }
    output::json(&object.into())
}

/// Lines; with --all-layers those of every block and the number of the best.
pub(super) fn print_rows<T>(
    subject: &Subject,
    results: &[(Found, T)],
    rows: impl Fn(&T) -> Vec<(String, String)>,
    score: impl Fn(&T) -> f64,
) -> anyhow::Result<()> {
    let Some((first, result)) = results.first() else { return Ok(()) };
    if !subject.all_layers {
        return output::result(&output::pairs(&[first.rows(subject), rows(result)].concat()));
    }
    let mut lines = first.rows(subject);
    lines.retain(|(name, _)| name != "features");
    for (found, result) in results {
        let block = found.layer.map_or(String::new(), |layer| format!("block {layer}, "));
        lines.extend(rows(result).into_iter().map(|(name, value)| (format!("{block}{name}"), value)));
    }
    if let Some(layer) = best_of(results, score).and_then(|found| found.layer) {
        lines.push(("best block".to_owned(), layer.to_string()));
    }
    output::result(&output::pairs(&lines))
}

/// The result with the highest score, the earlier of equal ones.
fn best_of<T>(results: &[(Found, T)], score: impl Fn(&T) -> f64) -> Option<&Found> {
    let better = |a: &'_ _, b: &'_ _| -> std::cmp::Ordering { f64::total_cmp(a, b) };
    let scored = results.iter().map(|(found, result)| (found, score(result)));
    scored.rev().max_by(|a, b| better(&a.1, &b.1)).map(|(found, _)| found)
}
