//! The configuration file that timm wants beside the weights.

use serde_json::{Value, json};

use super::facts::{Facts, check_final_norm};
use crate::inspect::{ModelSummary, Pooling, RelativeBias};
use crate::layout::{Kind, LayoutError};

/// ε of timm's layer norms, which its models of this family do not take as an argument.
const NORM_EPS: f64 = 1e-6;

/// The contents of the `config.json` that timm reads beside `model.safetensors` (`hf-hub:` and `local-dir:`), for a model
/// converted to [`crate::layout::Family::Timm`].
///
/// `crop_pct` is that of the official evaluation; timm's own entries for these models say 0.9 and 0.95 (docs/method.md §8).
/// `model_args` describe the model completely, so that sizes other than the published ones work too.
///
/// # Errors
/// A model that timm does not have or would compute otherwise, an unknown number of heads or image size.
pub fn timm_config(summary: &ModelSummary, facts: &Facts) -> Result<Value, LayoutError> {
    if matches!(summary.layout.kind, Kind::Tokenizer | Kind::Segmentation) {
        return Err(LayoutError::Unsupported(format!("timm has no {} model", summary.layout.kind)));
    }
    check_final_norm(summary, "timm")?;
    if (facts.norm_eps / NORM_EPS - 1.0).abs() > 1e-9 {
        let eps = facts.norm_eps;
        return Err(LayoutError::Unsupported(format!(
            "the layer norms of this model have an epsilon of {eps:e}, and timm's always have {NORM_EPS:e}, so it would \
             give other numbers there"
        )));
    }
    facts.check_statistics(summary)?;
    let (heads, image) = (facts.heads(summary)?, facts.image_px(summary)?);
    let view = facts.preprocessing(summary)?;
    // timm's own models of this family; every other size is the base model with other arguments.
    let architecture =
        if summary.width == 1024 { "beitv2_large_patch16_224" } else { "beitv2_base_patch16_224" };
    let pool = if summary.pooling == Some(Pooling::Mean) { "avg" } else { "token" };
    let classes = summary.classes.unwrap_or(0);
    let input_size = [summary.channels, view.size, view.size];
    let mut config = json!({
        "architecture": architecture,
        "num_classes": classes,
        "num_features": summary.width,
        "global_pool": pool,
        "model_args": {
            "img_size": image,
            "patch_size": summary.patch,
            "in_chans": summary.channels,
            "embed_dim": summary.width,
            "depth": summary.depth,
            "num_heads": heads,
            "qkv_bias": summary.qkv_bias,
            "mlp_ratio": mlp_ratio(summary),
            "init_values": if summary.layer_scale { json!(0.1) } else { Value::Null },
            "use_abs_pos_emb": summary.abs_pos,
            "use_rel_pos_bias": summary.bias == RelativeBias::PerBlock,
            "use_shared_rel_pos_bias": summary.bias == RelativeBias::Shared,
            // `local-dir:` takes it from here only: the field above is not among the model's arguments.
            "global_pool": pool,
        },
        "pretrained_cfg": {
            "input_size": input_size,
            "fixed_input_size": true,
            "interpolation": view.filter.name(),
            "crop_pct": view.crop_pct,
            "crop_mode": if view.squash { "squash" } else { "center" },
            "mean": facts.mean,
            "std": facts.std,
            "num_classes": classes,
            "pool_size": null,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    });
    if let (Some(names), Some(fields)) = (facts.names(classes), config.as_object_mut()) {
        fields.insert("label_names".to_string(), names.into());
    }
    Ok(config)
}

/// The factor by which timm gets the hidden width again: it rounds the product down.
fn mlp_ratio(summary: &ModelSummary) -> f64 {
    let (width, hidden) = (summary.width.max(1) as f64, summary.mlp_width);
    let exact = hidden as f64 / width;
    if (width * exact) as usize == hidden { exact } else { (hidden as f64 + 0.5) / width }
}
