//! A classifier on labelled images: accuracies, loss, and who is taken for whom.

use std::collections::BTreeMap;

use beit2_data::{CropMode, EvalConfig, Interpolation};
use beit2_kernels::{Backend, upload_ints};
use beit2_run::StopFlag;
use beit2_weights::Normalization;
use beit2_weights::sidecar::ViewMode;
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use super::{hard_cross_entropy, top_k_hits};
use crate::error::{Error, config_error};
use crate::pixels;
use crate::train::{EvaluationData, Event, Observer, scalar, to_device, unusable};
use crate::vit::{DropPath, VisionTransformer};
use crate::weights::StateFile;

/// `[eval]`: how validation images are preprocessed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalTable {
    /// Share of the resized image that the centre crop shows; absent: the reference's (0.875 below 384 px, 1 from there
    /// on, and 1 up to 32 px, where images are taken as they are).
    pub crop_pct: Option<f64>,
    /// What happens to images that are not square.
    pub crop_mode: CropMode,
    /// Filter.
    pub interpolation: Interpolation,
    /// Images of a batch; absent: half as many again as a training step's micro-batch.
    pub images_per_batch: Option<usize>,
}

impl Default for EvalTable {
    fn default() -> Self {
        let view = EvalConfig::default();
        Self {
            crop_pct: None,
            crop_mode: view.crop_mode,
            interpolation: view.interpolation,
            images_per_batch: None,
        }
    }
}

impl EvalTable {
    /// What the files beside weights say of how images are made; what they do not say stays as in the reference. `image_size`
    /// is the size that the user wants.
    ///
    /// # Errors
    /// Another size than that of the tensors, a filter that is not offered.
    pub fn beside(state: &StateFile, image_size: Option<usize>) -> Result<Self, Error> {
        let (view, origin) = (&state.beside.view, &state.origin);
        let file = || state.beside.files.last().cloned().unwrap_or_default();
        if let (Some(said), Some(trained), None) = (view.size, state.summary.image_px(), image_size)
            && said != trained
        {
            return config_error(format!(
                "{origin}: {} makes images of {said} px, but the weights are of a model of {trained} px; say which with \
                 --image-size",
                file()
            ));
        }
        let defaults = Self::default();
        Ok(Self {
            crop_pct: view.crop_pct,
            crop_mode: match view.mode {
                None | Some(ViewMode::Center) => CropMode::Center,
                Some(ViewMode::Squash) => CropMode::Squash,
                Some(ViewMode::Border) => CropMode::Border,
            },
            interpolation: match view.interpolation.as_deref() {
                None => defaults.interpolation,
                Some("bicubic") => Interpolation::Bicubic,
                Some("bilinear") => Interpolation::Bilinear,
                Some("lanczos") => Interpolation::Lanczos,
                Some(other) => {
                    return config_error(format!(
                        "{origin}: {} resizes images with the filter `{other}`; bilinear, bicubic and lanczos are offered",
                        file()
                    ));
                }
            },
            ..defaults
        })
    }

    /// The view for a model of this input size.
    pub fn view(&self, size: usize) -> EvalConfig {
        EvalConfig {
            size: size as u32,
            crop_pct: self.crop_pct,
            crop_mode: self.crop_mode,
            interpolation: self.interpolation,
            ..EvalConfig::default()
        }
    }
}

/// What came of an evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Images that were evaluated.
    pub images: usize,
    /// Images that could not be used. They do not count.
    pub left_out: usize,
    /// Share of images whose class has the largest logit.
    pub top1: f64,
    /// Share of images whose class is among the five largest logits (of all when there are fewer classes).
    pub top5: f64,
    /// Cross entropy, the mean over images. (The reference reports the mean of the batches' means, which depends on the batch.)
    pub loss: f64,
    /// How often a class (first) was taken for another (second), or for itself.
    #[serde(skip)]
    pub confusion: BTreeMap<(u32, u32), u64>,
}

