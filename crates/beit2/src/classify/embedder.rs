//! A model of any kind as a function from images to features.

use std::path::Path;

use beit2_data::{EvalConfig, Image};
use beit2_kernels::Backend;
use beit2_weights::inspect::Pooling as FilePooling;
use beit2_weights::layout::{Kind, account};
use beit2_weights::plan::PlanOptions;
use burn::backend::Flex;
use burn::tensor::{DType, Tensor};

use super::{EvalTable, FeatureKind, Featurizer, pretrained_sizes};
use crate::error::{Error, config_error};
use crate::infer_precision::InferPrecision;
use crate::tokenizer;
use crate::tokenizer::teachers::{Activation, Teacher, TeacherConfig, TeacherKind, is_published};
use crate::vit::{Pooling, VisionTransformer, VitConfig, plan_weights};
use crate::weights::{self, StateFile, WeightFile, to_tensors, written_config};
use crate::{params, pixels};

/// Side of a published teacher's images when none is given; CLIP's and SigLIP's are made for one side.
const TEACHER_SIDE: usize = 224;

/// What can be chosen when an [`Embedder`] is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmbedderOptions {
    /// Block after which features are taken, un-normalised, counted from 1; 0: the patch embedding. `None`: what the model
    /// ends with. That is the final norm, but of a masked image model the last block: its norm serves the prediction of
    /// tokens.
    pub layer: Option<usize>,
    /// Side of the images; `None`: as it was trained. Positions are resized.
    pub image_size: Option<usize>,
    /// Read the file as a published teacher, if anything is set; with nothing set, what the file shows decides.
    pub teacher: TeacherOptions,
    /// Operands of the matmuls.
    pub precision: InferPrecision,
}

/// What a teacher's file may not tell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TeacherOptions {
    /// Its family.
    pub kind: Option<TeacherKind>,
    /// Attention heads.
    pub heads: Option<usize>,
    /// Activation of its MLPs.
    pub activation: Option<Activation>,
}

/// A frozen model and how to feed it.
///
/// ```no_run
/// use beit2::classify::{Embedder, FeatureKind};
/// use beit2::pixels;
///
/// # fn main() -> Result<(), beit2::Error> {
/// let embedder = Embedder::open("runs/mim")?;
/// let features = embedder.embed(&[pixels::read("cat.jpg")?], FeatureKind::Mean)?; // [1, D]
/// println!("{features}");
/// # Ok(())
/// # }
/// ```
pub struct Embedder<B: Backend = Flex> {
    /// The model, frozen ([`VisionTransformer::freeze`]).
    pub net: Featurizer<B>,
    /// Side of its images.
    pub image_px: usize,
    /// The block that was chosen, counted from 1 (0: the patch embedding); `None`: after the final norm.
    pub layer: Option<usize>,
    /// How images are made for it: as the files beside the weights say, else the reference's way.
    pub eval: EvalTable,
    device: B::Device,
}

impl Embedder {
    /// Opens a run, a checkpoint folder or a weight file, on the CPU and in f32: masked image models, classifiers, bare
    /// Vision Transformers (official, timm or Hugging Face names), tokenizers (their encoder), distilled and published
    /// teachers. The file says which.
    ///
    /// # Errors
    /// A file that cannot be read, or that holds none of these ([`Error::WrongModel`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, &EmbedderOptions::default(), &Default::default())
    }
}

