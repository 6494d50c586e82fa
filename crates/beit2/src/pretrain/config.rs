//! Sizes of the masked image model, and the registered variants.

use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::vit::VitConfig;

/// A masked image model. Defaults: `beit_base_patch16_224_8k_vocab_cls_pt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MimConfig {
    /// The Transformer.
    pub vit: VitConfig,
    /// Number of visual tokens, the tokenizer's K.
    pub vocab_size: usize,
    /// Patch aggregation: a second head that sees the last CLS token and earlier patch tokens (the
    /// paper's bottleneck). Without it the model is the plain one of BEiT v1.
    pub patch_aggregation: bool,
    /// Block (1-based) whose patch tokens the aggregation head sees: 9 base, 21 large.
    pub intermediate_layer: usize,
    /// Blocks of the aggregation head.
    pub head_layers: usize,
    /// Both branches share the final norm and the prediction head.
    pub shared_lm_head: bool,
}

impl Default for MimConfig {
    fn default() -> Self {
        Self {
            vit: VitConfig::default(),
            vocab_size: 8192,
            patch_aggregation: true,
            intermediate_layer: 9,
            head_layers: 2,
            shared_lm_head: true,
        }
    }
}

impl MimConfig {
    /// A registered variant by the reference's name; `tiny` (192×12) and `small` (384×12) by the same
    /// naming.
    pub fn named(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("beit_")?;
        let (rest, patch_aggregation) = match rest.strip_suffix("_cls_pt") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let rest = rest.strip_suffix("_8k_vocab")?;
        let (size, rest) = rest.split_once("_patch")?;
        let (patch, image) = rest.split_once('_')?;
        let (patch_size, image_size) = (patch.parse().ok()?, image.parse().ok()?);
        let (width, depth, heads) = match size {
            "tiny" => (192, 12, 3),
            "small" => (384, 12, 6),
            "base" => (768, 12, 12),
            "24x544" => (544, 24, 16),
            "large" => (1024, 24, 16),
            "huge" => (1280, 32, 16),
            _ => return None,
        };
        let layer_scale_init = if depth > 12 { 1e-5 } else { 0.1 };
        let vit = VitConfig {
            image_size,
            patch_size,
            width,
            depth,
            heads,
            layer_scale_init,
            ..VitConfig::default()
        };
        let intermediate_layer = if depth >= 24 { depth - 3 } else { 9 };
        let config = Self { vit, patch_aggregation, intermediate_layer, ..Self::default() };
        config.validate().ok().map(|()| config)
    }

    /// Drop-path rates in order of execution: the blocks', then the head blocks'.
    pub fn drop_path_rates(&self) -> Vec<f64> {
        let depth = self.vit.depth;
        let mut rates = crate::vit::drop_path_rates(self.vit.drop_path, depth);
        if self.patch_aggregation {
            let end = self.intermediate_layer + self.head_layers;
            let head = crate::vit::drop_path_rates(self.vit.drop_path, depth.max(end));
            rates.extend_from_slice(&head[self.intermediate_layer..end]);
        }
        rates
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        self.vit.validate()?;
        if self.vocab_size == 0 {
            return config_error("vocab_size is 0; it must equal the tokenizer's number of codes");
        }
        if !self.patch_aggregation {
            return Ok(());
        }
        let depth = self.vit.depth;
        if self.intermediate_layer == 0 || self.intermediate_layer > depth {
            return config_error(format!(
                "intermediate_layer {} must lie between 1 and depth {depth}",
                self.intermediate_layer
            ));
        }
        if self.head_layers == 0 {
            return config_error(
                "head_layers is 0; use at least 1, or patch_aggregation = false for the plain model",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_blocks_continue_the_drop_path_line() {
        let mut base = MimConfig::default();
        base.vit.drop_path = 0.1;
        let rates = base.drop_path_rates();
        assert!((rates[12] - 0.081818).abs() < 1e-6 && (rates[13] - 0.090909).abs() < 1e-6);
        let mut large = MimConfig::named("beit_large_patch16_224_8k_vocab_cls_pt").unwrap();
        large.vit.drop_path = 0.1;
        let rates = large.drop_path_rates();
        assert!((rates[24] - 0.091304).abs() < 1e-6 && (rates[25] - 0.095652).abs() < 1e-6);
    }

    #[test]
    fn contradictions_are_named() {
        let mut config = MimConfig::default();
        config.vit.heads = 7;
        assert!(config.validate().unwrap_err().to_string().contains("width 768 is not divisible by heads 7"));
        config.vit.heads = 12;
        config.intermediate_layer = 13;
        assert!(config.validate().unwrap_err().to_string().contains("intermediate_layer 13"));
        config.vit.patch_size = 15;
        assert!(config.validate().unwrap_err().to_string().contains("not a multiple of patch_size 15"));
    }
}
