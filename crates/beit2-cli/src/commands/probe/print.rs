//! What `knn` and `probe` print: one result, or one for each block.

use serde_json::{Map, Value, json};

use super::features::{FeatureArgs, Measured, PIXELS, Protocol, Results};
use beit2_run::thousands;

use crate::output;

/// One object or lines; with --all-layers those of every block and the number of the best.
pub(super) fn print<P: Protocol>(args: &FeatureArgs, protocol: &P, results: &Results) -> anyhow::Result<()> {
    let Results { measured: results, account } = results;
    let Some(first) = results.first() else { return Ok(()) };
    if args.output.json {
        let mut object = object(args, protocol, results, first);
        let [train, val] = first.left_out;
        object.insert("left_out".into(), json!({ "train": train, "val": val }));
        object.insert("account".into(), account.clone());
        return output::json(&object.into());
    }
    let mut rows = head(args, first);
    for measured in results {
        let block = match (args.all_layers, measured.layer) {
            (true, Some(layer)) => format!("block {layer}, "),
            _ => String::new(),
        };
        let top1 = measured.top1.iter().enumerate();
        let name = |at| format!("{block}{}", protocol.label(at, measured.multi_label));
        rows.extend(top1.map(|(at, top1)| (name(at), percent(*top1))));
    }
    if let (true, Some(layer)) = (args.all_layers, best_layer(results)) {
        rows.push(("best block".to_owned(), layer.to_string()));
    }
    output::result(&output::pairs(&rows))
}

fn object<P: Protocol>(
    args: &FeatureArgs,
    protocol: &P,
    results: &[Measured],
    first: &Measured,
) -> Map<String, Value> {
    let pairs = [
        ("weights", json!(args.weights)),
        ("precision", json!(args.precision.precision)),
        ("features", json!(args.features.name())),
        ("layer", json!(if args.all_layers { best_layer(results) } else { first.layer })),
        ("dim", json!(first.dim)),
        ("train", json!(first.train)),
        ("val", json!(first.val)),
        ("classes", json!(first.classes)),
    ];
    let mut object: Map<_, _> = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    object.extend(protocol.settings());
    if args.all_layers {
        let one = |measured: &Measured| json!({ "layer": measured.layer, P::NAME: protocol.json(&measured.top1, measured.multi_label) });
        object.insert("layers".into(), results.iter().map(one).collect());
    } else {
        object.insert(P::NAME.into(), protocol.json(&first.top1, first.multi_label));
    }
    object
}

/// What was measured, and on how many images.
fn head(args: &FeatureArgs, measured: &Measured) -> Vec<(String, String)> {
    let [train, val] = [measured.train, measured.val].map(|n| thousands(n as u64));
    let mut rows = vec![("weights", args.weights.clone())];
    if !args.all_layers {
        let layer = measured.layer.map(|n| format!(" after block {n}")).unwrap_or_default();
        let kind =
            if args.weights == PIXELS { String::new() } else { format!("{}{layer}, ", args.features.name()) };
        rows.push(("features", format!("{kind}{} values", measured.dim)));
    }
    rows.push(("images", format!("{train} training, {val} validation, {} classes", measured.classes)));
    let [train, val] = measured.left_out;
    if train + val > 0 {
        rows.push(("left out", format!("{train} training and {val} validation images that cannot be read")));
    }
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The block with the highest accuracy, the earlier of equal ones.
fn best_layer(results: &[Measured]) -> Option<usize> {
    let best = |measured: &Measured| measured.top1.iter().copied().fold(0.0, f64::max);
    results.iter().rev().max_by(|a, b| best(a).total_cmp(&best(b)))?.layer
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
