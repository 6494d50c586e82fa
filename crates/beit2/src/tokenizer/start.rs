//! Training a tokenizer from weights: which sizes they give, and what of them goes into the model.

use beit2_kernels::Backend;
use beit2_weights::layout::Kind;
use beit2_weights::plan::{Plan, plan_whole};
use beit2_weights::resize::TableResize;

use super::load::{drop_teacher, from_shapes};
use super::{TokenizerConfig, TokenizerRecipe, VqKd};
use crate::error::{Error, config_error};
use crate::params;
use crate::train::{Assets, check_sizes, vit_sizes};
use crate::weights::{StateFile, written_config};

/// The codes and how often each is used.
const CODEBOOK: &str = "quantize.";

/// The weights that a recipe starts from, with their sizes; `None` of a recipe that starts from random numbers. A codebook
/// that was never started is left out.
fn open(
    recipe: &TokenizerRecipe,
    assets: &dyn Assets,
) -> Result<Option<(StateFile, TokenizerConfig)>, Error> {
    let Some((mut file, origin)) = recipe.init.open(assets)? else { return Ok(None) };
    drop_teacher(&mut file);
    let mut state = StateFile::new(file, origin)?;
    if state.summary.layout.kind != Kind::Tokenizer {
        return config_error(format!(
            "{origin} holds a {} model, and a tokenizer goes on from a tokenizer: a run of its training or a published file \
             such as vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7",
            state.summary.layout.kind
        ));
    }
    state.check_whole()?;
    let sizes = match written_config(&state.metadata, origin)? {
        Some(config) => config,
        None => from_shapes(&state)?,
    };
    let started = state.tensors.get("quantize.embedding.initted");
    if !started.is_some_and(|started| started.to_f32().iter().any(|value| *value > 0.0)) {
        state.tensors.retain(|name, _| !name.starts_with(CODEBOOK));
    }
    Ok(Some((state, sizes)))
}

/// Takes over what the weights decide, and refuses those of another family or size.
///
/// # Errors
/// Weights that cannot be read, or that are no tokenizer of the recipe's sizes.
pub(super) fn resolve(recipe: &mut TokenizerRecipe, assets: &dyn Assets) -> Result<(), Error> {
    let Some((state, found)) = open(recipe, assets)? else { return Ok(()) };
    let init = &recipe.init;
    let (take_sizes, take_image) = (init.sizes_from_weights, init.image_size_from_weights);
    let model = &mut recipe.model;
    if take_image {
        model.image_size = found.image_size;
    }
    if take_sizes {
        // Three is also what a recipe has that does not say it. The teacher decides the width of its features.
        let says_channels = model.in_chans != TokenizerConfig::default().in_chans;
        *model = TokenizerConfig {
            image_size: model.image_size,
            in_chans: if says_channels { model.in_chans } else { found.in_chans },
            teacher_dim: model.teacher_dim,
            ema_decay: model.ema_decay,
            commitment_weight: model.commitment_weight,
            kmeans_init: model.kmeans_init,
            ..found.clone()
        };
    } else {
        let mut pairs = vit_sizes(&found.encoder(), &model.encoder());
        pairs.extend([
            ("decoder width", found.decoder_width, model.decoder_width),
            ("decoder depth", found.decoder_depth, model.decoder_depth),
            ("decoder heads", found.decoder_heads, model.decoder_heads),
        ]);
        check_sizes(&state.origin, &pairs)?;
        if found.process_type != model.process_type {
            return config_error(format!(
                "{} sees images by another model.process_type than this recipe's tokenizer; take it with \
                 init.sizes_from_weights = true",
                state.origin
            ));
        }
    }
    let same_codes = (found.codebook_size, found.code_dim) == (model.codebook_size, model.code_dim);
    let has_codebook = state.tensors.keys().any(|name| name.starts_with(CODEBOOK));
    if same_codes && has_codebook {
        // There is nothing to wait for: the codes are there.
        recipe.codebook.kmeans_warmup_steps = 0;
    }
    Ok(())
}

/// What of the initial weights goes into the model of a recipe; `None` of one that starts from random numbers.
///
/// # Errors
/// Weights that cannot be read or do not fit.
pub fn load_plan<B: Backend>(
    recipe: &TokenizerRecipe,
    model: &VqKd<B>,
    assets: &dyn Assets,
) -> Result<Option<Plan>, Error> {
    let Some((state, _)) = open(recipe, assets)? else { return Ok(None) };
    let wanted: Vec<(String, Vec<usize>)> =
        params::list(model).into_iter().map(|info| (info.name, info.shape)).collect();
    let origin = state.origin;
    let plan = plan_whole(state.tensors, &wanted, TableResize::default());
    plan.map(Some).map_err(|error| Error::Config(format!("{origin}: {error}")))
}
