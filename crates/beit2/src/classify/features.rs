//! Frozen features of labelled images, computed once and kept.

use beit2_data::Batch;
use beit2_kernels::{Backend, Precision};
use beit2_run::StopFlag;
use beit2_weights::Normalization;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::pixels;
use crate::pretrain::MimModel;
use crate::tokenizer::VqKd;
use crate::tokenizer::teachers::Teacher;
use crate::train::{EvaluationData, Event, Item, Observer, to_device, unusable};
use crate::vit::{DropPath, Trunk, VisionTransformer};

/// What of an image's tokens becomes its feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureKind {
    /// The CLS token.
    Cls,
    /// The mean of the patch tokens.
    Mean,
    /// Both, one after the other (the linear evaluation of BEiT v1).
    Concat,
}

impl FeatureKind {
    /// `[B, N+1, D]` with CLS first → `[B, D]` or `[B, 2D]`.
    pub fn pool<B: Backend>(self, tokens: Tensor<B, 3>) -> Tensor<B, 2> {
        let [batch, count, width] = tokens.dims();
        let cls = tokens.clone().narrow(1, 0, 1).reshape([batch, width]);
        let mean = || tokens.narrow(1, 1, count - 1).mean_dim(1).reshape([batch, width]);
        match self {
            Self::Cls => cls,
            Self::Mean => mean(),
            Self::Concat => Tensor::cat(vec![cls, mean()], 1),
        }
    }
}

/// A frozen model that turns images into tokens.
pub enum Featurizer<B: Backend> {
    /// A masked image model: tokens after a block, counted from 1 (0: the patch embedding), un-normalised.
    Mim(Box<MimModel<B>>, usize),
    /// A classifier or bare Vision Transformer: tokens after a block, counted alike, un-normalised; `None`: after its
    /// final norm. Then how its images are standardised; `None`: by ImageNet's statistics.
    Vit(Box<VisionTransformer<B>>, Option<usize>, Option<Normalization>),
    /// A tokenizer's encoder after its final norm.
    Encoder(Box<VqKd<B>>),
    /// A teacher's tokens.
    Teacher(Box<Teacher<B>>),
}

impl<B: Backend> Featurizer<B> {
    /// Runs the matmuls that features need in `precision` from now on; before [`Featurizer::freeze`].
    pub fn set_precision(&mut self, precision: Precision) {
        match self {
            Self::Mim(model, _) => model.set_precision(precision),
            Self::Vit(model, ..) => model.set_precision(precision),
            Self::Encoder(model) => model.set_precision(precision),
            Self::Teacher(teacher) => teacher.set_precision(precision),
        }
    }

    /// Makes freezing round the blocks' weights to 8-bit integers ([`VisionTransformer::set_int8`]).
    pub fn set_int8(&mut self) {
        match self {
            Self::Mim(model, _) => model.set_int8(),
            Self::Vit(model, ..) => model.set_int8(),
            Self::Encoder(model) => model.set_int8(),
            Self::Teacher(teacher) => teacher.set_int8(),
        }
    }

    /// Packs the weights that features need ([`VisionTransformer::freeze`]).
    #[must_use]
    pub fn freeze(self) -> Self {
        match self {
            Self::Mim(model, layer) => Self::Mim(Box::new(model.freeze_trunk()), layer),
            Self::Vit(model, layer, statistics) => Self::Vit(Box::new(model.freeze()), layer, statistics),
            Self::Encoder(model) => Self::Encoder(Box::new(model.freeze_encoder())),
            Self::Teacher(teacher) => Self::Teacher(Box::new(teacher.freeze())),
        }
    }

    /// Whether the tokens begin with CLS: everything but SigLIP's.
    pub fn has_cls(&self) -> bool {
        !matches!(self, Self::Teacher(teacher) if !teacher.has_cls())
    }

    /// Whether the model has the features that `kind` asks for.
    ///
    /// # Errors
    /// The CLS token of a model without one.
    pub fn check_kind(&self, kind: FeatureKind) -> Result<(), Error> {
        match self.has_cls() || kind == FeatureKind::Mean {
            true => Ok(()),
            false => config_error(
                "this teacher has no CLS token (SigLIP's have none); use the mean of its patches (--features mean)",
            ),
        }
    }

    /// Images in [0, 1] `[B, 3, H, W]` → tokens `[B, N+1, D]`, CLS first, or `[B, N, D]` without one.
    pub fn tokens(&self, images: Tensor<B, 4>) -> Tensor<B, 3> {
        match self {
            Self::Mim(model, layer) => {
                let x = pixels::standardise(images, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD);
                model.trunk.tokens_after(x, *layer)
            }
            Self::Vit(model, layer, statistics) => {
                let x = vit_tokens(model, *layer, pixels::normalise(images, statistics.as_ref()));
                match (layer, &model.fc_norm) {
                    (None, Some(fc_norm)) => fc_norm.forward(x),
                    _ => x,
                }
            }
            Self::Encoder(model) => model.encoder.tokens(model.preprocess(images), &DropPath::none()),
            Self::Teacher(teacher) => teacher.tokens(teacher.scale(pixels::to_signed(images))),
        }
    }

