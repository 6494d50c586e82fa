//! RandAugment as timm's `rand-m9-mstd0.5-inc1` (Cubuk et al. 2020, "RandAugment"; docs/method.md §4.4).

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::image::Image;
use crate::rng::{Rng, below, normal_pair, unit};
use crate::transform::affine::{Affine, warp};
use crate::transform::jitter::{JitterOp, apply_op};
use crate::transform::tone;

/// Largest magnitude; all arguments are in tenths of their range.
const MAX_MAGNITUDE: f64 = 10.0;

/// Mean colour of ImageNet in levels, `round(255 * [0.485, 0.456, 0.406])`.
pub const IMAGENET_MEAN_COLOR: [u8; 3] = [124, 116, 104];

/// What is drawn. The defaults are the paper's fine-tuning recipe, `rand-m9-mstd0.5-inc1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugmentConfig {
    /// Operations drawn per image, uniformly with replacement. Default 2.
    pub ops: u32,
    /// Mean of the magnitude, 0 to 10. Default 9.
    pub magnitude: f64,
    /// Standard deviation of the magnitude, which is clipped to 0 to 10. Default 0.5.
    pub magnitude_std: f64,
    /// Probability that a drawn operation is applied. Default 0.5.
    pub prob: f64,
    /// Colour that rotation, shear and translation uncover. Default: ImageNet's mean.
    pub fill: [u8; 3],
}

impl Default for RandAugmentConfig {
    fn default() -> Self {
        Self { ops: 2, magnitude: 9.0, magnitude_std: 0.5, prob: 0.5, fill: IMAGENET_MEAN_COLOR }
    }
}

impl RandAugmentConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: String, expected| Err(TransformError::Setting { name, value, expected });
        if self.ops > 100 {
            return bad("rand_augment.ops", self.ops.to_string(), "0 to 100 (2 in the paper's recipe)");
        }
        if !(0.0..=MAX_MAGNITUDE).contains(&self.magnitude) {
            return bad(
                "rand_augment.magnitude",
                self.magnitude.to_string(),
                "0 to 10 (9 in the paper's recipe)",
            );
        }
        if !(self.magnitude_std >= 0.0 && self.magnitude_std.is_finite()) {
            return bad("rand_augment.magnitude_std", self.magnitude_std.to_string(), "0 or more");
        }
        if !(0.0..=1.0).contains(&self.prob) {
            return bad("rand_augment.prob", self.prob.to_string(), "a probability from 0 to 1");
        }
        Ok(())
    }

    /// Draws the operations for one image, in the order in which they are applied; none at all in
    /// a quarter of the cases.
    pub fn sample(&self, rng: &mut impl Rng) -> Vec<AugmentOp> {
        let mut ops = Vec::new();
        for _ in 0..self.ops {
            let kind = AugmentKind::ALL[below(rng, AugmentKind::ALL.len() as u64) as usize];
            let applied = unit(rng) < self.prob;
            let magnitude = self.magnitude + self.magnitude_std * normal_pair(rng)[0];
            let negative = unit(rng) < 0.5;
            if applied {
                ops.push(kind.at(magnitude.clamp(0.0, MAX_MAGNITUDE), negative));
            }
        }
        ops
    }
}

/// The fifteen operations, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "`AugmentOp` says what each does")]
pub enum AugmentKind {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

impl AugmentKind {
    /// All of them, in timm's order.
    pub const ALL: [Self; 15] = [
        Self::AutoContrast,
        Self::Equalize,
        Self::Invert,
        Self::Rotate,
        Self::Posterize,
        Self::Solarize,
        Self::SolarizeAdd,
        Self::Color,
        Self::Contrast,
        Self::Brightness,
        Self::Sharpness,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
    ];

    /// The operation with its argument for a magnitude of 0 to 10. `negative` mirrors the argument
    /// of those that have two directions; the others ignore it.
    ///
    /// The strength grows with the magnitude (timm's "increasing" forms), also for posterize,
    /// solarize and the four enhancements.
    #[must_use]
    pub fn at(self, magnitude: f64, negative: bool) -> AugmentOp {
        let share = magnitude / MAX_MAGNITUDE;
        let signed = |most: f64| if negative { -(share * most) } else { share * most };
        let factor = 1.0 + signed(0.9);
        match self {
            Self::AutoContrast => AugmentOp::AutoContrast,
            Self::Equalize => AugmentOp::Equalize,
            Self::Invert => AugmentOp::Invert,
            Self::Rotate => AugmentOp::Rotate { degrees: signed(30.0) },
            Self::Posterize => AugmentOp::Posterize { bits: 4_u8.saturating_sub((share * 4.0) as u8) },
            Self::Solarize => {
                AugmentOp::Solarize { threshold: 256_u16.saturating_sub((share * 256.0) as u16) }
            }
            Self::SolarizeAdd => AugmentOp::SolarizeAdd { add: (share * 110.0) as u8 },
            Self::Color => AugmentOp::Color { factor },
            Self::Contrast => AugmentOp::Contrast { factor },
            Self::Brightness => AugmentOp::Brightness { factor },
            Self::Sharpness => AugmentOp::Sharpness { factor },
            Self::ShearX => AugmentOp::ShearX { factor: signed(0.3) },
            Self::ShearY => AugmentOp::ShearY { factor: signed(0.3) },
            Self::TranslateX => AugmentOp::TranslateX { share: signed(0.45) },
            Self::TranslateY => AugmentOp::TranslateY { share: signed(0.45) },
        }
    }
}

/// One operation with its argument; enough to make the result again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AugmentOp {
    /// Stretch each channel to 0 to 255.
    AutoContrast,
    /// Even out each channel's histogram.
    Equalize,
    /// Negative.
    Invert,
    /// Turn about the centre, counter-clockwise.
    Rotate {
        /// Angle in degrees.
        degrees: f64,
    },
    /// Keep the highest bits.
    Posterize {
        /// How many; see [`tone::posterize`] for 0.
        bits: u8,
    },
    /// Invert bright values.
    Solarize {
        /// Smallest value inverted, 0 to 256.
        threshold: u16,
    },
    /// Brighten dark values (below 128).
    SolarizeAdd {
        /// Levels added.
        add: u8,
    },
    /// Blend with the grey image.
    Color {
        /// 0 is grey, 1 changes nothing.
        factor: f64,
    },
    /// Blend with the mean grey.
    Contrast {
        /// 0 is flat, 1 changes nothing.
        factor: f64,
    },
    /// Blend with black.
    Brightness {
        /// 0 is black, 1 changes nothing.
        factor: f64,
    },
    /// Blend with the smoothed image.
    Sharpness {
        /// 0 is smooth, 1 changes nothing.
        factor: f64,
    },
    /// Shift rows by their distance from the top.
    ShearX {
        /// Pixels per row, leftwards.
        factor: f64,
    },
    /// Shift columns by their distance from the left.
    ShearY {
        /// Pixels per column, upwards.
        factor: f64,
    },
    /// Move left.
    TranslateX {
        /// Distance as a share of the width.
        share: f64,
    },
    /// Move up.
    TranslateY {
        /// Distance as a share of the height.
        share: f64,
    },
}

