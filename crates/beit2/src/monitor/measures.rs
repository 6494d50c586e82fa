//! What features are worth, without training anything on them.

use beit2_kernels::Backend;
use burn::tensor::{Tensor, TensorData};
use nalgebra::DMatrix;

use crate::neighbours::{nearest_first, unit_length, vote};

/// Neighbours that vote, where there are as many.
const NEIGHBOURS: usize = 20;
/// As k-NN's default.
const TEMPERATURE: f64 = 0.07;
/// Rows whose similarities to all are held at a time.
const CHUNK: usize = 256;

/// Vectors of images, `[n · dim]`, row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Vectors {
    pub(super) values: Vec<f32>,
    pub(super) dim: usize,
}

impl Vectors {
    pub(super) fn len(&self) -> usize {
        self.values.len() / self.dim.max(1)
    }

    pub(super) fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.dim..(at + 1) * self.dim]
    }

    fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }
}

/// RankMe (Garrido et al. 2023): e^entropy of the singular values of the features, which are not centred. Between 1, where
/// all features lie on a line, and the smaller one of their number and width.
pub(super) fn effective_rank(features: &Vectors) -> f64 {
    let (rows, columns) = (features.len(), features.dim);
    if rows == 0 || !features.is_finite() {
        return f64::NAN;
    }
    // In f64: roots of eigenvalues that rounding makes in f32 would count as dimensions.
    let values = features.values.iter().map(|&value| f64::from(value));
    let matrix = DMatrix::<f64>::from_row_iterator(rows, columns, values);
    let gram = if rows < columns { &matrix * matrix.transpose() } else { matrix.tr_mul(&matrix) };
    let singular: Vec<f64> = gram.symmetric_eigenvalues().iter().map(|value| value.max(0.0).sqrt()).collect();
    let sum: f64 = singular.iter().sum();
    if sum == 0.0 {
        return 0.0; // all features are zero
    }
    let entropy: f64 =
        singular.iter().map(|value| value / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// What the similarities of all pairs of images tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pairs {
    /// Wang and Isola 2020: log of the mean of e^(−2‖x − y‖²) over pairs of features of length 1. From 0, where all are the
    /// same, down to about −4, where they are spread evenly.
    pub(super) uniformity: f64,
    /// Share of the images whose class k-NN finds by the other images; `None` without classes.
    pub(super) top1: Option<f64>,
}

/// Compares every image with every other one. `classes`: the class of each image, and their number. Images that are alone
/// in their class vote, and are not counted.
pub(super) fn pairs<B: Backend>(
    features: &Vectors,
    classes: Option<(&[u32], usize)>,
    device: &B::Device,
) -> Pairs {
    let count = features.len();
    if count < 2 || !features.is_finite() {
        return Pairs { uniformity: f64::NAN, top1: classes.map(|_| f64::NAN) };
    }
    let rows = TensorData::new(features.values.clone(), [count, features.dim]);
    let rows = unit_length(Tensor::<B, 2>::from_data(rows, device));
    let mut of_class = vec![0usize; classes.map_or(0, |(_, number)| number)];
    classes.iter().for_each(|(labels, _)| labels.iter().for_each(|&label| of_class[label as usize] += 1));
    let (mut sum, mut right, mut asked) = (0.0, 0usize, 0usize);
    for start in (0..count).step_by(CHUNK) {
        let queries = rows.clone().narrow(0, start, CHUNK.min(count - start));
        let similarity = queries.matmul(rows.clone().transpose());
        let similarity: Vec<f32> = similarity.into_data().convert::<f32>().into_vec().unwrap_or_default();
        for (query, row) in (start..).zip(similarity.chunks(count)) {
            // ‖x − y‖² of unit vectors is 2 − 2·cos.
            let others = row.iter().enumerate().filter(|(at, _)| *at != query);
            sum += others.map(|(_, &cos)| (4.0 * f64::from(cos) - 4.0).exp()).sum::<f64>();
            let Some((labels, number)) = classes else { continue };
            if of_class[labels[query] as usize] < 2 {
                continue;
            }
            let mut candidates: Vec<usize> = (0..count).filter(|&at| at != query).collect();
            let most = NEIGHBOURS.min(candidates.len());
            nearest_first(row, &mut candidates, most);
            let found = vote(row, &candidates[..most], labels, number, TEMPERATURE);
            asked += 1;
            right += usize::from(found == labels[query]);
        }
    }
    let pairs = count as f64 * (count - 1) as f64;
    Pairs { uniformity: (sum / pairs).ln(), top1: classes.map(|_| right as f64 / asked.max(1) as f64) }
}

/// 1 − the mean cosine of pairs of vectors; NaN without pairs.
pub(super) fn distance<'a>(pairs: impl Iterator<Item = (&'a [f32], &'a [f32])>) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (a, b) in pairs {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        sum += dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-24);
        count += 1;
    }
    1.0 - sum / f64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    fn vectors(rows: &[[f32; 3]]) -> Vectors {
        Vectors { values: rows.concat(), dim: 3 }
    }

    #[test]
    fn rank_counts_the_dimensions_that_are_used() {
        let line = vectors(&[[1.0, 2.0, 2.0], [2.0, 4.0, 4.0], [-0.5, -1.0, -1.0], [3.0, 6.0, 6.0]]);
        assert!((effective_rank(&line) - 1.0).abs() < 1e-6, "{}", effective_rank(&line));
        let axes = vectors(&[
            [1.0, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0],
            [1.0, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0],
        ]);
        assert!((effective_rank(&axes) - 3.0).abs() < 1e-9);
        // Singular values 3 and 1: entropy of (3/4, 1/4).
        let two = vectors(&[[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
        let expected = (-(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln())).exp();
        assert!((effective_rank(&two) - expected).abs() < 1e-9);
        assert_eq!(effective_rank(&vectors(&[[0.0; 3]; 5])), 0.0);
        assert!(effective_rank(&vectors(&[[f32::NAN, 0.0, 0.0]])).is_nan());
    }

    #[test]
    fn every_image_is_asked_and_does_not_vote_for_itself() {
        let features =
            vectors(&[[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 1.0]]);
        let of = |labels: &[u32]| pairs::<Flex>(&features, Some((labels, 3)), &Default::default()).top1;
        assert_eq!(of(&[0, 0, 1, 1, 2]), Some(1.0), "the one that is alone is not counted");
        assert_eq!(of(&[0, 1, 0, 1, 2]), Some(0.0));
        let unlabelled = pairs::<Flex>(&features, None, &Default::default());
        assert_eq!(unlabelled.top1, None);
        // By definition, one pair after the other.
        let unit = |row: &[f32]| {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter().map(|v| f64::from(v / norm)).collect::<Vec<_>>()
        };
        let mut sum = 0.0;
        for a in 0..5 {
            for b in (0..5).filter(|&b| b != a) {
                let (x, y) = (unit(features.row(a)), unit(features.row(b)));
                sum += (-2.0 * x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum::<f64>()).exp();
            }
        }
        assert!((unlabelled.uniformity - (sum / 20.0).ln()).abs() < 1e-5);
        let same = pairs::<Flex>(&vectors(&[[1.0, 1.0, 0.0]; 4]), None, &Default::default());
        assert!(same.uniformity.abs() < 1e-5);
    }

    #[test]
    fn distance_is_of_directions() {
        let (a, b) =
            (vectors(&[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), vectors(&[[3.0, 0.0, 0.0], [1.0, 0.0, 0.0]]));
        let of = |a: &Vectors, b: &Vectors| distance((0..2).map(|at| (a.row(at), b.row(at))));
        assert!((of(&a, &b) - 0.5).abs() < 1e-9);
        assert!(of(&a, &a).abs() < 1e-9);
    }
}
