//! `beit2 eval`: evaluates a classifier on labelled images.

use beit2::Error;
use beit2::classify::bootstrap::{Estimate, of_share};
use beit2::classify::{
    Classifier, ClassifierOptions, EvalTable, Evaluation, MultiLabelEvaluation, evaluate,
    evaluate_multi_label,
};
use beit2::train::{Assets, DataConfig, EvaluationData, Event, ImageCaching, Observer};
use beit2_data::classes::{ClassMatch, IMAGENET_CLASSES, Matched};
use beit2_data::{CropMode, EvalConfig, Interpolation, LoaderError, Source};
use beit2_kernels::AutodiffBackend;
use beit2_run::csv_cell;
use beit2_run::thousands;
use beit2_weights::plan::{IMAGENET_A, IMAGENET_R};
use beit2_weights::resize::TableResize;
use clap::{ValueEnum, ValueHint};
use serde_json::json;

use crate::account;
use crate::classes::ClassArgs;
use crate::display::estimate;
use crate::errors::{Ending, usage};
use crate::flags::{
    DecodeArgs, DeviceArgs, InferPrecisionArgs, OutputArgs, ReadArgs, ResultArgs, published_decoding,
};
use crate::output;
use crate::session::{Job, Session};
use crate::signals::Signals;

/// Flags of `eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 eval --weights runs/classifier/best --data labelled/val\n\
    \x20 beit2 eval --weights runs/classifier/best --data labelled/val \\\n\
    \x20     --crop-pct 0.9 --out result --json\n\
    \x20 beit2 eval --weights runs/classifier/best --data photos \\\n\
    \x20     --class-map photos.csv\n\
    \x20 beit2 eval --weights beitv2_large_patch16_224_pt1k_ft1k.pth \\\n\
    \x20     --data imagenet-r --variant imagenet-r\n\
    \n\
    Classes are matched by name. A class of the model without images is named in a\n\
    warning; a class that the model does not have is an error. The classifiers\n\
    published for ImageNet-1k have no names: its 1000 folders are numbered in the\n\
    order of their names' bytes, which is theirs.")]
pub struct Args {
    /// Classifier: a run of `beit2 finetune`, or a weight file with official, timm or Hugging Face names
    #[arg(long, value_name = "RUN|FILE")]
    weights: String,

    #[command(flatten)]
    read: ReadArgs,

    /// Labelled images: one sub-folder per class, tar shards, or IDX files
    #[arg(long, value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    data: String,

    /// Reduce a model of ImageNet-1k's 1000 classes to those of this set
    #[arg(long, value_name = "SET")]
    variant: Option<Variant>,

    #[command(flatten)]
    classes: ClassArgs,

    /// Image size in pixels; for another size than in training, positions are resized [default: that of training]
    #[arg(long, value_name = "PX")]
    image_size: Option<usize>,

    /// Interpolation of relative position bias tables for another --image-size
    #[arg(long, value_name = "METHOD", default_value = "spline")]
    rel_pos_interpolation: RelPosInterpolation,

    /// Fraction of the resized image that the model sees [default: as files beside the weights say; else 0.875, or 1 up to
    /// 32 px and from 384 px on; timm uses 0.9 for base and 0.95 for large]
    #[arg(long, value_name = "FRACTION")]
    crop_pct: Option<f64>,

    /// How images that are not square are made square [default: as files beside the weights say; else center]
    #[arg(long, value_name = "MODE")]
    crop_mode: Option<Mode>,

    /// Resize filter [default: as files beside the weights say; else bicubic]
    #[arg(long, value_name = "FILTER")]
    interpolation: Option<Filter>,

    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch_size: usize,

    /// Leave out images that cannot be read and count them, instead of stopping
    #[arg(long)]
    skip_unreadable: bool,

    #[command(flatten)]
    results: ResultArgs,

    #[command(flatten)]
    decode: DecodeArgs,

