//! Images with several classes at once, or none: binary cross entropy, average precision, evaluation.

use beit2_kernels::{Backend, upload};
use beit2_run::StopFlag;
use beit2_weights::Normalization;
use burn::tensor::{Tensor, TensorData, activation};
use serde::Serialize;

use crate::error::{Error, config_error};
use crate::pixels;
use crate::train::{EvaluationData, Event, Observer, to_device, unusable};
use crate::vit::{DropPath, VisionTransformer};

/// Mean over images and classes of the binary cross entropy of `sigmoid(logits)` with targets in [0, 1], both `[B, C]`.
/// Shape `[1]`.
pub fn binary_cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 2>) -> Tensor<B, 1> {
    // −t·log σ(x) − (1 − t)·log σ(−x), where log σ(−x) = log σ(x) − x.
    let negative = targets.neg().add_scalar(1.0) * logits.clone();
    (negative - activation::log_sigmoid(logits)).mean()
}

/// The same in f64 on the host, for one row of logits and the classes that it has.
pub(crate) fn row_loss(logits: &[f32], classes: &[u32]) -> f64 {
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let all: f64 = logits.iter().map(|&x| softplus(f64::from(x))).sum();
    let own: f64 =
        classes.iter().filter_map(|&class| logits.get(class as usize)).map(|&x| f64::from(x)).sum();
    (all - own) / logits.len().max(1) as f64
}

/// Average precision: over the distinct scores from the highest down, the sum of precision times what recall gains there.
/// Samples of equal score count together. `None` without a positive sample. It equals scikit-learn's
/// `average_precision_score`.
pub fn average_precision(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let positives = positive.iter().filter(|positive| **positive).count();
    if positives == 0 {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len().min(positive.len())).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let (mut seen, mut hits, mut sum) = (0, 0, 0.0);
    for group in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let new = group.iter().filter(|&&at| positive[at]).count();
        (seen, hits) = (seen + group.len(), hits + new);
        sum += new as f64 * hits as f64 / seen as f64;
    }
    Some(sum / positives as f64)
}

