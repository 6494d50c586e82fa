//! Parameters of Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv
//! 1905.04899) per batch, with timm's rules (docs/method.md §4.4).
//!
//! Sample i is mixed with sample B - 1 - i of the same batch `x`, so B must be even. With weight
//! `lambda`, and `r` the batch in reverse order:
//! - mixup: `lambda x + (1 - lambda) r`, all pixels;
//! - cutmix: `x`, with the pixels of one box taken from `r`; the box is the same for all samples.
//!
//! Mixing the pixels is left to the owner of the tensors; [`soft_targets`] are the classes' side.

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::rng::{Key, Rng, RngStream, below, normal_pair, unit};
use crate::transform::crop::CropBox;

/// How batches are mixed. The defaults are the paper's recipe for ImageNet-1k after pretraining.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixConfig {
    /// Alpha of mixup's `lambda ~ Beta(alpha, alpha)`; 0 turns mixup off. Default 0.8.
    pub mixup: f64,
    /// Alpha of cutmix; 0 turns cutmix off. Default 1.
    pub cutmix: f64,
    /// Probability that a batch is mixed at all. Default 1.
    pub prob: f64,
    /// Probability of cutmix instead of mixup when both are on. Default 0.5.
    pub switch_prob: f64,
}

impl Default for MixConfig {
    fn default() -> Self {
        Self { mixup: 0.8, cutmix: 1.0, prob: 1.0, switch_prob: 0.5 }
    }
}

impl MixConfig {
    /// Whether any batch can be mixed; if not, the loss is that of hard (smoothed) targets.
    #[must_use]
    pub fn is_on(&self) -> bool {
        (self.mixup > 0.0 || self.cutmix > 0.0) && self.prob > 0.0
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: f64, expected| {
            Err(TransformError::Setting { name, value: value.to_string(), expected })
        };
        for (name, alpha) in [("mix.mixup", self.mixup), ("mix.cutmix", self.cutmix)] {
            if !(alpha >= 0.0 && alpha.is_finite()) {
                return bad(name, alpha, "0 (off) or more (0.8 and 1 in the paper's recipe)");
            }
        }
        for (name, prob) in [("mix.prob", self.prob), ("mix.switch_prob", self.switch_prob)] {
            if !(0.0..=1.0).contains(&prob) {
                return bad(name, prob, "a probability from 0 to 1");
            }
        }
        Ok(())
    }
}

/// How one batch is mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixParams {
    /// Weight of the batch in its own order; 1 when nothing is mixed. For cutmix it is the share of
    /// pixels outside the clipped box, not the number drawn.
    pub lambda: f64,
    /// The box taken from the reversed batch; `None` for mixup, and for cutmix with an empty box.
    pub cut: Option<CropBox>,
}

impl MixParams {
    /// Leaves a batch as it is.
    pub const NONE: Self = Self { lambda: 1.0, cut: None };

    /// Draws for batch `step` (micro-batches counted over the whole run) and views of `width` x `height`
    /// pixels.
    #[must_use]
    pub fn draw(config: &MixConfig, width: u32, height: u32, seed: u64, step: u64) -> Self {
        if !config.is_on() {
            return Self::NONE;
        }
        let mut rng = Key { seed, epoch: 0, index: step, stream: RngStream::Mix }.rng();
        let (mixed, switched) = (unit(&mut rng) < config.prob, unit(&mut rng) < config.switch_prob);
        if !mixed {
            return Self::NONE;
        }
        let cutmix = config.cutmix > 0.0 && (config.mixup <= 0.0 || switched);
        if !cutmix {
            return Self { lambda: beta(&mut rng, config.mixup), cut: None };
        }
        let lambda = beta(&mut rng, config.cutmix);
        let center = (below(&mut rng, width.into()) as u32, below(&mut rng, height.into()) as u32);
        Self::cutmix(width, height, lambda, center)
    }

    /// Cutmix with a box for weight `lambda` about `center` (column, row): `lambda` is computed anew
    /// from the box that is left after clipping.
    #[must_use]
    pub fn cutmix(width: u32, height: u32, lambda: f64, center: (u32, u32)) -> Self {
        let Some(area) = cut_box(width, height, lambda, center) else {
            return Self::NONE;
        };
        let share = f64::from(area.width) * f64::from(area.height) / (f64::from(width) * f64::from(height));
        Self { lambda: 1.0 - share, cut: Some(area) }
    }
}