    /// Threads that decode images
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    #[command(flatten)]
    precision: InferPrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// Robustness sets with a part of ImageNet-1k's classes; ImageNet-Sketch has all and needs no flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Variant {
    /// ImageNet-A, 200 classes
    ImagenetA,
    /// ImageNet-R, 200 classes
    ImagenetR,
    /// ImageNet-Sketch, all 1000 classes
    ImagenetSketch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// Resize the shorter side, crop the longer one
    Center,
    /// Resize both sides, whatever the aspect ratio
    Squash,
    /// Resize the longer side, pad the shorter one
    Border,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Filter {
    Bilinear,
    Bicubic,
    Lanczos,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RelPosInterpolation {
    /// The reference's cubic spline
    Spline,
    /// Linear, as in timm
    Linear,
}

impl RelPosInterpolation {
    fn of_library(self) -> TableResize {
        match self {
            Self::Spline => TableResize::Spline,
            Self::Linear => TableResize::Linear,
        }
    }
}

/// Runs `eval`.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    args.results.check()?;
    args.classes.check()?;
    if args.batch_size == 0 {
        return usage("--batch-size must be at least 1");
    }
    if args.crop_pct.is_some_and(|share| !(share > 0.0 && share <= 2.0)) {
        return usage("--crop-pct must be above 0 and at most 2 (the reference uses 0.875)");
    }
    let mut session = Session::reading(args.output, signals, args.read.reading()?);
    let source = session.assets.source(&args.data)?;
    if source.classes().is_empty() {
        return usage(format!("{} has no classes; an evaluation needs one sub-folder per class", args.data));
    }
    source.check_labels()?;
    account::tell(args.output, &args.data, source.as_ref());
    let (result, matched) = session.on(&args.device.device, args)?;
    let classes = matched.source.classes();
    let object = summary(args, &result, source.classes().len(), &matched, source.as_ref());
    match &result {
        Judged::Single(result) => {
            args.results.write(&object, &per_class(result, classes), Some(&confusion(result, classes)))?;
        }
        Judged::Several(result) => args.results.write(&object, &per_label(result, classes), None)?,
    }
    if args.output.json {
        output::json(&object)?;
    } else {
        let percent = |share: f64| format!("{:.3} %", 100.0 * share);
        let mut rows = vec![
            ("weights", args.weights.clone()),
            (
                "images",
                format!("{} of {} classes", thousands(result.images() as u64), source.classes().len()),
            ),
            ("classes", format!("{} of the model, matched {}", classes.len(), in_words(matched.by))),
        ];
        rows.extend(match &result {
            Judged::Single(result) => vec![
                ("top-1", estimate(top1(result), 3)),
                ("top-5", percent(result.top5)),
                ("loss", format!("{:.4}", result.loss)),
            ],
            Judged::Several(result) => {
                vec![("mAP", percent(result.map)), ("loss", format!("{:.4}", result.loss))]
            }
        });
        let left_out = source.len().saturating_sub(result.images());
        if left_out > 0 {
            rows.push(("left out", thousands(left_out as u64)));
        }
        rows.extend(args.results.row());
        output::result(&output::pairs(&rows))?;
    }
    Ok(Ending::Done)
}

/// Top-1 accuracy with its interval over images.
fn top1(result: &Evaluation) -> Estimate {
    of_share((result.top1 * result.images as f64).round() as usize, result.images)
}

/// What came of an evaluation.
pub enum Judged {
    /// One class each.
    Single(Evaluation),
    /// Any number of classes each.
    Several(MultiLabelEvaluation),
}

impl Judged {
    fn images(&self) -> usize {
        match self {
            Self::Single(result) => result.images,
            Self::Several(result) => result.images,
        }
    }
}

impl Job for &Args {
    /// The result, and the images with the model's classes.
    type Output = (Judged, ClassMatch);

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Self::Output> {
        let source = session.assets.source(&self.data)?;
        let head_rows: Option<&[usize]> = match self.variant {
            Some(Variant::ImagenetA) => Some(&IMAGENET_A),
            Some(Variant::ImagenetR) => Some(&IMAGENET_R),
            Some(Variant::ImagenetSketch) | None => None,
        };
        let options = ClassifierOptions {
            image_size: self.image_size,
            head_rows,
            tables: self.rel_pos_interpolation.of_library(),
            precision: self.precision.precision,
        };
        let file = session.assets.weights(&self.weights)?;
        let classifier = Classifier::<B::InnerBackend>::from_file(file, &self.weights, &options, device)?;
        let (count, own) = (classifier.config.class_count(), &classifier.config.class_names);
        let found = source.classes().len();
        let multi_label = classifier.config.multi_label;
        if source.is_multi_label() && !multi_label {
            return usage(format!(
                "images of {} have several classes, but the model in {} was trained for one class an image; fine-tune \
                 one on such images",
                self.data, self.weights
            ));
        }
        if multi_label && self.variant.is_some() {
            return usage(format!(
                "--variant is for ImageNet-1k; {} is a multi-label classifier",
                self.weights
            ));
        }
        let named = self.classes.model_names(own, count, head_rows, &self.weights)?;
        let matched = match self.classes.matched(
            &self.data,
            source,
            &self.weights,
            (&named.names, count),
            head_rows.is_some(),
        ) {
            Err(_) if (found, count, self.variant) == (200, IMAGENET_CLASSES, None) => {
                return usage(format!(
                    "{} has 200 classes, but the model in {} has {count}; for ImageNet-A or -R add --variant \
                     imagenet-a or imagenet-r, for others say which is which with --class-map FILE",
                    self.data, self.weights
                ));
            }
            matched => matched?,
        };
        for warning in named.warnings.iter().chain(&matched.warnings) {
            session.progress.event(Event::Warning(warning.clone()));
        }
        let source = matched.source.clone();
        let decode = self.decode.options(&self.weights, published_decoding())?;
        let decode = decode.of_channels(classifier.config.vit.in_chans);
        // A figure is that of all images unless it is said otherwise.
        let max_bad_fraction = if self.skip_unreadable { 1.0 } else { 0.0 };
        let config = DataConfig {
            workers: self.workers,
            max_bad_fraction,
            cache: ImageCaching::Off, // each image is looked at once
            ..DataConfig::default()
        };
        let config = &config.decoding_by(&decode);
        let view = view(self, &classifier.eval, classifier.config.vit.image_size);
        let data = EvaluationData { source, config, view, batch_size: self.batch_size };
        let statistics = classifier.config.vit.normalization.as_ref();
        let (progress, stop, model) = (&mut session.progress, &session.signals.stop, &classifier.model);
        let found = match multi_label {
            true => {
                evaluate_multi_label(model, statistics, &data, progress, stop, device).map(Judged::Several)
            }
            false => evaluate(model, statistics, &data, progress, stop, device).map(Judged::Single),
        };
        Ok((found.map_err(unreadable)?, matched))
    }
}

/// The error of an unreadable image with the flag that helps.
fn unreadable(error: Error) -> anyhow::Error {
    match error {
        Error::Loader(LoaderError::TooManyBad { first, .. }) if !first.is_empty() => anyhow::anyhow!(
            "{}; every image counts: remove it, or leave such images out with --skip-unreadable",
            first[0]
        ),
        other => other.into(),
    }
}

/// The model's view, with the flags over it.
fn view(args: &Args, model: &EvalTable, size: usize) -> EvalConfig {
    let table = EvalTable {
        crop_pct: args.crop_pct.or(model.crop_pct),
        crop_mode: args.crop_mode.map_or(model.crop_mode, |mode| match mode {
            Mode::Center => CropMode::Center,
            Mode::Squash => CropMode::Squash,
            Mode::Border => CropMode::Border,
        }),
        interpolation: args.interpolation.map_or(model.interpolation, |filter| match filter {
            Filter::Bilinear => Interpolation::Bilinear,
            Filter::Bicubic => Interpolation::Bicubic,
            Filter::Lanczos => Interpolation::Lanczos,
        }),
        images_per_batch: Some(args.batch_size),
    };
    table.view(size)
}

fn in_words(by: Matched) -> &'static str {
    match by {
        Matched::Name => "by name",
        Matched::ClassMap => "by the class map",
        Matched::Number => "by number",
        Matched::Position => "by position",
    }
}

