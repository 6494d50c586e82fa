//! The configuration files that timm and Hugging Face want beside the weights.

use serde_json::{Map, Value, json};

use crate::inspect::{ModelSummary, Pooling, RelativeBias};
use crate::layout::{Kind, LayoutError};

/// ImageNet's mean and standard deviation of RGB in `[0, 1]`; BEiT v2 uses them from pretraining on (docs/method.md §3.4, §4.4).
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The contents of Hugging Face's `config.json` for a model converted to [`crate::layout::Family::HuggingFace`]. `heads` is
/// needed only where the weights do not show it ([`ModelSummary::heads`]).
///
/// `layer_norm_eps` is 1e-6, that of all BEiT v2 models; Hugging Face's own default is 1e-12, so without this file results
/// differ (docs/method.md §8).
///
/// # Errors
/// A model that Hugging Face does not have, an unknown number of heads or image size.
pub fn hf_config(summary: &ModelSummary, heads: Option<usize>) -> Result<Value, LayoutError> {
    let masked = summary.vocab_size.is_some();
    let architecture = match summary.layout.kind {
        Kind::Tokenizer | Kind::Segmentation => {
            let kind = summary.layout.kind;
            return Err(LayoutError::Unsupported(format!(
                "a {kind} model has no Hugging Face configuration"
            )));
        }
        Kind::Classifier => "BeitForImageClassification",
        _ if masked => "BeitForMaskedImageModeling",
        _ => "BeitModel",
    };
    let mut config = json!({
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": summary.width,
        "image_size": image_px(summary)?,
        "initializer_range": 0.02,
        "intermediate_size": summary.mlp_width,
        "layer_norm_eps": 1e-6,
        // Only whether it is above 0 matters for a trained model: then the blocks have lambda_1 and lambda_2.
        "layer_scale_init_value": if summary.layer_scale { 0.1 } else { 0.0 },
        "model_type": "beit",
        "num_attention_heads": number_of_heads(summary, heads)?,
        "num_channels": summary.channels,
        "num_hidden_layers": summary.depth,
        "patch_size": summary.patch,
        "use_absolute_position_embeddings": summary.abs_pos,
        "use_mask_token": summary.mask_token,
        // Also in pretraining: there the one final norm belongs to the head, and this keeps a second one away.
        "use_mean_pooling": masked || summary.pooling == Some(Pooling::Mean),
        "use_relative_position_bias": summary.bias == RelativeBias::PerBlock,
        "use_shared_relative_position_bias": summary.bias == RelativeBias::Shared,
    });
    let Some(fields) = config.as_object_mut() else { return Ok(config) };
    if let Some(codes) = summary.vocab_size {
        fields.insert("vocab_size".to_string(), codes.into());
    }
    if let Some(classes) = summary.classes {
        let label = |class: usize| format!("LABEL_{class}");
        let id2label: Map<String, Value> =
            (0..classes).map(|class| (class.to_string(), label(class).into())).collect();
        let label2id: Map<String, Value> = (0..classes).map(|class| (label(class), class.into())).collect();
        fields.insert("id2label".to_string(), id2label.into());
        fields.insert("label2id".to_string(), label2id.into());
    }
    Ok(config)
}

/// The contents of the `config.json` that timm reads beside `model.safetensors` (`hf-hub:` and `local-dir:`), for a model
/// converted to [`crate::layout::Family::Timm`]. `heads` is needed only where the weights do not show it.
///
/// `crop_pct` is 0.875, that of the official evaluation; timm's own entries for these models say 0.9 and 0.95 (docs/method.md §8).
/// `model_args` describe the model completely, so that sizes other than the published ones work too.
///
/// # Errors
/// A model that timm does not have, an unknown number of heads or image size.
pub fn timm_config(summary: &ModelSummary, heads: Option<usize>) -> Result<Value, LayoutError> {
    if matches!(summary.layout.kind, Kind::Tokenizer | Kind::Segmentation) {
        return Err(LayoutError::Unsupported(format!("timm has no {} model", summary.layout.kind)));
    }
    let (heads, image) = (number_of_heads(summary, heads)?, image_px(summary)?);
    // timm's own models of this family; every other size is the base model with other arguments.
    let architecture =
        if summary.width == 1024 { "beitv2_large_patch16_224" } else { "beitv2_base_patch16_224" };
    let pool = if summary.pooling == Some(Pooling::Mean) { "avg" } else { "token" };
    let classes = summary.classes.unwrap_or(0);
    Ok(json!({
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
            "mlp_ratio": summary.mlp_width as f64 / summary.width.max(1) as f64,
            "init_values": if summary.layer_scale { json!(0.1) } else { Value::Null },
            "use_abs_pos_emb": summary.abs_pos,
            "use_rel_pos_bias": summary.bias == RelativeBias::PerBlock,
            "use_shared_rel_pos_bias": summary.bias == RelativeBias::Shared,
        },
        "pretrained_cfg": {
            "input_size": [summary.channels, image, image],
            "fixed_input_size": true,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": MEAN,
            "std": STD,
            "num_classes": classes,
            "pool_size": null,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }))
}

fn number_of_heads(summary: &ModelSummary, given: Option<usize>) -> Result<usize, LayoutError> {
    let heads = summary.heads.or(given).ok_or_else(|| {
        LayoutError::Unsupported(
            "the number of attention heads cannot be seen in weights without relative position bias; it must be given"
                .to_string(),
        )
    })?;
    if heads == 0 || !summary.width.is_multiple_of(heads) {
        let width = summary.width;
        return Err(LayoutError::Unsupported(format!(
            "{heads} attention heads do not divide a width of {width}"
        )));
    }
    Ok(heads)
}

fn image_px(summary: &ModelSummary) -> Result<usize, LayoutError> {
    summary.image_px().ok_or_else(|| {
        LayoutError::Unsupported(
            "the image size cannot be seen in these weights: there is no square bias table or position embedding".to_string(),
        )
    })
}
