//! `beit2 tokenizer demo`: a tokenizer as one web page that needs nothing else.

use std::io::Write;
use std::path::PathBuf;

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use beit2::params;
use beit2::tokenizer::{self, ProcessType, TokenizerConfig};
use beit2::train::Assets;
use beit2::weights::{Tensors, encode_to};
use beit2_run::atomic::{AtomicFile, FileError};
use beit2_weights::Normalization;
use burn::backend::Flex;
use burn::tensor::DType;
use clap::{ValueEnum, ValueHint};
use serde_json::{Value, json};

use crate::errors::{Ending, usage};
use crate::flags::{EntryArg, OutputArgs};
use crate::output;
use crate::session::Session;
use crate::signals::Signals;

const PAGE: &str = include_str!("page.html");

/// Parts of the page that are the same for every model.
const SCRIPTS: [(&str, &str); 3] = [
    ("model", include_str!("model.js")),
    ("resize", include_str!("resize.js")),
    ("page", include_str!("page.js")),
];

/// Characters of JavaScript are what a string is addressed by: a longer page is not read by every browser.
const MOST_TEXT: u64 = 500_000_000;

/// Flags of `tokenizer demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 tokenizer demo runs/tokenizer --out tokens.html\n\
    \x20 beit2 tokenizer demo runs/tokenizer --dtype f16 --out tokens.html\n\
    \n\
    Open the page in a browser and drop an image on it: it shows the image's tokens,\n\
    the nearest codes of a patch and where it attends to. The page holds model and\n\
    program; it needs no network and no server, and the image stays where it is.")]
pub struct Args {
    /// Tokenizer: a run directory, checkpoint folder or weight file
    #[arg(value_name = "RUN|FILE")]
    tokenizer: String,

    #[command(flatten)]
    entry: EntryArg,

    /// Output file (*.html)
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: PathBuf,

    /// Type of the weights in the page; with f16 it is half as large, and single ids can differ
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: TypeArg,

    /// Replace --out if it exists
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    /// Single precision
    F32,
    /// Half precision
    F16,
}

/// Writes the page.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    if !args.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("html")) {
        return usage(format!("{} must end in .html", args.out.display()));
    }
    output::check_new_file(&args.out, args.force)?;
    let session = Session::reading(args.output, signals, args.entry.reading());
    let file = session.assets.weights(&args.tokenizer)?;
    let (config, model) = tokenizer::load::<Flex>(file, &args.tokenizer, None, &Default::default())?;
    if config.in_chans != 3 {
        return usage(format!(
            "{} sees images of {} channels; a browser has those of 3",
            args.tokenizer, config.in_chans
        ));
    }
    let mut tensors = params::into_tensors(model);
    tensors.retain(|name, _| is_read(name));
    if args.dtype == TypeArg::F16 {
        tensors.values_mut().for_each(|data| *data = data.clone().convert_dtype(DType::F16));
        let beyond = tensors.iter().find(|(_, data)| !data.iter::<f32>().all(f32::is_finite));
        if let Some((name, _)) = beyond {
            return usage(format!("`{name}` has a value beyond the range of f16; use --dtype f32"));
        }
    }
    let size: u64 = tensors.values().map(|data| data.bytes.len() as u64).sum();
    if size / 3 * 4 > MOST_TEXT {
        let hint = if args.dtype == TypeArg::F32 { "use --dtype f16" } else { "use a smaller model" };
        return usage(format!("a page of {} MB is too long for browsers; {hint}", size / 3 * 4 / 1_000_000));
    }
    let mut page = AtomicFile::create(&args.out)?;
    write(&mut page, &about(&config, &args.tokenizer), &tensors)
        .map_err(|error| FileError::new("write", &args.out, error))?;
    page.commit()?;
    let (out, bytes) = (args.out.display().to_string(), std::fs::metadata(&args.out)?.len());
    match args.output.json {
        true => output::json(&json!({ "out": out, "bytes": bytes }))?,
        false => {
            let size = format!("{:.1} MB", bytes as f64 / 1e6);
            output::result(&output::pairs(&[("written", out), ("size", size)]))?;
        }
    }
    Ok(Ending::Done)
}

/// Whether the page reads a tensor: the encoder, its task layer and the codes.
fn is_read(name: &str) -> bool {
    ["encoder.", "encode_task_layer."].iter().any(|part| name.starts_with(part))
        || name == "quantize.embedding.weight"
}

/// What the page knows of the model.
fn about(config: &TokenizerConfig, name: &str) -> Value {
    let (mean, std) = match config.process_type {
        ProcessType::Default => (vec![0.5; 3], vec![0.5; 3]),
        ProcessType::DallE => (vec![0.0; 3], vec![1.0; 3]),
        ProcessType::ImagenetNorm => {
            let Normalization { mean, std } = Normalization::imagenet();
            (mean, std)
        }
    };
    json!({
        "name": name,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "channels": config.in_chans,
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "codes": config.codebook_size,
        "eps": config.encoder().norm_eps,
        "mean": mean,
        "std": std,
    })
}

/// The template with its `{{parts}}` filled in; the weights as base64 of a safetensors file.
fn write(page: &mut impl Write, about: &Value, tensors: &Tensors) -> std::io::Result<()> {
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        page.write_all(before.as_bytes())?;
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        rest = after;
        match name {
            // Text of the user's must not end the element that it is in.
            "about" => page.write_all(about.to_string().replace('<', "\\u003c").as_bytes())?,
            "weights" => {
                let mut base64 = EncoderWriter::new(&mut *page, &STANDARD);
                encode_to(&mut base64, tensors, &Default::default()).map_err(std::io::Error::other)?;
                base64.finish()?;
            }
            _ => {
                let script = SCRIPTS.iter().find(|(part, _)| *part == name).map_or("", |(_, text)| text);
                page.write_all(script.as_bytes())?;
            }
        }
    }
    page.write_all(rest.as_bytes())
}
