//! Votes of nearest neighbours (Wu et al. 2018), for k-NN and for what is watched while a model trains.

use beit2_kernels::Backend;
use burn::tensor::Tensor;

/// Rows of length 1, `[n, D]`; a row of zeros stays one.
pub(crate) fn unit_length<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let norm = rows.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12);
    rows / norm
}

/// The `most` indices of `candidates` with the largest similarity, the nearest first, as its first `most` entries. Of equally
/// near neighbours the earlier counts, so that the result is one.
pub(crate) fn nearest_first(similarity: &[f32], candidates: &mut [usize], most: usize) {
    let nearer = |a: &usize, b: &usize| similarity[*b].total_cmp(&similarity[*a]).then(a.cmp(b));
    if most < candidates.len() {
        candidates.select_nth_unstable_by(most, nearer);
    }
    let most = most.min(candidates.len());
    candidates[..most].sort_unstable_by(nearer);
}

/// The class with the most votes of `neighbours`, each of weight exp(similarity/T); of equal ones the lower number.
pub(crate) fn vote(
    similarity: &[f32],
    neighbours: &[usize],
    labels: &[u32],
    classes: usize,
    temperature: f64,
) -> u32 {
    let mut votes = vec![0f64; classes];
    for &neighbour in neighbours {
        votes[labels[neighbour] as usize] += (f64::from(similarity[neighbour]) / temperature).exp();
    }
    let better = |best, class| if votes[class] > votes[best] { class } else { best };
    (0..votes.len()).fold(0, better) as u32
}
