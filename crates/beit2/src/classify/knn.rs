//! Weighted k-nearest-neighbour classification on the unit sphere (Wu et al. 2018; the evaluation of
//! DINO), which has no part in the reference.

use beit2_kernels::Backend;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Features;
use crate::error::{Error, config_error};

/// How neighbours vote.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnnConfig {
    /// Neighbours; 10 and 20 are usual.
    pub k: usize,
    /// Votes weigh exp(cos/T).
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self { k: 20, temperature: 0.07 }
    }
}

/// Queries whose similarities are held at a time.
const CHUNK: usize = 256;

/// Predicted class of every row of `val` by the rows of `train`.
///
/// # Errors
/// Features of different width, no neighbours to count, fewer training images than neighbours.
pub fn predict<B: Backend>(
    train: &Features,
    val: &Features,
    config: KnnConfig,
    device: &B::Device,
) -> Result<Vec<u32>, Error> {
    if train.dim != val.dim || train.is_empty() || val.is_empty() {
        return config_error(format!(
            "k-NN needs images on both sides and features of one width; there are {} of {} and {} of {}",
            train.len(),
            train.dim,
            val.len(),
            val.dim
        ));
    }
    if train.sets.is_some() || val.sets.is_some() {
        return config_error(
            "k-NN votes for one class, but these images can have several; use a linear probe",
        );
    }
    let k = config.k;
    if k == 0 || k > train.len() {
        return config_error(format!(
            "k = {k} neighbours need as many training images, but there are {}; use a k from 1 to {}",
            train.len(),
            train.len()
        ));
    }
    let bank = unit(train.tensor::<B>(device));
    let queries = unit(val.tensor::<B>(device));
    let mut predicted = Vec::with_capacity(val.len());
    let mut order: Vec<usize> = Vec::new();
    for start in (0..val.len()).step_by(CHUNK) {
        let count = CHUNK.min(val.len() - start);
        let similarity = queries.clone().narrow(0, start, count).matmul(bank.clone().transpose());
        let similarity: Vec<f32> = similarity.into_data().convert::<f32>().into_vec().unwrap_or_default();
        for row in similarity.chunks(train.len()) {
            order.clear();
            order.extend(0..train.len());
            // Of equally near neighbours the earlier counts, so that the result is one.
            let nearer = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
            order.select_nth_unstable_by(k - 1, nearer);
            let mut votes = vec![0f64; train.classes];
            for &neighbour in &order[..k] {
                votes[train.labels[neighbour] as usize] +=
                    (f64::from(row[neighbour]) / config.temperature).exp();
            }
            let best =
                (0..votes.len()).fold(0, |best, class| if votes[class] > votes[best] { class } else { best });
            predicted.push(best as u32);
        }
    }
    Ok(predicted)
}

/// Top-1 accuracy of [`predict`], in [0, 1].
///
/// # Errors
/// As [`predict`].
pub fn knn<B: Backend>(
    train: &Features,
    val: &Features,
    config: KnnConfig,
    device: &B::Device,
) -> Result<f64, Error> {
    let predicted = predict::<B>(train, val, config, device)?;
    Ok(super::accuracy(&predicted, &val.labels))
}

fn unit<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let norm = rows.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12);
    rows / norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    fn features(rows: &[[f32; 2]], labels: &[u32]) -> Features {
        Features { values: rows.concat(), dim: 2, labels: labels.to_vec(), sets: None, classes: 2 }
    }

    #[test]
    fn near_neighbours_outvote_many_far_ones() {
        let train = features(&[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], &[0, 1, 1]);
        let val = features(&[[2.0, 0.1], [-0.1, 0.5]], &[0, 1]);
        let config = KnnConfig { k: 3, temperature: 0.07 };
        assert_eq!(predict::<Flex>(&train, &val, config, &Default::default()).unwrap(), [0, 1]);
        assert_eq!(knn::<Flex>(&train, &val, config, &Default::default()).unwrap(), 1.0);
        let wide = Features { dim: 1, ..train.clone() };
        assert!(predict::<Flex>(&wide, &val, config, &Default::default()).is_err());
        let many = KnnConfig { k: 4, ..config };
        let error = predict::<Flex>(&train, &val, many, &Default::default()).unwrap_err().to_string();
        assert!(
            error.starts_with("k = 4 neighbours need as many training images, but there are 3;"),
            "{error}"
        );
    }
}
