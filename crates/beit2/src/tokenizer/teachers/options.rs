//! What a teacher is beside its tensors: from the names, from the files beside it, from the settings. What none of them tells
//! and what changes the numbers is asked for.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

use super::canonical::{dims, floats};
use super::names::{Found, Names, Renamed};
use super::said::{Library, Said};
use super::{Activation, TeacherConfig, TeacherKind};
use crate::error::{Error, config_error};
use crate::pixels;
use crate::vit::PosResize;

/// The base of DINOv3's rotary periods.
const ROPE_THETA: f64 = 100.0;

/// Everything that the tensors alone do not say.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub heads: usize,
    pub norm_eps: f64,
    pub activation: Activation,
    pub resize: PosResize,
    pub mean: [f64; 3],
    pub std: [f64; 3],
    /// DINOv3's rotary periods, a quarter of a head's width; empty of others.
    pub periods: Vec<f64>,
}

/// The family, as the names, the files beside the weights and the setting have it.
pub(super) fn kind(config: &TeacherConfig, renamed: &Renamed, said: &Said) -> Result<TeacherKind, Error> {
    use TeacherKind::{Dino, Dinov2, Dinov3, Distilled, Siglip};
    let fits = |kind: TeacherKind| match renamed.found {
        Found::Family(Dinov2) => matches!(kind, Dinov2 | Distilled),
        Found::Family(found) => kind == found,
        Found::Plain => matches!(kind, Dino | Dinov2 | Distilled),
        Found::Student => kind == Distilled,
        Found::WithoutCls => kind == Siglip,
        Found::WithoutPositions => kind == Dinov3,
    };
    match (config.kind, renamed.found) {
        (Some(kind), _) if fits(kind) => Ok(kind),
        (Some(kind), found) => config_error(format!(
            "teacher.kind is `{kind}`, but the file holds {}; set the kind that the file has, or name another file",
            describe(found)
        )),
        (None, Found::Family(kind)) => Ok(kind),
        (None, Found::Plain) if said.statistics.is_some() => Ok(Dino),
        (None, found) => config_error(format!(
            "the file holds {}, which does not tell its family; set teacher.kind (--teacher) to {}",
            describe(found),
            match found {
                Found::Student => "`distilled` if `beit2 teacher distill` made it",
                Found::WithoutCls => "`siglip` if it is SigLIP's",
                Found::WithoutPositions => "`dinov3` if it is DINOv3's",
                _ =>
                    "`dino` if it is DINO's or was trained on images with ImageNet's mean and standard deviation",
            }
        )),
    }
}

fn describe(found: Found) -> String {
    match found {
        Found::Family(kind) => format!("a {} teacher (kind `{kind}`)", kind.title()),
        Found::Plain => "a plain Vision Transformer".into(),
        Found::Student => "a Vision Transformer with biases for queries and values only".into(),
        Found::WithoutCls => "a Vision Transformer without a CLS token".into(),
        Found::WithoutPositions => "a Vision Transformer without position embeddings".into(),
    }
}

