//! One experiment from flags to result: resolve, check, say what will run, run, say what came of it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2::train::{Env, Outcome, Plan, Rank, SCRATCH};
use beit2_kernels::AutodiffBackend;
use beit2_run::environment::Environment;
use beit2_run::{Existing, recipe};
use serde_json::json;
use toml::{Table, Value};

use crate::assets::AssetStore;
use crate::commands::report;
use crate::device::{DeviceSpec, GroupJob};
use crate::display::{duration, grouped, speed};
use crate::errors::{Ending, usage};
use crate::flags::{DeviceArgs, OutputArgs, TrainArgs};
use crate::output;
use crate::progress::Progress;
use crate::recipes::{self, Recipe};
use crate::signals::Signals;
use crate::stage::Stage;

/// Name and version of this program, as runs record it.
pub const SOFTWARE: &str = concat!("beit2 ", env!("CARGO_PKG_VERSION"));

/// Runs a training command. `extra` are overrides by the command's own flags.
pub fn run<S: Stage>(
    flags: &TrainArgs,
    extra: Vec<(String, String)>,
    signals: &Signals,
) -> anyhow::Result<Ending> {
    let named = flags.recipe.as_deref().unwrap_or(S::DEFAULT_RECIPE);
    if named.is_empty() {
        return usage(format!(
            "beit2 {} needs a recipe: a name from `beit2 recipes` or a .toml file",
            S::COMMAND
        ));
    }
    let found = recipes::find(named)?;
    let mut overrides = flags.overrides();
    overrides.extend(extra);
    let mut settings: S = recipes::resolve(&found, &overrides)?;
    let assets = AssetStore::default();
    // What is missing is said by the check below, which also names the flags.
    let named = [settings.data().train.as_str(), settings.weights().1].iter().all(|spec| !spec.is_empty());
    if named {
        settings.resolve(&assets)?;
    }
    let out = flags.out.clone().unwrap_or_else(|| Path::new("runs").join(&found.name));

    if flags.dry_run {
        output::result(&recipe::to_toml(&settings)?)?;
    }
    let inputs = Inputs::check(&settings, &assets)?;
    if flags.dry_run {
        output::note(&format!("ready  {}; nothing was started", inputs.budget(&settings)));
        return Ok(Ending::Done);
    }

    let provenance = provenance(&found, &overrides, &inputs, &flags.device)?;
    if !flags.output.quiet {
        output::note(&header(&settings, &found, &out, &inputs, &flags.device)?);
    }
    let mut progress = Progress::new(flags.output, signals, &out);
    let existing = if flags.restart { Existing::SetAside } else { Existing::Continue };
    let job = Training {
        settings: &settings,
        env: Env {
            dir: out.clone(),
            existing,
            provenance,
            stop: signals.stop.clone(),
            observer: &mut progress,
            assets: &assets,
            rank: Rank::alone(),
        },
    };
    let outcome = flags.device.device.on_all(job);
    progress.close();
    finish(&out, &outcome?, flags.output)
}

/// A training run as work for a device.
pub struct Training<'a, S> {
    /// The resolved recipe.
    pub settings: &'a S,
    /// Everything around it.
    pub env: Env<'a>,
}

impl<S: Stage> GroupJob for Training<'_, S> {
    type Output = Outcome;

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<Outcome> {
        Ok(self.settings.train::<B>(self.env, devices)?)
    }
}

