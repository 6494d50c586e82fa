//! Block masks: which patches the model has to predict.
//!
//! Rectangles of random area and aspect are placed until exactly `masked` patches are covered; what
//! no rectangle can cover any more is filled with single random patches. (BEiT paper, "blockwise
//! masking"; the fill is BEiT v2's.)

use serde::{Deserialize, Serialize};

use crate::error::MaskError;
use crate::rng::{Rng, below, uniform};

/// Attempts at one rectangle before giving up on rectangles (the reference's constant).
const ATTEMPTS: usize = 10;

/// Largest grid side: 4096 patches of 16 pixels are an image of 65 536.
const MAX_SIDE: usize = 4096;

/// Size and shape of the masks. The defaults are the paper's for 224 pixels and patch 16.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockMaskConfig {
    /// Rows of patches. Default 14.
    pub grid_h: usize,
    /// Columns of patches. Default 14.
    pub grid_w: usize,
    /// Patches to mask, exactly. Default 75 of 196.
    pub masked: usize,
    /// Smallest area drawn for a rectangle, in patches, while that much is still wanted. Default
    /// 16.
    pub min_patches: usize,
    /// Largest area of a rectangle, in patches. Default: `masked`.
    pub max_patches: Option<usize>,
    /// Smallest height / width drawn; the largest is its inverse. Default 0.3.
    pub min_aspect: f64,
}

impl Default for BlockMaskConfig {
    fn default() -> Self {
        Self { grid_h: 14, grid_w: 14, masked: 75, min_patches: 16, max_patches: None, min_aspect: 0.3 }
    }
}

impl BlockMaskConfig {
    /// Number of patches, `grid_h * grid_w`.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.grid_h.saturating_mul(self.grid_w)
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// One sentence naming the first contradiction.
    pub fn validate(&self) -> Result<(), MaskError> {
        let Self { grid_h, grid_w, masked, min_patches, max_patches, min_aspect } = *self;
        if !(1..=MAX_SIDE).contains(&grid_h) || !(1..=MAX_SIDE).contains(&grid_w) {
            return Err(MaskError::Grid { grid_h, grid_w, max: MAX_SIDE });
        }
        let patches = self.patches();
        if masked > patches {
            return Err(MaskError::TooMany { masked, grid_h, grid_w, patches });
        }
        if let Some(max) = max_patches
            && (max < min_patches || max == 0)
        {
            return Err(MaskError::Limits { min: min_patches, max });
        }
        if !(min_aspect > 0.0 && min_aspect <= 1.0) {
            return Err(MaskError::Aspect(min_aspect));
        }
        Ok(())
    }
}

/// One mask over the patch grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Rows.
    pub grid_h: usize,
    /// Columns.
    pub grid_w: usize,
    /// `true` where the patch is masked. Shape `[grid_h, grid_w]`, row-major.
    pub bits: Vec<bool>,
    /// How many rectangles were placed.
    pub rectangles: u32,
    /// How many single patches were added because no rectangle fitted any more.
    pub topped_up: u32,
}

impl Mask {
    /// Positions of the masked patches, ascending. Shape `[M]`.
    #[must_use]
    pub fn masked_indices(&self) -> Vec<u32> {
        let masked = self.bits.iter().enumerate().filter(|(_, bit)| **bit);
        masked.map(|(i, _)| i as u32).collect()
    }
}

/// Draws one mask with exactly `config.masked` ones (BEiT v2 masking generator).
///
/// A configuration that fails [`BlockMaskConfig::validate`] does not panic: as many patches are
/// masked as exist.
pub fn sample_block_mask(rng: &mut impl Rng, config: &BlockMaskConfig) -> Mask {
    let (grid_h, grid_w) = (config.grid_h.min(MAX_SIDE), config.grid_w.min(MAX_SIDE));
    let target = config.masked.min(grid_h * grid_w);
    let largest = config.max_patches.unwrap_or(config.masked);
    let mut mask = Mask { grid_h, grid_w, bits: vec![false; grid_h * grid_w], rectangles: 0, topped_up: 0 };
    let mut count = 0;
    while count < target {
        let room = (target - count).min(largest);
        let added = (0..ATTEMPTS).find_map(|_| place_rectangle(rng, config, &mut mask, room));
        let Some(added) = added else { break };
        count += added;
        mask.rectangles += 1;
    }
    top_up(rng, &mut mask, target - count);
    mask
}

