//! The four models as graphs.

use beit2_data::EvalConfig;
use beit2_kernels::Scaling;
use burn::backend::Flex;
use serde_json::{Value as Json, json};

use super::graph::{Builder, Value};
use super::proto::{Attribute, data_type};
use super::vit::{Sizes, linear, linear_as};
use super::write::Parts;
use super::{OPSET, OnnxKind, OnnxModel, OnnxOptions, PixelInput, Port, message};
use crate::classify::{Classifier, ClassifierOptions, EmbedderOptions, EvalTable, Featurizer, open_vit};
use crate::error::{Error, config_error};
use crate::tokenizer::scaling as tokenizer_scaling;
use crate::vit::Pooling;
use crate::weights::WeightFile;
use crate::{params, pixels, pretrain, tokenizer};

/// A graph under construction and what is told about it.
struct Model<'a> {
    g: Builder,
    sizes: Sizes,
    options: &'a OnnxOptions,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    metadata: Vec<(String, String)>,
}

/// Builds the graph of `kind` from a file that holds it.
pub(super) fn build(
    file: WeightFile,
    origin: &str,
    kind: OnnxKind,
    options: &OnnxOptions,
) -> Result<OnnxModel, Error> {
    let model = match kind {
        OnnxKind::Backbone => backbone(file, origin, options)?,
        OnnxKind::Classifier => classifier(file, origin, options)?,
        OnnxKind::Tokenizer => tokenizer(file, origin, options)?,
        OnnxKind::Mim => mim(file, origin, options)?,
    };
    let Model { g, inputs, outputs, metadata, .. } = model;
    let metadata: Vec<(String, String)> =
        [("beit2.model".to_owned(), kind.to_string())].into_iter().chain(metadata).collect();
    let (graph, initializers) = g.finish(&format!("beit2_{kind}"));
    let parts = Parts { model: message(&metadata), graph, initializers };
    Ok(OnnxModel { kind, inputs, outputs, metadata, parts })
}

fn backbone<'a>(file: WeightFile, origin: &str, options: &'a OnnxOptions) -> Result<Model<'a>, Error> {
    let stage = file.metadata.get("beit2.stage").map_or("", String::as_str);
    if stage == "tokenizer" || file.tensors.keys().any(|name| name.starts_with("quantize.")) {
        return encoder(file, origin, options);
    }
    let opened =
        EmbedderOptions { layer: options.layer, image_size: options.image_size, ..Default::default() };
    let (net, image_px, layer, eval) = open_vit::<Flex>(origin, file, &opened, &Default::default())?;
    let Featurizer::Vit(model, _, normalization) = net else {
        return config_error(format!("{origin} holds no Vision Transformer"));
    };
    let sizes = Sizes::of(&model.trunk, image_px, "")?;
    let (after, depth) = (layer.unwrap_or(sizes.depth), sizes.depth);
    let norm = match (layer, &model.norm, &model.fc_norm) {
        (Some(_), ..) | (None, None, None) => None,
        (None, Some(_), _) => Some("norm"),
        (None, None, Some(_)) => Some("fc_norm"),
    };
    let mut this = Model::new(params::into_tensors(*model), sizes, options);
    let x = this.images(pixels::scaling(normalization.as_ref()), &eval.view(image_px))?;
    let Model { g, sizes, .. } = &mut this;
    let x = sizes.embed(g, &x, None)?;
    let x = sizes.blocks(g, x, 0..after)?;
    let (cls, mean, patches) = match norm {
        // The norm of mean pooling follows the pooling ([`Featurizer::features`]).
        Some("fc_norm") => {
            let (cls, patches) = (sizes.cls(g, "features", &x), sizes.patch_tokens(g, "features", &x));
            let mean = sizes.mean(g, "features", &patches);
            let mut norm = |what: &str, x: &str| sizes.norm_as(g, "fc_norm", &format!("fc_norm/{what}"), x);
            (norm("cls", &cls)?, norm("mean", &mean)?, norm("patches", &patches)?)
        }
        norm => {
            let x = match norm {
                Some(name) => sizes.norm(g, name, &x)?,
                None => x,
            };
            pooled(g, sizes, &x)
        }
    };
    this.features(&cls, &mean, &patches);
    this.note("layer", layer.map_or("end".to_owned(), |layer| layer.to_string()));
    // What comes after the chosen block is left out; anything else that is, is a model that is not known here.
    let later: Vec<String> = (after..depth).map(|number| format!("blocks.{number}.")).collect();
    let left = |name: &str| {
        later.iter().any(|block| name.starts_with(block.as_str()))
            || layer.is_some() && (name.starts_with("norm.") || name.starts_with("fc_norm."))
            || after == 0 && name.starts_with("rel_pos_bias.")
    };
    this.whole(origin, left)
}

