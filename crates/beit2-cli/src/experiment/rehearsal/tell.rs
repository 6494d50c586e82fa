//! What a rehearsal tells.

use std::path::Path;

use beit2::Precision;
use beit2_run::environment::{Environment, format_bytes};
use beit2_run::{format_duration, thousands};
use serde_json::{Value, json};

use super::Rehearsal;
use crate::device::{DeviceSpec, Kind};
use crate::machine::SOFTWARE;
use crate::output;
use crate::stage::Stage;

/// Where a run would go.
pub struct Place<'a> {
    /// The run directory.
    pub dir: &'a Path,
    /// The step at which a run that is there goes on.
    pub continues_at: Option<u64>,
    /// One device or a group.
    pub device: &'a DeviceSpec,
    /// Bytes of decoded images that stay in memory, where some do.
    pub image_cache: Option<u64>,
}

/// Share of the machine's memory that a run may take: the system and the images in its cache need the rest.
const USABLE: f64 = 0.9;

/// Tells a person, or gives it as JSON.
pub fn tell<S: Stage>(settings: &S, found: &Rehearsal, place: &Place<'_>) -> Value {
    let on_cpu = place.device.kind == Kind::Cpu;
    let memory = Environment::detect(SOFTWARE).memory_bytes.filter(|_| on_cpu);
    let (bytes, checkpoint) = (found.bytes(on_cpu), checkpoint_bytes(settings, found));
    let run = match place.continues_at {
        Some(step) => format!("{}: continues at step {}", place.dir.display(), thousands(step)),
        None => place.dir.display().to_string(),
    };
    let micro = match found.micro_batches() {
        1 => String::new(),
        parts => format!(" in {parts} micro-batches"),
    };
    let each = if found.devices > 1 && !on_cpu { " on each device" } else { "" };
    let mut memory_row = format!(
        "about {} for a step of {} images{micro}{each}",
        format_bytes(bytes),
        thousands(found.batch as u64)
    );
    if let Some(peak) = found.peak_bytes {
        memory_row += &format!(
            "; measured {} with {} ({} predicted)",
            format_bytes(peak),
            images(found.images),
            format_bytes(found.rehearsed_bytes(on_cpu))
        );
    }
    if let Some(bytes) = place.image_cache {
        memory_row += &format!("; and about {} for decoded images", format_bytes(bytes));
    }
    let done = place.continues_at.unwrap_or(0).min(found.steps.1) as f64;
    let left = found.run_seconds() * (1.0 - done / found.steps.1.max(1) as f64);
    let time = format!(
        "about {} a step, {} an epoch, {} {}, estimated from steps of up to {}",
        short_duration(found.step_seconds),
        format_duration(found.epoch_seconds()),
        format_duration(left),
        if done > 0.0 { "to go" } else { "in all" },
        images(found.images)
    );
    let kept = settings.most_checkpoints();
    let rows = [
        ("run", run),
        ("parameters", format!("{} trained", thousands(found.cost.parameters as u64))),
        ("memory", memory_row),
        ("time", time),
        (
            "writes",
            format!(
                "checkpoints of about {}, at most {kept} at once; metrics and a report",
                format_bytes(checkpoint)
            ),
        ),
    ];
    output::note(output::pairs(&rows).trim_end());
    let warnings: Vec<String> =
        memory.and_then(|memory| too_large(settings, found, bytes, memory)).into_iter().collect();
    warnings.iter().for_each(|warning| output::warning(warning));
    json!({
        "ready": true,
        "run": place.dir,
        "continues_at": place.continues_at,
        "parameters": found.cost.parameters,
        "gflop_per_image": found.cost.flops_per_image / 1e9,
        "devices": found.devices,
        "images_per_step": found.batch * found.devices,
        "micro_batch": found.micro_batch,
        "steps_per_epoch": found.steps.0,
        "steps": found.steps.1,
        "seconds_per_step": found.step_seconds,
        "seconds_per_epoch": found.epoch_seconds(),
        "seconds": found.run_seconds(),
        "memory_bytes": bytes,
        "image_cache_bytes": place.image_cache,
        "machine_memory_bytes": memory,
        "rehearsed_images": found.images,
        "rehearsed_memory_bytes": found.rehearsed_bytes(on_cpu),
        "measured_memory_bytes": found.peak_bytes,
        "checkpoint_bytes": checkpoint,
        "checkpoints": kept,
        "warnings": warnings,
    })
}

fn images(count: usize) -> String {
    if count == 1 { "one image".to_owned() } else { format!("{} images", thousands(count as u64)) }
}

fn short_duration(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format_duration(seconds) }
}

/// Weights, two moments, and averages of weights where the stage keeps them.
fn checkpoint_bytes<S: Stage>(settings: &S, found: &Rehearsal) -> u64 {
    let averages = if settings.keeps_averages() { 4 * found.cost.parameters as u64 } else { 0 };
    found.cost.checkpoint_bytes() + averages
}

/// Says that a run does not fit the machine, and what would.
fn too_large<S: Stage>(settings: &S, found: &Rehearsal, bytes: u64, memory: u64) -> Option<String> {
    let usable = (USABLE * memory as f64) as u64;
    if bytes <= usable {
        return None;
    }
    let fits = |batch: usize, micro: usize| found.predicted(batch, micro, true) <= usable;
    let mut ways = Vec::new();
    let (batch, fewest) = (found.batch, settings.fewest_images());
    let parts = (found.micro_batches() + 1..=batch / fewest)
        .find(|&parts| batch.is_multiple_of(parts * fewest) && fits(batch, batch / parts));
    ways.extend(
        parts.map(|parts| format!("--set schedule.grad_accum_steps={parts} (a step in {parts} parts)")),
    );
    let micro_batch = found.micro_batch;
    if let Some(cost) = &found.recomputing
        && found.predicted_of(cost, batch, micro_batch, true) <= usable
    {
        ways.push("--set train.activation_checkpointing=blocks (up to a third more time)".to_owned());
    }
    let mut smaller = found.batch / 2;
    while smaller > 1 && !fits(smaller, smaller.min(found.micro_batch)) {
        smaller /= 2;
    }
    if smaller > 0 && fits(smaller, smaller.min(found.micro_batch)) {
        ways.push(format!("--batch-size {}", smaller * found.devices));
    } else {
        ways.push("a smaller model (--size)".to_owned());
    }
    if found.precision == Some(Precision::F32) {
        ways.push("--precision bf16 (about a third less)".to_owned());
    }
    Some(format!(
        "a step of {} images takes about {}, and this machine has {}; use {}",
        thousands((found.batch * found.devices) as u64),
        format_bytes(bytes),
        format_bytes(memory),
        ways.join(", or ")
    ))
}