impl Options {
    /// For the tensors under our names.
    pub fn new(
        config: &TeacherConfig,
        kind: TeacherKind,
        renamed: &Renamed,
        said: &Said,
        tensors: &BTreeMap<String, TensorData>,
    ) -> Result<Self, Error> {
        let weight = "patch_embed.proj.weight";
        let Some(tensor) = tensors.get(weight) else {
            return config_error("the teacher's file has no patch embedding");
        };
        let [width, _, patch, _] = dims(&renamed.source[weight], tensor)?;
        said.check(width, renamed.blocks(), patch)?;
        let stored = tensors.get("rope.periods").cloned().map(floats);
        let heads = heads(config, kind, width, said, stored.as_ref().map(Vec::len))?;
        let gated = tensors.contains_key("blocks.0.mlp.gate.weight");
        let (mean, std) = match (config.mean, config.std) {
            (Some(mean), Some(std)) => (mean, std),
            (None, None) => said.statistics.unwrap_or_else(|| kind.statistics()),
            _ => return config_error("set teacher.mean and teacher.std together, or neither"),
        };
        if std.iter().any(|std| *std <= 0.0) || !mean.iter().chain(&std).all(|value| value.is_finite()) {
            return config_error("teacher.mean and teacher.std must be finite, and teacher.std above 0");
        }
        let rotary = kind == TeacherKind::Dinov3;
        let periods = match stored {
            Some(periods) if rotary => periods,
            _ if !rotary => Vec::new(),
            _ => {
                let theta = agreed("rope_theta", config.rope_theta, said.rope_theta, said.file)?
                    .unwrap_or(ROPE_THETA);
                let quarter = width / heads / 4;
                let sound = (width / heads).is_multiple_of(4) && theta > 0.0 && theta.is_finite();
                if !sound {
                    return config_error(format!(
                        "rotary positions need heads of a multiple of 4 values and a positive teacher.rope_theta; {heads} heads of \
                         {width} values and {theta} do not fit"
                    ));
                }
                (0..quarter).map(|at| theta.powf(at as f64 / quarter as f64)).collect()
            }
        };
        Ok(Self {
            heads,
            norm_eps: said.norm_eps.unwrap_or_else(|| kind.norm_eps(renamed.names)),
            activation: activation(config, kind, width, renamed, said, gated)?,
            resize: resize(kind, renamed, said),
            mean,
            std,
            periods,
        })
    }
}

/// A setting and what a file says, which must not contradict each other.
fn agreed<T: PartialEq + std::fmt::Display + Copy>(
    key: &str,
    set: Option<T>,
    said: Option<T>,
    file: &str,
) -> Result<Option<T>, Error> {
    match (set, said) {
        (Some(set), Some(said)) if set != said => config_error(format!(
            "teacher.{key} is {set}, but {file} beside the weights says {said}; leave the setting out, or take the file away"
        )),
        (set, said) => Ok(set.or(said)),
    }
}

fn heads(
    config: &TeacherConfig,
    kind: TeacherKind,
    width: usize,
    said: &Said,
    quarter: Option<usize>,
) -> Result<usize, Error> {
    let by_periods = quarter.filter(|quarter| *quarter > 0).map(|quarter| width / (4 * quarter));
    let said_heads = said.heads.or(by_periods);
    let file = if said.heads.is_some() { said.file } else { "the file (by its rotary periods)" };
    let heads = match agreed("heads", config.heads, said_heads, file)?
        .or_else(|| published_heads(kind, width))
    {
        Some(heads) => heads,
        None => {
            return config_error(format!(
                "the number of attention heads of a {} teacher of width {width} is not in its file; set teacher.heads \
                 (--teacher-heads), or put its config.json beside it",
                kind.title()
            ));
        }
    };
    if heads == 0 || !width.is_multiple_of(heads) {
        return config_error(format!("a teacher of width {width} cannot have {heads} heads"));
    }
    Ok(heads)
}

/// Of the published sizes.
fn published_heads(kind: TeacherKind, width: usize) -> Option<usize> {
    use TeacherKind::{Clip, Dino, Dinov2, Dinov3, Distilled, Siglip};
    let of_64 = |widths: &[usize]| widths.contains(&width).then_some(width / 64);
    match (kind, width) {
        (Clip, 1280 | 1408 | 1664) | (Siglip, 1152 | 1536) => Some(16),
        (Dinov3, 4096) => Some(32),
        (Clip, _) => of_64(&[256, 384, 512, 640, 768, 896, 1024]),
        (Siglip, _) => of_64(&[768, 1024]),
        (Dino | Dinov2 | Distilled, _) => of_64(&[192, 384, 768, 1024, 1536]),
        (Dinov3, _) => of_64(&[192, 384, 768, 1024, 1280]),
    }
}