/// `cls`, `mean` and `patches` of tokens.
fn pooled(g: &mut Builder, sizes: &Sizes, x: &str) -> (Value, Value, Value) {
    let (cls, patches) = (sizes.cls(g, "features", x), sizes.patch_tokens(g, "features", x));
    let mean = sizes.mean(g, "features", &patches);
    (cls, mean, patches)
}

/// A tokenizer's encoder as a backbone.
fn encoder<'a>(file: WeightFile, origin: &str, options: &'a OnnxOptions) -> Result<Model<'a>, Error> {
    if options.layer.is_some() {
        return config_error(format!(
            "{origin} holds a tokenizer, whose features come after its last layer; leave the layer out"
        ));
    }
    let (config, model) = tokenizer::load::<Flex>(file, origin, None, &Default::default())?;
    let image_px = options.image_size.unwrap_or(config.image_size);
    if image_px == 0 || !image_px.is_multiple_of(config.patch_size) {
        return config_error(format!(
            "an image size of {image_px} must be a multiple of this model's patches of {} px",
            config.patch_size
        ));
    }
    let sizes = Sizes::of(&model.encoder.trunk, image_px, "encoder.")?;
    let mut this = Model::new(params::into_tensors(model), sizes, options);
    let x = this.images(tokenizer_scaling(config.process_type), &EvalConfig::of_size(image_px as u32))?;
    let Model { g, sizes, .. } = &mut this;
    let x = sizes.embed(g, &x, None)?;
    let x = sizes.blocks(g, x, 0..sizes.depth)?;
    let x = sizes.norm(g, "encoder.fc_norm", &x)?;
    let (cls, mean, patches) = pooled(g, sizes, &x);
    this.features(&cls, &mean, &patches);
    this.note("layer", "end".to_owned());
    this.whole(origin, |name| !name.starts_with("encoder."))
}

fn classifier<'a>(file: WeightFile, origin: &str, options: &'a OnnxOptions) -> Result<Model<'a>, Error> {
    let opened = ClassifierOptions { image_size: options.image_size, ..ClassifierOptions::default() };
    let found = Classifier::<Flex>::unfrozen(file, origin, &opened, &Default::default())?;
    let Classifier { config, model, eval } = found;
    let image_px = config.vit.image_size;
    let sizes = Sizes::of(&model.trunk, image_px, "")?;
    let mut this = Model::new(params::into_tensors(model), sizes, options);
    let x = this.images(pixels::scaling(config.vit.normalization.as_ref()), &eval.view(image_px))?;
    let Model { g, sizes, .. } = &mut this;
    let x = sizes.embed(g, &x, None)?;
    let x = sizes.blocks(g, x, 0..sizes.depth)?;
    let pooled = match config.pooling {
        Pooling::Mean => {
            let patches = sizes.patch_tokens(g, "pool", &x);
            let mean = sizes.mean(g, "pool", &patches);
            sizes.norm(g, "fc_norm", &mean)?
        }
        Pooling::Cls => {
            let cls = sizes.cls(g, "pool", &x);
            sizes.norm(g, "norm", &cls)?
        }
    };
    let logits = linear(g, "head", &pooled, false)?;
    let activation = if config.multi_label { "sigmoid" } else { "softmax" };
    let doc = format!("one for each class; {activation} gives probabilities");
    this.output("logits", &logits, FLOAT, &[config.class_count()], &doc);
    this.note("activation", activation.to_owned());
    this.note("classes", config.class_count().to_string());
    if !config.class_names.is_empty() {
        this.note("class_names", json!(config.class_names).to_string());
    }
    this.whole(origin, |_| false)
}

