//! What is told before a run: the lines that matter. All settings are in the run directory.

use std::path::Path;

use beit2_run::environment::format_bytes;
use beit2_run::thousands;

use super::inputs::Inputs;
use crate::device::DeviceSpec;
use crate::display::rate;
use crate::machine;
use crate::output;
use crate::progress::NAMES;
use crate::recipes::Recipe;
use crate::stage::{Stage, Tables};

/// Where, on what, with which images: what is known before the images are looked at.
pub(super) fn place<S: Stage>(
    found: &Recipe,
    changes: usize,
    out: &Path,
    inputs: &Inputs,
    device: &DeviceSpec,
    ranks: Option<&str>,
) -> String {
    let changed = match changes {
        0 => String::new(),
        1 => ", 1 setting changed".to_owned(),
        n => format!(", {n} settings changed"),
    };
    let recipe = found.origin.trim_start_matches("recipe ");
    let mut rows = vec![
        ("run", format!("{} (all settings: run.toml in it)", out.display())),
        ("recipe", format!("{recipe}{changed}")),
        ("device", machine::describe(device)),
    ];
    rows.extend(ranks.map(|ranks| ("ranks", ranks.to_owned())));
    rows.extend(inputs.rows(S::USES_CLASSES));
    lines(&rows)
}

/// From which weights, how long, how fast it learns. The model itself is told when it is there, and so is how a finished run
/// goes on that is `extended`.
pub(super) fn plan<S: Stage>(settings: &S, inputs: &Inputs, extended: bool) -> String {
    let Tables { schedule, optimizer, weights: (key, weights), init, .. } = settings.tables();
    let (batch, plan) = (schedule.batch_size, &inputs.plan);
    let from = match key {
        "init.weights" => "starts from",
        key => key.split('.').next().unwrap_or(key),
    };
    let epochs = plan.total_steps as f64 / plan.steps_per_epoch as f64;
    let epochs = match epochs.fract() == 0.0 {
        true => thousands(epochs as u64),
        false => format!("{epochs:.1}"),
    };
    let peak = optimizer.peak_lr(batch);
    let scaled = optimizer.base_batch_size.filter(|base| *base != batch);
    let scaled = scaled.map(|base| format!(" ({} × {batch}/{base})", rate(optimizer.lr))).unwrap_or_default();
    let warmup = schedule.warmup_over(plan.steps_per_epoch);
    let up = match warmup {
        0 => String::new(),
        steps => format!(" after {} steps of warm-up", thousands(steps)),
    };
    let mut rows: Vec<_> = init.map(|init| ("starts from", init.to_owned())).into_iter().collect();
    rows.extend([
        (from, weights.to_owned()),
        ("schedule", format!("{} ({epochs} epochs)", inputs.budget(settings))),
        ("learning rate", format!("{}{scaled}{up}, then down to {}", rate(peak), rate(optimizer.min_lr))),
    ]);
    if extended {
        rows.retain(|(name, _)| *name != "learning rate");
    }
    if let Some(bytes) = inputs.cached_bytes(settings) {
        rows.push(("image cache", format!("about {} (decoded images stay in memory)", format_bytes(bytes))));
    }
    lines(&rows)
}

fn lines(rows: &[(&str, String)]) -> String {
    let rows: Vec<(String, &String)> =
        rows.iter().map(|(name, value)| (format!("{name:NAMES$}"), value)).collect();
    output::pairs(&rows).trim_end().to_owned()
}
