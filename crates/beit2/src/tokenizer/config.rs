//! Sizes of the tokenizer, and the registered variants.

use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::vit::{RelPosKind, VitConfig};

/// What happens to an image in [0, 1] before the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessType {
    /// To [−1, 1].
    Default,
    /// ImageNet mean and deviation. The teacher's scaling still assumes [−1, 1], as upstream.
    ImagenetNorm,
    /// Nothing: pixels stay in [0, 1]. The teacher's scaling still assumes [−1, 1], as upstream.
    #[serde(rename = "dall-e")]
    DallE,
}

/// Sizes and options of VQ-KD. Defaults: `vqkd_encoder_base_decoder_3x768x12_clip`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Side of the input, pixels.
    pub image_size: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Channels of the input.
    pub in_chans: usize,
    /// Encoder width.
    pub width: usize,
    /// Encoder blocks.
    pub depth: usize,
    /// Encoder heads.
    pub heads: usize,
    /// Decoder width.
    pub decoder_width: usize,
    /// Decoder blocks (1 or 3 in the paper).
    pub decoder_depth: usize,
    /// Decoder heads.
    pub decoder_heads: usize,
    /// Codes K.
    pub codebook_size: usize,
    /// Width C of a code.
    pub code_dim: usize,
    /// Width of the teacher's features.
    pub teacher_dim: usize,
    /// Decay δ of the codebook's moving average.
    pub ema_decay: f64,
    /// Weight β of the commitment loss (1 in the reference).
    pub commitment_weight: f64,
    /// Start the codebook from k-means of the first batch instead of random directions.
    pub kmeans_init: bool,
    /// Preprocessing.
    pub process_type: ProcessType,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            in_chans: 3,
            width: 768,
            depth: 12,
            heads: 12,
            decoder_width: 768,
            decoder_depth: 3,
            decoder_heads: 12,
            codebook_size: 8192,
            code_dim: 32,
            teacher_dim: 512,
            ema_decay: 0.99,
            commitment_weight: 1.0,
            kmeans_init: true,
            process_type: ProcessType::Default,
        }
    }
}

impl TokenizerConfig {
    /// A registered variant: the reference's three, and `vqkd_encoder_{tiny,small,large}_…` by the same
    /// naming (widths 192, 384, 1024).
    pub fn named(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("vqkd_encoder_")?;
        let (size, rest) = rest.split_once("_decoder_")?;
        let (shape, teacher) = rest.rsplit_once('_')?;
        let (width, depth, heads) = match size {
            "tiny" => (192, 12, 3),
            "small" => (384, 12, 6),
            "base" => (768, 12, 12),
            "large" => (1024, 24, 16),
            _ => return None,
        };
        let sizes: Vec<usize> = shape.split('x').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [decoder_depth, decoder_width, decoder_heads] = sizes[..] else {
            return None;
        };
        let teacher_dim = match teacher {
            "clip" => 512,
            "dino" => 768,
            _ => return None,
        };
        let config = Self {
            width,
            depth,
            heads,
            decoder_width,
            decoder_depth,
            decoder_heads,
            teacher_dim,
            ..Self::default()
        };
        config.validate().ok().map(|()| config)
    }

    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// The encoder as a Vision Transformer.
    pub fn encoder(&self) -> VitConfig {
        VitConfig {
            image_size: self.image_size,
            patch_size: self.patch_size,
            in_chans: self.in_chans,
            width: self.width,
            depth: self.depth,
            heads: self.heads,
            ..half()
        }
    }

    /// The decoder as a Vision Transformer over an "image" of codes, one code a patch.
    pub fn decoder(&self) -> VitConfig {
        VitConfig {
            image_size: self.grid(),
            patch_size: 1,
            in_chans: self.code_dim,
            width: self.decoder_width,
            depth: self.decoder_depth,
            heads: self.decoder_heads,
            ..half()
        }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        let half = |what: &str, config: VitConfig| {
            config.validate().map_err(|e| Error::Config(format!("tokenizer {what}: {e}")))
        };
        if self.in_chans != 3 && self.process_type == ProcessType::ImagenetNorm {
            return config_error(format!(
                "process_type = \"imagenet_norm\" is for RGB, and model.in_chans is {}; use \"default\"",
                self.in_chans
            ));
        }
        half("encoder", self.encoder())?;
        half("decoder", self.decoder())?;
        for (name, value) in [
            ("codebook_size", self.codebook_size),
            ("code_dim", self.code_dim),
            ("teacher_dim", self.teacher_dim),
        ] {
            if value == 0 {
                return config_error(format!("tokenizer {name} is 0; it must be at least 1"));
            }
        }
        if !(0.0..1.0).contains(&self.ema_decay) {
            return config_error(format!("ema_decay {} must lie in [0, 1)", self.ema_decay));
        }
        Ok(())
    }
}

/// What encoder and decoder share: absolute positions, no relative bias, no layer scale.
fn half() -> VitConfig {
    VitConfig {
        layer_scale_init: 0.0,
        abs_pos_emb: true,
        rel_pos_bias: RelPosKind::None,
        drop_path: 0.0,
        ..VitConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_names() {
        let base = TokenizerConfig::named("vqkd_encoder_base_decoder_1x768x12_dino").unwrap();
        assert_eq!((base.depth, base.decoder_depth, base.teacher_dim), (12, 1, 768));
        assert!(TokenizerConfig::named("vqkd_encoder_small_decoder_1x384x6_clip").is_some());
        assert!(TokenizerConfig::named("vqkd_encoder_base_decoder_1x768x11_clip").is_none());
        assert!(TokenizerConfig::named("beit_base").is_none());
    }
}
