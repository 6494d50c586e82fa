//! The configuration files that Hugging Face transformers wants beside the weights.

use serde_json::{Map, Value, json};

use super::facts::{Facts, SegmentationFacts, check_final_norm};
use crate::inspect::{ModelSummary, Pooling, RelativeBias};
use crate::layout::{Kind, LayoutError};
use crate::tensor::DType;

/// Which map transformers gives the auxiliary head; it cannot be chosen.
const AUX_INDEX: usize = 2;

/// The contents of Hugging Face's `config.json` for a model converted to [`crate::layout::Family::HuggingFace`].
///
/// # Errors
/// A model that Hugging Face does not have or would compute otherwise, an unknown number of heads or image size.
pub fn hf_config(summary: &ModelSummary, facts: &Facts) -> Result<Value, LayoutError> {
    let kind = summary.layout.kind;
    let masked = summary.vocab_size.is_some() && kind != Kind::Segmentation;
    let architecture = match kind {
        Kind::Tokenizer => {
            return Err(LayoutError::Unsupported(format!(
                "a {kind} model has no Hugging Face configuration"
            )));
        }
        Kind::Segmentation => "BeitForSemanticSegmentation",
        Kind::Classifier => "BeitForImageClassification",
        _ if masked => "BeitForMaskedImageModeling",
        _ => "BeitModel",
    };
    if kind != Kind::Segmentation {
        check_final_norm(summary, "Hugging Face")?;
    }
    // Also in pretraining: there the one final norm belongs to the head, and this keeps a second one away. In segmentation
    // there is none.
    let mean_pooling = masked || kind == Kind::Segmentation || summary.pooling == Some(Pooling::Mean);
    let mut config = json!({
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": summary.width,
        "image_size": facts.image_px(summary)?,
        "initializer_range": 0.02,
        "intermediate_size": summary.mlp_width,
        "layer_norm_eps": facts.norm_eps,
        // Only whether it is above 0 matters for a trained model: then the blocks have lambda_1 and lambda_2.
        "layer_scale_init_value": if summary.layer_scale { 0.1 } else { 0.0 },
        "model_type": "beit",
        "num_attention_heads": facts.heads(summary)?,
        "num_channels": summary.channels,
        "num_hidden_layers": summary.depth,
        "patch_size": summary.patch,
        "use_absolute_position_embeddings": summary.abs_pos,
        "use_mask_token": summary.mask_token,
        "use_mean_pooling": mean_pooling,
        "use_relative_position_bias": summary.bias == RelativeBias::PerBlock,
        "use_shared_relative_position_bias": summary.bias == RelativeBias::Shared,
    });
    let Some(fields) = config.as_object_mut() else { return Ok(config) };
    if let Some(dtype) = dtype_name(summary) {
        fields.insert("dtype".to_string(), dtype.into());
    }
    if masked && let Some(codes) = summary.vocab_size {
        fields.insert("vocab_size".to_string(), codes.into());
    }
    if let Some(classes) = summary.classes {
        let (id2label, label2id) = labels(classes, facts);
        fields.insert("id2label".to_string(), id2label.into());
        fields.insert("label2id".to_string(), label2id.into());
    }
    if kind == Kind::Classifier && facts.multi_label {
        fields.insert("problem_type".to_string(), "multi_label_classification".into());
    }
    if kind == Kind::Segmentation {
        fields.extend(segmentation(summary, facts)?);
    }
    Ok(config)
}

/// Names by number and numbers by name; without names `LABEL_0` and so on, as transformers itself has it.
fn labels(classes: usize, facts: &Facts) -> (Map<String, Value>, Map<String, Value>) {
    let names: Vec<String> = match facts.names(classes) {
        Some(names) => names.to_vec(),
        None => (0..classes).map(|class| format!("LABEL_{class}")).collect(),
    };
    let id2label =
        names.iter().enumerate().map(|(id, name)| (id.to_string(), name.as_str().into())).collect();
    let label2id = names.iter().enumerate().map(|(id, name)| (name.clone(), id.into())).collect();
    (id2label, label2id)
}

