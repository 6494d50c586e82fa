//! The frozen model of an evaluation, from whatever file holds it.

use beit2::classify::Featurizer;
use beit2::tokenizer::teachers::{Teacher, TeacherConfig, TeacherKind};
use beit2::train::Assets;
use beit2::vit::VitConfig;
use beit2::weights;
use beit2_kernels::Backend;
use burn::tensor::DType;
use clap::ValueEnum;

use super::evaluate::Subject;
use crate::assets::Openable;
use crate::errors::usage;

/// Side of a teacher's pictures when none is given.
const TEACHER_SIDE: usize = 224;

/// Published teachers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Family {
    /// The visual tower of OpenAI's CLIP
    Clip,
    /// DINO
    Dino,
    /// DINOv2 and its relatives without registers
    Dinov2,
}

impl Family {
    fn of_library(self) -> TeacherKind {
        match self {
            Self::Clip => TeacherKind::Clip,
            Self::Dino => TeacherKind::Dino,
            Self::Dinov2 => TeacherKind::Dinov2,
        }
    }
}

/// A frozen model and how to feed it.
pub(super) struct Frozen<B: Backend> {
    pub net: Featurizer<B>,
    pub image_px: usize,
    /// Counted from 1.
    pub layer: Option<usize>,
}

/// Loads what `--weights` names; the file says what it is.
pub(super) fn load<B: Backend>(
    subject: &Subject,
    assets: &Openable,
    device: &B::Device,
) -> anyhow::Result<Frozen<B>> {
    let spec = subject.weights.as_str();
    let file = assets.weights(spec)?;
    if let Some(family) = subject.teacher {
        return load_teacher(subject, family, file, device);
    }
    let stage = file.metadata.get("beit2.stage").map_or("", String::as_str);
    if let (Some(_), "tokenizer" | "distill") = (subject.layer, stage) {
        return usage(format!("--layer is for pretrained models; {spec} holds a {stage} model"));
    }
    match stage {
        "pretrain" => {
            let (config, model) = weights::load_mim::<B>(spec, assets, device)?;
            let depth = config.vit.depth;
            let layer = subject.layer.unwrap_or(depth);
            if layer == 0 || layer > depth {
                return usage(format!("--layer {layer} does not exist; the model has blocks 1 to {depth}"));
            }
            let net = Featurizer::Mim(Box::new(model), layer - 1);
            Ok(Frozen { net, image_px: config.vit.image_size, layer: Some(layer) })
        }
        "tokenizer" => {
            let source =
                beit2::pretrain::TokenizerSource { weights: spec.to_owned(), variant: String::new() };
            let (config, model) = weights::load_tokenizer::<B>(&source, assets, device)?;
            let net = Featurizer::Encoder(Box::new(model));
            Ok(Frozen { net, image_px: config.image_size, layer: None })
        }
        "distill" => {
            let text = file.metadata.get("beit2.config").map_or("", String::as_str);
            let Ok(config) = serde_json::from_str::<VitConfig>(text) else {
                return usage(format!("{spec} does not say its sizes"));
            };
            let teacher = TeacherConfig { kind: TeacherKind::Distilled, ..TeacherConfig::default() };
            let model = Teacher::<B>::from_file(&teacher, file, DType::F32, device)?;
            let net = Featurizer::Teacher(Box::new(model));
            Ok(Frozen { net, image_px: config.image_size, layer: None })
        }
        _ => usage(format!(
            "{spec} does not say what it is; name a run of `beit2 pretrain`, `beit2 tokenizer train` or \
             `beit2 teacher distill`, or `pixels`; for a published teacher's file add --teacher"
        )),
    }
}

fn load_teacher<B: Backend>(
    subject: &Subject,
    family: Family,
    file: weights::WeightFile,
    device: &B::Device,
) -> anyhow::Result<Frozen<B>> {
    let kind = family.of_library();
    let layer = match (kind, subject.layer) {
        (_, None) => -1,
        (TeacherKind::Dinov2, Some(layer)) if layer > 0 => layer as i64 - 1,
        (TeacherKind::Dinov2, _) => return usage("--layer 0 does not exist; blocks are counted from 1"),
        _ => return usage("--layer is for pretrained models and DINOv2 teachers"),
    };
    let config = TeacherConfig { kind, layer, ..TeacherConfig::default() };
    let model = Teacher::<B>::from_file(&config, file, DType::F32, device)?;
    let (image_px, patch) = (subject.image_size.unwrap_or(TEACHER_SIDE), model.patch_size());
    if image_px == 0 || !image_px.is_multiple_of(patch) {
        return usage(format!(
            "--image-size {image_px} must be a multiple of this teacher's patches of {patch} px"
        ));
    }
    let net = Featurizer::Teacher(Box::new(model));
    Ok(Frozen { net, image_px, layer: subject.layer })
}
