//! `beit2 adapt`: a pretrained student goes on with pretraining on images of another domain.
//!
//! Nothing here trains: recipes are made for the weights that are named, and the training commands' own way is taken from
//! there ([`experiment::run_recipe`]).

mod settings;
mod weights;

use std::path::{Path, PathBuf};

use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::Assets;
use clap::{Command, ValueHint};

use self::settings::Start;
use self::weights::Names;
use crate::assets::{AssetStore, Reading};
use crate::errors::{Ending, usage};
use crate::experiment;
use crate::flags::{TrainArgs, UnsaidArgs, several_devices};
use crate::output;
use crate::recipes::{self, Recipe};
use crate::signals::Signals;
use crate::stage::Stage;

/// The published student, and the tokenizer that it was pretrained with.
const STUDENT: &str = "beitv2_base_patch16_224_pt1k";
const TOKENIZER: &str = "vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7";

/// The run directory when none is named.
const OUT: &str = "runs/adapt";

/// Flags of `adapt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 adapt --data images --val held_out --device cuda --precision bf16\n\
    \x20 beit2 adapt --data images --student beitv2_large_patch16_224_pt1k\n\
    \x20 beit2 adapt --data images --student runs/mim --tokenizer runs/tokenizer\n\
    \x20 beit2 adapt --data images --student runs/mim --tokenizer runs/tokenizer \\\n\
    \x20     --adapt-tokenizer --out runs/adapted\n\
    \n\
    Published weights are downloaded once, as by `beit2 weights fetch`. The learning\n\
    rate is a third of the student's own, the length follows the number of images;\n\
    docs/adapting.md says what comes from where. --dry-run shows it all.")]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,

    /// Student that goes on: a published name, a run or a weight file [default: beitv2_base_patch16_224_pt1k]
    #[arg(long, value_name = "NAME|RUN|FILE")]
    student: Option<String>,

    /// Tokenizer that makes the targets: a published name, a run or a weight file [default: the student's]
    #[arg(long, value_name = "NAME|RUN|FILE")]
    tokenizer: Option<String>,

    /// Train the tokenizer on the images first; needs its teacher
    #[arg(long)]
    adapt_tokenizer: bool,

    /// Teacher of --adapt-tokenizer: a published name, a run or a weight file [default: the tokenizer's]
    #[arg(long, value_name = "NAME|RUN|FILE", requires = "adapt_tokenizer")]
    teacher: Option<String>,

    /// Epochs of --adapt-tokenizer [default: a third of the student's]
    #[arg(long, value_name = "N", requires = "adapt_tokenizer", value_parser = clap::value_parser!(u64).range(1..))]
    tokenizer_epochs: Option<u64>,

    /// Address to try first for published weights, as in `beit2 weights fetch`; repeatable
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    mirror: Vec<String>,

    #[command(flatten)]
    unsaid: UnsaidArgs,
}

/// Help of flags that other commands have too.
pub fn help(command: Command) -> Command {
    let recipe = "Recipe of pretraining [default: adapt_student, or the settings of the student's own run]";
    let out = "Run directory; a run that is already there is continued [default: runs/adapt]";
    command
        .mut_arg("recipe", |arg| arg.help(recipe))
        .mut_arg("out", |arg| arg.help(out))
        .mut_arg("data", |arg| arg.help(PretrainRecipe::IMAGES))
        .mut_arg("val", |arg| arg.help(PretrainRecipe::VALIDATION))
        .mut_arg("device", several_devices)
}

