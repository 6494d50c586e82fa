//! Features of a frozen model: of which model, after which block, of which tokens.

use beit2::classify::{EmbedderOptions, FeatureKind};
use beit2::tokenizer::teachers::TeacherKind;
use beit2_kernels::Precision;
use clap::{Args, ValueEnum};

/// How a frozen model is opened.
#[derive(Debug, Args)]
pub struct FrozenArgs {
    /// Block whose output is used, counted from 1; 0 is the patch embedding [default: the last, with the final norm]
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,

    /// Read --weights as a published teacher of this family (safetensors or .pth)
    #[arg(long, value_name = "FAMILY")]
    pub teacher: Option<TeacherFamily>,

    /// Image size in pixels [default: that of training; 224 for published teachers, 32 for raw pixels]
    #[arg(long, value_name = "PX")]
    pub image_size: Option<usize>,
}

impl FrozenArgs {
    /// The same for the library.
    pub fn options(&self, precision: Precision) -> EmbedderOptions {
        EmbedderOptions {
            layer: self.layer,
            image_size: self.image_size,
            teacher: self.teacher.map(TeacherFamily::of_library),
            precision,
        }
    }
}

/// Published teachers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TeacherFamily {
    /// The visual tower of OpenAI's CLIP
    Clip,
    /// DINO
    Dino,
    /// DINOv2 and its relatives without registers
    Dinov2,
}

impl TeacherFamily {
    fn of_library(self) -> TeacherKind {
        match self {
            Self::Clip => TeacherKind::Clip,
            Self::Dino => TeacherKind::Dino,
            Self::Dinov2 => TeacherKind::Dinov2,
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
