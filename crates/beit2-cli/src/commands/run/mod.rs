//! `beit2 run DIR`: the stages of a project in order, each as its own command would run it.

mod evaluate;
mod project;

use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2::classify::finetune::FinetuneRecipe;
use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::{Plan, TrainState};
use beit2_kernels::Rank;
use beit2_run::metrics::read_jsonl;
use beit2_run::{RunError, format_duration, thousands};
use clap::ValueHint;
use serde_json::{Value, json};

use self::evaluate::Neighbours;
use self::project::{Entry, Project};
use crate::assets::AssetStore;
use crate::commands::init::shown;
use crate::display::metric;
use crate::errors::{Ending, usage};
use crate::experiment::{self, Inputs, Run};
use crate::flags::{DeviceArgs, OutputArgs};
use crate::recipes::{self, Recipe};
use crate::session::Session;
use crate::signals::Signals;
use crate::stage::Stage;
use crate::{fit, output, report};

/// Flags of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 run images-beit2\n\
    \x20 beit2 run images-beit2 --dry-run\n\
    \x20 beit2 run images-beit2 --restart finetune\n\
    \n\
    The last one is for a changed finetune.toml. Stages that are complete are not\n\
    run again, and an interrupted one continues.")]
pub struct Args {
    /// Folder that `beit2 init` wrote
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,

    /// Begin this stage and those after it again; their runs are moved aside
    #[arg(long, value_name = "STAGE")]
    restart: Option<String>,

    /// Train although the look at labels, masks and a few images finds that the result would mean nothing
    #[arg(long)]
    no_check: bool,

    /// Check the recipes and say what would run, and stop
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// A stage that is complete.
struct Done {
    name: String,
    run: PathBuf,
    steps: u64,
    seconds: f64,
    /// Label and value of the metric that counts.
    result: Option<(String, f64, String)>,
    report: Option<PathBuf>,
}

/// Runs all stages that are not complete.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let project = Project::open(&args.dir)?;
    let from = match &args.restart {
        None => project.stages.len(),
        Some(name) => match project.stages.iter().position(|entry| entry.stage == *name) {
            Some(at) => at,
            None => {
                let names: Vec<&str> = project.stages.iter().map(|entry| entry.stage.as_str()).collect();
                return usage(format!(
                    "--restart {name}: {} has no such stage; its stages are {}",
                    args.dir.display(),
                    names.join(", ")
                ));
            }
        },
    };
    let assets = AssetStore::default();
    let mut done = Vec::new();
    for (at, entry) in project.stages.iter().enumerate() {
        let work = Work { args, project: &project, entry, at, restart: at >= from, assets: &assets, signals };
        let outcome = match entry.stage.as_str() {
            "tokenizer" => work.run::<TokenizerRecipe>(),
            "pretrain" => work.run::<PretrainRecipe>(),
            "finetune" => work.run::<FinetuneRecipe>(),
            "segment" => work.run::<SegmentRecipe>(),
            other => usage(format!("{}: `{other}` is no stage", project.file.display())),
        };
        match outcome? {
            Some(stage) => done.push(stage),
            None if args.dry_run => {}
            None => return Ok(Ending::Stopped),
        }
    }
    if args.dry_run {
        output::note("nothing was started, because of --dry-run");
        return Ok(Ending::Done);
    }
    let mut session = Session { assets, ..Session::new(args.output, signals) };
    let neighbours = evaluate::neighbours(&project, &args.device.device, args.output, &mut session)?;
    finish(args, &project, &done, neighbours)
}

/// One stage of a project.
struct Work<'a> {
    args: &'a Args,
    project: &'a Project,
    entry: &'a Entry,
    at: usize,
    restart: bool,
    assets: &'a AssetStore,
    signals: &'a Signals,
}

