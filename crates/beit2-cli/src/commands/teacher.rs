//! `beit2 teacher`: a small teacher from a large one.

use std::path::PathBuf;

use beit2::tokenizer::teachers::DistillRecipe;
use beit2::train::{Assets, Files};
use beit2::weights;
use beit2_run::atomic::AtomicFile;
use burn::tensor::DType;
use clap::ValueHint;

use crate::assets::Reading;
use crate::errors::{Ending, usage};
use crate::flags::TrainArgs;
use crate::signals::Signals;
use crate::stage::fitting_help;
use crate::{experiment, output};

/// The commands of the group.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one
pub enum Teacher {
    /// Distill a small teacher, or continue the run in --out
    #[command(defer(fitting_help::<DistillRecipe>), after_help = "\
        Examples:\n\
        \x20 beit2 teacher distill distill_tiny --data images \\\n\
        \x20     --set teacher.weights=dinov2_vits14_pretrain.pth --out runs/teacher\n\
        \x20 beit2 teacher distill distill_tiny --data images \\\n\
        \x20     --set teacher.weights=ViT-B-16.pt --out runs/clip_teacher --dry-run\n\
        \n\
        The run is then a teacher for `beit2 tokenizer train`: --set\n\
        teacher.kind=distilled --set teacher.weights=runs/teacher, and\n\
        model.teacher_dim is that of the large teacher.")]
    Distill(TrainArgs),
    /// Write a distilled teacher to one small file, in half precision
    Export(ExportArgs),
}

/// Flags of `teacher export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Example:\n\
    \x20 beit2 teacher export runs/teacher --out teacher.safetensors")]
pub struct ExportArgs {
    /// Run directory, checkpoint folder or weight file of `beit2 teacher distill`
    #[arg(value_name = "RUN")]
    run: String,

    /// Output file, which must not exist yet
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: PathBuf,
}

/// Runs one of them.
pub fn run(command: &Teacher, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Teacher::Distill(args) => {
            experiment::run::<DistillRecipe>(args, Vec::new(), Reading::default(), signals)
        }
        Teacher::Export(args) => export(args),
    }
}

fn export(args: &ExportArgs) -> anyhow::Result<Ending> {
    let file = Files::default().weights(&args.run)?;
    if file.metadata.get("beit2.stage").map(String::as_str) != Some("distill") {
        return usage(format!(
            "{} holds no distilled teacher; name a run of `beit2 teacher distill`",
            args.run
        ));
    }
    if args.out.exists() {
        return usage(format!("{} already exists; remove it or choose another name", args.out.display()));
    }
    let half = |(name, data): (String, burn::tensor::TensorData)| (name, data.convert_dtype(DType::F16));
    let tensors: weights::Tensors = file.tensors.into_iter().map(half).collect();
    let mut out = AtomicFile::create(&args.out)?;
    weights::encode_to(&mut out, &tensors, &file.metadata)?;
    out.commit()?;
    let values: usize = tensors.values().map(|data| data.shape.num_elements()).sum();
    output::result(&format!(
        "{}: {} tensors, {values} values in half precision",
        args.out.display(),
        tensors.len()
    ))?;
    Ok(Ending::Done)
}
