//! `beit2 embed`: features of many images in one file.

use anyhow::bail;
use beit2::classify::{Embedder, FeatureKind};
use beit2::pixels;
use beit2::train::Assets;
use beit2_data::{DecodeOptions, EvalConfig, Image};
use beit2_kernels::AutodiffBackend;
use burn::tensor::{DType, TensorData};
use clap::ValueEnum;

use crate::account;
use crate::errors::Ending;
use crate::export::{Destination, Element, Export, Format, RowLayout, Written};
use crate::flags::{DeviceArgs, ExportArgs, FrozenArgs, InferPrecisionArgs, OutputArgs, ReadArgs, SourceArg};
use crate::session::{Job, Session};
use crate::signals::Signals;

/// The largest number that half precision holds.
const F16_MAX: f32 = 65504.0;

/// Flags of `embed`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 embed images --weights runs/mim --out features.parquet\n\
    \x20 beit2 embed 'shards/x-{000..099}.tar' --weights runs/mim --out features.npy \\\n\
    \x20     --device cuda\n\
    \x20 beit2 embed images --weights runs/mim --features patches --layer 9 \\\n\
    \x20     --dtype f16 --out patches.safetensors\n\
    \x20 beit2 embed images --weights runs/mim --out - > features.arrows\n\
    \n\
    If it is interrupted, give the same command again: it continues, and the file\n\
    is the same to the byte.")]
pub struct Args {
    #[command(flatten)]
    images: SourceArg,

    /// Model: a run directory, checkpoint folder or weight file (pretrained model, classifier, tokenizer or
    /// teacher)
    #[arg(long, value_name = "RUN|FILE")]
    weights: String,

    #[command(flatten)]
    read: ReadArgs,

    /// Which tokens become an image's row
    #[arg(long, value_name = "WHAT", default_value = "mean")]
    features: FeatureArg,

    #[command(flatten)]
    frozen: FrozenArgs,

    /// Type of the values in the file
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Precision,

    #[command(flatten)]
    export: ExportArgs,

    #[command(flatten)]
    precision: InferPrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FeatureArg {
    /// The CLS token
    Cls,
    /// The mean of the patch tokens
    Mean,
    /// Both, concatenated
    Concat,
    /// Every patch token, in row-major order
    Patches,
}

impl FeatureArg {
    /// The name, and what is pooled; `None` keeps the patches.
    fn resolved(self) -> (&'static str, Option<FeatureKind>) {
        match self {
            Self::Cls => ("cls", Some(FeatureKind::Cls)),
            Self::Mean => ("mean", Some(FeatureKind::Mean)),
            Self::Concat => ("concat", Some(FeatureKind::Concat)),
            Self::Patches => ("patches", None),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    /// Single precision
    F32,
    /// Half precision
    F16,
}

/// Writes the file.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let known = [Format::Npy, Format::Parquet, Format::Safetensors];
    let mut session = Session::reading(args.output, signals, args.read.reading()?);
    if args.export.shard.check {
        return args.export.check(
            "embed",
            &session.assets,
            &args.images.source,
            &args.weights,
            args.output.json,
        );
    }
    let to = Destination::new(&args.export, "embed", &known)?;
    to.check_stdout(args.output.json)?;
    // A wrong name is said before a device starts.
    account::tell(args.output, &args.images.source, session.assets.source(&args.images.source)?.as_ref());
    let written = session.on(&args.device.device, Embedding { args, to })?;
    written.report(args.output.json)?;
    Ok(Ending::Done)
}

struct Embedding<'a> {
    args: &'a Args,
    to: Destination<'a>,
}

impl Job for Embedding<'_> {
    type Output = Written;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Written> {
        let Self { args, to } = self;
        let options = args.frozen.options(args.precision.precision);
        let file = session.assets.weights(&args.weights)?;
        let model = Embedder::<B::InnerBackend>::from_file(file, &args.weights, &options, device)?;
        let view = model.view();
        let view = EvalConfig { crop_pct: args.export.crop_pct.or(view.crop_pct), ..view };
        view.validate().map_err(beit2::Error::from)?;
        let (name, kind) = args.features.resolved();
        if let Some(kind) = kind {
            model.net.check_kind(kind)?;
        }
        let (width, grid) = (model.net.width(), model.image_px / model.net.patch_px());
        let element = match args.dtype {
            Precision::F32 => Element::F32,
            Precision::F16 => Element::F16,
        };
        let shape = match kind {
            Some(FeatureKind::Concat) => vec![2 * width],
            Some(_) => vec![width],
            None => vec![grid * grid, width],
        };
        let identity = vec![
            ("weights", session.assets.weights_fingerprint(&args.weights)?),
            ("features", name.to_owned()),
            ("layer", model.layer.map_or("end".to_owned(), |layer| layer.to_string())),
            ("teacher", format!("{:?}", args.frozen.teacher_options())),
            ("precision", args.precision.precision.to_string()),
            ("device", args.device.device.to_string()),
        ];
        let layout = RowLayout { name: "features", element, shape };
        let source = session.assets.source(&args.images.source)?;
        let decode = args.export.decode.options(&args.weights, DecodeOptions::default())?;
        let decode = decode.of_channels(model.channels());
        let spec = &args.images.source;
        let export = Export { to, source, spec, view, decode, layout, identity };
        export.run(session, |views: &[Image]| {
            let images = pixels::stacked::<B::InnerBackend>(views, device)?;
            let data = match kind {
                Some(kind) => model.net.features(images, kind).into_data(),
                None => model.net.patches(images).into_data(),
            };
            bytes_of(data, element)
        })
    }
}

/// Values as they are in the file.
fn bytes_of(data: TensorData, element: Element) -> anyhow::Result<Vec<u8>> {
    if element == Element::F32 {
        return Ok(data.convert::<f32>().iter::<f32>().flat_map(f32::to_le_bytes).collect());
    }
    let largest = data.iter::<f32>().fold(0f32, |largest, value| largest.max(value.abs()));
    if largest > F16_MAX {
        bail!("a feature of {largest} does not fit into half precision (at most {F16_MAX}); use --dtype f32");
    }
    // Every system that Burn runs on is little-endian, and so is the file.
    Ok(data.convert_dtype(DType::F16).as_bytes().to_vec())
}
