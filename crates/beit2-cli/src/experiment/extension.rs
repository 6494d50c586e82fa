//! A finished run that is made longer keeps its start: warm-up and start of the codebook would otherwise follow the new
//! length ([`crate::fit`]), and the run would be another one.

use beit2_run::recipe;
use toml::{Table, Value};

use crate::recipes::{self, Recipe};
use crate::stage::Stage;

/// Keys that say how long a run is.
const LENGTH: [&str; 2] = ["schedule.epochs", "schedule.steps"];

/// Keys that follow the length; who gives one of the first two means both.
const WARM_UP: [&str; 2] = ["schedule.warmup_epochs", "schedule.warmup_steps"];
const CODEBOOK: &str = "codebook.kmeans_warmup_steps";

/// The changes to a recipe, with the start of the run that `run_toml` describes where that run has another length, or had
/// another one before it was made longer. What flags give stays, and is compared with the run later.
pub(super) fn with_start_of_run<S: Stage>(
    run_toml: &str,
    found: &Recipe,
    mut overrides: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let Ok(old) = run_toml.parse::<Table>() else { return overrides };
    let new = recipes::resolve::<S>(found, &overrides).ok().and_then(|new| Table::try_from(new).ok());
    // Whatever is wrong with them is said where they are used.
    let (Some(new), Ok(known)) = (new, recipe::known_keys::<S>()) else { return overrides };
    let number = |run: &Table, key: &str| value(run, key).and_then(Value::as_integer);
    let other_length = LENGTH.iter().any(|key| number(&old, key) != number(&new, key));
    let is_same_stage = old.get("stage") == new.get("stage");
    if !is_same_stage || !(other_length || old.contains_key("extension")) {
        return overrides;
    }
    let given = recipe::given::<S>(&overrides).unwrap_or_default();
    let warm_up_given = WARM_UP.iter().any(|key| given.contains_key(*key));
    let warm_up = WARM_UP.into_iter().filter(|_| !warm_up_given);
    let codebook = std::iter::once(CODEBOOK).filter(|key| !given.contains_key(*key));
    for key in warm_up.chain(codebook).filter(|key| known.iter().any(|known| known == key)) {
        let text = match value(&old, key) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "none".to_owned(),
        };
        overrides.push((key.to_owned(), text));
    }
    overrides
}

fn value<'a>(run: &'a Table, key: &str) -> Option<&'a Value> {
    let (table, key) = key.split_once('.')?;
    run.get(table)?.get(key)
}
