//! Which parameters decay, and how fast each layer learns.

use std::collections::BTreeMap;

use crate::params::ParamInfo;

/// What the trunk's names begin with in a segmentation model.
const BACKBONE: &str = "backbone.";

/// One-dimensional tensors, biases and the model's exempt names (`cls_token`, `pos_embed`) do not
/// decay. Everything else does, `mask_token` and the relative position tables included (as upstream).
/// In segmentation the exempt names lack their `backbone.`, so both decay (as upstream, docs/method.md §5).
pub fn no_weight_decay(info: &ParamInfo) -> bool {
    let leaf = info.name.rsplit('.').next().unwrap_or(&info.name);
    let exempt = (leaf == "cls_token" || leaf == "pos_embed") && !info.name.starts_with(BACKBONE);
    info.shape.len() <= 1 || leaf == "bias" || exempt
}

/// How parameters are put into groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupRule {
    /// Weight decay of the groups that decay.
    pub weight_decay: f64,
    /// Layer-wise decay of the learning rate with the model's depth; `None` trains all layers alike.
    pub layer_decay: Option<(f64, usize)>,
    /// Exempt the blocks' own relative position tables from weight decay.
    pub exempt_tables: bool,
}

impl GroupRule {
    /// All layers alike.
    pub fn flat(weight_decay: f64) -> Self {
        Self { weight_decay, layer_decay: None, exempt_tables: false }
    }

    /// Weight decay of one parameter.
    pub fn weight_decay_of(&self, info: &ParamInfo) -> f64 {
        let table = self.exempt_tables && info.name.ends_with("relative_position_bias_table");
        if table || no_weight_decay(info) { 0.0 } else { self.weight_decay }
    }

    /// Factor on the learning rate of one parameter: `decay^(L+1−id)`; id 0 for tokens, positions and
    /// the patch embedding, i + 1 for block i, L + 1 for the rest. The trunk of a segmentation model
    /// counts as one by itself.
    pub fn lr_scale_of(&self, name: &str) -> f64 {
        let Some((decay, depth)) = self.layer_decay else {
            return 1.0;
        };
        let name = name.strip_prefix(BACKBONE).unwrap_or(name);
        let id = if matches!(name, "cls_token" | "mask_token" | "pos_embed")
            || name.starts_with("patch_embed")
        {
            0
        } else {
            let block = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse().ok());
            block.map_or(depth + 1, |block: usize| block + 1)
        };
        decay.powi((depth + 1 - id) as i32)
    }

    /// The groups of a model's parameters, for inspection.
    pub fn groups(&self, infos: &[ParamInfo]) -> Vec<ParamGroup> {
        let mut groups: BTreeMap<(u64, u64), ParamGroup> = BTreeMap::new();
        for info in infos.iter().filter(|info| info.trainable) {
            let (weight_decay, lr_scale) = (self.weight_decay_of(info), self.lr_scale_of(&info.name));
            groups
                .entry((lr_scale.to_bits(), weight_decay.to_bits()))
                .or_insert_with(|| ParamGroup { weight_decay, lr_scale, names: Vec::new() })
                .names
                .push(info.name.clone());
        }
        groups.into_values().collect()
    }
}

/// Parameters that share weight decay and learning-rate factor.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamGroup {
    /// Weight decay.
    pub weight_decay: f64,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Official names.
    pub names: Vec<String>,
}
