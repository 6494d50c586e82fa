//! `beit2 segment eval`: evaluates a segmentation model on labelled images.

use std::sync::Arc;

use beit2::segment::{Confusion, Predictor, SegmentScores, evaluate};
use beit2::train::Assets;
use beit2_data::Source;
use beit2_data::check::{self, Findings, Set};
use beit2_data::classes::Target;
use beit2_data::segment::SegmentDataOptions;
use beit2_kernels::AutodiffBackend;
use beit2_run::csv_cell;
use clap::ValueHint;
use serde_json::{Value, json};

use super::model::open;
use beit2_run::thousands;

use crate::account;
use crate::errors::{Ending, usage};
use crate::flags::{
    DecodeArgs, DeviceArgs, InferArgs, MaskArgs, OutputArgs, PrecisionArgs, ReadArgs, ResultArgs,
    published_decoding,
};
use crate::output;
use crate::session::{Job, Session};
use crate::signals::Signals;

/// Flags of `segment eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 segment eval --weights runs/segmenter/best --data scenes/val\n\
    \x20 beit2 segment eval --weights runs/segmenter/best --data scenes/val \\\n\
    \x20     --flip --scales 0.5,0.75,1,1.25,1.5,1.75 --out result --json")]
pub struct Args {
    /// Segmentation model: a run of `beit2 segment train`, checkpoint folder or weight file
    #[arg(long, value_name = "RUN|FILE")]
    weights: String,

    #[command(flatten)]
    read: ReadArgs,

    /// Labelled images: a folder with images/ and masks/, or a split of ADE20K
    #[arg(long, value_name = "DIR", value_hint = ValueHint::AnyPath)]
    data: String,

    #[command(flatten)]
    masks: MaskArgs,

    #[command(flatten)]
    infer: InferArgs,

    #[command(flatten)]
    results: ResultArgs,

    /// Evaluate although the masks show that the result would mean nothing
    #[arg(long)]
    no_check: bool,

    #[command(flatten)]
    decode: DecodeArgs,

    /// Threads that decode images
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,

    #[command(flatten)]
    precision: PrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    fn data_options(&self) -> anyhow::Result<SegmentDataOptions> {
        Ok(self.masks.options(self.decode.options(&self.weights, published_decoding())?))
    }
}

/// Runs `segment eval`.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    args.results.check()?;
    let mut session = Session::reading(args.output, signals, args.read.reading()?);
    let source = session.assets.segment_source(&args.data, &args.data_options()?)?;
    account::tell(args.output, &args.data, source.as_ref());
    if !args.no_check {
        let set = Set { name: &args.data, source: &source };
        let Findings { warnings, errors } = check::masks_to_measure(set, args.workers);
        account::tell_warnings(&warnings);
        if let Some(error) = errors.first() {
            anyhow::bail!("{error} (--no-check evaluates all the same)");
        }
    }
    let (confusion, names) = session.on(&args.device.device, args)?;
    let (scores, names) = (confusion.scores(), &names[..]);
    let object = json!({
        "weights": args.weights,
        "data": args.data,
        "precision": args.precision.precision,
        "images": source.len(),
        "account": account::json(&source.account()),
        "classes": names.len(),
        "miou": scores.miou,
        "macc": scores.macc,
        "aacc": scores.aacc,
        "per_class": per_class(&scores, names),
    });
    args.results.write(&object, &scores.csv(names), Some(&pairs(&confusion, names)))?;
    if args.output.json {
        output::json(&object)?;
        return Ok(Ending::Done);
    }
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let shown = |share: f64| if share.is_nan() { "–".to_owned() } else { percent(share) };
    let rows = names
        .iter()
        .enumerate()
        .map(|(class, name)| vec![name.clone(), shown(scores.iou[class]), shown(scores.acc[class])]);
    output::result(&output::table(&["class", "IoU", "accuracy"], &rows.collect::<Vec<_>>()))?;
    let mut rows = vec![
        ("weights", args.weights.clone()),
        ("images", format!("{}, {} classes", thousands(source.len() as u64), names.len())),
        ("mIoU", percent(scores.miou)),
        ("mAcc", percent(scores.macc)),
        ("aAcc", percent(scores.aacc)),
    ];
    rows.extend(args.results.row());
    output::result(&output::pairs(&rows))?;
    Ok(Ending::Done)
}

impl Job for &Args {
    /// The result, and the names of the model's classes.
    type Output = (Confusion, Vec<String>);

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Self::Output> {
        let Session { assets, signals, progress } = session;
        let source = assets.segment_source(&self.data, &self.data_options()?)?;
        let (segmenter, infer) =
            open::<B::InnerBackend>(&self.weights, &self.infer, self.precision, assets, device)?;
        let (count, names) = (segmenter.config.class_count(), &segmenter.config.class_names);
        let owner = &format!("the model in {}", self.weights);
        let source = source
            .numbered_by(&self.data, Target { owner, count, names })
            .map(Arc::new)
            .or_else(|error| usage(error.to_string()))?;
        let names = source.classes().to_vec();
        let predictor = Predictor::new(&segmenter.model, &segmenter.config, &infer)?;
        let found = evaluate(&predictor, &source, self.workers, 0, progress, &signals.stop)?;
        Ok((found.confusion, names))
    }
}

fn per_class(scores: &SegmentScores, names: &[String]) -> Vec<Value> {
    let row = |(class, name): (usize, &String)| {
        json!({
            "class": class,
            "name": name,
            "iou": scores.iou[class],
            "accuracy": scores.acc[class],
        })
    };
    names.iter().enumerate().map(row).collect()
}

/// One line for each pair of classes that occurs.
fn pairs(confusion: &Confusion, names: &[String]) -> String {
    let mut table = "class,predicted,name,predicted_name,pixels\n".to_owned();
    let name = |class: usize| csv_cell(names.get(class).map_or("", String::as_str));
    for class in 0..names.len() {
        for predicted in 0..names.len() {
            let count = confusion.count(class, predicted);
            if count > 0 {
                table += &format!("{class},{predicted},{},{},{count}\n", name(class), name(predicted));
            }
        }
    }
    table
}