fn tokenizer<'a>(file: WeightFile, origin: &str, options: &'a OnnxOptions) -> Result<Model<'a>, Error> {
    let (config, model) = tokenizer::load::<Flex>(file, origin, None, &Default::default())?;
    let sizes = Sizes::of(&model.encoder.trunk, config.image_size, "encoder.")?;
    let grid = sizes.grid;
    let mut this = Model::new(params::into_tensors(model), sizes, options);
    let view = EvalConfig::of_size(config.image_size as u32);
    let x = this.images(tokenizer_scaling(config.process_type), &view)?;
    let Model { g, sizes, .. } = &mut this;
    let x = sizes.embed(g, &x, None)?;
    let x = sizes.blocks(g, x, 0..sizes.depth)?;
    let x = sizes.norm(g, "encoder.fc_norm", &x)?;
    let x = sizes.patch_tokens(g, "encoder", &x);
    // As in training: what tells codes apart is in f32 whatever the rest is.
    let z = linear(g, "encode_task_layer.0", &x, true)?;
    let z = g.node("Tanh", "encode_task_layer/Tanh", &[&z], Vec::new());
    let z = linear(g, "encode_task_layer.2", &z, true)?;
    // Nearest by cosine is largest product with the unit codes: the length of `z` changes all products alike.
    let codes = g.linear_weight("quantize.embedding.weight", true)?;
    let near = g.node("MatMul", "quantize/MatMul", &[&z, &codes], Vec::new());
    let attributes = vec![Attribute::int("axis", -1), Attribute::int("keepdims", 0)];
    let ids = g.node("ArgMax", "quantize/ArgMax", &[&near], attributes);
    let shape = g.ints(&[0, grid as i64, grid as i64]);
    let ids = g.node("Reshape", "quantize/Reshape", &[&ids, &shape], Vec::new());
    this.output(
        "ids",
        &ids,
        data_type::INT64,
        &[grid, grid],
        "token ids, row by row from the top left patch",
    );
    this.note("codebook_size", config.codebook_size.to_string());
    this.whole(origin, |name| {
        ["decoder.", "decode_task_layer.", "quantize."].iter().any(|p| name.starts_with(p))
    })
}

fn mim<'a>(file: WeightFile, origin: &str, options: &'a OnnxOptions) -> Result<Model<'a>, Error> {
    let beside = file.beside.normalization.clone();
    let (config, model) = pretrain::load::<Flex>(file, origin, &Default::default())?;
    let normalization = beside.or(config.vit.normalization.clone());
    pixels::check_normalization(config.vit.in_chans, normalization.as_ref())
        .map_err(|error| Error::Config(format!("{origin}: {error}")))?;
    let sizes = Sizes::of(&model.trunk, config.vit.image_size, "")?;
    let (patches, head_blocks) = (sizes.patches(), model.cls_pt_layers.len());
    let own_head = model.cls_pt_lm_head.is_some();
    let mut this = Model::new(params::into_tensors(model), sizes, options);
    let view = EvalTable::default().view(config.vit.image_size);
    let x = this.images(pixels::scaling(normalization.as_ref()), &view)?;
    let doc = "true where the mask token stands for the patch, row by row from the top left";
    let mask = this.input("mask", data_type::BOOL, &[patches], doc);
    let Model { g, sizes, .. } = &mut this;
    let x = sizes.embed(g, &x, Some(&mask))?;
    let early_at = if head_blocks > 0 { config.intermediate_layer } else { sizes.depth };
    let early = sizes.blocks(g, x, 0..early_at)?;
    let x = sizes.blocks(g, early.clone(), early_at..sizes.depth)?;
    let rows = sizes.patch_tokens(g, "last", &x);
    let rows = sizes.norm(g, "norm", &rows)?;
    let last = linear(g, "lm_head", &rows, false)?;
    let mut aggregated = None;
    if head_blocks > 0 {
        // The last CLS token before the patches of the intermediate block.
        let (from, to, axis) = (g.ints(&[0]), g.ints(&[1]), g.ints(&[1]));
        let cls = g.node("Slice", "cls_pt/cls", &[&x, &from, &to, &axis], Vec::new());
        let patches = sizes.patch_tokens(g, "cls_pt", &early);
        let mut y = g.node("Concat", "cls_pt/Concat", &[&cls, &patches], vec![Attribute::int("axis", 1)]);
        for number in 0..head_blocks {
            y = sizes.block(g, &format!("cls_pt_layers.{number}"), &y)?;
        }
        let rows = sizes.patch_tokens(g, "cls_pt/last", &y);
        let (norm, head) = if own_head { ("cls_pt_norm", "cls_pt_lm_head") } else { ("norm", "lm_head") };
        let rows = sizes.norm_as(g, norm, "cls_pt/norm", &rows)?;
        aggregated = Some(linear_as(g, head, "cls_pt/lm_head", &rows, false)?);
    }
    let shape = [patches, config.vocab_size];
    this.output("logits", &last, FLOAT, &shape, "of the last block, one for each code");
    if let Some(aggregated) = aggregated {
        let doc = "of the patch aggregation head, one for each code";
        this.output("patch_aggregation_logits", &aggregated, FLOAT, &shape, doc);
    }
    this.note("vocab_size", config.vocab_size.to_string());
    this.whole(origin, |_| false)
}

const FLOAT: i32 = data_type::FLOAT;

impl<'a> Model<'a> {
    fn new(tensors: crate::weights::Tensors, sizes: Sizes, options: &'a OnnxOptions) -> Self {
        let (inputs, outputs, metadata) = (Vec::new(), Vec::new(), Vec::new());
        Self { g: Builder::new(tensors, options.weights), sizes, options, inputs, outputs, metadata }
    }

