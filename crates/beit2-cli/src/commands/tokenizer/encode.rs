//! `beit2 tokenizer encode`: code ids of many images in one file.

use beit2::pixels;
use beit2::tokenizer::{Tokenizer, TokenizerOptions};
use beit2::train::Assets;
use beit2_data::{DecodeOptions, EvalConfig, Image};
use beit2_kernels::AutodiffBackend;

use crate::account;
use crate::errors::Ending;
use crate::export::{Destination, Element, Export, Format, RowLayout, Written};
use crate::flags::{DeviceArgs, EntryArg, ExportArgs, InferPrecisionArgs, OutputArgs, SourceArg};
use crate::session::{Job, Session};
use crate::signals::Signals;

/// Code ids that fit into two bytes.
const U16_CODES: usize = 1 << 16;

/// Flags of `tokenizer encode`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 tokenizer encode images --tokenizer runs/tokenizer --out ids.npy\n\
    \x20 beit2 tokenizer encode cat.jpg --tokenizer runs/tokenizer --out ids.jsonl\n\
    \n\
    If it is interrupted, give the same command again: it continues, and the file\n\
    is the same to the byte.")]
pub struct Args {
    #[command(flatten)]
    images: SourceArg,

    /// Tokenizer: a run directory, checkpoint folder or weight file
    #[arg(long, value_name = "RUN|FILE")]
    tokenizer: String,

    #[command(flatten)]
    entry: EntryArg,

    #[command(flatten)]
    export: ExportArgs,

    #[command(flatten)]
    precision: InferPrecisionArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// Writes the file.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let mut session = Session::reading(args.output, signals, args.entry.reading());
    let command = "tokenizer encode";
    if args.export.shard.check {
        let (images, weights) = (&args.images.source, &args.tokenizer);
        return args.export.check(command, &session.assets, images, weights, args.output.json);
    }
    let to = Destination::new(&args.export, command, &[Format::Npy, Format::Parquet, Format::JsonLines])?;
    to.check_stdout(args.output.json)?;
    // A wrong name is said before a device starts.
    account::tell(args.output, &args.images.source, session.assets.source(&args.images.source)?.as_ref());
    let written = session.on(&args.device.device, Encoding { args, to })?;
    written.report(args.output.json)?;
    Ok(Ending::Done)
}

struct Encoding<'a> {
    args: &'a Args,
    to: Destination<'a>,
}

impl Job for Encoding<'_> {
    type Output = Written;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Written> {
        let Self { args, to } = self;
        let precision = args.precision.precision;
        let options = TokenizerOptions { precision };
        let file = session.assets.weights(&args.tokenizer)?;
        let tokenizer = Tokenizer::<B::InnerBackend>::from_file(file, &args.tokenizer, &options, device)?;
        let view = EvalConfig { crop_pct: args.export.crop_pct, ..tokenizer.view() };
        view.validate().map_err(beit2::Error::from)?;
        let grid = tokenizer.config.grid();
        let element = if tokenizer.config.codebook_size <= U16_CODES { Element::U16 } else { Element::U32 };
        let layout = RowLayout { name: "ids", element, shape: vec![grid, grid] };
        let identity = vec![
            ("weights", session.assets.weights_fingerprint(&args.tokenizer)?),
            ("precision", precision.to_string()),
            ("device", args.device.device.to_string()),
        ];
        let source = session.assets.source(&args.images.source)?;
        let decode = args.export.decode.options(&args.tokenizer, DecodeOptions::default())?;
        let decode = decode.of_channels(tokenizer.config.in_chans);
        let spec = &args.images.source;
        let export = Export { to, source, spec, view, decode, layout, identity };
        export.run(session, |views: &[Image]| {
            let ids = tokenizer.ids(pixels::stacked(views, device)?).into_data();
            let bytes = |id: i64| match element {
                Element::U16 => (id as u16).to_le_bytes().to_vec(),
                _ => (id as u32).to_le_bytes().to_vec(),
            };
            Ok(ids.iter::<i64>().flat_map(bytes).collect())
        })
    }
}