    /// Images in [0, 1] `[B, 3, H, W]` → features `[B, D]`, or `[B, 2D]` of [`FeatureKind::Concat`].
    ///
    /// Of a model without CLS the mean, whatever `kind` is ([`Featurizer::check_kind`]).
    ///
    /// A model with mean pooling normalises the mean of its patches, not each of them; so does this, and the mean of
    /// such a classifier is what its head sees.
    pub fn features(&self, images: Tensor<B, 4>, kind: FeatureKind) -> Tensor<B, 2> {
        match self {
            Self::Vit(model, None, statistics) if model.fc_norm.is_some() => {
                let tokens = vit_tokens(model, None, pixels::normalise(images, statistics.as_ref()));
                let [batch, _, width] = tokens.dims();
                let pooled = kind.pool(tokens);
                let vectors = pooled.dims()[1] / width; // 2 of `Concat`, each normalised by itself
                let pooled = pooled.reshape([batch * vectors, width]);
                let normed =
                    model.fc_norm.as_ref().map(|norm| norm.forward(pooled.clone())).unwrap_or(pooled);
                normed.reshape([batch, vectors * width])
            }
            _ if !self.has_cls() => {
                let tokens = self.tokens(images);
                let [batch, _, width] = tokens.dims();
                tokens.mean_dim(1).reshape([batch, width])
            }
            _ => kind.pool(self.tokens(images)),
        }
    }

    /// Images in [0, 1] `[B, 3, H, W]` → patch tokens `[B, N, D]`.
    pub fn patches(&self, images: Tensor<B, 4>) -> Tensor<B, 3> {
        let (tokens, from) = (self.tokens(images), usize::from(self.has_cls()));
        let patches = tokens.dims()[1] - from;
        tokens.narrow(1, from, patches)
    }

    /// Width D of a token.
    pub fn width(&self) -> usize {
        match self {
            Self::Mim(model, _) => model.trunk.cls_token.dims()[2],
            Self::Vit(model, ..) => model.trunk.cls_token.dims()[2],
            Self::Encoder(model) => model.encoder.trunk.cls_token.dims()[2],
            Self::Teacher(teacher) => teacher.width(),
        }
    }

    /// Channels of the images.
    pub fn channels(&self) -> usize {
        let of = |trunk: &Trunk<B>| trunk.patch_embed.proj.weight.dims()[1];
        match self {
            Self::Mim(model, _) => of(&model.trunk),
            Self::Vit(model, ..) => of(&model.trunk),
            Self::Encoder(model) => of(&model.encoder.trunk),
            Self::Teacher(_) => 3,
        }
    }

    /// Side of a patch in pixels.
    pub fn patch_px(&self) -> usize {
        let of = |trunk: &Trunk<B>| trunk.patch_embed.proj.weight.dims()[2];
        match self {
            Self::Mim(model, _) => of(&model.trunk),
            Self::Vit(model, ..) => of(&model.trunk),
            Self::Encoder(model) => of(&model.encoder.trunk),
            Self::Teacher(teacher) => teacher.patch_size(),
        }
    }
}

/// All tokens after a block, or after the last one and `norm`; never after `fc_norm`, which follows the pooling.
fn vit_tokens<B: Backend>(
    model: &VisionTransformer<B>,
    layer: Option<usize>,
    x: Tensor<B, 4>,
) -> Tensor<B, 3> {
    let x = model.trunk.tokens_after(x, layer.unwrap_or(model.trunk.blocks.len()));
    match (layer, &model.norm) {
        (None, Some(norm)) => norm.forward(x),
        _ => x,
    }
}

/// Features and classes of a set of images, on the host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// `[n · dim]`, row by row.
    pub values: Vec<f32>,
    /// Values per image.
    pub dim: usize,
    /// Classes `[n]`; of a multi-label set zeros.
    pub labels: Vec<u32>,
    /// All classes of each image of a multi-label set `[n]`; `None` where each image has one.
    pub sets: Option<Vec<Vec<u32>>>,
    /// Number of classes.
    pub classes: usize,
}

impl Features {
    /// Images n.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// That all values are numbers: what is measured on others means nothing.
    pub(super) fn check_finite(&self) -> Result<(), Error> {
        match self.values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => config_error(format!(
                "the features of image {} hold {}, so not finite; look for damaged weights",
                at / self.dim.max(1),
                self.values[at]
            )),
        }
    }

    /// Of [`FeatureKind::Concat`] the CLS token alone: the first half of each row.
    pub fn cls_of_concat(&self) -> Self {
        let dim = self.dim / 2;
        let values = self.values.chunks(self.dim.max(1)).flat_map(|row| &row[..dim]).copied().collect();
        Self { values, dim, ..self.clone() }
    }

    /// All rows on a device, `[n, dim]`.
    pub fn tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(self.values.clone(), [self.len(), self.dim]), device)
    }
}

