//! `beit2 quickstart`: tokenizer, pretraining, probes and a report, on the images inside the program.
//!
//! Nothing here is special to it: the stages are the recipes `quickstart_tokenizer` and
//! `quickstart_pretrain`, run as `beit2 tokenizer train` and `beit2 pretrain` would, each in its own run
//! directory; then the features of five models are compared. With `--minutes` their schedules have other lengths (`plan`).

mod measure;
mod plan;
mod show;

use std::path::PathBuf;
use std::time::Instant;

use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::{Outcome, ScheduleConfig};
use beit2_kernels::Rank;
use beit2_run::format_duration;
use clap::ValueHint;

use self::plan::Plan;
use crate::assets::AssetStore;
use crate::errors::{Ending, usage};
use crate::experiment::{Inputs, Run};
use crate::flags::{DeviceArgs, OutputArgs, PrecisionArgs};
use crate::recipes::{self, Recipe};
use crate::session::Session;
use crate::signals::Signals;
use crate::stage::Stage;
use crate::{output, report};

/// Flags of `quickstart`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 quickstart\n\
    \x20 beit2 quickstart --minutes 30 --out runs/longer --seed 1\n\
    \x20 beit2 quickstart --precision bf16 --out runs/bf16\n\
    \n\
    bf16 is faster on CPUs with AVX-512-BF16 (`beit2 doctor` names what yours has).")]
pub struct Args {
    /// Minutes that everything takes, probes included: the schedules are made longer or shorter by the machine's measured
    /// speed [default: the schedules of the recipes, 2 to 8 minutes on two cores]
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,

    /// Folder for both runs and the report
    #[arg(long, short, value_name = "DIR", default_value = "runs/quickstart", value_hint = ValueHint::DirPath)]
    out: PathBuf,

    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Start over; runs that are already in the folder are moved aside
    #[arg(long)]
    restart: bool,

    #[command(flatten)]
    precision: PrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// Runs it.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let started = Instant::now();
    if let Some(minutes) = args.minutes.filter(|minutes| !(*minutes > 0.0 && minutes.is_finite())) {
        return usage(format!("--minutes {minutes} must be above 0, such as 8"));
    }
    let assets = AssetStore::default();
    let spent = || started.elapsed().as_secs_f64();

    let mut tokenizer = Part::<TokenizerRecipe>::resolve("quickstart_tokenizer", args)?;
    if args.restart {
        Plan::forget(&args.out);
    }
    let mut plan = if args.restart { None } else { Plan::find(&args.out, args.minutes)? };
    let mut about = None;
    if args.restart || !tokenizer.dir.join("run.toml").exists() {
        // ---- a new run: how fast is this machine? ---------------------------------------------
        let settings = &tokenizer.settings;
        let Some(step) = plan::measure(settings, &args.out, &args.device.device, &assets, signals)? else {
            return Ok(Ending::Stopped);
        };
        if let (Some(minutes), None) = (args.minutes, &plan) {
            let made = Plan::new(minutes, spent(), step);
            if let Some(warning) = made.too_short(spent(), step) {
                output::note(&format!("warning: {warning}"));
            }
            made.save(&args.out)?;
            plan = Some(made);
        }
        let parts = plan::seconds(step, plan.as_ref().map_or(1.0, |plan| plan.tokenizer));
        if !args.output.quiet {
            let [tokenizer, pretrain, probes] = parts.map(plan::about);
            output::note(&format!(
                "about {} on this machine: tokenizer {tokenizer}, pretraining {pretrain}, probes {probes}",
                plan::about(spent() + parts.iter().sum::<f64>())
            ));
        }
        about = Some(parts[0]);
    }

    // ---- tokenizer --------------------------------------------------------------------------------
    let scale = plan.as_ref().map_or(1.0, |plan| plan.tokenizer);
    let codebook = &mut tokenizer.settings.codebook;
    // A shorter run starts its codebook earlier; a longer one needs no longer warm-up.
    codebook.kmeans_warmup_steps = scaled(codebook.kmeans_warmup_steps, scale.min(1.0)).max(1);
    scale_steps(&mut tokenizer.settings.schedule, scale, codebook.kmeans_warmup_steps + 1);
    let trained = tokenizer.train(args, signals, &assets, "1/3  tokenizer", about)?;
    if !trained.complete {
        return Ok(Ending::Stopped);
    }