fn activation(
    config: &TeacherConfig,
    kind: TeacherKind,
    width: usize,
    renamed: &Renamed,
    said: &Said,
    gated: bool,
) -> Result<Activation, Error> {
    use Activation::{Gelu, GeluTanh, QuickGelu, Silu};
    // A gate of DINOv2 is SiLU whatever `hidden_act` says; so is one of timm's, whose name tells the activation of other MLPs.
    let said_here = match said.library {
        _ if gated && kind == TeacherKind::Dinov2 => Some(Silu),
        Some(Library::Timm) if gated => Some(Silu),
        _ if renamed.openai_archive => Some(QuickGelu),
        _ => said.activation,
    };
    let file = if said.activation.is_some() { said.file } else { "the file" };
    if let Some(known) = agreed("activation", config.activation, said_here, file)? {
        return Ok(known);
    }
    let ask = |why: &str, what: &str| {
        config_error(format!(
            "{why}; set teacher.activation (--teacher-activation) to {what}, or put the model's configuration beside its file"
        ))
    };
    match kind {
        _ if gated => Ok(Silu),
        TeacherKind::Dino | TeacherKind::Dinov2 | TeacherKind::Dinov3 | TeacherKind::Distilled => Ok(Gelu),
        TeacherKind::Siglip if renamed.names == Names::HfClip => Ok(GeluTanh),
        TeacherKind::Siglip => ask(
            &format!("the file of a SigLIP teacher of width {width} does not tell its activation"),
            "`gelu` (most of timm's) or `gelu_tanh` (the original)",
        ),
        TeacherKind::Clip if said.quick_gelu_lost => ask(
            "config.json names an architecture with GELU, but these weights were trained with QuickGELU",
            "`quick_gelu` (as they were trained) or `gelu` (as timm runs them)",
        ),
        TeacherKind::Clip => ask(
            "the file of a CLIP teacher does not tell its activation",
            "`quick_gelu` (OpenAI's weights) or `gelu` (most of open_clip's)",
        ),
    }
}

/// As the library of the file resizes positions.
fn resize(kind: TeacherKind, renamed: &Renamed, said: &Said) -> PosResize {
    let registers = renamed.has("register_tokens");
    match (renamed.names, said.library) {
        (Names::HfVit, _) if registers => PosResize::Antialiased,
        (Names::HfVit | Names::HfClip, _) => PosResize::BySize,
        (Names::OpenAi, Some(Library::OpenClip)) => PosResize::Antialiased,
        // The reference of BEiT v2 resizes CLIP so.
        (Names::OpenAi, _) => PosResize::ByPaddedScale,
        (Names::Plain, _) if kind == TeacherKind::Distilled => PosResize::ByPaddedScale,
        (Names::Plain, Some(Library::Timm | Library::OpenClip)) => PosResize::Antialiased,
        (Names::Plain, _) => match kind {
            TeacherKind::Dino => PosResize::ByPaddedScale,
            // The original code; timm has no mask token.
            TeacherKind::Dinov2 if renamed.mask_token && !registers => PosResize::ByPaddedScale,
            _ => PosResize::Antialiased,
        },
    }
}

impl TeacherKind {
    /// For sentences.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Clip => "CLIP",
            Self::Siglip => "SigLIP",
            Self::Dino => "DINO",
            Self::Dinov2 => "DINOv2",
            Self::Dinov3 => "DINOv3",
            Self::Distilled => "distilled",
        }
    }

    /// Mean and standard deviation of the images it was trained on.
    fn statistics(self) -> ([f64; 3], [f64; 3]) {
        match self {
            Self::Clip => (pixels::CLIP_MEAN, pixels::CLIP_STD),
            Self::Siglip => ([0.5; 3], [0.5; 3]),
            _ => (pixels::IMAGENET_MEAN, pixels::IMAGENET_STD),
        }
    }

    /// ε of its layer norms, where no configuration says it.
    fn norm_eps(self, names: Names) -> f64 {
        match (self, names) {
            (Self::Clip | Self::Dinov3, _) => 1e-5,
            (Self::Dino, Names::HfVit) => 1e-12,
            _ => 1e-6,
        }
    }
}
