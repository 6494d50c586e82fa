//! Which frozen model, and of which of its tokens: the flags of `knn`, `probe` and `embed`.

use beit2::classify::{EmbedderOptions, FeatureKind};
use beit2::tokenizer::teachers::TeacherKind;
use beit2_kernels::Precision;
use clap::ValueEnum;

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

/// `cls`, `mean`, `concat`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Kind {
    /// The CLS token
    Cls,
    /// The mean of the patch tokens
    Mean,
    /// Both, one after the other
    Concat,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Concat => "concat",
        }
    }

    pub(super) fn of_library(self) -> FeatureKind {
        match self {
            Self::Cls => FeatureKind::Cls,
            Self::Mean => FeatureKind::Mean,
            Self::Concat => FeatureKind::Concat,
        }
    }
}

/// The flags that choose how a model is opened.
pub(super) fn options(
    layer: Option<usize>,
    image_size: Option<usize>,
    teacher: Option<Family>,
    precision: Precision,
) -> EmbedderOptions {
    EmbedderOptions { layer, image_size, teacher: teacher.map(Family::of_library), precision }
}
