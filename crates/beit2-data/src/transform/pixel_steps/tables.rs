//! Colour steps as tables of bytes, for processors that look 64 bytes up at once.
//!
//! Brightness and contrast are functions of one byte, and two in a row are one. Saturation is a function of the distance
//! between value and grey: `grey + factor * d` cut to a whole number is `grey` plus the whole part of `factor * d`, unless
//! rounding to single precision lifts the sum over a whole number. [`Saturation::new`] refuses such factors (one in a
//! hundred); there the steps are computed as they stand.

use crate::transform::jitter::blend;
use crate::transform::pixel_steps::Step;

/// A new value for each byte.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Table(pub [u8; 256]);

/// What saturation adds to the grey value at each distance above it, and takes away at each distance below.
#[derive(Clone, Debug)]
pub(super) struct Saturation {
    pub rise: Table,
    pub fall: Table,
}

/// One or several steps.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Blends(Box<Table>),
    Saturation(Box<Saturation>),
}

/// Adds a step to those before it; `false` when it has no exact table.
pub(super) fn push(stages: &mut Vec<Stage>, step: &Step) -> bool {
    match *step {
        Step::Blend { degenerate, factor } => {
            if let Some(Stage::Blends(table)) = stages.last_mut() {
                table.0.iter_mut().for_each(|value| *value = blend(degenerate, *value, factor));
            } else {
                let table = std::array::from_fn(|value| blend(degenerate, value as u8, factor));
                stages.push(Stage::Blends(Box::new(Table(table))));
            }
            true
        }
        Step::Saturation { factor } => match Saturation::new(factor) {
            Some(saturation) => {
                stages.push(Stage::Saturation(Box::new(saturation)));
                true
            }
            None => false,
        },
    }
}

impl Saturation {
    pub fn new(factor: f32) -> Option<Self> {
        // Sums from 256 on are clipped whatever their fraction is; below, the spacing of f32 is 2^-16 at most, and
        // rounding moves a sum by half of that.
        const NEAR: f32 = 1.0 / 65_536.0;
        if !(factor >= 0.0 && factor.is_finite()) {
            return None;
        }
        let (mut rise, mut fall) = ([0; 256], [0; 256]);
        let mut exact = true;
        for (distance, (rise, fall)) in rise.iter_mut().zip(&mut fall).enumerate() {
            let product = (factor * distance as f32).min(256.0);
            // Below 2^31 the cast rounds down, and the difference is exact.
            let whole = product as i32;
            let fraction = product - whole as f32;
            exact &= fraction == 0.0 || (fraction > NEAR && fraction < 1.0 - NEAR);
            *rise = whole.min(255) as u8;
            *fall = (whole + i32::from(fraction > 0.0)).min(255) as u8;
        }
        exact.then_some(Self { rise: Table(rise), fall: Table(fall) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, RngStream, uniform};

    #[test]
    fn the_tables_of_saturation_are_the_blend_with_grey() {
        let mut rng = Key { seed: 3, epoch: 0, index: 0, stream: RngStream::Augment }.rng();
        let drawn = std::iter::repeat_with(|| uniform(&mut rng, 0.0, 2.0) as f32).take(300);
        let special = [0.0, 1.0, 0.5, 2.0, 1.25, 1e-30, 0.1, 1.9, 255.0, 300.0, 1e30];
        let mut refused = 0;
        for factor in drawn.chain(special) {
            let Some(tables) = Saturation::new(factor) else {
                refused += 1;
                continue;
            };
            for gray in 0..=255u8 {
                for value in 0..=255u8 {
                    let (above, below) = (value.saturating_sub(gray), gray.saturating_sub(value));
                    let raised = gray.saturating_add(tables.rise.0[usize::from(above)]);
                    let found = raised.saturating_sub(tables.fall.0[usize::from(below)]);
                    assert_eq!(found, blend(gray, value, factor), "{factor} {gray} {value}");
                }
            }
        }
        assert!(refused < 15, "{refused}");
        for factor in [-0.1, f32::NAN, f32::INFINITY] {
            assert!(Saturation::new(factor).is_none());
        }
    }
}
