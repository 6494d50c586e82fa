//! The start of a segmentation model: a pretrained trunk, of whatever file holds one.

use beit2_kernels::Backend;
use beit2_weights::convert::StateDict;
use beit2_weights::layout::Kind;
use beit2_weights::plan::{Plan, Source, Unused};
use beit2_weights::resize::TableResize;
use burn::tensor::DType;

use super::config::SegmenterConfig;
use super::model::UperNet;
use crate::error::Error;
use crate::params;
use crate::weights::{StateFile, to_tensors};

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
    let trunk = state.plan_trunk(&config.vit, tables)?;
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
    let heads = match state.facts.layout.kind {
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
