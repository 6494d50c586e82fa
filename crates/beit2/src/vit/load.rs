//! Weight files to Vision Transformers: the sizes that a file tells, and what of it goes into a model of given sizes.

use beit2_weights::inspect::{self, RelativeBias};
use beit2_weights::layout::{Family, Kind};
use beit2_weights::plan::{Plan, PlanOptions, Target, plan};
use beit2_weights::resize::TableResize;
use burn::tensor::TensorData;

use super::{Pooling, RelPosKind, VitConfig, relative_position_index};
use crate::error::{Error, config_error};
use crate::weights::{StateFile, Tensors};

/// Widths of published models, whose heads are 64 wide. Files without bias tables do not tell their heads.
const PUBLISHED_WIDTHS: [usize; 4] = [192, 384, 768, 1024];
const HEAD_WIDTH: usize = 64;

impl VitConfig {
    /// The sizes that names and shapes of a file tell (of a tokenizer its encoder's), for the image size it was trained
    /// with. A checkpoint of this software says more in its configuration
    /// ([`written_config`](crate::weights::written_config)).
    ///
    /// # Errors
    /// Sizes that the file does not tell and that cannot be guessed.
    pub fn from_shapes(state: &StateFile) -> Result<Self, Error> {
        let (summary, origin) = (&state.summary, &state.origin);
        let Some(image_size) = summary.image_px() else {
            let problem = "it has no positions that tell its image size".into();
            return Err(Error::UnsoundWeights { origin: origin.clone(), problem });
        };
        let heads = match summary.heads.or(state.beside.sizes.heads) {
            Some(heads) => heads,
            None if PUBLISHED_WIDTHS.contains(&summary.width) => summary.width / HEAD_WIDTH,
            None => {
                return config_error(format!(
                    "{origin} does not tell its number of attention heads, and {} is no published width; put a config.json \
                     with \"num_attention_heads\" beside it, or give --heads N for weights to evaluate or to start from",
                    summary.width
                ));
            }
        };
        let config = VitConfig {
            image_size,
            patch_size: summary.patch,
            in_chans: summary.channels,
            width: summary.width,
            depth: summary.depth,
            heads,
            mlp_ratio: summary.mlp_width as f64 / summary.width as f64,
            qkv_bias: summary.qkv_bias,
            // The number is only the start of training; what counts here is whether there are factors.
            layer_scale_init: if summary.layer_scale { 0.1 } else { 0.0 },
            abs_pos_emb: summary.abs_pos,
            rel_pos_bias: match summary.bias {
                RelativeBias::None => RelPosKind::None,
                RelativeBias::Shared => RelPosKind::Shared,
                RelativeBias::PerBlock => RelPosKind::PerBlock,
            },
            drop_path: 0.0,
            norm_eps: match (summary.layout.family, state.beside.norm_eps) {
                (Family::HuggingFace, Some(eps)) => eps,
                _ => VitConfig::default().norm_eps,
            },
            normalization: state.normalization(),
        };
        config.validate().map_err(|error| Error::Config(format!("{origin}: {error}")))?;
        Ok(config)
    }

    /// Takes the sizes of weights that training starts from. What the settings decide stays: drop path, the image size, and
    /// how positions and layer scale are kept where the weights have them.
    pub(crate) fn take_sizes(&mut self, found: Self) {
        let rel_pos_bias = match (found.rel_pos_bias, self.rel_pos_bias) {
            (RelPosKind::None, _) => RelPosKind::None,
            (_, RelPosKind::None) => RelPosKind::PerBlock,
            (_, given) => given,
        };
        let layer_scale_init = match found.layer_scale_init > 0.0 {
            false => 0.0,
            true if self.layer_scale_init > 0.0 => self.layer_scale_init,
            true => found.layer_scale_init,
        };
        *self = Self {
            image_size: self.image_size,
            drop_path: self.drop_path,
            rel_pos_bias,
            layer_scale_init,
            normalization: self.normalization.take().or(found.normalization),
            ..found
        };
    }
}

