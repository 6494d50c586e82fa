//! `beit2 weights export`: a model as an ONNX file.

use std::path::{Path, PathBuf};

use beit2::onnx::{self, OPSET, OnnxKind, OnnxModel, OnnxOptions, PixelInput, Port, WeightType};
use beit2::train::Assets;
use beit2_run::atomic::{AtomicFile, FileError};
use clap::{ValueEnum, ValueHint};
use serde_json::{Value, json};

use crate::errors::{Ending, usage};
use crate::flags::{OutputArgs, ReadArgs};
use crate::output;
use crate::session::Session;
use crate::signals::Signals;

/// Flags of `weights export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 weights export runs/classifier --out classifier.onnx\n\
    \x20 beit2 weights export runs/mim --model backbone --out features.onnx --dtype f16\n\
    \x20 beit2 weights export runs/tokenizer --out tokenizer.onnx --pixels bytes\n\
    \n\
    The image size is fixed and the batch is free. Without --pixels the graph takes\n\
    standardised pixels; its metadata say mean and standard deviation.")]
pub struct Args {
    /// Model: a run directory, checkpoint folder or weight file
    #[arg(value_name = "RUN|FILE")]
    weights: String,

    #[command(flatten)]
    read: ReadArgs,

    /// Output file (*.onnx)
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: PathBuf,

    /// What becomes a graph [default: what the file holds]
    #[arg(long, value_name = "MODEL")]
    model: Option<ModelArg>,

    /// Block whose output is a backbone's features, counted from 1; 0 is the patch embedding [default: as `beit2 embed`]
    #[arg(long, value_name = "N")]
    layer: Option<usize>,

    /// Image size in pixels, of a backbone or classifier [default: that of training]
    #[arg(long, value_name = "PX")]
    image_size: Option<usize>,

    /// Type of the weights in the file; runtimes compute in f32
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: TypeArg,

    /// What the graph takes as pixels
    #[arg(long, value_name = "PIXELS", default_value = "standardized")]
    pixels: PixelsArg,

    /// Write the weights beside --out as FILE.data [default: only what is larger than 2 GiB, protobuf's limit]
    #[arg(long)]
    external_data: bool,

    /// Replace --out if it exists
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    output: OutputArgs,
}

/// `--model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModelArg {
    /// Features, as of `beit2 embed`: cls, mean and patches
    Backbone,
    /// Logits of the classes
    Classifier,
    /// Token ids
    Tokenizer,
    /// Logits of the codes for every patch, of images and a mask
    Mim,
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// bfloat16
    Bf16,
}

/// `--pixels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PixelsArg {
    /// f32, standardised as the metadata say
    Standardized,
    /// f32 in [0, 1]
    Unit,
    /// u8
    Bytes,
}

/// Writes the file.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    if !args.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) {
        return usage(format!("{} must end in .onnx", args.out.display()));
    }
    output::check_new_file(&args.out, args.force)?;
    if args.external_data {
        output::check_new_file(&data_file(&args.out), args.force)?;
    }
    let options = OnnxOptions {
        kind: args.model.map(|model| match model {
            ModelArg::Backbone => OnnxKind::Backbone,
            ModelArg::Classifier => OnnxKind::Classifier,
            ModelArg::Tokenizer => OnnxKind::Tokenizer,
            ModelArg::Mim => OnnxKind::Mim,
        }),
        layer: args.layer,
        image_size: args.image_size,
        weights: match args.dtype {
            TypeArg::F32 => WeightType::F32,
            TypeArg::F16 => WeightType::F16,
            TypeArg::Bf16 => WeightType::Bf16,
        },
        pixels: match args.pixels {
            PixelsArg::Standardized => PixelInput::Standardized,
            PixelsArg::Unit => PixelInput::Unit,
            PixelsArg::Bytes => PixelInput::Bytes,
        },
    };
    let session = Session::reading(args.output, signals, args.read.reading()?);
    let model = onnx::export(session.assets.weights(&args.weights)?, &args.weights, &options)?;
    let split = args.external_data || !model.fits_one_file();
    write(args, &model, split)?;
    report(args, &model, split)?;
    Ok(Ending::Done)
}

/// `X.onnx.data`, where runtimes look for the weights of `X.onnx`.
fn data_file(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

fn write(args: &Args, model: &OnnxModel, split: bool) -> anyhow::Result<()> {
    let out = args.out.as_path();
    if !split {
        let mut file = AtomicFile::create(out)?;
        model.write_to(&mut file).map_err(|error| FileError::new("write", out, error))?;
        return Ok(file.commit()?);
    }
    let data_path = data_file(out);
    output::check_new_file(&data_path, args.force)?;
    let name = data_path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        return usage(format!(
            "{} is not UTF-8; ONNX files name their weights' file, so choose another",
            out.display()
        ));
    };
    let (mut file, mut data) = (AtomicFile::create(out)?, AtomicFile::create(&data_path)?);
    model
        .write_split(&mut file, &mut data, name)
        .map_err(|error| FileError::new("write", &data_path, error))?;
    // An old graph must never be beside new weights.
    if out.exists() {
        std::fs::remove_file(out).map_err(|error| FileError::new("replace", out, error))?;
    }
    data.commit()?;
    Ok(file.commit()?)
}

fn report(args: &Args, model: &OnnxModel, split: bool) -> anyhow::Result<()> {
    let out = args.out.display().to_string();
    let data = split.then(|| data_file(&args.out).display().to_string());
    if args.output.json {
        let ports = |ports: &[Port]| -> Value {
            let one = |port: &Port| json!({ "name": port.name, "dtype": port.dtype, "shape": port.shape });
            ports.iter().map(one).collect()
        };
        return output::json(&json!({
            "out": out,
            "data": data,
            "model": model.kind.to_string(),
            "opset": OPSET,
            "bytes": model.byte_len(),
            "inputs": ports(&model.inputs),
            "outputs": ports(&model.outputs),
            "metadata": model.metadata.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        }));
    }
    let ports = |ports: &[Port]| {
        let one = |port: &Port| {
            let shape: Vec<String> = port.shape.iter().map(usize::to_string).collect();
            format!("{} [batch, {}] ({})", port.name, shape.join(", "), port.dtype)
        };
        ports.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    output::result(&output::pairs(&[
        ("written", data.map_or(out.clone(), |data| format!("{out} and its weights {data}"))),
        ("model", format!("{}, opset {OPSET}, {:.1} MB", model.kind, model.byte_len() as f64 / 1e6)),
        ("inputs", ports(&model.inputs)),
        ("outputs", ports(&model.outputs)),
    ]))
}