impl Work<'_> {
    /// Trains, continues, or finds the stage complete; `None` when a signal came, or nothing was to be started.
    fn run<S: Stage>(&self) -> anyhow::Result<Option<Done>> {
        let Self { args, project, entry, .. } = self;
        let path = project.dir.join(&entry.recipe);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the recipe {}", path.display()))?;
        let recipe = Recipe { name: entry.stage.clone(), origin: path.display().to_string(), text };
        let run = project.dir.join(&entry.run);
        if args.dry_run {
            return self.rehearse(recipes::resolve::<S>(&recipe, &[])?, &run);
        }
        let (settings, mut fitted) = recipes::fitted::<S>(&recipe, &[], self.assets)?;
        let inputs = Inputs::check(&settings, self.assets)?;
        if !args.output.quiet {
            let (at, of) = (self.at + 1, project.stages.len());
            output::note(&format!("\n{at}/{of}  {}  {}", entry.stage, inputs.budget(&settings)));
        }
        let complete =
            state(&run).is_some_and(|state| state.ended || state.step >= inputs.plan().total_steps);
        let mut warnings = Vec::new();
        if self.restart || !complete {
            if !args.no_check {
                warnings = experiment::look(&settings, self.assets)?;
                fitted.extend(fit::look(&settings, inputs.train()));
            }
            fitted.extend(fit::length(&settings, inputs.plan()));
            fitted.tell(args.output);
            warnings.append(&mut fitted.warnings);
        }
        let run_of_stage = Run {
            recipe: &recipe,
            overrides: &[],
            inputs: &inputs,
            assets: self.assets,
            dir: &run,
            restart: self.restart,
            device: &args.device.device,
            output: args.output,
            signals: self.signals,
            warnings: &warnings,
            rank: &Rank::alone(),
        };
        let (outcome, _) = run_of_stage.train(&settings).map_err(|error| self.explain(error, &path))?;
        if !outcome.complete {
            let saved = match outcome.step {
                0 => "with nothing to save yet".to_owned(),
                _ => format!("and saved in {}", run.display()),
            };
            output::note(&format!(
                "stopped after step {} of {} {saved}; continue with: beit2 run {}",
                thousands(outcome.step),
                entry.stage,
                shown(&project.dir)
            ));
            return Ok(None);
        }
        let report = match report::write(&run) {
            Ok(path) => Some(path),
            Err(error) => {
                output::note(&format!("warning: the report of {} was not written: {error:#}", run.display()));
                None
            }
        };
        if !args.output.quiet {
            let what = match complete && !self.restart {
                true => "is complete",
                false => "done",
            };
            output::note(&format!(
                "     {what}: {} steps in {}",
                thousands(outcome.step),
                format_duration(outcome.seconds)
            ));
        }
        let records = read_jsonl(&run.join("metrics.jsonl")).map(|found| found.records).unwrap_or_default();
        let written = report::settings(&run).unwrap_or_default();
        let best = beit2_run::best::best(S::NAME, &records, report::followed(&written));
        let result =
            best.map(|best| (format!("{} {}", best.split, best.label), best.best.value, best.best.name));
        let (steps, seconds) = (outcome.step, outcome.seconds);
        Ok(Some(Done { name: entry.stage.clone(), run, steps, seconds, result, report }))
    }

    /// A run of other settings, said in the words of a project.
    fn explain(&self, error: anyhow::Error, recipe: &Path) -> anyhow::Error {
        let of = |error: &anyhow::Error| {
            error.chain().find_map(|cause| match cause.downcast_ref::<beit2::Error>() {
                Some(beit2::Error::Run(run)) => Some(run.differences()?),
                _ => cause.downcast_ref::<RunError>()?.differences(),
            })
        };
        let Some(differences) = of(&error) else { return error };
        let (stage, dir) = (&self.entry.stage, shown(&self.project.dir));
        let sentence = format!(
            "{} differs from what its run was begun with, in {differences}; take the change back, or train this stage and \
             those after it again with: beit2 run {dir} --restart {stage} (the old runs are kept beside the new ones)",
            recipe.display()
        );
        usage::<()>(sentence).err().unwrap_or(error)
    }

    /// Checks what can be checked before the stages before have run.
    fn rehearse<S: Stage>(&self, mut checked: S, run: &Path) -> anyhow::Result<Option<Done>> {
        let weights = checked.tables().weights.1.to_owned();
        // The weights of a stage before are there once it has run.
        if !weights.is_empty() && self.assets_have(&weights) {
            checked.resolve(self.assets)?;
        }
        checked.check()?;
        let tables = checked.tables();
        let images = checked.source(self.assets, &tables.data.train)?.epoch_len();
        let plan = Plan::new(tables.schedule, tables.optimizer, images)?;
        let steps = thousands(plan.total_steps);
        let state = match state(run) {
            Some(state) if self.restart => {
                format!("would begin again (it is at step {})", thousands(state.step))
            }
            Some(state) if state.ended || state.step >= plan.total_steps => "is complete".to_owned(),
            Some(state) => format!("would continue after step {} of {steps}", thousands(state.step)),
            None => format!("would run {steps} steps of {} images", plan.batch_size),
        };
        output::result(&format!("{:9}  {state}", self.entry.stage))?;
        Ok(None)
    }

    fn assets_have(&self, weights: &str) -> bool {
        weights.starts_with("bundled:") || Path::new(weights).exists()
    }
}

