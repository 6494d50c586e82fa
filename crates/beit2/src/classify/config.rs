//! Sizes of a classifier.

use serde::{Deserialize, Serialize};

use crate::vit::{Pooling, RelPosKind, VitConfig};

/// Sizes of a classifier. Defaults: BEiT v2 base as it is fine-tuned (a bias table in every block, mean pooling).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierConfig {
    /// The Transformer.
    pub vit: VitConfig,
    /// What becomes the image's vector.
    pub pooling: Pooling,
    /// Number of classes; absent: as many as the training images have.
    pub classes: Option<usize>,
    /// Their names, when they are known.
    pub class_names: Vec<String>,
    /// Whether an image can have several of them or none: each class has a probability of its own (sigmoid), and training
    /// is by binary cross entropy. The training images decide it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub multi_label: bool,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        Self {
            vit: VitConfig { rel_pos_bias: RelPosKind::PerBlock, ..VitConfig::default() },
            pooling: Pooling::Mean,
            classes: None,
            class_names: Vec::new(),
            multi_label: false,
        }
    }
}

impl ClassifierConfig {
    /// Number of classes K of a resolved configuration: the recipe's, or as many as the training images have.
    pub fn class_count(&self) -> usize {
        self.classes.unwrap_or_default()
    }
}
