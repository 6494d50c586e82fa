//! Sizes and options of a Vision Transformer, as data.

use serde::{Deserialize, Serialize};

use beit2_weights::Normalization;

use crate::error::{Error, config_error};

/// Where the relative position bias lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelPosKind {
    /// No relative position bias.
    None,
    /// One table for all blocks (pretraining).
    Shared,
    /// A table in every block (fine-tuning).
    PerBlock,
}

/// A Vision Transformer's sizes and options.
///
/// Defaults: BEiT v2 base as it is pretrained (ViT-B/16 at 224 px, shared relative position bias, no
/// absolute positions, layer scale 0.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Channels of the input.
    pub in_chans: usize,
    /// Width D of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads H; D must be a multiple of it.
    pub heads: usize,
    /// Hidden width of the MLP as a multiple of D (rounded down).
    pub mlp_ratio: f64,
    /// Learned query and value biases (the key's is zero).
    pub qkv_bias: bool,
    /// Initial layer scale γ; 0 leaves layer scale out.
    pub layer_scale_init: f64,
    /// Learned absolute position embedding.
    pub abs_pos_emb: bool,
    /// Relative position bias.
    pub rel_pos_bias: RelPosKind,
    /// Stochastic depth rate of the last block; the others' rise linearly from 0.
    pub drop_path: f64,
    /// ε of the layer norms.
    pub norm_eps: f64,
    /// How pixels in [0, 1] are standardised; absent: by ImageNet's mean and standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalization: Option<Normalization>,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            in_chans: 3,
            width: 768,
            depth: 12,
            heads: 12,
            mlp_ratio: 4.0,
            qkv_bias: true,
            layer_scale_init: 0.1,
            abs_pos_emb: false,
            rel_pos_bias: RelPosKind::Shared,
            drop_path: 0.0,
            norm_eps: 1e-6,
            normalization: None,
        }
    }
}

impl VitConfig {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Patches N of an image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Hidden width of the MLP.
    pub fn mlp_hidden(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work and what would.
    pub fn validate(&self) -> Result<(), Error> {
        let Self { image_size, patch_size, width, heads, depth, .. } = *self;
        for (name, value) in [
            ("image_size", image_size),
            ("patch_size", patch_size),
            ("in_chans", self.in_chans),
            ("width", width),
            ("heads", heads),
            ("depth", depth),
        ] {
            if value == 0 {
                return config_error(format!("{name} is 0; it must be at least 1"));
            }
        }
        if !image_size.is_multiple_of(patch_size) {
            let below = image_size / patch_size * patch_size;
            let nearest = match below {
                0 => format!("the smallest that fits is {patch_size}"),
                _ => format!("the nearest that fit are {below} and {}", below + patch_size),
            };
            return config_error(format!(
                "image_size {image_size} is not a multiple of patch_size {patch_size}; {nearest}"
            ));
        }
        if !width.is_multiple_of(heads) {
            let fitting: Vec<_> = (1..=width)
                .filter(|h| width.is_multiple_of(*h) && h.abs_diff(heads) <= heads)
                .map(|h| h.to_string())
                .collect();
            return config_error(format!(
                "width {width} is not divisible by heads {heads}; heads could be {}",
                fitting.join(", ")
            ));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return config_error(format!("drop_path {} must lie in [0, 1)", self.drop_path));
        }
        if let Some(normalization) = &self.normalization {
            let channels = normalization.mean.len();
            if let Some(problem) = normalization.problem() {
                return config_error(format!("normalization: {problem}"));
            }
            if channels != self.in_chans {
                return config_error(format!(
                    "normalization has {channels} means, but the model sees {} channels",
                    self.in_chans
                ));
            }
        }
        if self.mlp_hidden() == 0 {
            return config_error(format!("mlp_ratio {} leaves the MLP without units", self.mlp_ratio));
        }
        Ok(())
    }
}
