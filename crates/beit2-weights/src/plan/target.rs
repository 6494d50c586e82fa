//! The model that weights are loaded into, as its sizes.

use crate::inspect::{Pooling, RelativeBias};
use crate::resize::table_rows;

/// A Vision Transformer for fine-tuning (docs/method.md §4.1), described by its sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Patches per image side.
    pub grid: usize,
    /// Patch side in pixels.
    pub patch: usize,
    /// Image channels.
    pub channels: usize,
    /// Width D of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the hidden layer of the MLP.
    pub mlp_width: usize,
    /// Blocks.
    pub depth: usize,
    /// Classes; 0 for no head.
    pub classes: usize,
    /// The relative position bias.
    pub bias: RelativeBias,
    /// Whether it has an absolute position embedding.
    pub abs_pos: bool,
    /// What is pooled: decides between `fc_norm` and `norm`; `None` for a trunk without final norm (segmentation).
    pub pooling: Option<Pooling>,
    /// Whether the blocks have layer scale.
    pub layer_scale: bool,
    /// Whether attention has query and value biases.
    pub qkv_bias: bool,
}

impl Target {
    /// The base model of docs/method.md §4.1 with 1000 classes at 224 px.
    pub fn base() -> Self {
        Self {
            grid: 14,
            patch: 16,
            channels: 3,
            width: 768,
            heads: 12,
            mlp_width: 3072,
            depth: 12,
            classes: 1000,
            bias: RelativeBias::PerBlock,
            abs_pos: false,
            pooling: Some(Pooling::Mean),
            layer_scale: true,
            qkv_bias: true,
        }
    }

    /// The large model of docs/method.md §4.1 with 1000 classes at 224 px.
    pub fn large() -> Self {
        Self { width: 1024, heads: 16, mlp_width: 4096, depth: 24, ..Self::base() }
    }

    /// Names and shapes of the learned tensors, in the official order; index buffers are not among them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, hidden) = (self.width, self.mlp_width);
        let mut list = Vec::new();
        let mut add = |name: &str, shape: &[usize]| list.push((name.to_string(), shape.to_vec()));
        // A grid beyond all memory gives a table that no tensor fits.
        let rows = table_rows(self.grid).unwrap_or(usize::MAX);
        let tokens = self.grid.saturating_mul(self.grid).saturating_add(1);

        add("cls_token", &[1, 1, d]);
        if self.abs_pos {
            add("pos_embed", &[1, tokens, d]);
        }
        add("patch_embed.proj.weight", &[d, self.channels, self.patch, self.patch]);
        add("patch_embed.proj.bias", &[d]);
        if self.bias == RelativeBias::Shared {
            add("rel_pos_bias.relative_position_bias_table", &[rows, self.heads]);
        }
        for block in 0..self.depth {
            let mut field = |name: &str, shape: &[usize]| add(&format!("blocks.{block}.{name}"), shape);
            if self.layer_scale {
                field("gamma_1", &[d]);
                field("gamma_2", &[d]);
            }
            field("norm1.weight", &[d]);
            field("norm1.bias", &[d]);
            if self.qkv_bias {
                field("attn.q_bias", &[d]);
                field("attn.v_bias", &[d]);
            }
            if self.bias == RelativeBias::PerBlock {
                field("attn.relative_position_bias_table", &[rows, self.heads]);
            }
            field("attn.qkv.weight", &[d.saturating_mul(3), d]);
            field("attn.proj.weight", &[d, d]);
            field("attn.proj.bias", &[d]);
            field("norm2.weight", &[d]);
            field("norm2.bias", &[d]);
            field("mlp.fc1.weight", &[hidden, d]);
            field("mlp.fc1.bias", &[hidden]);
            field("mlp.fc2.weight", &[d, hidden]);
            field("mlp.fc2.bias", &[d]);
        }
        match self.pooling {
            Some(Pooling::Mean) => {
                add("fc_norm.weight", &[d]);
                add("fc_norm.bias", &[d]);
            }
            Some(Pooling::Cls) => {
                add("norm.weight", &[d]);
                add("norm.bias", &[d]);
            }
            None => {}
        }
        if self.classes > 0 {
            add("head.weight", &[self.classes, d]);
            add("head.bias", &[self.classes]);
        }
        list
    }
}
