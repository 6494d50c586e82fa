//! Whitened features: as targets, every direction in which a teacher's features vary counts the same (`targets.whiten`).

use beit2_kernels::Backend;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use nalgebra::{DMatrix, DVector};

use super::Teacher;
use crate::error::{Error, config_error};
use crate::vit::Linear;

/// Added to the variances, as a share of their mean: directions that hardly vary are mostly noise, and a teacher's head may leave
/// some without any variance.
const RIDGE: f64 = 0.1;

/// Sums over the features of many patches, which give their mean and covariance.
#[derive(Debug, Clone)]
pub(crate) struct FeatureMoments {
    rows: f64,
    sum: Vec<f64>,
    /// Of products of two values, `[D · D]`.
    products: Vec<f64>,
}

impl FeatureMoments {
    /// Of no patches yet, for features of `dim` values.
    pub(crate) fn new(dim: usize) -> Self {
        Self { rows: 0.0, sum: vec![0.0; dim], products: vec![0.0; dim * dim] }
    }

    /// Counts features `[B, N, D]` too.
    pub(crate) fn add<B: Backend>(&mut self, features: Tensor<B, 3>) {
        let [batch, patches, dim] = features.dims();
        let rows = features.reshape([batch * patches, dim]);
        self.rows += (batch * patches) as f64;
        add_to(&mut self.sum, rows.clone().sum_dim(0).into_data());
        add_to(&mut self.products, rows.clone().transpose().matmul(rows).into_data());
    }

    /// The map `x ↦ weight·x + bias` that makes features uncorrelated, with a variance of 1 in every direction: `weight` is the
    /// inverse of the Cholesky factor of the covariance. Any other whitening is a rotation of this one, to which cosines are blind.
    fn whitening(&self) -> Result<(DMatrix<f64>, DVector<f64>), Error> {
        let dim = self.sum.len();
        let mean = DVector::from_column_slice(&self.sum) / self.rows;
        let mut covariance =
            DMatrix::from_column_slice(dim, dim, &self.products) / self.rows - &mean * mean.transpose();
        let variance = covariance.trace() / dim as f64;
        let ridge = RIDGE * variance;
        // Not only NaN: of features that are all the same, rounding leaves variances around 0.
        let least = 1e-9 * mean.norm_squared() / dim as f64;
        let factor = (variance.is_finite() && variance > least)
            .then(|| {
                (0..dim).for_each(|at| covariance[(at, at)] += ridge);
                covariance.cholesky()
            })
            .flatten();
        let inverse =
            factor.and_then(|factor| factor.l().solve_lower_triangular(&DMatrix::identity(dim, dim)));
        match inverse {
            Some(weight) => {
                let bias = -(&weight * mean);
                Ok((weight, bias))
            }
            None => config_error(
                "the teacher's features of the training images are the same everywhere or not finite, so they cannot be \
                 whitened; look at the images, or set targets.whiten = false",
            ),
        }
    }
}

fn add_to(sums: &mut [f64], values: TensorData) {
    for (sum, value) in sums.iter_mut().zip(values.iter::<f64>()) {
        *sum += value;
    }
}

impl<B: Backend> Teacher<B> {
    /// The same teacher with whitened features, of the same width. It costs nothing where there is a head, which then whitens too.
    /// To be called before [`Teacher::freeze`].
    ///
    /// # Errors
    /// Features that do not vary, or that are not finite.
    pub(crate) fn whitened(mut self, moments: &FeatureMoments) -> Result<Self, Error> {
        let (whiten, mut bias) = moments.whitening()?;
        let (outputs, inputs) = (self.dim(), self.width());
        let floats = |tensor: TensorData| tensor.iter::<f64>().collect::<Vec<_>>();
        let weight = match &self.head {
            Some(head) => {
                let weight =
                    DMatrix::from_row_iterator(outputs, inputs, floats(head.weight.val().into_data()));
                if let Some(own) = &head.bias {
                    bias += &whiten * DVector::from_vec(floats(own.val().into_data()));
                }
                &whiten * weight
            }
            None => whiten,
        };
        let device = self.patch_embed.proj.weight.val().device();
        // In f32, whatever the teacher's precision: directions of little variance grow many times, and errors with them.
        let mut head = Linear::new(inputs, outputs, true, &device);
        // Columns of the transpose are rows.
        let values: Vec<f32> = weight.transpose().iter().map(|&value| value as f32).collect();
        head.weight = Param::from_data(TensorData::new(values, [outputs, inputs]), &device);
        let values: Vec<f32> = bias.iter().map(|&value| value as f32).collect();
        head.bias = Some(Param::from_data(TensorData::new(values, [outputs]), &device));
        self.head = Some(head);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::backend::Flex;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// `[B, N, 3]` of two directions, of which one varies a hundred times as much as the other, around a mean of five.
    fn features(seed: u64) -> Tensor<Flex, 3> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let rows = (0..4096).flat_map(|_| {
            let (large, small) = (rng.random_range(-10.0..10.0f32), rng.random_range(-1.0..1.0f32));
            [5.0 + large, 5.0 + large + small, 5.0 - small]
        });
        Tensor::from_data(TensorData::new(rows.collect(), [64, 64, 3]), &Default::default())
    }

    fn moments(features: Tensor<Flex, 3>) -> FeatureMoments {
        let mut moments = FeatureMoments::new(features.dims()[2]);
        features.chunk(4, 0).into_iter().for_each(|part| moments.add(part));
        moments
    }

    #[test]
    fn whitened_features_are_centred_and_vary_in_every_direction_alike() {
        let (weight, bias) = moments(features(0)).whitening().unwrap();
        let rows = features(1).into_data().into_vec::<f32>().unwrap();
        let columns = rows.len() / 3;
        let x = DMatrix::from_iterator(3, columns, rows.into_iter().map(f64::from));
        let mut y = &weight * x;
        y.column_iter_mut().for_each(|mut column| column += &bias);
        let mean = y.column_mean();
        assert!(mean.amax() < 0.1, "{mean}");
        let spread = (&y * y.transpose() / columns as f64).symmetric_eigenvalues();
        // Variances of 67, 0.5 and 0 with a ridge of 2.2: the large one becomes 1, the others stay below.
        assert!((spread.max() - 1.0).abs() < 0.1, "{spread}");
        assert!(spread.iter().filter(|value| **value > 0.1).count() == 2, "{spread}");
    }

    #[test]
    fn features_without_variance_are_refused() {
        for value in [3.7, 0.0, f32::NAN] {
            let same = Tensor::<Flex, 3>::full([4, 4, 3], value, &Default::default());
            let error = moments(same).whitening().unwrap_err().to_string();
            assert!(error.contains("targets.whiten = false"), "{error}");
        }
    }
}