/// The newest state of a run.
fn state(run: &Path) -> Option<TrainState> {
    let text = std::fs::read_to_string(run.join("last/state.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Prints what came of the stages.
fn finish(
    args: &Args,
    project: &Project,
    done: &[Done],
    neighbours: Option<Neighbours>,
) -> anyhow::Result<Ending> {
    let next = next(project, done);
    let results = json!({
        "project": project.dir,
        "goal": project.goal,
        "stages": done.iter().map(Done::json).collect::<Vec<_>>(),
        "knn": neighbours.as_ref().map(Neighbours::json),
        "next": next,
    });
    let path = project.dir.join("results.json");
    beit2_run::atomic::write_bytes_atomic(&path, format!("{results:#}\n").as_bytes())?;
    if args.output.json {
        output::json(&results)?;
        return Ok(Ending::Done);
    }
    let rows: Vec<Vec<String>> = done.iter().map(Done::row).collect();
    let mut text = output::columns(
        &[vec![["stage", "steps", "time", "result", "report"].map(str::to_owned).to_vec()], rows].concat(),
    );
    text.extend(neighbours.iter().map(Neighbours::text));
    text.push_str(&format!("\nnext: {next}\n"));
    output::result(&format!("\n{text}"))?;
    Ok(Ending::Done)
}

impl Done {
    fn row(&self) -> Vec<String> {
        let result =
            self.result.as_ref().map(|(label, value, name)| format!("{label} {}", metric(name, *value)));
        vec![
            self.name.clone(),
            thousands(self.steps),
            format_duration(self.seconds),
            result.unwrap_or_default(),
            self.report.as_deref().map(shown).unwrap_or_default(),
        ]
    }

    fn json(&self) -> Value {
        let result = self.result.as_ref();
        json!({
            "stage": self.name,
            "run": self.run,
            "steps": self.steps,
            "seconds": self.seconds,
            "metric": result.map(|(_, _, name)| name),
            "best": result.map(|(_, value, _)| value),
            "report": self.report,
        })
    }
}

/// The command that uses the result.
fn next(project: &Project, done: &[Done]) -> String {
    let Some(last) = done.last() else { return String::new() };
    let best = last.run.join("best");
    let weights = shown(if best.exists() { &best } else { &last.run });
    match last.name.as_str() {
        "finetune" => format!("beit2 predict IMAGE --weights {weights}"),
        "segment" => format!("beit2 segment predict IMAGE --weights {weights} -o out"),
        _ => format!(
            "beit2 embed {} --weights {} --out features.parquet",
            project.images.train,
            shown(&last.run)
        ),
    }
}