/// The mean of those average precisions that exist; `None` if none does.
pub(crate) fn map_of(ap: &[Option<f64>]) -> Option<f64> {
    let (sum, count) = ap.iter().flatten().fold((0.0, 0), |(sum, count), ap| (sum + ap, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// What came of an evaluation on images that may have several classes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MultiLabelEvaluation {
    /// Images.
    pub images: usize,
    /// Mean of the classes' average precisions, over those that an image has.
    pub map: f64,
    /// Binary cross entropy, the mean over images and classes.
    pub loss: f64,
    /// Average precision of each class; `None` without a positive image.
    #[serde(skip)]
    pub ap: Vec<Option<f64>>,
    /// Images that have each class.
    #[serde(skip)]
    pub positives: Vec<u64>,
}

impl MultiLabelEvaluation {
    /// From logits `[n, C]`, row by row, and the classes of each image.
    ///
    /// # Errors
    /// Logits that are not finite; no image with a class.
    pub fn new(logits: &[f32], sets: &[Vec<u32>], classes: usize) -> Result<Self, Error> {
        if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
            return config_error(format!(
                "the model's output for class {} of image {} is {}; look for damaged weights",
                at % classes.max(1),
                at / classes.max(1),
                logits[at]
            ));
        }
        let loss: f64 = logits.chunks(classes.max(1)).zip(sets).map(|(row, set)| row_loss(row, set)).sum();
        let of_class = |class: usize| {
            let scores: Vec<f32> = logits.iter().skip(class).step_by(classes).copied().collect();
            let positive: Vec<bool> = sets.iter().map(|set| set.contains(&(class as u32))).collect();
            let count = positive.iter().filter(|positive| **positive).count() as u64;
            (average_precision(&scores, &positive), count)
        };
        let (ap, positives): (Vec<Option<f64>>, Vec<u64>) = (0..classes).map(of_class).unzip();
        let Some(map) = map_of(&ap) else {
            return config_error("no image has any of the classes, so there is no average precision");
        };
        let images = sets.len();
        Ok(Self { images, map, loss: loss / images.max(1) as f64, ap, positives })
    }
}

/// Evaluates on all images, each once. `normalization` is the model's ([`crate::vit::VitConfig::normalization`]).
///
/// # Errors
/// Images without known classes or with more than the model has, images that cannot be read, an interruption; as
/// [`MultiLabelEvaluation::new`].
pub fn evaluate_multi_label<B: Backend>(
    model: &VisionTransformer<B>,
    normalization: Option<&Normalization>,
    data: &EvaluationData<'_>,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    device: &B::Device,
) -> Result<MultiLabelEvaluation, Error> {
    let total = data.source.len();
    let (mut logits, mut sets) = (Vec::new(), Vec::with_capacity(total));
    let mut classes = 0;
    for batch in data.loader()? {
        if stop.is_set() {
            return Err(Error::Interrupted);
        }
        let batch = batch?;
        unusable(&batch).for_each(|sentence| observer.event(Event::Warning(sentence)));
        if batch.items.is_empty() {
            continue;
        }
        let (images, _) = to_device::<B>(&batch.items, device)?;
        let x = pixels::normalise(images, normalization);
        let found = model.forward(x, &DropPath::none());
        classes = found.dims()[1];
        for &index in &batch.indices {
            match data.source.labels(index as usize) {
                Some(set) if set.iter().all(|&class| (class as usize) < classes) => sets.push(set),
                Some(_) => {
                    return config_error(format!(
                        "an image has a class number past the model's {classes} classes"
                    ));
                }
                None => return config_error("an image has no known classes; evaluation needs them for all"),
            }
        }
        logits.extend(found.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default());
        let (what, done) = ("evaluation".to_owned(), sets.len() as u64);
        observer.event(Event::Progress { what, done, total: total as u64 });
    }
    if sets.is_empty() {
        return config_error(format!("none of the {total} images can be used"));
    }
    MultiLabelEvaluation::new(&logits, &sets, classes)
}

/// Targets `[n, C]` of 0 and 1 on a device.
pub(crate) fn multi_hot<B: Backend>(sets: &[&[u32]], classes: usize, device: &B::Device) -> Tensor<B, 2> {
    let mut values = vec![0f32; sets.len() * classes];
    for (row, set) in values.chunks_mut(classes.max(1)).zip(sets) {
        set.iter().filter(|&&class| (class as usize) < classes).for_each(|&class| row[class as usize] = 1.0);
    }
    upload(TensorData::new(values, [sets.len(), classes]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::{Autodiff, Flex};

    /// Values of scikit-learn 1.9's `average_precision_score(positive, scores)`.
    #[test]
    fn average_precision_is_scikit_learns() {
        let ap = |scores: &[f32], positive: &[u8]| {
            average_precision(scores, &positive.iter().map(|&one| one == 1).collect::<Vec<_>>())
        };
        for (scores, positive, expected) in AVERAGE_PRECISIONS {
            let found = ap(scores, positive).unwrap();
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} instead of {expected} for {scores:?} {positive:?}"
            );
        }
        assert_eq!(ap(&[0.3, 0.2], &[0, 0]), None);
    }

    /// Scores, positives, average precision.
    type Case = (&'static [f32], &'static [u8], f64);
    const AVERAGE_PRECISIONS: &[Case] = &[
        (&[0.9, 0.8, 0.7, 0.6], &[1, 0, 1, 0], 0.8333333333333333),
        (&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1], 0.8333333333333333),
        (&[0.5, 0.5, 0.5, 0.5], &[1, 0, 0, 1], 0.5),
        (&[0.9, 0.5, 0.5, 0.5, 0.1], &[0, 1, 0, 1, 1], 0.5333333333333333),
        (&[1.0, 2.0, 2.0, 3.0, 3.0, 3.0, -1.0, 0.0], &[1, 0, 1, 0, 0, 1, 1, 0], 0.4333333333333333),
        (&[0.2, 0.1], &[0, 1], 0.5),
    ];

    #[test]
    fn classes_without_positives_are_left_out_of_the_mean() {
        let logits = [2.0, -1.0, 0.5, 1.0, 3.0, -2.0];
        let found = MultiLabelEvaluation::new(&logits, &[vec![0], vec![0, 1]], 3).unwrap();
        assert_eq!((found.ap, found.positives), (vec![Some(1.0), Some(1.0), None], vec![2, 1, 0]));
        assert_eq!((found.map, found.images), (1.0, 2));
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        let all: f64 = logits.iter().map(|&x| softplus(x.into())).sum();
        assert!((found.loss - (all - 2.0 - 1.0 - 3.0) / 6.0).abs() < 1e-12, "{}", found.loss);
        assert!(MultiLabelEvaluation::new(&[f32::NAN], &[vec![0]], 1).is_err());
        assert!(MultiLabelEvaluation::new(&[1.0], &[vec![]], 1).is_err());
    }

    /// `torch.nn.functional.binary_cross_entropy_with_logits`, and its gradient `(σ(x) − t) / (B·C)`, also at 0 and far
    /// away from it.
    #[test]
    fn the_loss_and_its_gradient() {
        let device = Default::default();
        let values = [[0.0f32, 1.5, -90.0], [90.0, -0.25, 0.0]];
        let targets = [[0.0f32, 1.0, 0.0], [1.0, 0.95, 1.0]];
        let logits = Tensor::<Autodiff<Flex>, 2>::from_data(values, &device).require_grad();
        let loss = binary_cross_entropy(logits.clone(), Tensor::from_data(targets, &device));
        let (mut sum, mut gradient) = (0f64, Vec::new());
        for (x, t) in values.as_flattened().iter().zip(targets.as_flattened()) {
            let (x, t) = (f64::from(*x), f64::from(*t));
            sum += x.max(0.0) - x * t + (-x.abs()).exp().ln_1p();
            gradient.push((1.0 / (1.0 + (-x).exp()) - t) / 6.0);
        }
        assert!((f64::from(loss.clone().into_scalar()) - sum / 6.0).abs() < 1e-6);
        let grads = loss.backward();
        let found: Vec<f32> = logits.grad(&grads).unwrap().into_data().into_vec().unwrap();
        for (found, expected) in found.iter().zip(gradient) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }
}