/// The box of cutmix, clipped to the image; `None` when it is empty.
///
/// Each side is `floor(side * sqrt(1 - lambda))` long and reaches half of that, rounded down, to
/// both sides of the centre, so that an odd length loses a pixel.
#[must_use]
pub fn cut_box(width: u32, height: u32, lambda: f64, center: (u32, u32)) -> Option<CropBox> {
    let share = (1.0 - lambda).clamp(0.0, 1.0).sqrt();
    let stretch = |length: u32, center: u32| {
        let half = (f64::from(length) * share) as u32 / 2;
        let start = center.saturating_sub(half).min(length);
        (start, center.saturating_add(half).min(length) - start)
    };
    let ((left, width), (top, height)) = (stretch(width, center.0), stretch(height, center.1));
    (width > 0 && height > 0).then_some(CropBox { top, left, height, width })
}

/// The classes' side of mixing: for each sample, `lambda` times its own target plus `1 - lambda`
/// times that of sample B - 1 - i.
///
/// A target before mixing is `1 - smoothing + smoothing / classes` at the class and `smoothing /
/// classes` elsewhere; the loss is the cross entropy with these.
///
/// # Shapes
///
/// `labels [B]` → `[B, classes]`.
///
/// # Errors
/// A class past the end; an odd batch, unless `lambda` is 1 ([`MixParams::NONE`]).
pub fn soft_targets(
    labels: &[u32],
    classes: usize,
    smoothing: f64,
    lambda: f64,
) -> Result<Vec<f32>, TransformError> {
    if labels.len() % 2 == 1 && lambda != 1.0 {
        return Err(TransformError::OddBatch { samples: labels.len() });
    }
    if let Some(position) = labels.iter().position(|&label| label as usize >= classes) {
        return Err(TransformError::ClassOutside { position, label: labels[position], classes });
    }
    let off = smoothing / classes as f64;
    let mut out = vec![off as f32; labels.len() * classes];
    if out.is_empty() {
        return Ok(out);
    }
    for (row, (&own, &other)) in out.chunks_exact_mut(classes).zip(labels.iter().zip(labels.iter().rev())) {
        let weight = |class: u32| {
            let own = if class == own { lambda } else { 0.0 };
            let other = if class == other { 1.0 - lambda } else { 0.0 };
            (off + (1.0 - smoothing) * (own + other)) as f32
        };
        row[own as usize] = weight(own);
        row[other as usize] = weight(other);
    }
    Ok(out)
}

/// [`soft_targets`] for samples that may have several classes or none, for binary cross entropy.
///
/// A target before mixing is `1 - smoothing / 2` for each class of the sample and `smoothing / 2` for the others: each
/// class is a decision between two, and keeps `1 - smoothing` of what it was told.
///
/// # Shapes
///
/// `sets [B]` → `[B, classes]`.
///
/// # Errors
/// As [`soft_targets`].
pub fn multi_hot_targets(
    sets: &[Vec<u32>],
    classes: usize,
    smoothing: f64,
    lambda: f64,
) -> Result<Vec<f32>, TransformError> {
    if sets.len() % 2 == 1 && lambda != 1.0 {
        return Err(TransformError::OddBatch { samples: sets.len() });
    }
    let outside = |set: &Vec<u32>| set.iter().copied().find(|&label| label as usize >= classes);
    if let Some((position, label)) = sets.iter().enumerate().find_map(|(at, set)| Some((at, outside(set)?))) {
        return Err(TransformError::ClassOutside { position, label, classes });
    }
    let mut out = Vec::with_capacity(sets.len() * classes);
    for (own, other) in sets.iter().zip(sets.iter().rev()) {
        out.extend((0..classes as u32).map(|class| {
            let own = if own.contains(&class) { lambda } else { 0.0 };
            let other = if other.contains(&class) { 1.0 - lambda } else { 0.0 };
            (0.5 * smoothing + (1.0 - smoothing) * (own + other)) as f32
        }));
    }
    Ok(out)
}

/// A number of the distribution Beta(alpha, alpha), as X / (X + Y) of two gamma numbers.
fn beta(rng: &mut impl Rng, alpha: f64) -> f64 {
    // Why logarithms: for a small alpha both gamma numbers underflow to 0.
    let (x, y) = (log_gamma(rng, alpha), log_gamma(rng, alpha));
    1.0 / (1.0 + (y - x).exp())
}

