//! `beit2 quickstart`: tokenizer, pretraining, probes and a report, on the images inside the program.
//!
//! Nothing here is special to it: the stages are the recipes `quickstart_tokenizer` and
//! `quickstart_pretrain`, run as `beit2 tokenizer train` and `beit2 pretrain` would, each in its own run
//! directory; then the features of five models are compared.

mod measure;
mod show;

use std::path::PathBuf;

use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::ScheduleConfig;
use beit2_run::format_duration;
use clap::ValueHint;

use crate::assets::AssetStore;
use crate::errors::{Ending, usage};
use crate::experiment::{Inputs, Run};
use crate::flags::{DeviceArgs, OutputArgs, PrecisionArgs};
use crate::output;
use crate::recipes::{self, Recipe};
use crate::session::Session;
use crate::signals::Signals;
use crate::stage::Stage;

/// Minutes that the recipes' steps are made for, on two cores.
const RECIPE_MINUTES: f64 = 8.0;

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
    /// Approximate duration on two cores; scales the schedules
    #[arg(long, value_name = "N", default_value_t = RECIPE_MINUTES)]
    minutes: f64,

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
    if !(args.minutes > 0.0 && args.minutes.is_finite()) {
        return usage(format!("--minutes {} must be above 0, such as 8", args.minutes));
    }
    let assets = AssetStore::default();
    let scale = args.minutes / RECIPE_MINUTES;

    let mut tokenizer = Part::<TokenizerRecipe>::resolve("quickstart_tokenizer", args)?;
    let codebook = &mut tokenizer.settings.codebook;
    // A shorter run starts its codebook earlier; a longer one needs no longer warm-up.
    codebook.kmeans_warmup_steps = scaled(codebook.kmeans_warmup_steps, scale.min(1.0)).max(1);
    scale_steps(&mut tokenizer.settings.schedule, scale, codebook.kmeans_warmup_steps + 1);
    if !tokenizer.train(args, signals, &assets, "1/3  tokenizer")? {
        return Ok(Ending::Stopped);
    }

    let mut pretrain = Part::<PretrainRecipe>::resolve("quickstart_pretrain", args)?;
    scale_steps(&mut pretrain.settings.schedule, scale, 1);
    pretrain.settings.tokenizer.weights = tokenizer.dir.display().to_string();
    if !pretrain.train(args, signals, &assets, "2/3  pretraining")? {
        return Ok(Ending::Stopped);
    }

    if !args.output.quiet {
        output::note("\n3/3  probes");
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

    /// Trains, continues, or finds the stage complete; false when a signal came.
    fn train(
        &self,
        args: &Args,
        signals: &Signals,
        assets: &AssetStore,
        title: &str,
    ) -> anyhow::Result<bool> {
        let inputs = Inputs::check(&self.settings, assets)?;
        if !args.output.quiet {
            output::note(&format!("\n{title}  {}", inputs.budget(&self.settings)));
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
        };
        let outcome = run.train(&self.settings)?;
        let (step, dir) = (outcome.step, self.dir.display());
        if !outcome.complete {
            output::note(&format!(
                "stopped after step {step} and saved in {dir}; the same command continues the run"
            ));
        } else if !args.output.quiet {
            output::note(&format!("     {step} steps in {}", format_duration(outcome.seconds)));
        }
        Ok(outcome.complete)
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
