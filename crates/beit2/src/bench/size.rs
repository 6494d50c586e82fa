//! What can be measured, by name.

use crate::pretrain::MimConfig;
use crate::tokenizer::TokenizerConfig;
use crate::vit::{RelPosKind, VitConfig};

/// Classes of the measured classifiers, as ImageNet-1k.
pub(super) const CLASSES: usize = 1000;

/// Model sizes; patches of 16 pixels, pictures of 224.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Width 192, 12 blocks.
    Tiny,
    /// Width 384, 12 blocks.
    Small,
    /// Width 768, 12 blocks.
    Base,
    /// Width 1024, 24 blocks.
    Large,
}

impl Size {
    /// All, smallest first.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::Small, Self::Base, Self::Large];

    /// The name in commands and in the registered variants.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Base => "base",
            Self::Large => "large",
        }
    }

    /// Width, blocks, heads.
    fn dims(self) -> (usize, usize, usize) {
        match self {
            Self::Tiny => (192, 12, 3),
            Self::Small => (384, 12, 6),
            Self::Base => (768, 12, 12),
            Self::Large => (1024, 24, 16),
        }
    }

    /// The size of its tokenizer and teacher: its own up to base, base for large, as the paper has them.
    fn frozen(self) -> Self {
        match self {
            Self::Large => Self::Base,
            own => own,
        }
    }

    /// The classifier of fine-tuning and inference.
    pub(super) fn classifier(self) -> VitConfig {
        let (width, depth, heads) = self.dims();
        VitConfig { width, depth, heads, rel_pos_bias: RelPosKind::PerBlock, ..VitConfig::default() }
    }

    /// The student of pretraining.
    pub(super) fn student(self) -> MimConfig {
        let (width, depth, heads) = self.dims();
        let vit = VitConfig { width, depth, heads, ..VitConfig::default() };
        MimConfig { vit, early_layers: if depth >= 24 { depth - 3 } else { 9 }, ..MimConfig::default() }
    }

    /// The tokenizer that it trains, or learns from: a decoder of three blocks, features of CLIP.
    pub(super) fn tokenizer(self) -> TokenizerConfig {
        let (width, depth, heads) = self.frozen().dims();
        TokenizerConfig {
            width,
            depth,
            heads,
            decoder_width: width,
            decoder_heads: heads,
            kmeans_init: false,
            ..TokenizerConfig::default()
        }
    }

    /// The frozen teacher of a tokenizer of this size.
    pub(super) fn teacher(self) -> VitConfig {
        let (width, depth, heads) = self.frozen().dims();
        VitConfig {
            width,
            depth,
            heads,
            layer_scale_init: 0.0,
            abs_pos_emb: true,
            rel_pos_bias: RelPosKind::None,
            ..VitConfig::default()
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// VQ-KD with its teacher.
    Tokenizer,
    /// Masked image modeling with its tokenizer.
    Pretrain,
    /// A classifier of a thousand classes.
    Finetune,
}

impl Stage {
    /// All, in the order of the method.
    pub const ALL: [Self; 3] = [Self::Tokenizer, Self::Pretrain, Self::Finetune];

    /// The name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Pretrain => "pretrain",
            Self::Finetune => "finetune",
        }
    }
}
