//! Floating-point operations of the matmuls in a step of what can be measured ([`beit2::cost`]).

use beit2::cost::{self, FrozenVit};

use crate::size::{CLASSES, Size, Stage};

/// Masked patches of an image in the measured pretraining.
pub(crate) const MASKED: usize = 75;

/// Of one training step on one image.
pub(crate) fn training(stage: Stage, size: Size) -> f64 {
    match stage {
        Stage::Tokenizer => {
            let config = size.tokenizer();
            cost::tokenizer_flops(&config, &FrozenVit::of(&size.teacher(), config.teacher_dim))
        }
        Stage::Pretrain => cost::pretrain_flops(&size.student(), &size.tokenizer(), MASKED),
        Stage::Finetune => cost::finetune_flops(&size.classifier(), CLASSES),
    }
}

/// Of one forward pass of a classifier on one image.
pub(crate) fn inference(size: Size) -> f64 {
    cost::classifier_flops(&size.classifier(), CLASSES)
}