/// The logarithm of a number of the distribution Gamma(shape, 1), for any shape above 0 (Marsaglia
/// and Tsang 2000, "A simple method for generating gamma variables").
fn log_gamma(rng: &mut impl Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        let larger = log_gamma(rng, shape + 1.0);
        return larger + (1.0 - unit(rng)).ln() / shape;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal_pair(rng)[0];
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - unit(rng)).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return d.ln() + v.ln();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn beta_has_the_right_moments() {
        let mut rng = Key { seed: 3, epoch: 0, index: 0, stream: RngStream::Mix }.rng();
        for alpha in [0.01, 0.2, 0.8, 1.0, 5.0] {
            let n = 20_000;
            let values: Vec<f64> = (0..n).map(|_| beta(&mut rng, alpha)).collect();
            assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
            let mean = values.iter().sum::<f64>() / f64::from(n);
            let variance = values.iter().map(|v| (v - 0.5).powi(2)).sum::<f64>() / f64::from(n);
            let expected = 0.25 / (2.0 * alpha + 1.0);
            // Five standard errors; a value's square distance from 0.5 deviates by at most 1/8.
            assert!((mean - 0.5).abs() < 5.0 * (expected / f64::from(n)).sqrt(), "{alpha}: mean {mean}");
            assert!((variance - expected).abs() < 5.0 * 0.125 / f64::from(n).sqrt(), "{alpha}: {variance}");
        }
    }

    proptest! {
        #[test]
        fn lambda_is_the_share_outside_the_box(seed: u64, step: u64, width in 1u32..300, height in 1u32..300) {
            let config = MixConfig { mixup: 0.0, ..MixConfig::default() };
            let params = MixParams::draw(&config, width, height, seed, step);
            prop_assert_eq!(params, MixParams::draw(&config, width, height, seed, step));
            let area = params.cut.map_or(0.0, |area| {
                assert!(area.check(width, height).is_ok());
                f64::from(area.width * area.height)
            });
            prop_assert!((params.lambda - (1.0 - area / f64::from(width * height))).abs() < 1e-12);
        }
    }

    #[test]
    fn odd_lengths_lose_a_pixel() {
        // 10 * sqrt(1 - 0.75) = 5, of which 2 lie on each side.
        let area = cut_box(10, 20, 0.75, (5, 1)).unwrap();
        assert_eq!(area, CropBox { top: 0, left: 3, height: 6, width: 4 });
        assert_eq!(cut_box(10, 10, 1.0, (5, 5)), None);
        assert_eq!(cut_box(10, 10, 0.0, (5, 5)), Some(CropBox::whole(10, 10)));
        assert_eq!(MixParams::cutmix(10, 10, 0.999, (5, 5)), MixParams::NONE);
    }

    #[test]
    fn switches_do_what_they_say() {
        let draws = |config: MixConfig| (0..2000).map(move |step| MixParams::draw(&config, 64, 64, 5, step));
        let both = MixConfig::default();
        let cut = draws(both).filter(|p| p.cut.is_some()).count();
        assert!((880..1120).contains(&cut), "{cut}");
        assert!(draws(MixConfig { cutmix: 0.0, ..both }).all(|p| p.cut.is_none()));
        let kept = draws(MixConfig { prob: 0.25, ..both }).filter(|p| *p == MixParams::NONE).count();
        assert!((1390..1610).contains(&kept), "{kept}");
        let off = MixConfig { mixup: 0.0, cutmix: 0.0, ..both };
        assert!(!off.is_on() && draws(off).all(|p| p == MixParams::NONE));
        assert!(both.validate().is_ok() && MixConfig { mixup: -1.0, ..both }.validate().is_err());
    }

    #[test]
    fn targets_by_hand() {
        let found = soft_targets(&[0, 2], 4, 0.0, 0.75).unwrap();
        assert_eq!(found, [0.75, 0.0, 0.25, 0.0, 0.25, 0.0, 0.75, 0.0]);
        assert_eq!(soft_targets(&[1, 1], 2, 0.0, 0.3).unwrap(), [0.0, 1.0, 0.0, 1.0]);
        assert!(soft_targets(&[0; 3], 4, 0.1, 0.5).is_err());
        assert_eq!(soft_targets(&[1], 2, 0.5, 1.0).unwrap(), [0.25, 0.75]);
        let sentence = soft_targets(&[0, 4], 4, 0.1, 0.5).unwrap_err().to_string();
        assert_eq!(sentence, "sample 1 of the batch has class 4, but there are only 4 classes");
        assert!(soft_targets(&[], 0, 0.1, 0.5).unwrap().is_empty());
    }
}
