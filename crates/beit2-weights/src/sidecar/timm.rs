//! timm's `config.json`: of a repository on the Hugging Face Hub (`pretrained_cfg` inside), or a bare `pretrained_cfg`.

use serde_json::Value;

use super::{Normalization, Sidecar, ViewMode, class_names, count, numbers, side};

/// Whether this is one.
pub(super) fn is_config(config: &Value) -> bool {
    config["pretrained_cfg"].is_object()
        || (config["architecture"].is_string() && config["model_type"].is_null())
        || (config["input_size"].is_array() && config["mean"].is_array() && config["model_type"].is_null())
}

/// Takes what it says.
pub(super) fn read(config: &Value, out: &mut Sidecar) {
    let inner = &config["pretrained_cfg"];
    let pretrained = if inner.is_object() { inner } else { config };
    let args = &config["model_args"];
    let either = |name: &str| if config[name].is_null() { &pretrained[name] } else { &config[name] };

    out.model = either("architecture").as_str().map(str::to_owned);
    let sizes = &mut out.sizes;
    sizes.width = count(&args["embed_dim"]);
    sizes.depth = count(&args["depth"]);
    sizes.heads = count(&args["num_heads"]);
    sizes.patch = side(&args["patch_size"]);
    sizes.mlp_width = match (sizes.width, args["mlp_ratio"].as_f64()) {
        (Some(width), Some(ratio)) => Some((width as f64 * ratio) as usize),
        _ => None,
    };
    let input = |at: usize| pretrained["input_size"].get(at).and_then(count);
    sizes.channels = count(&args["in_chans"]).or(input(0));
    sizes.image_px = side(&args["img_size"]).or(input(1).filter(|height| Some(*height) == input(2)));
    sizes.abs_pos = args["use_abs_pos_emb"].as_bool();
    sizes.shared_bias = args["use_shared_rel_pos_bias"].as_bool();
    sizes.block_bias = args["use_rel_pos_bias"].as_bool();
    sizes.layer_scale = args["init_values"].as_f64().map(|value| value > 0.0);
    let pool = if args["global_pool"].is_null() { &config["global_pool"] } else { &args["global_pool"] };
    sizes.mean_pooling = pool.as_str().and_then(|pool| match pool {
        "avg" => Some(true),
        "token" => Some(false),
        _ => None,
    });

    out.classes = count(either("num_classes")).filter(|classes| *classes > 0);
    if let Some((named, names)) = class_names(either("label_names"))
        && out.classes.is_none_or(|classes| classes == named)
    {
        (out.classes, out.class_names) = (Some(named), names);
    }
    if let (Some(mean), Some(std)) = (numbers(&pretrained["mean"]), numbers(&pretrained["std"])) {
        out.normalization = Some(Normalization { mean, std });
    }
    out.view.size = sizes.image_px;
    out.view.crop_pct = pretrained["crop_pct"].as_f64();
    out.view.mode = pretrained["crop_mode"].as_str().and_then(|mode| match mode {
        "center" => Some(ViewMode::Center),
        "squash" => Some(ViewMode::Squash),
        "border" => Some(ViewMode::Border),
        _ => None,
    });
    out.view.interpolation = pretrained["interpolation"].as_str().map(str::to_lowercase);
}