/// What a run reads, looked at before anything starts.
pub struct Inputs {
    images: usize,
    classes: usize,
    steps: u64,
    /// Name and value of what identifies the inputs.
    fingerprints: Vec<(&'static str, String)>,
}

impl Inputs {
    /// Opens everything that the recipe names, without computing.
    pub fn check<S: Stage>(settings: &S, assets: &AssetStore) -> anyhow::Result<Self> {
        let data = settings.data();
        if data.train.is_empty() {
            return usage("no training images are named; use --data DIR, or set data.train in the recipe");
        }
        let (key, weights) = settings.weights();
        if weights.is_empty() {
            return usage(format!("{key} is empty; use --set {key}=FILE{}", by_flag(key)));
        }
        settings.check()?;
        let train = settings.source(assets, &data.train)?;
        let plan = Plan::new(settings.schedule(), settings.optimizer(), train.len())?;
        let mut fingerprints = vec![("train", train.fingerprint())];
        if let Some(val) = &data.val {
            fingerprints.push(("val", settings.source(assets, val)?.fingerprint()));
        }
        if weights != SCRATCH {
            fingerprints.push(("weights", assets.weights_fingerprint(weights).context(key)?));
        }
        let (images, classes) = (train.len(), train.classes().len());
        Ok(Self { images, classes, steps: plan.total_steps, fingerprints })
    }

    /// `250,200 steps of 512 images = 128,102,400 images`.
    pub fn budget<S: Stage>(&self, settings: &S) -> String {
        let batch = settings.schedule().batch_size as u64;
        let (steps, all) = (grouped(self.steps), grouped(self.steps.saturating_mul(batch)));
        format!("{steps} steps of {batch} images = {all} images")
    }
}

fn by_flag(key: &str) -> &'static str {
    match key {
        "tokenizer.weights" => " or --tokenizer RUN",
        "init.weights" => " or --init RUN (--init scratch starts from random numbers)",
        _ => "",
    }
}

/// What `run.toml` says after the recipe: what identifies the inputs, then where and how the run runs (which may differ
/// when it is continued).
pub fn provenance(
    found: &Recipe,
    overrides: &[(String, String)],
    inputs: &Inputs,
    device: &DeviceArgs,
) -> anyhow::Result<String> {
    let mut environment = Table::try_from(Environment::detect(SOFTWARE))?;
    environment.insert("device".into(), device.device.to_string().into());
    environment.insert("recipe".into(), found.origin.as_str().into());
    environment.insert("command".into(), continue_command().into());
    let list = overrides.iter().map(|(key, value)| Value::String(format!("{key}={value}")));
    environment.insert("overrides".into(), Value::Array(list.collect()));
    let fingerprint: Table =
        inputs.fingerprints.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
    let mut rest = Table::new();
    rest.insert("fingerprint".into(), fingerprint.into());
    rest.insert("environment".into(), environment.into());
    Ok(toml::to_string(&rest)?)
}

/// What is printed before a run.
fn header<S: Stage>(
    settings: &S,
    found: &Recipe,
    out: &Path,
    inputs: &Inputs,
    device: &DeviceArgs,
) -> anyhow::Result<String> {
    let classes = match inputs.classes {
        0 => String::new(),
        n if S::USES_CLASSES => format!(", {n} classes"),
        n => format!(", {n} classes (not used)"),
    };
    let mut rows = vec![
        ("run", out.display().to_string()),
        ("recipe", found.origin.trim_start_matches("recipe ").to_owned()),
        ("device", describe(&device.device)),
        ("data", format!("{}: {} images{classes}", settings.data().train, grouped(inputs.images as u64))),
        ("budget", inputs.budget(settings)),
    ];
    for (at, line) in compact(&Table::try_from(settings)?).into_iter().enumerate() {
        rows.push((if at == 0 { "settings" } else { "" }, line));
    }
    Ok(output::pairs(&rows))
}

/// The device in words.
pub fn describe(device: &DeviceSpec) -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    match device.kind {
        crate::device::Kind::Cpu => {
            format!("cpu, {threads} threads, {}", instructions())
        }
        _ => device.to_string(),
    }
}

/// The vector instructions in use, in words.
pub fn instructions() -> &'static str {
    use beit2_kernels::simd::{Level, level};
    match level() {
        Level::Avx512Bf16 => "AVX-512 with bf16",
        Level::Avx512 => "AVX-512",
        Level::Avx2 => "AVX2",
        Level::Baseline if cfg!(target_arch = "aarch64") => "NEON",
        Level::Baseline => "baseline vector instructions",
    }
}

