//! A tokenizer on a validation set.

use std::sync::Arc;

use beit2_data::{EvalConfig, Source};
use beit2_kernels::Backend;

use super::teachers::Teacher;
use super::{CodeUsage, TokenizerRecipe, VqKd};
use crate::error::{Error, config_error};
use crate::pixels;
use crate::train::{EvaluationData, scalar, to_device, unusable};

/// Metrics of a validation set.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerEvaluation {
    /// Mean of 1 − cos to the teacher.
    pub rec_loss: f64,
    /// Mean commitment loss.
    pub commitment_loss: f64,
    /// How often each code is used.
    pub usage: CodeUsage,
    /// A sentence for each image that could not be used and does not count.
    pub left_out: Vec<String>,
}

/// Losses and code usage on a validation set (resize and centre crop, each image once).
///
/// # Errors
/// More images than `max_bad_fraction` allows that cannot be read.
pub fn evaluate<I: Backend>(
    model: &VqKd<I>,
    teacher: &Teacher<I>,
    source: Arc<dyn Source>,
    recipe: &TokenizerRecipe,
    device: &I::Device,
) -> Result<TokenizerEvaluation, Error> {
    let (model_px, teacher_px) = (recipe.model.image_size, recipe.model.grid() * teacher.patch_size());
    let view = EvalConfig::of_size(model_px.max(teacher_px) as u32);
    let config = recipe.data.of_channels(recipe.model.in_chans);
    let data = EvaluationData { source, config: &config, view, batch_size: recipe.schedule.batch_size };
    let mut usage = CodeUsage::new(recipe.model.codebook_size);
    let mut left_out = Vec::new();
    let (mut rec, mut commitment, mut seen) = (0.0, 0.0, 0.0);
    for batch in data.loader()? {
        let batch = batch?;
        left_out.extend(unusable(&batch));
        if batch.items.is_empty() {
            continue;
        }
        let (images, _) = to_device::<I>(&batch.items, device)?;
        let count = images.dims()[0] as f64;
        let x = model.preprocess(pixels::resize(images.clone(), model_px, model_px));
        let target = match recipe.data.teacher_bands {
            None if teacher_px == model_px => teacher.forward(x.clone()),
            bands => {
                let images = bands.map_or(images.clone(), |bands| pixels::bands(images, bands));
                teacher.forward(pixels::to_signed(pixels::resize(images, teacher_px, teacher_px)))
            }
        };
        let loss = model.forward(x, target);
        rec += count * scalar(loss.rec);
        commitment += count * scalar(loss.quantized.commitment_loss);
        seen += count;
        usage.add(loss.quantized.ids.into_data().iter::<i64>().map(|id| id as usize));
    }
    if seen == 0.0 {
        return config_error("none of the validation images can be used");
    }
    Ok(TokenizerEvaluation { rec_loss: rec / seen, commitment_loss: commitment / seen, usage, left_out })
}