/// What of a file goes into a [`VisionTransformer`](super::VisionTransformer) of these sizes (docs/method.md §4.2): tables and
/// positions resized, a shared table copied into the blocks, a head of another size left out.
///
/// # Errors
/// Sizes that differ in something that cannot be converted.
pub fn plan_weights(
    state: StateFile,
    vit: &VitConfig,
    pooling: Pooling,
    classes: usize,
    options: &PlanOptions<'_>,
) -> Result<Plan, Error> {
    let (blame, origin) = (state.blame(), state.origin);
    plan(state.tensors, &target(vit, Some(pooling), classes), options)
        .map_err(|error| blame.or(Error::Config(format!("{origin}: {error}"))))
}

/// As [`plan_weights`], for a trunk that ends with its last block (segmentation): no final norm, no head. Of a tokenizer the
/// encoder is taken, of a segmentation model the backbone; names are those of a trunk by itself.
///
/// # Errors
/// Sizes that differ in something that cannot be converted.
pub fn plan_trunk_weights(mut state: StateFile, vit: &VitConfig, tables: TableResize) -> Result<Plan, Error> {
    if state.summary.layout.kind == Kind::Segmentation {
        let own = |name: String| name.strip_prefix("backbone.").map(str::to_owned).unwrap_or(name);
        state.tensors = state.tensors.into_iter().map(|(name, tensor)| (own(name), tensor)).collect();
    }
    let tokenizer_encoder = state.summary.layout.kind == Kind::Tokenizer;
    let options = PlanOptions { tokenizer_encoder, tables, ..PlanOptions::default() };
    let (blame, origin) = (state.blame(), state.origin);
    plan(state.tensors, &target(vit, None, 0), &options)
        .map_err(|error| blame.or(Error::Config(format!("{origin}: {error}"))))
}

/// A Vision Transformer as the weights crate sees it.
fn target(vit: &VitConfig, pooling: Option<Pooling>, classes: usize) -> Target {
    Target {
        grid: vit.grid(),
        patch: vit.patch_size,
        channels: vit.in_chans,
        width: vit.width,
        heads: vit.heads,
        mlp_width: vit.mlp_hidden(),
        depth: vit.depth,
        classes,
        bias: match vit.rel_pos_bias {
            RelPosKind::None => RelativeBias::None,
            RelPosKind::Shared => RelativeBias::Shared,
            RelPosKind::PerBlock => RelativeBias::PerBlock,
        },
        abs_pos: vit.abs_pos_emb,
        pooling: pooling.map(|pooling| match pooling {
            Pooling::Mean => inspect::Pooling::Mean,
            Pooling::Cls => inspect::Pooling::Cls,
        }),
        layer_scale: vit.layer_scale_init > 0.0,
        qkv_bias: vit.qkv_bias,
    }
}

/// Whether a tensor is one of those that [`with_position_indices`] adds: derived, so a model does not have it.
pub fn is_position_index(name: &str) -> bool {
    name.ends_with("relative_position_index")
}

/// Adds the derived `relative_position_index` buffers that the official code's strict loading requires
/// beside every bias table.
pub fn with_position_indices(mut tensors: Tensors) -> Tensors {
    const TABLE: &str = "relative_position_bias_table";
    let tables: Vec<(String, usize)> = tensors
        .iter()
        .filter(|(name, _)| name.ends_with(TABLE))
        .map(|(name, table)| (name.replace(TABLE, "relative_position_index"), table.shape[0]))
        .collect();
    for (name, rows) in tables {
        // rows = (2g − 1)² + 3 for a square grid.
        let grid = rows.saturating_sub(3).isqrt().div_ceil(2);
        let tokens = grid * grid + 1;
        let index = relative_position_index(grid, grid);
        tensors.insert(name, TensorData::new(index, [tokens, tokens]));
    }
    tensors
}
