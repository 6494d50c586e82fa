//! What a trained linear classifier scores on features.

use beit2_kernels::{self as kernels, Backend, Precision};
use burn::tensor::TensorData;

use super::fit::{Linear, Set};
use crate::classify::evaluate::argmax;
use crate::classify::multi_label::{MultiLabelEvaluation, row_loss};
use crate::error::Error;

/// Rows whose logits are on the device at a time.
const CHUNK: usize = 4096;

/// How well a classifier does on some images.
pub(super) struct Score {
    /// Top-1 accuracy, or mean average precision of images with several classes.
    pub score: f64,
    /// Mean loss; not finite if the classifier diverged.
    pub loss: f64,
    /// Images whose class has the largest logit; `None` of images with several classes.
    pub right: Option<usize>,
    /// Logits `[n, C]` of images with several classes.
    pub logits: Vec<f32>,
    /// Their classes.
    pub sets: Vec<Vec<u32>>,
}

impl Score {
    /// On the images `rows` of `set`, or on all. The images count as having several classes each if `several` says so.
    ///
    /// # Errors
    /// No image with a class.
    pub fn of<I: Backend>(
        linear: &Linear<I>,
        set: &Set<'_, I>,
        rows: Option<&[i32]>,
        several: bool,
    ) -> Result<Self, Error> {
        let features = set.features;
        let total = rows.map_or(features.len(), <[i32]>::len);
        let image = |at: usize| rows.map_or(at, |rows| rows[at] as usize);
        let mut found = Self { score: 0.0, loss: 0.0, right: None, logits: Vec::new(), sets: Vec::new() };
        let mut right = 0;
        for start in (0..total).step_by(CHUNK) {
            let count = CHUNK.min(total - start);
            let x = match rows {
                Some(rows) => {
                    let indices = TensorData::new(rows[start..start + count].to_vec(), [count]);
                    set.x.clone().select(0, kernels::upload_ints(indices, &set.x.device()))
                }
                None => set.x.clone().narrow(0, start, count),
            };
            let logits = kernels::linear(x, linear.weight.clone(), Some(linear.bias.clone()), Precision::F32);
            let classes = logits.dims()[1];
            let logits = logits.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
            if logits.iter().any(|logit| !logit.is_finite()) {
                return Ok(Self { score: 0.0, loss: f64::NAN, ..found });
            }
            for (row, at) in logits.chunks(classes).zip(start..) {
                let own = match &features.sets {
                    Some(sets) => sets[image(at)].clone(),
                    None => vec![features.labels[image(at)]],
                };
                if several {
                    found.loss += row_loss(row, &own);
                    found.sets.push(own);
                } else {
                    found.loss += cross_entropy(row, own[0]);
                    right += usize::from(argmax(row) == own[0]);
                }
            }
            if several {
                found.logits.extend(logits);
            }
        }
        found.loss /= total.max(1) as f64;
        if several {
            found.score = MultiLabelEvaluation::new(&found.logits, &found.sets, linear.bias.dims()[0])?.map;
        } else {
            (found.score, found.right) = (right as f64 / total.max(1) as f64, Some(right));
        }
        Ok(found)
    }
}

/// −log softmax of one row at its class.
fn cross_entropy(row: &[f32], class: u32) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
    sum.ln() - f64::from(row[class as usize] - largest)
}