fn summary(
    args: &Args,
    result: &Judged,
    classes: usize,
    matched: &ClassMatch,
    source: &dyn Source,
) -> serde_json::Value {
    let mut object = json!({
        "weights": args.weights,
        "data": args.data,
        "precision": args.precision.precision,
        "classes": classes,
        "classes_by": matched.by,
        "missing_classes": matched.missing,
        "images": result.images(),
        "left_out": source.len().saturating_sub(result.images()),
        "account": account::json(&source.account()),
    });
    let scores = match result {
        Judged::Single(result) => json!({
            "top1": result.top1,
            "top1_interval": top1(result).interval,
            "top5": result.top5,
            "loss": result.loss,
        }),
        Judged::Several(result) => {
            let classes = matched.source.classes().iter();
            let left_out = classes.zip(&result.ap).filter(|(_, ap)| ap.is_none()).map(|(name, _)| name);
            json!({
                "map": result.map,
                "loss": result.loss,
                "classes_without_positives": left_out.collect::<Vec<_>>(),
            })
        }
    };
    if let (Some(object), serde_json::Value::Object(scores)) = (object.as_object_mut(), scores) {
        object.extend(scores);
    }
    object
}

fn name(classes: &[String], class: u32) -> String {
    csv_cell(classes.get(class as usize).map_or("", String::as_str))
}

fn per_class(result: &Evaluation, classes: &[String]) -> String {
    let mut table = "class,name,images,predicted,correct,recall,precision\n".to_owned();
    for row in result.per_class(classes.len()) {
        let share = |share: Option<f64>| share.map(|share| format!("{share:.6}")).unwrap_or_default();
        table += &format!(
            "{},{},{},{},{},{},{}\n",
            row.class,
            name(classes, row.class),
            row.images,
            row.predicted,
            row.right,
            share(row.recall()),
            share(row.precision())
        );
    }
    table
}

/// One line for each class of a multi-label classifier.
fn per_label(result: &MultiLabelEvaluation, classes: &[String]) -> String {
    let mut table = "class,name,positives,average_precision\n".to_owned();
    for (class, (ap, positives)) in (0..).zip(result.ap.iter().zip(&result.positives)) {
        let ap = ap.map(|ap| format!("{ap:.6}")).unwrap_or_default();
        table += &format!("{class},{},{positives},{ap}\n", name(classes, class));
    }
    table
}

/// One line for each pair that occurs: the matrix of 21,841 classes would have 477 million cells.
fn confusion(result: &Evaluation, classes: &[String]) -> String {
    let mut table = "class,predicted,name,predicted_name,images\n".to_owned();
    for (&(class, predicted), count) in &result.confusion {
        let (name, predicted_name) = (name(classes, class), name(classes, predicted));
        table += &format!("{class},{predicted},{name},{predicted_name},{count}\n");
    }
    table
}
