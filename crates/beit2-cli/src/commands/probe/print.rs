//! What `knn` and `probe` print: one result, or one for each block.

use serde_json::{Map, Value, json};

use super::features::{FeatureArgs, Measured, PIXELS, Protocol, Results};
use beit2_run::thousands;

use crate::{account, output};

/// One object or lines; with --all-layers those of every block and the number of the best.
pub(super) fn print<P: Protocol>(
    args: &FeatureArgs,
    protocol: &P,
    results: &Results<P::Found>,
) -> anyhow::Result<()> {
    let Results { measured: results, account } = results;
    let Some(first) = results.first() else { return Ok(()) };
    let best = best(protocol, results).filter(|_| args.all_layers);
    let chosen = best.unwrap_or(first);
    account::tell_warnings(&protocol.warnings(&chosen.found));
    if args.output.json {
        let mut object = object(args, protocol, results, chosen);
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
        let found = protocol.rows(&measured.found, measured.multi_label, args.all_layers);
        rows.extend(found.into_iter().map(|(name, value)| (format!("{block}{name}"), value)));
    }
    if let Some(layer) = best.and_then(|best| best.layer) {
        rows.push(("best block".to_owned(), layer.to_string()));
    }
    let table = if args.all_layers { None } else { protocol.table(&first.found, first.multi_label) };
    let table = table.map(|table| format!("\n\n{table}")).unwrap_or_default();
    output::result(&format!("{}{table}", output::pairs(&rows)))
}

fn object<P: Protocol>(
    args: &FeatureArgs,
    protocol: &P,
    results: &[Measured<P::Found>],
    chosen: &Measured<P::Found>,
) -> Map<String, Value> {
    let pairs = [
        ("weights", json!(args.weights)),
        ("precision", json!(args.precision.precision)),
        ("features", json!(args.features.name())),
        ("layer", json!(chosen.layer)),
        ("dim", json!(chosen.dim)),
        ("train", json!(chosen.train)),
        ("val", json!(chosen.val)),
        ("classes", json!(chosen.classes)),
    ];
    let mut object: Map<_, _> = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    object.extend(protocol.settings());
    if args.all_layers {
        let one = |measured: &Measured<P::Found>| json!({ "layer": measured.layer, P::NAME: protocol.json(&measured.found, measured.multi_label) });
        object.insert("layers".into(), results.iter().map(one).collect());
    } else {
        object.insert(P::NAME.into(), protocol.json(&chosen.found, chosen.multi_label));
    }
    object
}

/// What was measured, and on how many images.
fn head<F>(args: &FeatureArgs, measured: &Measured<F>) -> Vec<(String, String)> {
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

/// The block with the highest score, the earlier of equal ones.
fn best<'a, P: Protocol>(protocol: &P, results: &'a [Measured<P::Found>]) -> Option<&'a Measured<P::Found>> {
    let score = |measured: &Measured<P::Found>| protocol.score(&measured.found);
    results.iter().rev().max_by(|a, b| score(a).total_cmp(&score(b)))
}
