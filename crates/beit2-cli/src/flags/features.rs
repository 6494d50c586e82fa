//! Features of a frozen model: of which model, after which block, of which tokens.

use beit2::InferPrecision;
use beit2::classify::{EmbedderOptions, FeatureKind, TeacherOptions};
use beit2::tokenizer::teachers::{Activation, TeacherKind};
use clap::{Args, ValueEnum};

/// How a frozen model is opened.
#[derive(Debug, Args)]
pub struct FrozenArgs {
    /// Block whose output is used, counted from 1; 0 is the patch embedding [default: the last, with the final norm]
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,

    /// Family of the published teacher that --weights names [default: as the file shows]
    #[arg(long, value_name = "FAMILY")]
    pub teacher: Option<TeacherFamily>,

    /// Attention heads of a published teacher, if neither its file nor its size tells
    #[arg(long, value_name = "N")]
    pub teacher_heads: Option<usize>,

    /// Activation of a published teacher's MLPs, if its file does not tell
    #[arg(long, value_name = "NAME")]
    pub teacher_activation: Option<TeacherActivation>,

    /// Image size in pixels [default: that of training; 224 for DINO's kinds, 32 for raw pixels]
    #[arg(long, value_name = "PX")]
    pub image_size: Option<usize>,
}

impl FrozenArgs {
    /// The same for the library.
    pub fn options(&self, precision: InferPrecision) -> EmbedderOptions {
        EmbedderOptions {
            layer: self.layer,
            image_size: self.image_size,
            teacher: self.teacher_options(),
            precision,
        }
    }

    /// What is said of a published teacher.
    pub fn teacher_options(&self) -> TeacherOptions {
        TeacherOptions {
            kind: self.teacher.map(TeacherFamily::of_library),
            heads: self.teacher_heads,
            activation: self.teacher_activation.map(TeacherActivation::of_library),
        }
    }
}

/// Published teachers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TeacherFamily {
    /// The visual tower of a CLIP: OpenAI's, open_clip's, Hugging Face's
    Clip,
    /// The visual tower of a SigLIP
    Siglip,
    /// DINO, or another plain Vision Transformer
    Dino,
    /// DINOv2, with or without registers
    Dinov2,
    /// DINOv3
    Dinov3,
}

impl TeacherFamily {
    fn of_library(self) -> TeacherKind {
        match self {
            Self::Clip => TeacherKind::Clip,
            Self::Siglip => TeacherKind::Siglip,
            Self::Dino => TeacherKind::Dino,
            Self::Dinov2 => TeacherKind::Dinov2,
            Self::Dinov3 => TeacherKind::Dinov3,
        }
    }
}

/// Activations of published teachers.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum TeacherActivation {
    /// Most models
    Gelu,
    /// CLIP as OpenAI trained it
    QuickGelu,
    /// SigLIP as it was trained
    GeluTanh,
    /// Gated MLPs
    Silu,
}

impl TeacherActivation {
    fn of_library(self) -> Activation {
        match self {
            Self::Gelu => Activation::Gelu,
            Self::QuickGelu => Activation::QuickGelu,
            Self::GeluTanh => Activation::GeluTanh,
            Self::Silu => Activation::Silu,
        }
    }
}

/// `cls`, `mean`, `concat`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FeatureKindArg {
    /// The CLS token
    Cls,
    /// The mean of the patch tokens
    Mean,
    /// Both, concatenated
    Concat,
}

impl FeatureKindArg {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Concat => "concat",
        }
    }

    /// The same for the library.
    pub fn of_library(self) -> FeatureKind {
        match self {
            Self::Cls => FeatureKind::Cls,
            Self::Mean => FeatureKind::Mean,
            Self::Concat => FeatureKind::Concat,
        }
    }
}
