//! Sizes and options of a segmentation model, as data.

use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::vit::{RelPosKind, VitConfig};

/// Maps that the backbone gives: strides 4, 8, 16 and 32 pixels.
pub(super) const LEVELS: usize = 4;

/// Pixels of the image that one pixel of the largest map and of the logits stands for.
const FIRST_STRIDE: usize = 4;

/// Pixels of the image that one pixel of the smallest map stands for.
pub(super) const LAST_STRIDE: usize = 32;

/// Sizes and options of UPerNet on a Vision Transformer.
///
/// Defaults: BEiT v2 base as it is trained on ADE20K (crops of 512 px, a bias table in every block, no absolute
/// positions; docs/method.md §5), but for the classes, which the training data tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmenterConfig {
    /// The Transformer; `image_size` is the side of a crop.
    pub vit: VitConfig,
    /// Blocks, counted from 0, whose tokens become the maps of stride 4, 8, 16 and 32; the last one is the last
    /// block.
    pub out_indices: [usize; LEVELS],
    /// Channels of the decode head.
    pub channels: usize,
    /// Sides of the grids that the smallest map is averaged to.
    pub pool_scales: Vec<usize>,
    /// Map that the auxiliary head reads, counted from 0.
    pub aux_index: usize,
    /// Channels of the auxiliary head.
    pub aux_channels: usize,
    /// Weight of the auxiliary head's loss; 0 leaves the head out.
    pub aux_weight: f64,
    /// Share of channels dropped before each head's classifier in training.
    pub dropout: f64,
    /// Number of classes; absent: the masks tell.
    pub classes: Option<usize>,
    /// Their names, when they are known.
    pub class_names: Vec<String>,
    /// Their colours (RGB) in images of masks, when they are known.
    pub palette: Vec<[u8; 3]>,
}

impl Default for SegmenterConfig {
    fn default() -> Self {
        Self {
            vit: VitConfig {
                image_size: 512,
                rel_pos_bias: RelPosKind::PerBlock,
                drop_path: 0.15,
                ..VitConfig::default()
            },
            out_indices: [3, 5, 7, 11],
            channels: 768,
            pool_scales: vec![1, 2, 3, 6],
            aux_index: 2,
            aux_channels: 256,
            aux_weight: 0.4,
            dropout: 0.1,
            classes: None,
            class_names: Vec::new(),
            palette: Vec::new(),
        }
    }
}

impl SegmenterConfig {
    /// Number of classes K of a resolved configuration: the recipe's, or what the masks told.
    pub fn class_count(&self) -> usize {
        self.classes.unwrap_or_default()
    }

    /// The sizes of a published model: `base` or `large`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "base" => Some(Self::default()),
            "large" => Some(Self {
                vit: VitConfig {
                    width: 1024,
                    depth: 24,
                    heads: 16,
                    layer_scale_init: 1e-6,
                    drop_path: 0.2,
                    ..Self::default().vit
                },
                out_indices: [7, 11, 15, 23],
                channels: 1024,
                ..Self::default()
            }),
            _ => None,
        }
    }

    /// The blocks that a model of this depth reads: after a third, a half, two thirds and all of them, as the
    /// published models do; at least one block apart.
    pub fn taps(depth: usize) -> [usize; LEVELS] {
        let mut taps = [depth / 3, depth / 2, 2 * depth / 3, depth];
        for at in 1..LEVELS {
            taps[at] = taps[at].max(taps[at - 1] + 1);
        }
        taps.map(|after| after.max(1) - 1)
    }

    /// A class's name, or its number when it has none.
    pub fn class_name(&self, class: usize) -> String {
        self.class_names.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
    }

    /// A colour for every class: its own, or a generated one, of which none is black.
    pub fn colours(&self) -> Vec<[u8; 3]> {
        match self.palette.len() == self.class_count() {
            true => self.palette.clone(),
            false => {
                (0..self.class_count()).map(|class| beit2_data::segment::class_color(class as u8)).collect()
            }
        }
    }

    /// Height and width of the logits of a window of this size.
    pub fn logits_size(&self, (height, width): (usize, usize)) -> (usize, usize) {
        // Both pyramids begin with a map of stride 4 made of whole patches.
        (height / FIRST_STRIDE, width / FIRST_STRIDE)
    }

    /// Whether the model has an auxiliary head.
    pub fn has_auxiliary(&self) -> bool {
        self.aux_weight > 0.0
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work and what would.
    pub fn validate(&self) -> Result<(), Error> {
        self.vit.validate()?;
        let VitConfig { patch_size, depth, image_size, .. } = self.vit;
        if patch_size != 16 && patch_size != 8 {
            return config_error(format!(
                "patch_size {patch_size} has no feature pyramid; segmentation models have patches of 16 or 8 pixels"
            ));
        }
        check_pyramid(image_size, image_size)?;
        self.validate_taps(depth)?;
        for (name, value) in [("channels", self.channels), ("aux_channels", self.aux_channels)] {
            if value == 0 {
                return config_error(format!("{name} is 0; it must be at least 1"));
            }
        }
        if self.pool_scales.is_empty() || self.pool_scales.contains(&0) {
            return config_error(format!(
                "pool_scales {:?} must be one or more sides of at least 1, such as [1, 2, 3, 6]",
                self.pool_scales
            ));
        }
        if self.aux_index >= LEVELS {
            return config_error(format!("aux_index {} does not exist; the maps are 0 to 3", self.aux_index));
        }
        if !self.aux_weight.is_finite() || self.aux_weight < 0.0 {
            return config_error(format!("aux_weight {} must be at least 0", self.aux_weight));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return config_error(format!("dropout {} must lie in [0, 1)", self.dropout));
        }
        self.validate_classes()
    }

    fn validate_taps(&self, depth: usize) -> Result<(), Error> {
        let taps = &self.out_indices;
        let rising = taps.windows(2).all(|pair| pair[0] < pair[1]);
        if rising && taps.last() == Some(&(depth - 1)) {
            return Ok(());
        }
        let advice = match depth {
            0..LEVELS => format!("a segmentation model needs at least {LEVELS} blocks"),
            _ => format!("for {depth} blocks for example {:?}", Self::taps(depth)),
        };
        config_error(format!(
            "out_indices {taps:?} must be rising block numbers that end with the last block, {}; {advice}",
            depth - 1
        ))
    }

    fn validate_classes(&self) -> Result<(), Error> {
        let (classes, ignore) = (self.class_count(), usize::from(super::IGNORE));
        if !(2..=ignore).contains(&classes) {
            return config_error(format!(
                "classes {classes} must lie between 2 and {ignore}: masks hold one byte a pixel, and {ignore} means \
                 no class"
            ));
        }
        for (name, len) in [("class_names", self.class_names.len()), ("palette", self.palette.len())] {
            if len != 0 && len != classes {
                return config_error(format!("{name} has {len} entries for {classes} classes"));
            }
        }
        Ok(())
    }
}

