//! One experiment from flags to result: resolve, check, say what will run, run, say what came of it.

mod ending;
mod examples;
mod extension;
mod header;
mod inputs;
mod next;
mod provenance;
mod rehearsal;

use std::path::{Path, PathBuf};

use beit2::train::{Env, Event, Outcome, look_at_run, on_devices};
use beit2_data::check::Findings;
use beit2_kernels::{AutodiffBackend, Rank};
use beit2_run::{Existing, recipe};

use crate::assets::{AssetStore, Reading};
use crate::backend::{self, GroupJob};
use crate::device::DeviceSpec;
use crate::errors::{Ending, usage};
use crate::flags::{OutputArgs, TrainArgs};
use crate::progress::{Progress, RunWarnings};
use crate::ranks::{self, Joined};
use crate::recipes::{self, Recipe};
use crate::signals::Signals;
use crate::stage::Stage;
use crate::{account, fit, output};

use ending::Ended;
pub use inputs::Inputs;
use next::Ran;
use rehearsal::Place;
pub use rehearsal::rehearse;

/// Runs a training command. `extra` are overrides by the command's own flags, `reading` how its weights are read.
pub fn run<S: Stage>(
    flags: &TrainArgs,
    extra: Vec<(String, String)>,
    reading: Reading,
    signals: &Signals,
) -> anyhow::Result<Ending> {
    let Some(named) = flags.recipe.as_deref().or(S::DEFAULT_RECIPE) else {
        return usage(format!(
            "beit2 {} needs a recipe: a name from `beit2 recipes` or a .toml file",
            S::COMMAND
        ));
    };
    run_recipe::<S>(&recipes::find(named)?, flags, extra, reading, true, signals)
}

/// As [`run`], for a recipe that is there already. `is_last`: whether what comes of it is the command's result; else it is told
/// on the way.
pub fn run_recipe<S: Stage>(
    found: &Recipe,
    flags: &TrainArgs,
    extra: Vec<(String, String)>,
    reading: Reading,
    is_last: bool,
    signals: &Signals,
) -> anyhow::Result<Ending> {
    if flags.dry_run {
        let joined = Joined { rank: Rank::alone(), device: flags.device.device.clone(), told: None };
        return run_as_rank::<S>(found, flags, extra, reading, is_last, signals, &joined);
    }
    let dir = run_directory(found, flags);
    // The folder too, although only the leader uses it: runs that belong apart are not to become one.
    let same = [("the stage", S::NAME.to_owned()), ("the run directory", dir.display().to_string())];
    let joined = ranks::meet(&flags.ranks, &flags.device.device, &same, signals)?;
    let ended = run_as_rank::<S>(found, flags, extra, reading, is_last, signals, &joined);
    // Those who wait for this process learn why it does not come.
    joined.rank.leave(ended.as_ref().err().map(|error| format!("{error:#}")).as_deref());
    ended
}

fn run_directory(found: &Recipe, flags: &TrainArgs) -> PathBuf {
    flags.out.clone().unwrap_or_else(|| Path::new("runs").join(&found.name))
}

fn run_as_rank<S: Stage>(
    found: &Recipe,
    flags: &TrainArgs,
    extra: Vec<(String, String)>,
    reading: Reading,
    is_last: bool,
    signals: &Signals,
    Joined { rank, device, told }: &Joined,
) -> anyhow::Result<Ending> {
    let dir = run_directory(found, flags);
    let mut overrides = flags.overrides::<S>(extra)?;
    if S::CAN_BE_EXTENDED && !flags.restart {
        // The leader's: other ranks may be on machines without the run.
        let run_toml = || std::fs::read_to_string(dir.join("run.toml")).unwrap_or_default();
        let run_toml = rank.broadcast(rank.leads().then(run_toml))?;
        overrides = extension::with_start_of_run::<S>(&run_toml, found, overrides);
    }
    let reading = Reading { entry: flags.entry.entry.clone(), ..reading };
    let assets = AssetStore::reading(reading, flags.output.quiet);
    let (settings, mut fitted) = recipes::fitted::<S>(found, &overrides, &assets)?;
    flags.check_size(&settings)?;

    if flags.dry_run && !flags.output.json {
        output::result(&recipe::to_toml(&settings)?)?;
    }
    let inputs = Inputs::check(&settings, &assets)?;
    let mut run = Run {
        recipe: found,
        overrides: &overrides,
        inputs: &inputs,
        assets: &assets,
        dir: &dir,
        restart: flags.restart,
        device,
        output: flags.output,
        signals,
        warnings: &[],
        rank,
    };
    if !rank.leads() {
        // The leader looks at everything, and tells it.
        return match run.train(&settings)?.0.complete {
            true => Ok(Ending::Done),
            false => Ok(Ending::Stopped),
        };
    }
    let existing = if flags.restart { Existing::SetAside } else { Existing::Continue };
    let provenance = provenance::provenance(found, &overrides, &inputs, device)?;
    let plan = match S::CAN_BE_EXTENDED {
        true => inputs.plan().clone().in_dir(&dir, &settings, &provenance, existing)?,
        false => inputs.plan().clone(),
    };
    let mut warnings = inputs.warnings();
    if flags.dry_run {
        inputs.tell(flags.output);
    } else {
        if !flags.output.quiet {
            output::note(&header::place::<S>(found, overrides.len(), &dir, &inputs, device, told.as_deref()));
        }
        account::tell_warnings(&warnings);
    }
    if !flags.no_check {
        warnings.extend(look(&settings, &assets)?);
        fitted.extend(fit::look(&settings, inputs.train()));
    }
    fitted.extend(fit::length(&settings, inputs.plan()));
    fitted.tell(flags.output);
    warnings.append(&mut fitted.warnings);
    flags.tell_resume(&dir);
    if flags.dry_run {
        settings.notes(&assets)?.iter().for_each(|note| output::note(note));
        plan.told_extension().iter().for_each(|told| output::note(&format!("extended: {told}")));
        let continues_at = look_at_run(&dir, &settings, &plan, &provenance, existing)?;
        let rehearsed = rehearse(&settings, inputs.plan(), &assets, device, signals)?;
        let told = rehearsal::tell(
            &settings,
            &rehearsed,
            &Place { dir: &dir, continues_at, device, image_cache: inputs.cached_bytes(&settings) },
        );
        output::note(&format!(
            "ready: {}; nothing was started, because of --dry-run",
            inputs.budget(&settings)
        ));
        if flags.output.json && is_last {
            output::json(&inputs.with_accounts(told, &settings)?)?;
        }
        return Ok(Ending::Done);
    }
    if !flags.output.quiet {
        output::note(&header::plan(&settings, &inputs, plan.told_extension().is_some()));
    }
    run.warnings = &warnings;
    let (outcome, warnings) = run.train(&settings)?;
    let ran = Ran { recipe: found, dir: &dir, inputs: &inputs, assets: &assets, device };
    let next = if outcome.complete && is_last { next::next(&settings, &ran) } else { None };
    let (outcome, warnings) = (&outcome, &warnings);
    Ended { stage: S::NAME, dir: &dir, outcome, inputs: &inputs, warnings, next, is_last }.tell(flags.output)
}