/// Features of all images of a labelled source.
///
/// # Errors
/// Images without classes, more unreadable images than `max_bad_fraction` allows, or an interruption. Fewer are left out,
/// each with a warning: there are as many rows as usable images.
pub fn extract<B: Backend>(
    model: &Featurizer<B>,
    kind: FeatureKind,
    data: &EvaluationData<'_>,
    what: &str,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    device: &B::Device,
) -> Result<Features, Error> {
    let found = extract_all(&[FeaturesOf::Model(model, kind)], data, what, observer, stop, device)?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// What [`extract_all`] makes features of.
#[derive(Clone, Copy)]
pub enum FeaturesOf<'a, B: Backend> {
    /// A model's tokens.
    Model(&'a Featurizer<B>, FeatureKind),
    /// The images' own bytes ([`pixel_features`]).
    Pixels,
}

/// Several features of the same images, which are read and decoded once; in the order of `wanted`.
///
/// # Errors
/// As [`extract`].
pub fn extract_all<B: Backend>(
    wanted: &[FeaturesOf<'_, B>],
    data: &EvaluationData<'_>,
    what: &str,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    device: &B::Device,
) -> Result<Vec<Features>, Error> {
    for wanted in wanted {
        if let FeaturesOf::Model(model, kind) = wanted {
            model.check_kind(*kind)?;
        }
    }
    collect(data, what, observer, stop, wanted.len(), |batch| {
        let (images, _) = to_device::<B>(&batch.items, device)?;
        let of = |wanted: &FeaturesOf<'_, B>| match wanted {
            FeaturesOf::Model(model, kind) => {
                let features = model.features(images.clone(), *kind);
                let dim = features.dims()[1];
                (features.into_data().convert::<f32>().into_vec().unwrap_or_default(), dim)
            }
            FeaturesOf::Pixels => pixels_of(batch, data),
        };
        Ok(wanted.iter().map(of).collect())
    })
}

/// The images' own bytes (after the evaluation transform) as features: the baseline that any learned
/// feature must beat.
///
/// # Errors
/// As [`extract`].
pub fn pixel_features(
    data: &EvaluationData<'_>,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Features, Error> {
    let found = collect(data, "pixels", observer, stop, 1, |batch| Ok(vec![pixels_of(batch, data)]))?;
    Ok(found.into_iter().next().unwrap_or_default())
}

fn pixels_of(batch: &Batch<Item>, data: &EvaluationData<'_>) -> (Vec<f32>, usize) {
    let side = data.view.size as usize;
    // Centred, so that cosine similarity compares contents and not the common brightness.
    let values = batch.items.iter().flat_map(|item| item.patch.data.iter());
    (values.map(|&byte| f32::from(byte) / 255.0 - 0.5).collect(), side * side * 3)
}

/// Goes through all images once; `features_of` gives `count` kinds of features of a batch, each with its width.
fn collect(
    data: &EvaluationData<'_>,
    what: &str,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    count: usize,
    mut features_of: impl FnMut(&Batch<Item>) -> Result<Vec<(Vec<f32>, usize)>, Error>,
) -> Result<Vec<Features>, Error> {
    let (total, classes) = (data.source.len(), data.source.classes().len());
    let multi_label = data.source.is_multi_label();
    if classes < if multi_label { 1 } else { 2 } {
        return config_error(format!(
            "probing needs images in at least 2 classes (one sub-folder each); this source has {classes}"
        ));
    }
    data.source.check_labels()?;
    let mut found =
        Features { values: Vec::new(), dim: 0, labels: Vec::with_capacity(total), sets: None, classes };
    let mut sets = Vec::new();
    let mut values: Vec<(Vec<f32>, usize)> = vec![(Vec::new(), 0); count];
    let mut left_out = 0;
    for batch in data.loader()? {
        if stop.is_set() {
            return Err(Error::Interrupted);
        }
        let batch = batch?;
        unusable(&batch).for_each(|sentence| observer.event(Event::Warning(sentence)));
        left_out += batch.replaced.len();
        if batch.items.is_empty() {
            continue;
        }
        for ((all, width), (new, dim)) in values.iter_mut().zip(features_of(&batch)?) {
            all.extend(new);
            *width = dim;
        }
        for (label, &index) in batch.labels.iter().zip(&batch.indices) {
            let set = if multi_label { data.source.labels(index as usize) } else { None };
            match (label, set) {
                (_, Some(set)) => {
                    found.labels.push(0);
                    sets.push(set);
                }
                (Some(label), None) => found.labels.push(*label),
                (None, None) => {
                    return config_error(
                        "an image of this source has no class; probing needs classes for all",
                    );
                }
            }
        }
        let (what, done) = (format!("features: {what}"), (found.len() + left_out) as u64);
        observer.event(Event::Progress { what, done, total: total as u64 });
    }
    found.sets = multi_label.then_some(sets);
    if found.is_empty() {
        return config_error(format!("none of the {total} images can be used"));
    }
    Ok(values.into_iter().map(|(values, dim)| Features { values, dim, ..found.clone() }).collect())
}