    // ---- pretraining ------------------------------------------------------------------------------
    let step = plan::step_of(trained.seconds, trained.step);
    if let Some(before) = plan.take_if(|plan| plan.pretrain.is_none()) {
        let made = before.with_pretraining(spent().max(trained.seconds), step);
        made.save(&args.out)?;
        plan = Some(made);
    }
    let scale = plan.and_then(|plan| plan.pretrain).unwrap_or(1.0);
    let [_, pretrain_seconds, probe_seconds] = plan::seconds(step, scale);
    let mut pretrain = Part::<PretrainRecipe>::resolve("quickstart_pretrain", args)?;
    scale_steps(&mut pretrain.settings.schedule, scale, 1);
    pretrain.settings.tokenizer.weights = tokenizer.dir.display().to_string();
    let trained = pretrain.train(args, signals, &assets, "2/3  pretraining", Some(pretrain_seconds))?;
    if !trained.complete {
        return Ok(Ending::Stopped);
    }

    // ---- probes -----------------------------------------------------------------------------------
    if !args.output.quiet {
        output::note(&format!("\n3/3  probes, about {}", plan::about(probe_seconds)));
    }
    let mut session = Session { assets, ..Session::new(args.output, signals) };
    let job = measure::Measurement {
        tokenizer: &tokenizer.settings,
        tokenizer_dir: &tokenizer.dir,
        pretrain: &pretrain.settings,
        pretrain_dir: &pretrain.dir,
    };
    let results = session.on(&args.device.device.first(), job)?;
    show::show(args.output, &args.out, &tokenizer.dir, &pretrain.dir, results)
}

fn scaled(steps: u64, scale: f64) -> u64 {
    (steps as f64 * scale).round() as u64
}

/// Stretches a schedule, warm-up included; at least `least` steps beyond the warm-up stay.
fn scale_steps(schedule: &mut ScheduleConfig, scale: f64, least: u64) {
    let warmup = scaled(schedule.warmup_steps.unwrap_or_default(), scale).max(1);
    let steps = scaled(schedule.steps.unwrap_or_default(), scale).max(warmup + least);
    (schedule.warmup_steps, schedule.steps) = (Some(warmup), Some(steps));
}

/// One of the two training stages.
struct Part<S> {
    recipe: Recipe,
    settings: S,
    dir: PathBuf,
}

impl<S: Stage> Part<S> {
    fn resolve(name: &str, args: &Args) -> anyhow::Result<Self> {
        let recipe = recipes::find(name)?;
        let settings = recipes::resolve(
            &recipe,
            &[
                ("seed".into(), args.seed.to_string()),
                ("precision".into(), args.precision.precision.to_string()),
            ],
        )?;
        Ok(Self { recipe, settings, dir: args.out.join(S::NAME) })
    }

    /// Trains, continues, or finds the stage complete. `seconds` is how long it takes, if that is known.
    fn train(
        &self,
        args: &Args,
        signals: &Signals,
        assets: &AssetStore,
        title: &str,
        seconds: Option<f64>,
    ) -> anyhow::Result<Outcome> {
        let inputs = Inputs::check(&self.settings, assets)?;
        if !args.output.quiet {
            let about =
                seconds.map(|seconds| format!(", about {}", plan::about(seconds))).unwrap_or_default();
            output::note(&format!("\n{title}  {}{about}", inputs.budget(&self.settings)));
        }
        let run = Run {
            recipe: &self.recipe,
            overrides: &[],
            inputs: &inputs,
            assets,
            dir: &self.dir,
            restart: args.restart,
            device: &args.device.device,
            output: args.output,
            signals,
            warnings: &[],
            rank: &Rank::alone(),
        };
        let (outcome, _) = run.train(&self.settings)?;
        if let Err(error) = report::write(&self.dir) {
            output::note(&format!(
                "warning: the report of {} was not written: {error:#}",
                self.dir.display()
            ));
        }
        let (step, dir) = (outcome.step, self.dir.display());
        if !outcome.complete && step == 0 {
            output::note(
                "stopped in the first step, with nothing to save yet; the same command begins again",
            );
        } else if !outcome.complete {
            output::note(&format!(
                "stopped after step {step} and saved in {dir}; the same command continues the run"
            ));
        } else if !args.output.quiet {
            output::note(&format!("     {step} steps in {}", format_duration(outcome.seconds)));
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_scale_with_the_minutes() {
        let make =
            || ScheduleConfig { steps: Some(200), warmup_steps: Some(20), ..ScheduleConfig::default() };
        let mut schedule = make();
        scale_steps(&mut schedule, 2.5, 1);
        assert_eq!((schedule.steps, schedule.warmup_steps), (Some(500), Some(50)));
        let mut schedule = make();
        scale_steps(&mut schedule, 0.01, 41);
        assert_eq!((schedule.steps, schedule.warmup_steps), (Some(42), Some(1)));
    }
}