impl AugmentOp {
    /// Applies the operation to an image `[height, width, channels]`, in place; `fill` is the colour of
    /// uncovered pixels. `Color` changes RGB only.
    ///
    /// # Errors
    /// A broken buffer ([`TransformError::BufferLength`]).
    pub fn apply(&self, image: &mut Image, fill: [u8; 3]) -> Result<(), TransformError> {
        image.check()?;
        let of_pixels = matches!(self, Self::Color { .. } | Self::Contrast { .. } | Self::Brightness { .. });
        if image.channels != 3 && !of_pixels {
            *image = image.by_threes(|rgb| {
                let mut rgb = rgb.clone();
                self.apply(&mut rgb, fill)?;
                Ok(rgb)
            })?;
            return Ok(());
        }
        let (width, height) = (image.width, image.height);
        let warped = |image: &Image, map: Affine| warp(image, &map, fill);
        match *self {
            Self::AutoContrast => tone::autocontrast(image),
            Self::Equalize => tone::equalize(image),
            Self::Invert => tone::invert(image),
            Self::Posterize { bits } => tone::posterize(image, bits),
            Self::Solarize { threshold } => tone::solarize(image, threshold),
            Self::SolarizeAdd { add } => tone::solarize_add(image, add),
            Self::Color { factor } => apply_op(image, JitterOp::Saturation, factor),
            Self::Contrast { factor } => apply_op(image, JitterOp::Contrast, factor),
            Self::Brightness { factor } => apply_op(image, JitterOp::Brightness, factor),
            Self::Sharpness { factor } => tone::sharpen(image, factor),
            Self::Rotate { degrees } => *image = warped(image, Affine::rotation(degrees, width, height))?,
            Self::ShearX { factor } => *image = warped(image, Affine::shear_x(factor))?,
            Self::ShearY { factor } => *image = warped(image, Affine::shear_y(factor))?,
            Self::TranslateX { share } => {
                *image = warped(image, Affine::translation(share * f64::from(width), 0.0))?;
            }
            Self::TranslateY { share } => {
                *image = warped(image, Affine::translation(0.0, share * f64::from(height)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, RngStream};
    use proptest::prelude::*;

    #[test]
    fn arguments_of_the_recipe() {
        let at = |kind: AugmentKind, magnitude| kind.at(magnitude, false);
        assert_eq!(at(AugmentKind::Posterize, 9.0), AugmentOp::Posterize { bits: 1 });
        assert_eq!(at(AugmentKind::Posterize, 10.0), AugmentOp::Posterize { bits: 0 });
        assert_eq!(at(AugmentKind::Solarize, 9.0), AugmentOp::Solarize { threshold: 26 });
        assert_eq!(at(AugmentKind::SolarizeAdd, 9.0), AugmentOp::SolarizeAdd { add: 99 });
        assert_eq!(AugmentKind::ShearX.at(10.0, true), AugmentOp::ShearX { factor: -0.3 });
    }

    proptest! {
        #[test]
        fn any_draw_can_be_applied_to_any_image(seed: u64, magnitude in 0.0f64..=10.0, width in 1u32..20, height in 1u32..20) {
            let config = RandAugmentConfig { magnitude, magnitude_std: 3.0, ops: 6, prob: 1.0, ..RandAugmentConfig::default() };
            let mut rng = Key { seed, epoch: 0, index: 0, stream: RngStream::Augment }.rng();
            let ops = config.sample(&mut rng);
            prop_assert_eq!(ops.len(), 6);
            let data = (0..width * height * 3).map(|_| rng.next_u32() as u8).collect();
            let mut image = Image::new(width, height, data).unwrap();
            for op in ops {
                op.apply(&mut image, config.fill).unwrap();
            }
            prop_assert_eq!(image.data.len(), (width * height * 3) as usize);
        }
    }

    #[test]
    fn settings_are_checked() {
        assert!(RandAugmentConfig::default().validate().is_ok());
        let bad = RandAugmentConfig { magnitude: 11.0, ..RandAugmentConfig::default() };
        assert_eq!(
            bad.validate().unwrap_err().to_string(),
            "rand_augment.magnitude is 11; it must be 0 to 10 (9 in the paper's recipe)"
        );
        assert!(RandAugmentConfig { prob: f64::NAN, ..RandAugmentConfig::default() }.validate().is_err());
    }
}
