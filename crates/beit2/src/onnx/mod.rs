//! Models as ONNX files, for runtimes that know neither Burn nor this program.
//!
//! The graph is written node by node from the model's parameters (`vit`); nothing is traced. The image size is fixed, the
//! batch is free, relative position biases are constants. Parameters keep their official names; weights of linear layers are
//! transposed, `[in, out]`.

mod graph;
mod initializer;
mod models;
mod proto;
mod vit;
mod write;

use std::fmt;
use std::io::{self, Write};

use beit2_weights::layout::{Kind, account};

use self::proto::{Entry, Opset};
use self::write::Parts;
use crate::error::{Error, config_error};
use crate::tokenizer::teachers::is_published;
use crate::weights::{WeightFile, kind_of};

/// The operator set of the graphs: the first with `LayerNormalization` (ONNX 1.12, 2022).
pub const OPSET: i64 = 17;

/// The version of the format that came with [`OPSET`].
const IR_VERSION: i64 = 8;

/// Protobuf's limit for a message, and with it that of an ONNX file that holds its own weights.
const MOST_BYTES: u64 = i32::MAX as u64;

/// What of a model becomes a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnnxKind {
    /// Features: `cls [B, D]`, `mean [B, D]` and `patches [B, N, D]`, as [`Embedder`](crate::classify::Embedder) gives them.
    Backbone,
    /// `logits [B, classes]`.
    Classifier,
    /// `ids [B, g, g]` of the nearest codes.
    Tokenizer,
    /// `logits [B, N, vocab_size]`, with patch aggregation also `patch_aggregation_logits`, of images and a mask.
    Mim,
}

impl fmt::Display for OnnxKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backbone => "backbone",
            Self::Classifier => "classifier",
            Self::Tokenizer => "tokenizer",
            Self::Mim => "mim",
        })
    }
}

/// Type of the weights in the file. Runtimes compute in f32 with any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightType {
    /// As they were trained.
    #[default]
    F32,
    /// Half precision: half the size. Vectors, tokens and what tells codes apart stay in f32; so for bf16.
    F16,
    /// bf16: half the size, the range of f32.
    Bf16,
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// What a graph takes as `images`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PixelInput {
    /// f32, standardised by the mean and deviation in the metadata, as other exports of Vision Transformers.
    #[default]
    Standardized,
    /// f32 in [0, 1]; the graph standardises.
    Unit,
    /// u8; the graph standardises.
    Bytes,
}

impl fmt::Display for PixelInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standardized => "standardized",
            Self::Unit => "unit",
            Self::Bytes => "bytes",
        })
    }
}

/// What can be chosen of a graph.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnnxOptions {
    /// Which; `None`: what the file holds.
    pub kind: Option<OnnxKind>,
    /// Block after which a backbone's features are taken, as [`EmbedderOptions::layer`](crate::classify::EmbedderOptions::layer).
    pub layer: Option<usize>,
    /// Side of the images; `None`: as it was trained. For backbones and classifiers, whose positions are resized.
    pub image_size: Option<usize>,
    /// Type of the weights.
    pub weights: WeightType,
    /// What goes in.
    pub pixels: PixelInput,
}

/// A tensor that goes in or comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Type, as NumPy names it.
    pub dtype: &'static str,
    /// Shape behind the batch.
    pub shape: Vec<usize>,
}

/// A finished model.
pub struct OnnxModel {
    /// Which.
    pub kind: OnnxKind,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// What the file says about itself, by name.
    pub metadata: Vec<(String, String)>,
    parts: Parts,
}

impl OnnxModel {
    /// Bytes of the file with the weights inside.
    pub fn byte_len(&self) -> u64 {
        self.parts.byte_len()
    }

    /// Whether one file can hold the model: protobuf has a limit of 2 GiB.
    pub fn fits_one_file(&self) -> bool {
        self.byte_len() <= MOST_BYTES
    }

    /// Writes the file with the weights inside.
    ///
    /// # Errors
    /// More than one file can hold ([`OnnxModel::fits_one_file`]); what the writer says.
    pub fn write_to(&self, writer: &mut dyn Write) -> io::Result<()> {
        if !self.fits_one_file() {
            let why = "an ONNX file holds at most 2 GiB; write the weights into a file of their own";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        self.parts.write_to(writer)
    }

    /// Writes the graph into `writer` and the weights into `data`. Runtimes look for a file called `name` beside the graph's.
    ///
    /// # Errors
    /// What the writers say.
    pub fn write_split(&self, writer: &mut dyn Write, data: &mut dyn Write, name: &str) -> io::Result<()> {
        self.parts.write_split(writer, data, name)
    }
}

/// A model from the contents of a weight file as an ONNX model; `origin` names the file in messages.
///
/// # Errors
/// A file that holds no such model, options that it cannot have, weights that the type does not hold.
pub fn export(file: WeightFile, origin: &str, options: &OnnxOptions) -> Result<OnnxModel, Error> {
    let held = held(&file, origin)?;
    let kind = options.kind.unwrap_or(held);
    let refused = |what: &str, why: &str| config_error(format!("a {kind} has no {what}; {why}"));
    if options.layer.is_some() && kind != OnnxKind::Backbone {
        return refused("layer to choose", "leave it out, or export the backbone (--model backbone)");
    }
    if options.image_size.is_some() && matches!(kind, OnnxKind::Tokenizer | OnnxKind::Mim) {
        return refused("other image size than that of its training", "leave the image size out");
    }
    models::build(file, origin, kind, options)
}

/// What a file is exported as when nothing else is asked for.
fn held(file: &WeightFile, origin: &str) -> Result<OnnxKind, Error> {
    let names = || file.tensors.keys().map(String::as_str);
    let stage = file.metadata.get("beit2.stage").map_or("", String::as_str);
    if stage == "distill" || (stage.is_empty() && account(names()).is_err() && is_published(names())) {
        return Err(Error::WrongModel {
            origin: origin.to_owned(),
            found: "teacher".to_owned(),
            why: "which is not written as ONNX; backbones, classifiers, tokenizers and masked image models are",
        });
    }
    if stage == "tokenizer" || names().any(|name| name.starts_with("quantize.")) {
        return Ok(OnnxKind::Tokenizer);
    }
    match kind_of(file, origin)? {
        Kind::Pretraining => Ok(OnnxKind::Mim),
        Kind::Classifier => Ok(OnnxKind::Classifier),
        Kind::Backbone => Ok(OnnxKind::Backbone),
        Kind::Tokenizer => Ok(OnnxKind::Tokenizer),
        other => Err(Error::WrongModel {
            origin: origin.to_owned(),
            found: other.to_string(),
            why: "which is not written as ONNX; backbones, classifiers, tokenizers and masked image models are",
        }),
    }
}

/// The message without its graph.
fn message(metadata: &[(String, String)]) -> proto::Model {
    let entry = |(key, value): &(String, String)| Entry { key: key.clone(), value: value.clone() };
    proto::Model {
        ir_version: IR_VERSION,
        producer_name: "beit2".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        opset_import: vec![Opset { domain: String::new(), version: OPSET }],
        metadata_props: metadata.iter().map(entry).collect(),
        graph: None,
    }
}