/// Adapts, or continues.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let train = &args.train;
    if train.data.is_empty() && train.recipe.is_none() {
        return usage("no training images are named; use --data DIR");
    }
    // Before a download: images that cannot be opened are said at once.
    let assets = AssetStore::reading(Reading::default(), true);
    let images = match train.data.is_empty() {
        true => None,
        false => Some(assets.source(&train.data.join(beit2_data::source::AND))?.epoch_len()),
    };
    let names =
        Names { mirrors: &args.mirror, may_download: !train.dry_run, quiet: train.output.quiet, signals };
    let student = args.student.as_deref().unwrap_or(STUDENT);
    let Some(student) = names.find(student, "--student")? else { return Ok(Ending::Stopped) };
    let reading = args.unsaid.reading_of(Some(&student), "--student")?;
    let start = Start::of::<PretrainRecipe>(&student, images)?;
    let tokenizer = match (&args.tokenizer, start.tokenizer()) {
        (Some(named), _) => named.clone(),
        (None, Some(own)) if own_is_there(&own) => own,
        (None, Some(own)) => {
            return usage(format!(
                "the tokenizer of {student} was {own}, which is not there any more; name one with --tokenizer"
            ));
        }
        (None, None) => TOKENIZER.to_owned(),
    };
    let Some(tokenizer) = names.find(&tokenizer, "--tokenizer")? else { return Ok(Ending::Stopped) };
    let recipe = match &train.recipe {
        Some(named) => recipes::find(named)?,
        None => start.recipe()?,
    };
    let dir = train.out.clone().unwrap_or_else(|| PathBuf::from(OUT));

    let mut targets = tokenizer.clone();
    if args.adapt_tokenizer {
        let out = beside(&dir);
        let epochs = args.tokenizer_epochs.or_else(|| Some(start.epochs(train.epochs)?.div_ceil(3)));
        match adapt_tokenizer(args, &names, (&tokenizer, images), epochs, &out, signals)? {
            Ending::Done => {}
            ended => return Ok(ended),
        }
        if !train.dry_run {
            targets = out.display().to_string();
        } else if train.image_size.is_some() {
            output::note(
                "the student's pretraining cannot be rehearsed before there is a tokenizer of its image size",
            );
            return Ok(Ending::Done);
        }
        if tells(train)? {
            output::note("");
        }
    }
    let named = [("tokenizer.weights", targets), ("init.weights", student)];
    let named = named.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let train = TrainArgs { out: Some(dir), ..train.clone() };
    experiment::run_recipe::<PretrainRecipe>(&recipe, &train, named, reading, true, signals)
}

/// Trains the tokenizer on.
fn adapt_tokenizer(
    args: &Args,
    names: &Names<'_>,
    (tokenizer, images): (&str, Option<usize>),
    epochs: Option<u64>,
    out: &Path,
    signals: &Signals,
) -> anyhow::Result<Ending> {
    let start = Start::of::<TokenizerRecipe>(tokenizer, images)?;
    let teacher = args.teacher.clone().or_else(|| start.teacher());
    let mut named = vec![("init.weights".to_owned(), tokenizer.to_owned())];
    if let Some(teacher) = teacher {
        let Some(file) = names.find(&teacher, "--teacher")? else { return Ok(Ending::Stopped) };
        named.push(("teacher.weights".to_owned(), file));
        if let Some(published) = beit2_weights::published::teacher(&weights::last_part(&teacher)) {
            named.push(("teacher.kind".to_owned(), published.kind.to_owned()));
        }
    }
    let recipe: Recipe = start.with_epochs(epochs).recipe()?;
    if tells(&args.train)? {
        output::note("first the tokenizer:");
    }
    let train = TrainArgs {
        recipe: None,
        out: Some(out.to_owned()),
        epochs: None,
        steps: None,
        lr: None,
        size: None,
        set: Vec::new(),
        resume: false,
        ..args.train.clone()
    };
    experiment::run_recipe::<TokenizerRecipe>(&recipe, &train, named, Reading::default(), false, signals)
}

/// Whether this process says on the way what it does: of several only the first one.
fn tells(train: &TrainArgs) -> anyhow::Result<bool> {
    Ok(!train.output.quiet && train.ranks.place()?.is_none_or(|place| place.rank == 0))
}

/// Where the adapted tokenizer's run lies: beside the student's.
fn beside(dir: &Path) -> PathBuf {
    let name = dir.file_name().map_or_else(|| "adapt".into(), |name| name.to_string_lossy().into_owned());
    dir.with_file_name(format!("{name}_tokenizer"))
}

fn own_is_there(spec: &str) -> bool {
    let path = spec.rsplit_once('#').map_or(spec, |(path, _)| path);
    spec.starts_with("bundled:") || Path::new(spec).exists() || Path::new(path).exists()
}

/// The name of a stage's recipe here.
fn bundled<S: Stage>() -> &'static str {
    match S::NAME {
        TokenizerRecipe::NAME => "adapt_tokenizer",
        _ => "adapt_student",
    }
}