/// Whether images of this size give a map of stride 32.
pub(super) fn check_pyramid(height: usize, width: usize) -> Result<(), Error> {
    match height.min(width) >= LAST_STRIDE {
        true => Ok(()),
        false => config_error(format!(
            "images of {width}×{height} px are too small: the last map has one pixel for \
             {LAST_STRIDE}×{LAST_STRIDE} px"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_taps_and_those_of_small_models() {
        assert_eq!(SegmenterConfig::taps(12), SegmenterConfig::default().out_indices);
        assert_eq!(SegmenterConfig::taps(24), [7, 11, 15, 23]);
        assert_eq!(SegmenterConfig::taps(6), [1, 2, 3, 5]);
        assert_eq!(SegmenterConfig::taps(4), [0, 1, 2, 3]);
        for depth in 4..40 {
            let vit = VitConfig { depth, ..SegmenterConfig::default().vit };
            let out_indices = SegmenterConfig::taps(depth);
            SegmenterConfig { vit, out_indices, classes: Some(2), ..SegmenterConfig::default() }
                .validate()
                .unwrap();
        }
    }

    #[test]
    fn sentences_say_what_would_fit() {
        let good = SegmenterConfig { classes: Some(3), ..SegmenterConfig::default() };
        good.validate().unwrap();
        type Change = fn(&mut SegmenterConfig);
        let cases: [(Change, &str); 12] = [
            (|c| c.vit.patch_size = 32, "patches of 16 or 8"),
            (|c| c.vit.image_size = 16, "too small"),
            (|c| c.out_indices = [3, 5, 7, 10], "for example [3, 5, 7, 11]"),
            (|c| c.out_indices = [5, 3, 7, 11], "rising"),
            (|c| c.vit.depth = 3, "at least 4 blocks"),
            (|c| c.channels = 0, "channels is 0"),
            (|c| c.pool_scales = vec![1, 0], "pool_scales [1, 0]"),
            (|c| c.aux_index = 4, "the maps are 0 to 3"),
            (|c| c.aux_weight = f64::NAN, "aux_weight NaN"),
            (|c| c.dropout = 1.0, "dropout 1"),
            (|c| c.classes = Some(256), "between 2 and 255"),
            (|c| c.class_names = vec!["one".into()], "class_names has 1 entries for 3 classes"),
        ];
        for (change, sentence) in cases {
            let mut config = good.clone();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }

    #[test]
    fn unknown_settings_are_errors() {
        assert!(serde_json::from_str::<SegmenterConfig>(r#"{"chanels": 3}"#).is_err());
        let text = serde_json::to_string(&SegmenterConfig::default()).unwrap();
        assert_eq!(serde_json::from_str::<SegmenterConfig>(&text).unwrap(), SegmenterConfig::default());
    }
}
