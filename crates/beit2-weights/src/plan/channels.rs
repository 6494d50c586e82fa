//! Patch embeddings for another number of channels.
//!
//! Differs from upstream, which has none. timm's rule: for one channel, kernels are summed over the channels, so that a
//! grey image gives what its RGB copy gives; for N, they are repeated as often as it takes, cut off behind N, and scaled by
//! 3/N, so that sums keep their size.

use crate::tensor::Tensor;

/// Kernels `[D, C, p, p]` for `to` channels, and C.
///
/// # Errors
/// What was expected instead: kernels are four-dimensional, and only those of RGB can be repeated.
pub(super) fn fit(kernels: &Tensor, to: usize) -> Result<(Tensor, usize), String> {
    let &[outputs, from, height, width] = kernels.shape() else {
        return Err("four dimensions".to_owned());
    };
    if from == to || (from != 3 && to != 1) || to == 0 {
        return Err(format!("{to} channels (kernels of 3 channels can start any number)"));
    }
    let (values, area) = (kernels.to_f32(), height * width);
    let at = |output: usize, channel: usize, pixel: usize| values[(output * from + channel) * area + pixel];
    let mut fitted = Vec::with_capacity(outputs * to * area);
    for output in 0..outputs {
        for channel in 0..to {
            fitted.extend((0..area).map(|pixel| match to {
                1 => (0..from).map(|channel| at(output, channel, pixel)).sum(),
                _ => at(output, channel % from, pixel) * (from as f32 / to as f32),
            }));
        }
    }
    let tensor = Tensor::from_f32(vec![outputs, to, height, width], &fitted);
    tensor.map(|tensor| (tensor, from)).ok_or_else(|| "a size that does not overflow".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn kernels_follow_the_rule_of_timm() {
        let kernels =
            Tensor::from_f32(vec![2, 3, 1, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
                .unwrap();
        let (grey, from) = fit(&kernels, 1).unwrap();
        assert_eq!((grey.shape(), from), (&[2, 1, 1, 2][..], 3));
        assert_eq!(grey.to_f32(), [9.0, 12.0, 0.5, 0.0]);
        let (five, _) = fit(&kernels, 5).unwrap();
        let expected: Vec<f32> =
            [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0].iter().map(|v| v * 0.6).collect();
        assert_eq!(five.to_f32()[..10], expected);
        assert!(fit(&Tensor::from_f32(vec![1, 4, 1, 1], &[0.0; 4]).unwrap(), 5).is_err());
        assert!(fit(&kernels, 3).is_err());
    }
}