/// All settings on few lines: `optimizer  lr 5e-5, base_batch_size 128, …`.
fn compact(table: &Table) -> Vec<String> {
    const WIDTH: usize = 100;
    let mut groups: Vec<(&str, Vec<(String, String)>)> = vec![("", Vec::new())];
    for (key, value) in table {
        match value {
            Value::Table(inner) => groups.push((key, leaves("", inner))),
            value => groups[0].1.push((key.clone(), plain(value))),
        }
    }
    let names = groups.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (name, values) in groups {
        let mut line = format!("{name:names$} ");
        let empty = line.len();
        for (key, value) in values {
            let setting = format!(" {key} {value}");
            if line.len() + setting.len() > WIDTH && line.len() > empty {
                lines.push(std::mem::replace(&mut line, " ".repeat(empty)));
            }
            line.push_str(&setting);
            line.push(',');
        }
        lines.push(line.trim_end_matches(',').to_owned());
    }
    lines
}

fn leaves(prefix: &str, table: &Table) -> Vec<(String, String)> {
    let name = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    table
        .iter()
        .flat_map(|(key, value)| match value {
            Value::Table(inner) => leaves(&name(key), inner),
            value => vec![(name(key), plain(value))],
        })
        .collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => format!("{number:e}"),
        value => value.to_string(),
    }
}

/// Says what came of the run.
fn finish(out: &Path, outcome: &Outcome, output: OutputArgs) -> anyhow::Result<Ending> {
    let report = match report::write(out) {
        Ok(path) => Some(path),
        // The run is what counts, and it is saved.
        Err(error) => {
            output::note(&format!("warning: the report was not written: {error:#}"));
            None
        }
    };
    let again = continue_command();
    if !outcome.complete {
        output::note(&format!(
            "stopped after step {} and saved in {}; continue with: {again}",
            grouped(outcome.step),
            outcome.checkpoint.display()
        ));
    }
    let per_second = (outcome.seconds > 0.0).then(|| outcome.images as f64 / outcome.seconds);
    if output.json {
        output::json(&json!({
            "run": out,
            "complete": outcome.complete,
            "steps": outcome.step,
            "images": outcome.images,
            "seconds": outcome.seconds,
            "images_per_second": per_second,
            "checkpoint": outcome.checkpoint,
            "report": report,
            "metrics": report::last_epoch(out),
            "continue": (!outcome.complete).then_some(again),
        }))?;
    } else if outcome.complete {
        let pace = per_second.map(|s| format!(", {}", speed(s))).unwrap_or_default();
        let mut rows = vec![
            ("done", format!("{} steps in {}{pace}", grouped(outcome.step), duration(outcome.seconds))),
            ("weights", outcome.checkpoint.join("model.safetensors").display().to_string()),
        ];
        rows.extend(report.map(|path: PathBuf| ("report", path.display().to_string())));
        output::result(&output::pairs(&rows))?;
    }
    Ok(if outcome.complete { Ending::Done } else { Ending::Stopped })
}

/// This command again, without what would begin anew.
fn continue_command() -> String {
    let mut args = std::env::args();
    let program = args.next().unwrap_or_default();
    let program =
        Path::new(&program).file_name().map_or("beit2".into(), |name| name.to_string_lossy().into_owned());
    let rest = args.filter(|arg| arg != "--restart").map(|arg| quoted(&arg));
    std::iter::once(program).chain(rest).collect::<Vec<_>>().join(" ")
}

/// One word of a shell command.
fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("lr=1e-3"), "lr=1e-3");
        assert_eq!(quoted("my images"), "'my images'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("x-{000..003}.tar"), "'x-{000..003}.tar'");
    }

    #[test]
    fn settings_fit_few_lines() {
        let settings = beit2::pretrain::PretrainRecipe::default();
        let lines = compact(&Table::try_from(settings).unwrap());
        assert!(lines.len() < 20 && lines.iter().all(|line| line.chars().count() <= 101), "{lines:#?}");
        let text = lines.join("\n");
        assert!(text.contains("min_lr 1e-5") && text.contains("vit.width 768"), "{text}");
        assert!(text.starts_with(&format!("{:9}  stage pretrain", "")), "{text}");
    }
}