/// One attempt at a rectangle that masks at least one and at most `room` new patches; returns how
/// many.
fn place_rectangle(
    rng: &mut impl Rng,
    config: &BlockMaskConfig,
    mask: &mut Mask,
    room: usize,
) -> Option<usize> {
    // Why: near the end `room` falls below the minimum and the bounds swap sides. The reference
    // draws between them all the same, so that the last rectangles are often too large and a top-up
    // is needed in a third of the masks.
    let area = uniform(rng, config.min_patches as f64, room as f64);
    let log_aspect = config.min_aspect.ln();
    let aspect = uniform(rng, log_aspect, -log_aspect).exp();
    let height = (area * aspect).sqrt().round_ties_even() as usize;
    let width = (area / aspect).sqrt().round_ties_even() as usize;
    if width >= mask.grid_w || height >= mask.grid_h {
        return None;
    }
    let top = below(rng, (mask.grid_h - height) as u64 + 1) as usize;
    let left = below(rng, (mask.grid_w - width) as u64 + 1) as usize;
    let grid_w = mask.grid_w;
    let rows = (top..top + height).map(|row| row * grid_w + left..row * grid_w + left + width);
    let new: usize = rows.clone().map(|row| mask.bits[row].iter().filter(|bit| !**bit).count()).sum();
    if new == 0 || new > room {
        return None;
    }
    for row in rows {
        mask.bits[row].fill(true);
    }
    Some(new)
}

/// Masks `missing` of the still free patches, chosen without replacement.
fn top_up(rng: &mut impl Rng, mask: &mut Mask, missing: usize) {
    if missing == 0 {
        return;
    }
    let mut free: Vec<usize> = (0..mask.bits.len()).filter(|&i| !mask.bits[i]).collect();
    for drawn in 0..missing.min(free.len()) {
        let other = drawn + below(rng, (free.len() - drawn) as u64) as usize;
        free.swap(drawn, other);
        mask.bits[free[drawn]] = true;
        mask.topped_up += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, RngStream};
    use proptest::prelude::*;

    fn rng(seed: u64) -> impl Rng {
        Key { seed, epoch: 0, index: 0, stream: RngStream::Mask }.rng()
    }

    proptest! {
        #[test]
        fn exactly_the_wanted_number(
            grid_h in 1usize..20, grid_w in 1usize..20, share in 0.0f64..=1.0,
            min_patches in 0usize..30, max_extra in proptest::option::of(1usize..40), min_aspect in 0.01f64..=1.0, seed: u64,
        ) {
            let masked = (share * (grid_h * grid_w) as f64).round() as usize;
            let max_patches = max_extra.map(|extra| min_patches + extra);
            let config = BlockMaskConfig { grid_h, grid_w, masked, min_patches, max_patches, min_aspect };
            prop_assert!(config.validate().is_ok());
            let mask = sample_block_mask(&mut rng(seed), &config);
            let indices = mask.masked_indices();
            prop_assert_eq!(mask.bits.len(), grid_h * grid_w);
            prop_assert_eq!(indices.len(), masked);
            prop_assert!(indices.is_sorted());
            prop_assert_eq!(mask.clone(), sample_block_mask(&mut rng(seed), &config));
        }

        #[test]
        fn never_panics_on_nonsense(grid_h in 0usize..9, grid_w in 0usize..9, masked: u8, min_patches: usize, max: usize, seed: u64) {
            let config = BlockMaskConfig { grid_h, grid_w, masked: masked.into(), min_patches, max_patches: Some(max), min_aspect: 1e-9 };
            let mask = sample_block_mask(&mut rng(seed), &config);
            prop_assert_eq!(mask.masked_indices().len(), usize::from(masked).min(grid_h * grid_w));
        }
    }

    #[test]
    fn none_and_all() {
        let none = BlockMaskConfig { masked: 0, ..BlockMaskConfig::default() };
        assert!(sample_block_mask(&mut rng(1), &none).masked_indices().is_empty());
        let all = BlockMaskConfig { masked: 196, ..BlockMaskConfig::default() };
        assert_eq!(sample_block_mask(&mut rng(1), &all).masked_indices(), (0..196).collect::<Vec<u32>>());
    }

    #[test]
    fn contradictions_are_named() {
        let config = BlockMaskConfig { masked: 197, ..BlockMaskConfig::default() };
        let sentence = config.validate().unwrap_err().to_string();
        assert_eq!(
            sentence,
            "197 masked patches do not fit: the 14 x 14 grid has only 196 patches; use at most 196"
                .replace(" patches; use", "; use")
        );
        let config = BlockMaskConfig { max_patches: Some(10), ..BlockMaskConfig::default() };
        assert!(matches!(config.validate(), Err(MaskError::Limits { min: 16, max: 10 })));
        for min_aspect in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(matches!(
                BlockMaskConfig { min_aspect, ..BlockMaskConfig::default() }.validate(),
                Err(MaskError::Aspect(_))
            ));
        }
        assert!(BlockMaskConfig { grid_h: 0, ..BlockMaskConfig::default() }.validate().is_err());
    }
}
