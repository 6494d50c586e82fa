//! What of a weight file goes into a segmentation model: a whole one's sizes and tensors, or a pretrained trunk's.

use beit2_kernels::Backend;
use beit2_weights::convert::StateDict;
use beit2_weights::layout::Kind;
use beit2_weights::plan::{Plan, Source, Unused};
use beit2_weights::resize::TableResize;
use burn::tensor::DType;

use super::config::SegmenterConfig;
use super::meta;
use super::model::UperNet;
use crate::error::{Error, config_error};
use crate::params;
use crate::vit::{VitConfig, plan_trunk_weights};
use crate::weights::{StateFile, to_tensors, written_config};

/// Takes what is not trunk out of the state dict of a segmentation model: pyramid and heads.
pub(super) fn take_heads(state: &mut StateFile) -> StateDict {
    let is_trunk = |name: &str| name.starts_with("backbone.") && !name.starts_with("backbone.fpn");
    let (trunk, heads) = std::mem::take(&mut state.tensors).into_iter().partition(|(name, _)| is_trunk(name));
    state.tensors = trunk;
    heads
}

/// What of a trunk's state dict goes into the backbone, by the names of the whole model.
pub(super) fn plan_backbone(
    state: StateFile,
    config: &SegmenterConfig,
    tables: TableResize,
) -> Result<Plan, Error> {
    let trunk = plan_trunk_weights(state, &config.vit, tables)?;
    let whole = |name: String| format!("backbone.{name}");
    Ok(Plan {
        tensors: trunk.tensors.into_iter().map(|(name, tensor)| (whole(name), tensor)).collect(),
        used: trunk.used.into_iter().map(|(name, source)| (whole(name), source)).collect(),
        fresh: trunk.fresh.into_iter().map(whole).collect(),
        unused: trunk.unused,
    })
}

/// Puts the trunk of a file into a fresh model (docs/method.md §4.2, §5): pretraining runs, classifiers, tokenizers (their
/// encoder), bare Vision Transformers, in official, timm or Hugging Face names. A shared bias table is copied
/// into every block; tables and position embeddings are resized.
///
/// Differs from upstream: of a segmentation model its pyramid and heads are taken too, where they fit; there only
/// a backbone by itself is found.
///
/// The plan that comes back says, by the names of the whole model, what was loaded, what kept its start and what
/// was not used.
///
/// # Errors
/// Sizes that differ in something that cannot be converted.
pub fn load_backbone<B: Backend>(
    model: UperNet<B>,
    config: &SegmenterConfig,
    mut state: StateFile,
    tables: TableResize,
) -> Result<(UperNet<B>, Plan), Error> {
    let heads = match state.summary.layout.kind {
        Kind::Segmentation => take_heads(&mut state),
        _ => StateDict::new(),
    };
    let mut plan = plan_backbone(state, config, tables)?;
    let infos = params::list(&model);
    for (name, tensor) in heads {
        match infos.iter().find(|info| info.name == name) {
            Some(info) if info.shape == tensor.shape() => {
                plan.used.insert(name.clone(), Source::Same);
                plan.tensors.insert(name, tensor);
            }
            Some(_) => plan.unused.push((name, Unused::NotInModel("this model has it in another size"))),
            None => plan.unused.push((name, Unused::NotInModel("this model has no tensor of this name"))),
        }
    }
    let fresh = infos.into_iter().filter(|info| info.trainable && !plan.used.contains_key(&info.name));
    plan.fresh = fresh.map(|info| info.name).collect();
    let (model, _) = params::load(model, to_tensors(plan.tensors.clone()), DType::F32)?;
    Ok((model, plan))
}

impl SegmenterConfig {
    /// The sizes of a segmentation file: its own configuration, or what a published one tells.
    ///
    /// # Errors
    /// A configuration that cannot be read, tensors of another model.
    pub fn of_file(state: &StateFile) -> Result<Self, Error> {
        let origin = &state.origin;
        match written_config::<Self>(&state.metadata, origin)? {
            Some(mut config) => {
                // What a user says counts, also for files that say it themselves.
                config.vit.normalization = state.beside.normalization.clone().or(config.vit.normalization);
                Ok(config)
            }
            None => published(state).map_err(|error| Error::Config(format!("{origin}: {error}"))),
        }
    }
}

/// The sizes of a file without a configuration of ours: what its tensors tell, and the published choices for what
/// they do not tell.
fn published(state: &StateFile) -> Result<SegmenterConfig, Error> {
    let defaults = SegmenterConfig::default();
    let inputs = |name: &str| Some(*state.tensors.get(name)?.shape().get(1)?);
    let Some((channels, classes)) = inputs("decode_head.conv_seg.weight").zip(state.summary.classes) else {
        return config_error("there is no decode_head.conv_seg.weight; expected a UPerNet");
    };
    let branches = (0..)
        .take_while(|at| state.tensors.contains_key(&format!("decode_head.psp_modules.{at}.1.conv.weight")));
    if branches.count() != defaults.pool_scales.len() {
        return config_error(format!(
            "the number of decode_head.psp_modules is not {}, and the file does not tell their scales",
            defaults.pool_scales.len()
        ));
    }
    let aux_channels = inputs("auxiliary_head.conv_seg.weight");
    let vit = VitConfig::from_shapes(state)?;
    let written = |key: &str| state.metadata.get(key).map(String::as_str).unwrap_or_default();
    let names = meta::texts(written("meta.CLASSES")).unwrap_or_else(|| state.beside.class_names.clone());
    let palette = meta::colours(written("meta.PALETTE")).unwrap_or_default();
    Ok(SegmenterConfig {
        out_indices: SegmenterConfig::taps(vit.depth),
        vit,
        channels,
        aux_channels: aux_channels.unwrap_or(defaults.aux_channels),
        aux_weight: if aux_channels.is_some() { defaults.aux_weight } else { 0.0 },
        classes: Some(classes),
        // Names and colours of another list of classes would be wrong for all.
        class_names: if names.len() == classes { names } else { Vec::new() },
        palette: if palette.len() == classes { palette } else { Vec::new() },
        ..defaults
    })
}