/// Looks at labels, masks and a few images, and stops before a run whose result would mean nothing. Gives the warnings that
/// it has told.
pub fn look<S: Stage>(settings: &S, assets: &AssetStore) -> anyhow::Result<Vec<String>> {
    let Findings { warnings, errors } = settings.findings(assets)?;
    account::tell_warnings(&warnings);
    match errors.as_slice() {
        [] => Ok(warnings),
        // The run would stop at too many unusable images.
        errors if errors.iter().all(|error| error.contains("max_bad_fraction")) => {
            anyhow::bail!(errors.join("; "))
        }
        errors => anyhow::bail!("{} (--no-check trains all the same)", errors.join("; ")),
    }
}

/// A training run and everything around its settings.
pub struct Run<'a> {
    /// Where the settings come from.
    pub recipe: &'a Recipe,
    /// What was changed in it.
    pub overrides: &'a [(String, String)],
    /// What it reads.
    pub inputs: &'a Inputs,
    /// Where that is opened.
    pub assets: &'a AssetStore,
    /// The run directory.
    pub dir: &'a Path,
    /// Begin again instead of continuing.
    pub restart: bool,
    /// One device or a group.
    pub device: &'a DeviceSpec,
    /// What is printed.
    pub output: OutputArgs,
    /// Ctrl-C and SIGTERM.
    pub signals: &'a Signals,
    /// Warnings that were told before, which belong to the run.
    pub warnings: &'a [String],
    /// This process among those that train together.
    pub rank: &'a Rank,
}

impl Run<'_> {
    /// Trains, continues, or finds the run complete. Lists its warnings when it has ended, and keeps what the report shows.
    pub fn train<S: Stage>(&self, settings: &S) -> anyhow::Result<(Outcome, RunWarnings)> {
        let provenance = provenance::provenance(self.recipe, self.overrides, self.inputs, self.device)?;
        let output = OutputArgs { quiet: self.output.quiet || !self.rank.leads(), ..self.output };
        let mut progress = Progress::of_run(output, self.signals, self.dir);
        self.warnings.iter().for_each(|warning| progress.told(warning));
        let env = Env {
            existing: if self.restart { Existing::SetAside } else { Existing::Continue },
            provenance,
            stop: self.signals.stop.clone(),
            rank: self.rank.clone(),
            ..Env::new(self.dir, &mut progress, self.assets)
        };
        let outcome = backend::run(self.device, Training { settings, env });
        let warnings = progress.close_run();
        let outcome = outcome?;
        if self.rank.leads() {
            self.keep_examples(settings, &outcome);
        }
        Ok((outcome, warnings))
    }
}

struct Training<'a, S> {
    settings: &'a S,
    env: Env<'a>,
}

impl<S: Stage> GroupJob for Training<'_, S> {
    type Output = Outcome;

    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<Outcome> {
        let Self { settings, env } = self;
        if let Some(kernels) = devices.first().and_then(B::kernels) {
            env.observer.event(Event::Note(kernels));
        }
        Ok(on_devices::<B>(devices, env, |env, device| settings.train::<B>(env, device))?)
    }
}
