//! What can be measured, by name.

use beit2::pretrain::MimConfig;
use beit2::tokenizer::TokenizerConfig;
use beit2::vit::{RelPosKind, VitConfig};

/// Classes of the measured classifiers, as ImageNet-1k.
pub(crate) const CLASSES: usize = 1000;

/// Model sizes; patches of 16 pixels, images of 224.
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

    /// The size of its tokenizer and teacher: its own up to base, base for large, as the paper has them.
    fn frozen(self) -> Self {
        match self {
            Self::Large => Self::Base,
            own => own,
        }
    }

    /// The classifier of fine-tuning and inference.
    pub(crate) fn classifier(self) -> VitConfig {
        VitConfig { rel_pos_bias: RelPosKind::PerBlock, ..self.student().vit }
    }

    /// The student of pretraining, as registered.
    pub fn student(self) -> MimConfig {
        let name = format!("beit_{}_patch16_224_8k_vocab_cls_pt", self.name());
        MimConfig::named(&name).unwrap_or_else(|| unreachable!("{name} is registered"))
    }

    /// The tokenizer that it trains, or learns from: a decoder of three blocks, features of CLIP. Its codes are random from
    /// the start.
    pub(crate) fn tokenizer(self) -> TokenizerConfig {
        let size = self.frozen();
        let VitConfig { width, heads, .. } = size.student().vit;
        let name = format!("vqkd_encoder_{}_decoder_3x{width}x{heads}_clip", size.name());
        let config = TokenizerConfig::named(&name).unwrap_or_else(|| unreachable!("{name} is registered"));
        TokenizerConfig { kmeans_init: false, ..config }
    }

    /// The frozen teacher of a tokenizer of this size: an encoder like its own.
    pub(crate) fn teacher(self) -> VitConfig {
        self.tokenizer().encoder()
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