    /// The images as the model sees them, `[B, C, S, S]`. What is done to them, or must have been done, is noted.
    fn images(&mut self, scaling: Scaling<'_>, view: &EvalConfig) -> Result<Value, Error> {
        let channels = self.sizes.channels;
        let (mean, std) = match scaling {
            Scaling::Unit => (vec![0.0; channels], vec![1.0; channels]),
            // 2x − 1.
            Scaling::Signed => (vec![0.5; channels], vec![0.5; channels]),
            Scaling::Standardised { mean, std } => (mean.to_vec(), std.to_vec()),
            Scaling::Teacher { .. } => {
                return config_error("images of a teacher are not written as ONNX");
            }
        };
        if mean.len() != channels || std.len() != channels {
            return config_error(format!("{} means for a model of {channels} channels", mean.len()));
        }
        let side = self.sizes.image_px();
        let pixels = self.options.pixels;
        let (elem_type, doc) = match pixels {
            PixelInput::Standardized => (FLOAT, "(x/255 − beit2.mean) / beit2.std for each channel"),
            PixelInput::Unit => (FLOAT, "x/255, in [0, 1]"),
            PixelInput::Bytes => (data_type::UINT8, "pixels, 0 to 255"),
        };
        let mut x = self.input("images", elem_type, &[channels, side, side], doc);
        let g = &mut self.g;
        if pixels == PixelInput::Bytes {
            let all = g.scalar(255.0);
            let float = vec![Attribute::int("to", FLOAT.into())];
            x = g.node("Cast", "pixels/Cast", &[&x], float);
            x = g.node("Div", "pixels/Unit", &[&x, &all], Vec::new());
        }
        if pixels != PixelInput::Standardized && !matches!(scaling, Scaling::Unit) {
            let f32s = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
            let shape = [1, channels, 1, 1];
            let (mean, std) =
                (g.floats("pixels.mean", &shape, f32s(&mean)), g.floats("pixels.std", &shape, f32s(&std)));
            x = g.node("Sub", "pixels/Sub", &[&x, &mean], Vec::new());
            x = g.node("Div", "pixels/Div", &[&x, &std], Vec::new());
        }
        self.note("pixels", pixels.to_string());
        self.note("mean", json!(mean).to_string());
        self.note("std", json!(std).to_string());
        self.note("channels", channels.to_string());
        self.note("image_size", side.to_string());
        self.note("patch_size", self.sizes.patch.to_string());
        self.note("resized_to", view.resize_side().to_string());
        let text = |value: Json| value.as_str().unwrap_or_default().to_owned();
        self.note("crop_mode", text(json!(view.crop_mode)));
        self.note("interpolation", text(json!(view.interpolation)));
        self.note("weights_type", self.options.weights.to_string());
        self.note("opset", OPSET.to_string());
        Ok(x)
    }

    fn features(&mut self, cls: &str, mean: &str, patches: &str) {
        let (width, count) = (self.sizes.width, self.sizes.patches());
        self.output("cls", cls, FLOAT, &[width], "the CLS token");
        self.output("mean", mean, FLOAT, &[width], "the mean of the patch tokens");
        let doc = "patch tokens, row by row from the top left";
        self.output("patches", patches, FLOAT, &[count, width], doc);
    }

    fn input(&mut self, name: &str, elem_type: i32, shape: &[usize], doc: &str) -> Value {
        self.inputs.push(port(name, elem_type, shape));
        self.g.input(name, elem_type, shape, doc)
    }

    fn output(&mut self, name: &str, value: &str, elem_type: i32, shape: &[usize], doc: &str) {
        self.outputs.push(port(name, elem_type, shape));
        self.g.output(name, value, elem_type, shape, doc);
    }

    fn note(&mut self, key: &str, value: String) {
        self.metadata.push((format!("beit2.{key}"), value));
    }

    /// Checks that the graph reads every parameter but those that `left` names. Why: a part of the model that a graph does not
    /// know would be missing in its results without a word.
    fn whole(self, origin: &str, left: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let forgotten = self.g.unused().find(|name| !left(name)).map(str::to_owned);
        match forgotten {
            None => Ok(self),
            Some(name) => {
                config_error(format!("{origin} has `{name}`, which an ONNX graph has no place for"))
            }
        }
    }
}

fn port(name: &str, elem_type: i32, shape: &[usize]) -> Port {
    let dtype = match elem_type {
        data_type::UINT8 => "uint8",
        data_type::INT64 => "int64",
        data_type::BOOL => "bool",
        _ => "float32",
    };
    Port { name: name.to_owned(), dtype, shape: shape.to_vec() }
}