/// One class's line of an [`Evaluation`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassResult {
    /// Its number.
    pub class: u32,
    /// Its images.
    pub images: u64,
    /// Images taken for it, rightly or not.
    pub predicted: u64,
    /// Images rightly taken for it.
    pub right: u64,
}

impl ClassResult {
    /// Share of its images that were found; `None` without images.
    pub fn recall(&self) -> Option<f64> {
        (self.images > 0).then(|| self.right as f64 / self.images as f64)
    }

    /// Share of the images taken for it that are; `None` when none was.
    pub fn precision(&self) -> Option<f64> {
        (self.predicted > 0).then(|| self.right as f64 / self.predicted as f64)
    }
}

impl Evaluation {
    /// Every class from 0 to `classes`.
    pub fn per_class(&self, classes: usize) -> Vec<ClassResult> {
        let empty = |class| ClassResult { class, images: 0, predicted: 0, right: 0 };
        let mut results: Vec<ClassResult> = (0..classes as u32).map(empty).collect();
        for (&(class, predicted), &count) in &self.confusion {
            if let Some(result) = results.get_mut(class as usize) {
                result.images += count;
                result.right += if class == predicted { count } else { 0 };
            }
            if let Some(result) = results.get_mut(predicted as usize) {
                result.predicted += count;
            }
        }
        results
    }
}

/// Evaluates on all images that can be used, each once; [`Evaluation::left_out`] counts the others. `normalization` is the
/// model's ([`crate::vit::VitConfig::normalization`]).
///
/// # Errors
/// Images without classes or with more than the model has, more unreadable images than `max_bad_fraction` allows, an
/// interruption.
pub fn evaluate<B: Backend>(
    model: &VisionTransformer<B>,
    normalization: Option<&Normalization>,
    data: &EvaluationData<'_>,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    device: &B::Device,
) -> Result<Evaluation, Error> {
    let total = data.source.len();
    let mut found = Evaluation::default();
    let (mut loss, mut hits) = (0.0, [0usize; 2]);
    for batch in data.loader()? {
        if stop.is_set() {
            return Err(Error::Interrupted);
        }
        let batch = batch?;
        unusable(&batch).for_each(|sentence| observer.event(Event::Warning(sentence)));
        found.left_out += batch.replaced.len();
        if batch.items.is_empty() {
            continue;
        }
        let Some(labels) = batch.labels.iter().copied().collect::<Option<Vec<u32>>>() else {
            return config_error("a validation image has no class; evaluation needs classes for all");
        };
        let (images, _) = to_device::<B>(&batch.items, device)?;
        let x = pixels::normalise(images, normalization);
        let logits = model.forward(x, &DropPath::none());
        let classes = logits.dims()[1];
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            return config_error(format!(
                "a validation image has class number {label}, but the model has {classes} classes"
            ));
        }
        let values = logits.to_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
        for (hit, k) in hits.iter_mut().zip([1, 5]) {
            *hit += top_k_hits(&values, classes, &labels, k);
        }
        for (row, &label) in values.chunks(classes).zip(&labels) {
            *found.confusion.entry((label, argmax(row))).or_default() += 1;
        }
        let numbers: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
        let numbers = upload_ints(TensorData::new(numbers, [labels.len()]), device);
        loss += scalar(hard_cross_entropy(logits, numbers)) * labels.len() as f64;
        found.images += labels.len();
        let (what, done) = ("evaluation".to_owned(), (found.images + found.left_out) as u64);
        observer.event(Event::Progress { what, done, total: total as u64 });
    }
    if found.images == 0 {
        return config_error(format!("none of the {total} images can be used"));
    }
    let share = |hits: usize| hits as f64 / found.images.max(1) as f64;
    let mean = loss / found.images.max(1) as f64;
    (found.loss, found.top1, found.top5) = (mean, share(hits[0]), share(hits[1]));
    Ok(found)
}

/// The class with the largest logit, the lower number among equal ones.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let best = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
    (0..row.len()).reduce(best).unwrap_or(0) as u32
}
