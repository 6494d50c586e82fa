//! What a fine-tuned classifier takes its validation images for.

use std::collections::BTreeMap;
use std::sync::Arc;

use beit2_data::Source;
use beit2_kernels::Backend;
use beit2_run::report::{Classified, Examples, Guess, LabelScore, WorstImage};

use super::look::{Look, Spread};
use super::{image_of, shown};
use crate::classify::finetune::FinetuneRecipe;
use crate::classify::{Classifier, ClassifierOptions, MultiLabelEvaluation, argmax, row_loss};
use crate::error::{Error, config_error};
use crate::train::{EvaluationData, to_device};

/// Images with the highest loss that are shown.
const WORST: usize = 12;

/// Confusion or average precisions, and the images with the highest loss, by the newest weights of a run: those that
/// `beit2 eval --weights RUN` takes, so both count the same.
///
/// # Errors
/// Weights or images that cannot be read; an interruption.
pub fn of_classifier<B: Backend>(
    recipe: &FinetuneRecipe,
    look: &mut Look<'_>,
    device: &B::Device,
) -> Result<Examples, Error> {
    let (file, origin) = look.weights()?;
    let options = ClassifierOptions { precision: recipe.precision.into(), ..ClassifierOptions::default() };
    let classifier = Classifier::<B>::from_file(file, &origin, &options, device)?;
    let vit = &classifier.config.vit;
    let source = match recipe.validation(look.assets)? {
        Some(val) => val.source,
        None => look.assets.source(&recipe.data.train)?,
    };
    let (total, names) = (source.len(), source.classes().to_vec());
    let source: Arc<dyn Source> = Arc::new(Spread::new(source));
    let data = EvaluationData {
        source: source.clone(),
        config: &recipe.data.of_channels(vit.in_chans),
        view: recipe.eval.view(vit.image_size),
        batch_size: recipe.eval_batch(1),
    };
    let several = classifier.config.multi_label;
    let mut confusion: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let mut worst: Vec<WorstImage> = Vec::new();
    let (mut all_logits, mut sets) = (Vec::new(), Vec::new());
    let (mut met, mut images, mut classes) = (0, 0, 0);
    for batch in data.loader()? {
        let batch = batch?;
        met += (batch.items.len() + batch.replaced.len()) as u64;
        if !batch.items.is_empty() {
            let logits = classifier.logits(to_device::<B>(&batch.items, device)?.0);
            classes = logits.dims()[1];
            let logits = logits.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
            for ((row, item), &index) in logits.chunks(classes.max(1)).zip(&batch.items).zip(&batch.indices) {
                let Some(own) = source.labels(index as usize) else {
                    return config_error("an image has no known classes");
                };
                let mut image = match several {
                    true => judged_for_several(row, own.clone()),
                    false => judged(row, own.clone())?,
                };
                if let ([class], [guess], false) = (&own[..], &image.predicted[..], several) {
                    *confusion.entry((*class, guess.class)).or_default() += 1;
                }
                images += 1;
                let rank = worst.partition_point(|other| other.loss >= image.loss);
                if rank < WORST && image.loss.is_finite() {
                    (image.name, image.image) = (source.name(index as usize), image_of(&shown(&item.patch)));
                    worst.insert(rank, image);
                    worst.truncate(WORST);
                }
                sets.push(own);
            }
            if several {
                all_logits.extend(logits);
            }
        }
        if !look.goes_on(met, total as u64)? {
            break;
        }
    }
    let labels = match several {
        true => label_scores(MultiLabelEvaluation::new(&all_logits, &sets, classes)?),
        false => Vec::new(),
    };
    let confusion = confusion.into_iter().map(|((class, taken), count)| (class, taken, count)).collect();
    let classified = Classified { classes: names, confusion, labels, worst };
    let averages = recipe.ema_decay.is_some();
    Ok(Examples { classified: Some(classified), averages, ..look.examples(&recipe.data, images, total) })
}

/// An image of one class, from its logits.
fn judged(logits: &[f32], own: Vec<u32>) -> Result<WorstImage, Error> {
    let class = match own[..] {
        [class] if (class as usize) < logits.len() => class,
        _ => return config_error("an image has no class of the model"),
    };
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    let log_probability = |class: u32| f64::from(logits[class as usize]) - largest - sum.ln();
    let taken = argmax(logits);
    Ok(WorstImage {
        classes: own,
        predicted: vec![Guess { class: taken, probability: log_probability(taken).exp() }],
        probability: Some(log_probability(class).exp()),
        loss: -log_probability(class),
        ..WorstImage::default()
    })
}

/// An image that may have several classes.
fn judged_for_several(logits: &[f32], own: Vec<u32>) -> WorstImage {
    let loss = row_loss(logits, &own);
    let guess = |(class, &logit): (u32, &f32)| {
        let probability = 1.0 / (1.0 + (-f64::from(logit)).exp());
        (probability > 0.5).then_some(Guess { class, probability })
    };
    let predicted = (0..).zip(logits).filter_map(guess).collect();
    WorstImage { classes: own, predicted, probability: None, loss, ..WorstImage::default() }
}

fn label_scores(found: MultiLabelEvaluation) -> Vec<LabelScore> {
    let score = |(positives, average_precision)| LabelScore { positives, average_precision };
    found.positives.into_iter().zip(found.ap).map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_probabilities_of_an_image() {
        let found = judged(&[1000.0, 1001.0, 999.0], vec![2]).unwrap();
        let sum = 1.0 + (-1.0f64).exp() + (-2.0f64).exp();
        assert_eq!(found.predicted[0].class, 1);
        assert!((found.predicted[0].probability - 1.0 / sum).abs() < 1e-12);
        assert!((found.loss - (2.0 + sum.ln())).abs() < 1e-12);
        assert!(judged(&[0.0], vec![1]).is_err() && judged(&[0.0], vec![]).is_err());
        let found = judged_for_several(&[2.0, -1.0, 0.5], vec![1]);
        let named: Vec<u32> = found.predicted.iter().map(|guess| guess.class).collect();
        assert_eq!(named, [0, 2]);
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        assert!((found.loss - (softplus(2.0) + softplus(-1.0) + 1.0 + softplus(0.5)) / 3.0).abs() < 1e-12);
    }
}