impl<B: Backend> Embedder<B> {
    /// As [`Embedder::open`], on any device and with choices.
    ///
    /// # Errors
    /// As [`Embedder::open`]; a layer or a size that the model cannot have, a precision that the device does not have.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: &EmbedderOptions,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::from_file(weights::open(path)?, &path.display().to_string(), options, device)
    }

    /// An embedder from the contents of a weight file; `origin` names the file in messages.
    ///
    /// # Errors
    /// As [`Embedder::open_with`].
    pub fn from_file(
        file: WeightFile,
        origin: &str,
        options: &EmbedderOptions,
        device: &B::Device,
    ) -> Result<Self, Error> {
        options.precision.check::<B>(device)?;
        let names = || file.tensors.keys().map(String::as_str);
        if options.teacher != TeacherOptions::default()
            || (!file.metadata.contains_key("beit2.stage")
                && account(names()).is_err()
                && is_published(names()))
        {
            return open_teacher(file, options, device);
        }
        let stage = file.metadata.get("beit2.stage").map_or("", String::as_str);
        let tokenizer = stage == "tokenizer" || file.tensors.keys().any(|name| name.starts_with("quantize."));
        if options.layer.is_some() && (tokenizer || stage == "distill") {
            let kind = if tokenizer { "tokenizer" } else { "distilled teacher" };
            return config_error(format!(
                "{origin} holds a {kind}, whose features come after its last layer; leave the layer out"
            ));
        }
        if file.beside.is_empty() && file.beside.normalization.is_some() && (tokenizer || stage == "distill")
        {
            return config_error(format!(
                "{origin} always standardises images as in its training; leave --normalization, --mean and --std out"
            ));
        }
        let (net, trained_px, layer, eval) = if tokenizer {
            let (config, model) = tokenizer::load::<B>(file, origin, None, device)?;
            (Featurizer::Encoder(Box::new(model)), config.image_size, None, EvalTable::default())
        } else if stage == "distill" {
            let Some(config) = written_config::<VitConfig>(&file.metadata, origin)? else {
                return config_error(format!("{origin} does not say its sizes"));
            };
            let teacher = TeacherConfig { kind: Some(TeacherKind::Distilled), ..TeacherConfig::default() };
            let model = Teacher::<B>::from_file(&teacher, file, DType::F32, device)?;
            (Featurizer::Teacher(Box::new(model)), config.image_size, None, EvalTable::default())
        } else {
            open_vit(origin, file, options, device)?
        };
        let image_px = options.image_size.unwrap_or(trained_px);
        Ok(Self { eval, ..Self::finished(net, image_px, layer, options.precision, device)? })
    }

    fn finished(
        mut net: Featurizer<B>,
        image_px: usize,
        layer: Option<usize>,
        precision: InferPrecision,
        device: &B::Device,
    ) -> Result<Self, Error> {
        check_side(image_px, net.patch_px())?;
        net.set_precision(precision.of_floats());
        if precision.is_int8() {
            net.set_int8();
        }
        let eval = EvalTable::default();
        Ok(Self { net: net.freeze(), image_px, layer, eval, device: device.clone() })
    }

    /// Number of blocks after which features can be taken; `None` where they come after the last layer only.
    pub fn blocks(&self) -> Option<usize> {
        match &self.net {
            Featurizer::Mim(model, _) => Some(model.trunk.blocks.len()),
            Featurizer::Vit(model, ..) => Some(model.trunk.blocks.len()),
            Featurizer::Encoder(_) | Featurizer::Teacher(_) => None,
        }
    }

    /// Takes features after another block, counted from 1 (0: the patch embedding), un-normalised; without effect where
    /// [`Self::blocks`] is `None`.
    pub fn set_layer(&mut self, layer: usize) {
        let after = layer.min(self.blocks().unwrap_or(0));
        match &mut self.net {
            Featurizer::Mim(_, layer) => *layer = after,
            Featurizer::Vit(_, layer, _) => *layer = Some(after),
            Featurizer::Encoder(_) | Featurizer::Teacher(_) => return,
        }
        self.layer = Some(after);
    }

    /// How it sees an image: the shorter side resized, the centre cut out.
    pub fn view(&self) -> EvalConfig {
        self.eval.view(self.image_px)
    }

    /// Channels of its images.
    pub fn channels(&self) -> usize {
        self.net.channels()
    }

    /// Images of any size → features `[B, D]`, or `[B, 2D]` of [`FeatureKind::Concat`].
    ///
    /// # Errors
    /// No images, or one that cannot be resized.
    pub fn embed(&self, images: &[Image], kind: FeatureKind) -> Result<Tensor<B, 2>, Error> {
        self.net.check_kind(kind)?;
        pixels::check_channels(images, self.channels())?;
        Ok(self.net.features(pixels::views(images, &self.view(), &self.device)?, kind))
    }

    /// Images of any size → patch tokens `[B, N, D]`, row by row from the top left.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn patches(&self, images: &[Image]) -> Result<Tensor<B, 3>, Error> {
        pixels::check_channels(images, self.channels())?;
        Ok(self.net.patches(pixels::views(images, &self.view(), &self.device)?))
    }
}

