//! `beit2 segment`: train, evaluate and use segmentation models.

mod check;
mod draw;
mod eval;
mod predict;

use beit2::segment::{InferConfig, MasksConfig, Mode, SegmentRecipe, Segmenter, SegmenterOptions};
use beit2::train::Assets;
use beit2_data::segment::{ReduceZeroLabel, SegmentDataOptions};
use beit2_kernels::Backend;
use clap::{Args, Subcommand, ValueEnum};

use crate::cli::{Experiment, PrecisionArgs};
use crate::errors::Ending;
use crate::experiment;
use crate::signals::Signals;
use crate::stage::Stage;

/// The recipe when none is named.
const DEFAULT_RECIPE: &str = <SegmentRecipe as Stage>::DEFAULT_RECIPE;

/// `segment …`.
#[derive(Debug, Subcommand)]
pub enum Segment {
    /// Train a segmentation model (UPerNet), or continue the run in --out
    Train(Train),
    /// mIoU of a segmentation model on labelled images
    Eval(eval::Args),
    /// Masks and overlays of images
    Predict(predict::Args),
}

/// `segment train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    beit2 segment train segment_base_ade20k --data ADEChallengeData2016/images/training \\\n      \
    --val ADEChallengeData2016/images/validation --init beitv2_base_patch16_224_pt1k.pth --device cuda\n  \
    beit2 segment train my.toml --data scenes/train --val scenes/val --init runs/pretrained --check-data\n\n\
    A folder holds images/ and masks/ and a classes.txt with a class a line (docs/formats/segmentation-data.md),\n\
    or is a part of ADE20K.")]
pub struct Train {
    #[command(flatten)]
    experiment: Experiment,

    /// Weights of the backbone: a run, a weight file in official, timm or Hugging Face names, or `scratch`
    #[arg(long, value_name = "RUN|FILE")]
    init: Option<String>,

    /// Look at every image and mask, say what is wrong with them, and stop
    #[arg(long)]
    check_data: bool,
}

/// How images are seen, for `eval` and `predict`. What is left out is as the model was trained to be evaluated.
#[derive(Debug, Args)]
struct InferArgs {
    /// Overlapping windows, or the whole image at once
    #[arg(long, value_name = "MODE")]
    mode: Option<InferMode>,

    /// Distance of windows in pixels
    #[arg(long, value_name = "PX")]
    stride: Option<usize>,

    /// Resize images to fit into LONGxSHORT first, such as 2048x512, or `native` for no resizing
    #[arg(long, value_name = "SIZE", value_parser = size)]
    resize: Option<Resize>,

    /// Average over these sizes, as factors
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    scales: Option<Vec<f64>>,

    /// Average over the mirrored image too
    #[arg(long)]
    flip: bool,

    /// Windows computed at once
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum InferMode {
    Slide,
    Whole,
}

/// Longer and shorter side; `None`: images stay as they are.
#[derive(Debug, Clone, Copy)]
struct Resize(Option<(u32, u32)>);

fn size(text: &str) -> Result<Resize, String> {
    if text == "native" {
        return Ok(Resize(None));
    }
    let sides =
        text.split_once('x').and_then(|(long, short)| Some((long.parse().ok()?, short.parse().ok()?)));
    match sides {
        Some((a, b)) if a > 0 && b > 0 => Ok(Resize(Some((u32::max(a, b), u32::min(a, b))))),
        _ => Err("write it as 2048x512, or native".to_owned()),
    }
}

impl InferArgs {
    fn on(&self, mut infer: InferConfig) -> InferConfig {
        if let Some(way) = self.mode {
            infer.mode = match way {
                InferMode::Slide => Mode::Slide,
                InferMode::Whole => Mode::Whole,
            };
        }
        infer.stride = self.stride.or(infer.stride);
        if let Some(Resize(sides)) = self.resize {
            infer.resize = sides.is_some();
            (infer.long_side, infer.short_side) = sides.unwrap_or((infer.long_side, infer.short_side));
        }
        if let Some(scales) = &self.scales {
            infer.scales.clone_from(scales);
        }
        infer.flip |= self.flip;
        infer.windows_per_batch = self.batch_size.unwrap_or(infer.windows_per_batch);
        infer
    }
}

/// How masks are read, for commands without a recipe.
#[derive(Debug, Args)]
struct Masks {
    /// Whether 0 in the masks means "no label" and the classes count from 1
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    reduce_zero_label: ReduceZeroLabelArg,

    /// Number in the masks of pixels without a label
    #[arg(long, value_name = "ID", default_value_t = 255)]
    ignore: u8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReduceZeroLabelArg {
    /// In the folders of ADE20K only
    Auto,
    Yes,
    No,
}

impl Masks {
    fn options(&self) -> SegmentDataOptions {
        let reduce_zero_label = match self.reduce_zero_label {
            ReduceZeroLabelArg::Auto => ReduceZeroLabel::Auto,
            ReduceZeroLabelArg::Yes => ReduceZeroLabel::Yes,
            ReduceZeroLabelArg::No => ReduceZeroLabel::No,
        };
        MasksConfig { reduce_zero_label, ignore: self.ignore }.options()
    }
}

/// Opens a model with its way of looking at images.
fn open<B: Backend>(
    weights: &str,
    looking: &InferArgs,
    products: PrecisionArgs,
    assets: &dyn Assets,
    device: &B::Device,
) -> anyhow::Result<(Segmenter<B>, InferConfig)> {
    let options = SegmenterOptions { precision: products.precision, ..SegmenterOptions::default() };
    let segmenter = Segmenter::<B>::from_file(assets.weights(weights)?, weights, &options, device)?;
    let infer = looking.on(segmenter.infer.clone());
    infer.validate(segmenter.config.vit.image_size)?;
    Ok((segmenter, infer))
}

/// Runs `segment …`.
pub fn run(command: &Segment, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Segment::Train(args) if args.check_data => check::run(&args.experiment, signals),
        Segment::Train(args) => {
            let init = args.init.clone().map(|weights| ("init.weights".to_owned(), weights));
            experiment::run::<SegmentRecipe>(&args.experiment, init.into_iter().collect(), signals)
        }
        Segment::Eval(args) => eval::run(args, signals),
        Segment::Predict(args) => predict::run(args, signals),
    }
}