/// The type that most tensors have, so that the model computes in it.
fn dtype_name(summary: &ModelSummary) -> Option<&'static str> {
    let (dtype, _) =
        summary.dtypes.iter().filter(|(dtype, _)| dtype.is_float()).max_by_key(|(_, count)| *count)?;
    match dtype {
        DType::F64 => Some("float64"),
        DType::F32 => Some("float32"),
        DType::F16 => Some("float16"),
        DType::BF16 => Some("bfloat16"),
        _ => None,
    }
}

/// What `BeitForSemanticSegmentation` needs besides.
///
/// An index `i` of its `out_indices` means the map after `i − 1` blocks, so with `d` blocks the map after the last one has the
/// index `d + 1`, which the class does not allow. [`super::convert`] therefore adds one block that changes nothing and that no
/// map is taken from.
fn segmentation(summary: &ModelSummary, facts: &Facts) -> Result<Map<String, Value>, LayoutError> {
    let Some(own) = &facts.segmentation else {
        return Err(LayoutError::Unsupported(
            "the tensors of a segmentation model do not show after which blocks its maps are taken; that must be given"
                .to_string(),
        ));
    };
    let SegmentationFacts { out_indices, channels, pool_scales, aux_channels, aux_index, aux_weight } = own;
    let refuse = |what: String| {
        Err(LayoutError::Unsupported(format!(
            "{what}; Hugging Face's BeitForSemanticSegmentation would give other numbers, so the model is not written for it"
        )))
    };
    if summary.patch != 16 {
        let patch = summary.patch;
        return refuse(format!("patches have {patch} px, and its feature pyramid is made for 16"));
    }
    if *channels != summary.width {
        let width = summary.width;
        return refuse(format!(
            "the decode head has {channels} channels, and there it has the model's width, {width}"
        ));
    }
    if aux_channels.is_some() && *aux_index != AUX_INDEX {
        return refuse(format!(
            "the auxiliary head takes map {aux_index}, and there it takes map {AUX_INDEX}"
        ));
    }
    if out_indices.iter().any(|index| *index >= summary.depth) {
        let depth = summary.depth;
        return refuse(format!("maps are taken after blocks {out_indices:?} of {depth}"));
    }
    let fields = json!({
        "add_fpn": false,
        "auxiliary_channels": aux_channels.unwrap_or(256),
        "auxiliary_concat_input": false,
        "auxiliary_loss_weight": aux_weight,
        "auxiliary_num_convs": 1,
        "num_hidden_layers": summary.depth + 1,
        "out_indices": out_indices.map(|index| index + 2),
        "pool_scales": pool_scales,
        "semantic_loss_ignore_index": 255,
        "use_auxiliary_head": aux_channels.is_some(),
    });
    Ok(match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    })
}

/// The contents of `preprocessor_config.json`, so that `AutoImageProcessor` makes what the model sees of an image.
///
/// Classifiers and backbones: `BitImageProcessor` resizes the shorter side and cuts out the centre in every version of
/// transformers; `BeitImageProcessor` can do so only since version 5. Segmentation: `BeitImageProcessor`, which alone knows how
/// to make maps of logits; it squashes an image to the one size that the model can see.
///
/// # Errors
/// An image size that is not known, statistics for another number of channels.
pub fn hf_preprocessor(summary: &ModelSummary, facts: &Facts) -> Result<Value, LayoutError> {
    facts.check_statistics(summary)?;
    let square = |side: usize| json!({ "height": side, "width": side });
    let segmentation = summary.layout.kind == Kind::Segmentation;
    let mut config = json!({
        "do_convert_rgb": summary.channels == 3,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": facts.mean,
        "image_std": facts.std,
        "rescale_factor": 1.0 / 255.0,
    });
    let Some(fields) = config.as_object_mut() else { return Ok(config) };
    let mut set = |name: &str, value: Value| fields.insert(name.to_string(), value);
    if segmentation {
        let side = facts.image_px(summary)?;
        set("image_processor_type", "BeitImageProcessor".into());
        set("size", square(side));
        set("resample", 2.into());
        set("do_center_crop", false.into());
        set("do_reduce_labels", false.into());
        return Ok(config);
    }
    let view = facts.preprocessing(summary)?;
    set("image_processor_type", "BitImageProcessor".into());
    set("size", if view.squash { square(view.resized) } else { json!({ "shortest_edge": view.resized }) });
    set("resample", view.filter.number().into());
    set("do_center_crop", true.into());
    set("crop_size", square(view.size));
    Ok(config)
}
