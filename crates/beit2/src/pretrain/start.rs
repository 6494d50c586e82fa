//! Pretraining that goes on from weights: which sizes they give, and what of them goes into the model.

use beit2_kernels::Backend;
use beit2_weights::inspect::RelativeBias;
use beit2_weights::layout::Kind;
use beit2_weights::plan::{Plan, plan_whole};
use beit2_weights::resize::TableResize;
use serde::Deserialize;

use super::{MimConfig, MimModel, PretrainRecipe};
use crate::error::{Error, config_error};
use crate::params;
use crate::tokenizer::TokenizerConfig;
use crate::train::{Assets, check_sizes, vit_sizes};
use crate::vit::{RelPosKind, VitConfig};
use crate::weights::{StateFile, written_config};

/// What a pretrained model's checkpoint says of its sizes, or its shapes tell.
struct Found {
    vit: VitConfig,
    /// `None` without a patch aggregation head.
    aggregation: Option<Aggregation>,
}

/// A patch aggregation head.
struct Aggregation {
    /// `None` where nothing tells it.
    intermediate_layer: Option<usize>,
    head_layers: usize,
    shared_lm_head: bool,
}

/// The part of a classifier's configuration that counts here.
#[derive(Deserialize)]
struct WithVit {
    vit: VitConfig,
}

/// The weights that a recipe starts from, with their sizes; `None` of a recipe that starts from random numbers.
fn open(recipe: &PretrainRecipe, assets: &dyn Assets) -> Result<Option<(StateFile, Found)>, Error> {
    let Some((file, origin)) = recipe.init.open(assets)? else { return Ok(None) };
    let stage = file.metadata.get("beit2.stage").cloned();
    let state = StateFile::new(file, origin)?;
    let other = |what: &str| {
        config_error(format!(
            "{origin} holds {what}, and pretraining goes on from a student: a run of masked image modeling, a published file \
             such as beitv2_base_patch16_224_pt1k, or the bare trunk of one"
        ))
    };
    match (state.summary.layout.kind, stage.as_deref()) {
        (Kind::Tokenizer, _) => return other("a tokenizer"),
        (Kind::Segmentation, _) => return other("a segmentation model"),
        (_, Some("distill")) => return other("a distilled teacher"),
        _ => {}
    }
    state.check_whole()?;
    let found = match stage.as_deref() {
        Some("pretrain") => written_config::<MimConfig>(&state.metadata, origin)?.map(|config| Found {
            aggregation: config.patch_aggregation.then_some(Aggregation {
                intermediate_layer: Some(config.intermediate_layer),
                head_layers: config.head_layers,
                shared_lm_head: config.shared_lm_head,
            }),
            vit: config.vit,
        }),
        Some("finetune") => written_config::<WithVit>(&state.metadata, origin)?
            .map(|config| Found { vit: config.vit, aggregation: None }),
        _ => None,
    };
    let found = match found {
        Some(found) => found,
        None => Found {
            vit: VitConfig::from_shapes(&state)?,
            aggregation: state.summary.patch_aggregation.map(|found| Aggregation {
                intermediate_layer: found.intermediate_layer,
                head_layers: found.head_layers,
                shared_lm_head: found.shared_lm_head,
            }),
        },
    };
    // What a user says counts, also for files that say it themselves.
    let normalization = state.beside.normalization.clone().or(found.vit.normalization.clone());
    let vit = VitConfig { normalization, ..found.vit };
    Ok(Some((state, Found { vit, ..found })))
}