fn check_side(image_px: usize, patch: usize) -> Result<(), Error> {
    match image_px > 0 && image_px.is_multiple_of(patch) {
        true => Ok(()),
        false => config_error(format!(
            "an image size of {image_px} must be a multiple of this model's patches of {patch} px"
        )),
    }
}

/// A masked image model, a classifier or a bare Vision Transformer: its trunk and final norm, the trained image size, the
/// chosen block.
pub(crate) fn open_vit<B: Backend>(
    origin: &str,
    file: WeightFile,
    options: &EmbedderOptions,
    device: &B::Device,
) -> Result<(Featurizer<B>, usize, Option<usize>, EvalTable), Error> {
    let state = StateFile::new(file, origin).map_err(|error| match error {
        Error::Config(problem)
            if problem.contains("nearest known name") || problem.contains("not a BEiT") =>
        {
            Error::Config(format!("{problem}; if this is a published teacher, name its family (--teacher)"))
        }
        other => other,
    })?;
    let kind = state.summary.layout.kind;
    if !matches!(kind, Kind::Pretraining | Kind::Classifier | Kind::Backbone) {
        return Err(Error::WrongModel {
            origin: origin.to_owned(),
            found: kind.to_string(),
            why: "whose features are not offered",
        });
    }
    let mut vit = pretrained_sizes(&state)?;
    let depth = vit.depth;
    if let Some(layer) = options.layer.filter(|layer| *layer > depth) {
        return config_error(format!(
            "layer {layer} does not exist; the model has blocks 1 to {depth}, and 0 is the patch embedding"
        ));
    }
    let layer = options.layer.or((kind == Kind::Pretraining).then_some(depth));
    vit.image_size = options.image_size.unwrap_or(vit.image_size);
    check_side(vit.image_size, vit.patch_size)?;
    vit.validate()?;
    pixels::check_normalization(vit.in_chans, vit.normalization.as_ref())
        .map_err(|error| Error::Config(format!("{origin}: {error}")))?;
    let pooling = match state.summary.pooling {
        Some(FilePooling::Mean) => Pooling::Mean,
        _ => Pooling::Cls,
    };
    let mut model = VisionTransformer::<B>::new(&vit, pooling, 0, device);
    if state.summary.pooling.is_none() {
        model.norm = None;
    }
    let eval = EvalTable::beside(&state, options.image_size)?;
    let blame = state.blame();
    let plan = plan_weights(state, &vit, pooling, 0, &PlanOptions::default())?;
    let model = params::load_strict(model, to_tensors(plan.tensors), DType::F32, |_| false)
        .map_err(|error| blame.or(error))?;
    Ok((Featurizer::Vit(Box::new(model), layer, vit.normalization), vit.image_size, layer, eval))
}

fn open_teacher<B: Backend>(
    file: WeightFile,
    options: &EmbedderOptions,
    device: &B::Device,
) -> Result<Embedder<B>, Error> {
    let TeacherOptions { kind, heads, activation } = options.teacher;
    let config = TeacherConfig { kind, heads, activation, layer: options.layer, ..TeacherConfig::default() };
    let model = Teacher::<B>::from_file(&config, file, DType::F32, device)?;
    let trained = match model.kind() {
        TeacherKind::Clip | TeacherKind::Siglip => model.native_px(),
        _ => None,
    };
    let image_px = options.image_size.or(trained).unwrap_or(TEACHER_SIDE);
    let net = Featurizer::Teacher(Box::new(model));
    Embedder::finished(net, image_px, options.layer, options.precision, device)
}
