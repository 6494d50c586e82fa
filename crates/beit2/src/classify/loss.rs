//! Cross entropy against soft targets, the one loss of fine-tuning.

use beit2_kernels::{self as kernels, Backend};
use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};

/// One-hot targets smoothed by ε: `1 − ε + ε/C` for the class, `ε/C` for the others. `[B]` → `[B, C]`.
///
/// Cross entropy against them is label-smoothing cross entropy, `(1−ε)·NLL + ε·mean(−log p)`, and plain
/// cross entropy with ε = 0, so that mixup's targets need no other loss.
pub fn smooth_targets<B: Backend>(
    labels: &[u32],
    classes: usize,
    smoothing: f64,
    device: &B::Device,
) -> Tensor<B, 2> {
    let off = smoothing / classes as f64;
    let mut values = vec![off as f32; labels.len() * classes];
    for (row, &label) in values.chunks_mut(classes).zip(labels) {
        row[label as usize] = (1.0 - smoothing + off) as f32;
    }
    kernels::upload(TensorData::new(values, [labels.len(), classes]), device)
}

/// Mean over the batch of `−Σ target · log softmax(logits)`, both `[B, C]`. Shape `[1]`.
pub fn soft_cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 2>) -> Tensor<B, 1> {
    kernels::soft_cross_entropy(logits, targets)
}

/// Mean cross entropy with class numbers `[B]`, as evaluation reports it. Shape `[1]`.
pub fn hard_cross_entropy<B: Backend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let batch = labels.dims()[0];
    log_softmax(logits, 1).gather(1, labels.reshape([batch, 1])).mean().neg()
}

/// How many rows have their class among the `k` largest logits, `[B, C]` and `[B]`, counted on the host. Equal
/// logits count in favour of the class with the lower number.
pub fn top_k_hits(logits: &[f32], classes: usize, labels: &[u32], k: usize) -> usize {
    let hit = |row: &[f32], label: usize| {
        let own = row[label];
        let ranks_above = |(at, v): (usize, &f32)| *v > own || (*v == own && at < label) || own.is_nan();
        row.iter().enumerate().filter(|(at, v)| *at != label && ranks_above((*at, v))).count() < k
    };
    logits.chunks(classes).zip(labels).filter(|(row, label)| hit(row, **label as usize)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    #[test]
    fn smoothing_is_a_mixture_of_two_losses() {
        let device = Default::default();
        let logits = Tensor::<Flex, 2>::from_data([[0.3f32, -1.0, 2.0], [0.0, 0.5, 0.1]], &device);
        let smooth = soft_cross_entropy(logits.clone(), smooth_targets(&[2, 0], 3, 0.1, &device));
        let log = log_softmax(logits.clone(), 1).into_data().into_vec::<f32>().unwrap();
        let nll = -(log[2] + log[3]) / 2.0;
        let uniform = -log.iter().sum::<f32>() / 6.0;
        let expected = 0.9 * nll + 0.1 * uniform;
        assert!((smooth.into_scalar() - expected).abs() < 1e-6);
        let labels = Tensor::from_data([2, 0], &device);
        assert!((hard_cross_entropy(logits, labels).into_scalar() - nll).abs() < 1e-6);
    }

    #[test]
    fn top_k_counts_rows() {
        let logits = [0.1, 0.9, 0.5, 0.7, 0.2, 0.2];
        assert_eq!(top_k_hits(&logits, 3, &[1, 2], 1), 1);
        assert_eq!(top_k_hits(&logits, 3, &[2, 2], 2), 1);
        assert_eq!(top_k_hits(&logits, 3, &[0, 2], 5), 2);
        assert_eq!(top_k_hits(&[f32::NAN; 3], 3, &[1], 1), 0);
    }
}
