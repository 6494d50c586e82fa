//! Cosine k-means for the start of the codebook.

use beit2_kernels::{self as kernels, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// The result of [`kmeans`].
#[derive(Debug, Clone)]
pub struct KMeans<B: Backend> {
    /// Unit-norm means `[K, C]`.
    pub means: Tensor<B, 2>,
    /// Members of each cluster in the last round, `[K]`.
    pub members: Tensor<B, 1>,
}

/// The rows that k-means starts from: K different ones, or K with repetition when there are fewer than
/// K rows (the duplicates among them never part; pool more batches to avoid it).
pub fn draw_start(rows: usize, codes: usize, rng: &mut impl Rng) -> Vec<i32> {
    if rows >= codes {
        let mut order: Vec<i32> = (0..rows as i32).collect();
        order.shuffle(rng);
        order.truncate(codes);
        order
    } else {
        (0..codes).map(|_| rng.random_range(0..rows as i32)).collect()
    }
}

/// `rounds` of cosine k-means over unit rows `[n, C]` from the rows `start [K]`. A cluster without
/// members keeps its mean.
pub fn kmeans<B: Backend>(rows: Tensor<B, 2>, start: &[i32], rounds: usize) -> KMeans<B> {
    let (device, dtype) = (rows.device(), rows.dtype());
    let width = rows.dims()[1];
    let start = Tensor::<B, 1, Int>::from_data(TensorData::new(start.to_vec(), [start.len()]), &device);
    let codes = start.dims()[0];
    let mut means = rows.clone().select(0, start);
    let mut members = Tensor::zeros([codes], (&device, dtype));
    for _ in 0..rounds {
        let ids = kernels::nearest_code(rows.clone(), means.clone());
        let sums;
        (members, sums) = kernels::code_statistics(ids, rows.clone(), codes);
        let counts = members.clone().unsqueeze_dim::<2>(1);
        let fresh = kernels::unit_rows(sums / counts.clone().clamp_min(1.0));
        let empty = counts.equal_elem(0.0).expand([codes, width]);
        means = fresh.mask_where(empty, means);
    }
    KMeans { means, members }
}
