//! What other libraries want to know of a model and its tensors do not show.

use crate::inspect::ModelSummary;
use crate::layout::LayoutError;

/// ImageNet's mean and standard deviation of RGB in `[0, 1]`; BEiT v2 uses them from pretraining on (docs/method.md §3.4, §4.4).
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// What a model's own configuration says, or what lies beside its weights. The defaults are those of BEiT v2.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Attention heads, for weights without relative position bias, which do not show them.
    pub heads: Option<usize>,
    /// Side of the images in pixels, for weights without position tables, which do not show it.
    pub image_px: Option<usize>,
    /// ε of the layer norms. Default 1e-6; Hugging Face's own is 1e-12 (docs/method.md §8).
    pub norm_eps: f64,
    /// Names of the classes in their order; empty: nobody has named them.
    pub class_names: Vec<String>,
    /// Whether an image may have several classes: every logit goes through a sigmoid of its own.
    pub multi_label: bool,
    /// How an image becomes what the model sees; `None`: the paper's protocol for the image size.
    pub preprocessing: Option<Preprocessing>,
    /// Mean of each channel, for values in `[0, 1]`; default ImageNet's.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
    /// What a segmentation model needs besides.
    pub segmentation: Option<SegmentationFacts>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            heads: None,
            image_px: None,
            norm_eps: 1e-6,
            class_names: Vec::new(),
            multi_label: false,
            preprocessing: None,
            mean: MEAN.into(),
            std: STD.into(),
            segmentation: None,
        }
    }
}

/// Resizing and cutting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Side of the view in pixels.
    pub size: usize,
    /// Share of the resized image that the view shows.
    pub crop_pct: f64,
    /// Length in pixels that the shorter side is resized to, or both sides when [`Preprocessing::squash`] is set:
    /// `floor(size / crop_pct)`.
    pub resized: usize,
    /// Whether both sides are resized, whatever the aspect.
    pub squash: bool,
    /// The filter.
    pub filter: Filter,
}

/// Filters by which images are resized, as Pillow has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Pillow's number 2.
    Bilinear,
    /// Pillow's number 3.
    Bicubic,
    /// Pillow's number 1.
    Lanczos,
}

impl Filter {
    /// Its name in timm.
    pub(super) fn name(self) -> &'static str {
        match self {
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
            Filter::Lanczos => "lanczos",
        }
    }

    /// Its number in Pillow, which Hugging Face's processors use.
    pub(super) fn number(self) -> u8 {
        match self {
            Filter::Lanczos => 1,
            Filter::Bilinear => 2,
            Filter::Bicubic => 3,
        }
    }
}

/// Sizes of UPerNet that its tensors do not show, or not in one place.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentationFacts {
    /// Blocks, counted from 0, after which the four maps are taken.
    pub out_indices: [usize; 4],
    /// Width of the decode head.
    pub channels: usize,
    /// Sides of the pooled maps.
    pub pool_scales: Vec<usize>,
    /// Width of the auxiliary head; `None`: there is none.
    pub aux_channels: Option<usize>,
    /// The map of the auxiliary head, counted from 0.
    pub aux_index: usize,
    /// Weight of the auxiliary head's loss.
    pub aux_weight: f64,
}

impl Preprocessing {
    /// The paper's protocol (docs/method.md §4.4): the shorter side resized to `size` / 0.875, bicubic, the centre cut out;
    /// images up to 32 px and from 384 px on are not cut.
    pub fn of_size(size: usize) -> Self {
        let whole = size <= 32 || size >= 384;
        let crop_pct = if whole { 1.0 } else { 0.875 };
        Self {
            size,
            crop_pct,
            resized: (size as f64 / crop_pct) as usize,
            squash: false,
            filter: Filter::Bicubic,
        }
    }
}

impl Facts {
    pub(super) fn preprocessing(&self, summary: &ModelSummary) -> Result<Preprocessing, LayoutError> {
        match self.preprocessing {
            Some(own) => Ok(own),
            None => Ok(Preprocessing::of_size(self.image_px(summary)?)),
        }
    }

    pub(super) fn heads(&self, summary: &ModelSummary) -> Result<usize, LayoutError> {
        let heads = summary.heads.or(self.heads).ok_or_else(|| {
            LayoutError::Unsupported(
                "the number of attention heads cannot be seen in weights without relative position bias; it must be given"
                    .to_string(),
            )
        })?;
        if heads == 0 || !summary.width.is_multiple_of(heads) {
            let width = summary.width;
            return Err(LayoutError::Unsupported(format!(
                "{heads} attention heads do not divide a width of {width}"
            )));
        }
        Ok(heads)
    }

    pub(super) fn image_px(&self, summary: &ModelSummary) -> Result<usize, LayoutError> {
        summary.image_px().or(self.image_px).ok_or_else(|| {
            LayoutError::Unsupported(
                "the image size cannot be seen in these weights: there is no square bias table or position embedding"
                    .to_string(),
            )
        })
    }

    /// The classes' names in their order, when there is one for each.
    pub(super) fn names(&self, classes: usize) -> Option<&[String]> {
        (classes > 0 && self.class_names.len() == classes).then_some(&self.class_names)
    }

    /// Mean and standard deviation must be those of this model's channels.
    pub(super) fn check_statistics(&self, summary: &ModelSummary) -> Result<(), LayoutError> {
        let (mean, std, channels) = (self.mean.len(), self.std.len(), summary.channels);
        if mean == channels && std == channels {
            return Ok(());
        }
        Err(LayoutError::Unsupported(format!(
            "there are {mean} means and {std} standard deviations for a model of {channels} channels, so nobody could \
             standardise its images"
        )))
    }
}

/// Both libraries norm what they pool; a trunk without its final norm would get one that nobody has trained.
pub(super) fn check_final_norm(summary: &ModelSummary, library: &str) -> Result<(), LayoutError> {
    match summary.pooling {
        Some(_) => Ok(()),
        None => Err(LayoutError::Unsupported(format!(
            "this model has no final norm (`norm` or `fc_norm`), which every BEiT of {library} has"
        ))),
    }
}
