//! Hugging Face's `config.json` and `preprocessor_config.json`.

use serde_json::Value;

use super::{Normalization, Sidecar, ViewMode, class_names, count, numbers, side};

/// Whether this is one.
pub(super) fn is_config(config: &Value) -> bool {
    ["model_type", "architectures", "hidden_size", "num_attention_heads", "vision_config", "id2label"]
        .iter()
        .any(|key| !config[*key].is_null())
}

/// Takes what it says.
pub(super) fn read(config: &Value, out: &mut Sidecar) {
    out.model = config["model_type"].as_str().map(str::to_owned);
    // A model of images and texts has the image side in a table of its own.
    let nested =
        ["vision_config", "backbone_config"].iter().map(|key| &config[*key]).find(|table| table.is_object());
    let vision = nested.unwrap_or(config);
    let sizes = &mut out.sizes;
    sizes.width = count(&vision["hidden_size"]);
    sizes.depth = count(&vision["num_hidden_layers"]);
    sizes.heads = count(&vision["num_attention_heads"]);
    sizes.mlp_width = count(&vision["intermediate_size"]).or_else(|| {
        let ratio = vision["mlp_ratio"].as_f64()?;
        Some((count(&vision["hidden_size"])? as f64 * ratio) as usize)
    });
    sizes.patch = side(&vision["patch_size"]);
    sizes.channels = count(&vision["num_channels"]);
    sizes.image_px = side(&vision["image_size"]);
    sizes.abs_pos = vision["use_absolute_position_embeddings"].as_bool();
    sizes.shared_bias = vision["use_shared_relative_position_bias"].as_bool();
    sizes.block_bias = vision["use_relative_position_bias"].as_bool();
    sizes.layer_scale = vision["layer_scale_init_value"].as_f64().map(|value| value > 0.0);
    sizes.mean_pooling = vision["use_mean_pooling"].as_bool();
    out.norm_eps = vision["layer_norm_eps"].as_f64();
    out.activation = vision["hidden_act"].as_str().map(str::to_owned);
    match class_names(&config["id2label"]) {
        Some((classes, names)) => (out.classes, out.class_names) = (Some(classes), names),
        None => out.classes = count(&config["num_labels"]),
    }
}

/// Takes what the configuration of an image processor says. `model` is the `model_type` of the model.
pub(super) fn read_preprocessor(config: &Value, model: Option<&str>, out: &mut Sidecar) {
    let kind = ["image_processor_type", "feature_extractor_type", "processor_class"]
        .iter()
        .find_map(|key| config[*key].as_str())
        .or(model)
        .unwrap_or_default()
        .to_lowercase();
    out.normalization = normalization(config, &kind);

    let on = |key: &str| config[key].as_bool();
    let resized = on("do_resize") != Some(false);
    let cut = match on("do_center_crop") {
        Some(cut) => cut,
        None => !config["crop_size"].is_null(),
    };
    let crop = side(&config["crop_size"]).filter(|_| cut);
    let size = &config["size"];
    // A plain number means the shorter side for CLIP's processors and their like, both sides for BEiT's and ViT's.
    let by_shorter = ["clip", "bit", "convnext", "levit"].iter().any(|name| kind.starts_with(name));
    let (mode, from) = match size {
        Value::Object(table) if table.contains_key("shortest_edge") => {
            (ViewMode::Center, count(&table["shortest_edge"]))
        }
        Value::Number(_) if by_shorter => (ViewMode::Center, count(size)),
        size => (ViewMode::Squash, side(size)),
    };
    let view = &mut out.view;
    match (resized, from) {
        (true, Some(from)) => {
            let to = crop.unwrap_or(from);
            (view.size, view.mode, view.crop_pct) = (Some(to), Some(mode), share(to, from));
        }
        (true, None) => {
            view.size = crop;
            if !size.is_null() {
                out.remarks.push(format!(
                    "preprocessor_config.json resizes images to {size}, which is no square; images are resized to the model's \
                     size and cut at the centre instead"
                ));
            }
        }
        (false, _) => {
            view.size = crop;
            out.remarks.push(
                "preprocessor_config.json leaves images at their size (do_resize is false); here they are resized to the \
                 model's size all the same"
                    .to_owned(),
            );
        }
    }
    if resized {
        // Pillow's numbers.
        let names = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"];
        view.interpolation = match &config["resample"] {
            Value::String(name) => Some(name.to_lowercase()),
            number => count(number).and_then(|number| names.get(number)).map(|name| (*name).to_owned()),
        };
    }
}

/// The share of a resized side that a view shows, such that `floor(to / share)` gives the side again.
fn share(to: usize, from: usize) -> Option<f64> {
    if to == 0 || from == 0 {
        return None;
    }
    let exact = to as f64 / from as f64;
    let again = (to as f64 / exact) as usize;
    Some(if again == from { exact } else { to as f64 / (from as f64 + 0.5) })
}

/// Mean and standard deviation for values in `[0, 1]`, whatever the values are scaled to before.
fn normalization(config: &Value, kind: &str) -> Option<Normalization> {
    // What images are multiplied by before mean and deviation apply, for bytes taken as [0, 1].
    let factor = match config["do_rescale"].as_bool() {
        Some(false) => 255.0,
        _ => config["rescale_factor"].as_f64().map_or(1.0, |factor| {
            // 0.00392156862745098 is 1/255 with its last digit lost.
            let factor = 255.0 * factor;
            if (factor - 1.0).abs() < 1e-6 { 1.0 } else { factor }
        }),
    };
    let (mean, std) = match config["do_normalize"].as_bool() {
        Some(false) => (vec![0.0; 3], vec![1.0; 3]),
        _ => match (numbers(&config["image_mean"]), numbers(&config["image_std"])) {
            (Some(mean), Some(std)) => (mean, std),
            // What these processors do when their file does not say it.
            _ if ["beit", "vit", "siglip"].iter().any(|name| kind.starts_with(name)) => {
                (vec![0.5; 3], vec![0.5; 3])
            }
            _ => return None,
        },
    };
    let scaled =
        |values: Vec<f64>| values.into_iter().map(|value| if factor == 1.0 { value } else { value / factor });
    Some(Normalization { mean: scaled(mean).collect(), std: scaled(std).collect() })
}