/// Takes over what the weights and the tokenizer decide, and refuses weights of another family or size.
///
/// # Errors
/// Weights that cannot be read, or that are no student of the recipe's sizes.
pub(super) fn resolve(recipe: &mut PretrainRecipe, assets: &dyn Assets) -> Result<(), Error> {
    let Some((state, found)) = open(recipe, assets)? else { return Ok(()) };
    let origin = &state.origin;
    let init = &recipe.init;
    let (take_sizes, take_image) = (init.sizes_from_weights, init.image_size_from_weights);
    let model = &mut recipe.model;
    // Three is also what a recipe has that does not say it.
    let says_channels = !take_sizes || model.vit.in_chans != VitConfig::default().in_chans;
    let channels = if says_channels { model.vit.in_chans } else { found.vit.in_chans };
    let mut given = found.vit.clone();
    if channels != given.in_chans {
        // Statistics of other channels; those of the training images are measured.
        given.normalization = None;
    }
    if take_image {
        model.vit.image_size = found.vit.image_size;
    }
    if take_sizes {
        model.vit.take_sizes(given);
        model.vit.in_chans = channels;
        take_aggregation(model, found.aggregation.as_ref());
    } else {
        model.vit.normalization = model.vit.normalization.take().or(given.normalization);
        let mut pairs = vit_sizes(&found.vit, &model.vit);
        if let (Some(found), true) = (&found.aggregation, model.patch_aggregation) {
            pairs.push(("blocks of the aggregation head", found.head_layers, model.head_layers));
            pairs.extend(
                found.intermediate_layer.map(|layer| ("intermediate_layer", layer, model.intermediate_layer)),
            );
        }
        check_sizes(origin, &pairs)?;
    }
    if state.summary.bias == RelativeBias::PerBlock && model.vit.rel_pos_bias == RelPosKind::Shared {
        return config_error(format!(
            "{origin} has a table of relative positions in every block, as fine-tuned models have, and this model has one for \
             all; start from a pretrained student, or set model.vit.rel_pos_bias = \"per_block\""
        ));
    }
    if take_sizes {
        let codes = codes(recipe, assets)?;
        recipe.model.vocab_size = codes.unwrap_or(recipe.model.vocab_size);
    }
    Ok(())
}

/// The head of the weights; for weights without one the recipe's, reading a block that the model has.
fn take_aggregation(model: &mut MimConfig, found: Option<&Aggregation>) {
    let depth = model.vit.depth;
    if let Some(found) = found {
        (model.patch_aggregation, model.head_layers) = (true, found.head_layers);
        model.shared_lm_head = found.shared_lm_head;
        if let Some(layer) = found.intermediate_layer {
            model.intermediate_layer = layer;
        }
    }
    if found.is_none_or(|found| found.intermediate_layer.is_none()) {
        // The published choices are 9 of 12 and 21 of 24.
        model.intermediate_layer = if depth >= 24 { depth - 3 } else { depth - depth / 4 };
    }
}

/// The number of the tokenizer's codes; `None` where none is named yet.
fn codes(recipe: &PretrainRecipe, assets: &dyn Assets) -> Result<Option<usize>, Error> {
    let spec = &recipe.tokenizer.weights;
    if spec.is_empty() {
        return Ok(None);
    }
    let file = assets.weights(spec)?;
    if let Ok(Some(config)) = written_config::<TokenizerConfig>(&file.metadata, spec) {
        return Ok(Some(config.codebook_size));
    }
    let codebook = file.tensors.iter().find(|(name, _)| name.ends_with("quantize.embedding.weight"));
    Ok(codebook.map(|(_, codes)| codes.shape[0]))
}

/// What of the initial weights goes into the model of a recipe; `None` of one that starts from random numbers.
///
/// # Errors
/// Weights that cannot be read or do not fit.
pub fn load_plan<B: Backend>(
    recipe: &PretrainRecipe,
    model: &MimModel<B>,
    assets: &dyn Assets,
) -> Result<Option<Plan>, Error> {
    let Some((state, _)) = open(recipe, assets)? else { return Ok(None) };
    let wanted: Vec<(String, Vec<usize>)> =
        params::list(model).into_iter().map(|info| (info.name, info.shape)).collect();
    let origin = state.origin;
    let plan = plan_whole(state.tensors, &wanted, TableResize::default());
    plan.map(Some).map_err(|error| Error::Config(format!("{origin}: {error}")))
}
