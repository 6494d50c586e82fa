//! Weighted k-nearest-neighbour classification on the unit sphere (Wu et al. 2018; the evaluation of
//! DINO), which has no part in the reference.

use std::time::{Duration, Instant};

use beit2_kernels::Backend;
use beit2_run::StopFlag;
use serde::{Deserialize, Serialize};

use super::Features;
use super::bootstrap::{self, Estimate};
use crate::error::{Error, config_error};
use crate::neighbours::{nearest_first, unit_length, vote};
use crate::train::{Event, Observer};

/// How neighbours vote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnnConfig {
    /// Numbers of neighbours, each of which gives a result; 10 and 20 are usual.
    pub k: Vec<usize>,
    /// Votes weigh exp(cos/T).
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self { k: vec![20], temperature: 0.07 }
    }
}

/// Queries whose similarities are held at a time.
const CHUNK: usize = 256;
/// A search that is done sooner shows no progress.
const QUIET: Duration = Duration::from_secs(2);

/// Predicted class of every row of `val` by the rows of `train`, for each of `config.k`.
///
/// # Errors
/// Features of different width, no neighbours to count, fewer training images than neighbours, an interruption.
pub fn predict<B: Backend>(
    train: &Features,
    val: &Features,
    config: &KnnConfig,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    device: &B::Device,
) -> Result<Vec<Vec<u32>>, Error> {
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
    if let Some(k) = config.k.iter().find(|&&k| k == 0 || k > train.len()) {
        return config_error(format!(
            "k = {k} neighbours need as many training images, but there are {}; use a k from 1 to {}",
            train.len(),
            train.len()
        ));
    }
    train.check_finite()?;
    val.check_finite()?;
    let most = config.k.iter().copied().max().unwrap_or(0);
    let bank = unit_length(train.tensor::<B>(device));
    let queries = unit_length(val.tensor::<B>(device));
    let mut predicted = vec![Vec::with_capacity(val.len()); config.k.len()];
    let mut order: Vec<usize> = Vec::new();
    let started = Instant::now();
    for start in (0..val.len()).step_by(CHUNK) {
        if stop.is_set() {
            return Err(Error::Interrupted);
        }
        let count = CHUNK.min(val.len() - start);
        let similarity = queries.clone().narrow(0, start, count).matmul(bank.clone().transpose());
        let similarity: Vec<f32> = similarity.into_data().convert::<f32>().into_vec().unwrap_or_default();
        for row in similarity.chunks(train.len()) {
            order.clear();
            order.extend(0..train.len());
            nearest_first(row, &mut order, most);
            for (&k, predicted) in config.k.iter().zip(&mut predicted) {
                predicted.push(vote(row, &order[..k], &train.labels, train.classes, config.temperature));
            }
        }
        if started.elapsed() > QUIET {
            let (done, total) = ((start + count) as u64, val.len() as u64);
            observer.event(Event::Progress { what: "k-NN: images".into(), done, total });
        }
    }
    Ok(predicted)
}

/// Top-1 accuracy of [`predict`] for each of `config.k`.
///
/// # Errors
/// As [`predict`].
pub fn knn<B: Backend>(
    train: &Features,
    val: &Features,
    config: &KnnConfig,
    observer: &mut dyn Observer,
    stop: &StopFlag,
    device: &B::Device,
) -> Result<Vec<Estimate>, Error> {
    let predicted = predict::<B>(train, val, config, observer, stop, device)?;
    let right = |classes: &Vec<u32>| classes.iter().zip(&val.labels).filter(|(p, l)| p == l).count();
    Ok(predicted.iter().map(|classes| bootstrap::of_share(right(classes), val.len())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Silent;
    use burn::backend::Flex;

    fn features(rows: &[[f32; 2]], labels: &[u32]) -> Features {
        Features { values: rows.concat(), dim: 2, labels: labels.to_vec(), sets: None, classes: 2 }
    }

    #[test]
    fn near_neighbours_outvote_many_far_ones() {
        let train = features(&[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], &[0, 1, 1]);
        let val = features(&[[2.0, 0.1], [-0.1, 0.5]], &[0, 1]);
        let config = KnnConfig { k: vec![3, 1], temperature: 0.07 };
        let run = |train: &Features, config: &KnnConfig| {
            predict::<Flex>(train, &val, config, &mut Silent, &StopFlag::new(), &Default::default())
        };
        assert_eq!(run(&train, &config).unwrap(), [[0, 1], [0, 1]]);
        let found = knn::<Flex>(&train, &val, &config, &mut Silent, &StopFlag::new(), &Default::default());
        assert_eq!(found.unwrap(), [Estimate { value: 1.0, interval: [1.0, 1.0] }; 2]);
        let wide = Features { dim: 1, ..train.clone() };
        assert!(run(&wide, &config).is_err());
        let broken = Features { values: vec![f32::NAN; 6], ..train.clone() };
        assert!(run(&broken, &config).unwrap_err().to_string().contains("not finite"));
        let many = KnnConfig { k: vec![1, 4], ..config };
        let error = run(&train, &many).unwrap_err().to_string();
        assert!(
            error.starts_with("k = 4 neighbours need as many training images, but there are 3;"),
            "{error}"
        );
    }
}
