//! The sizes of a Vision Transformer as a recording has them: its options by the reference's names, and what those do not
//! say by the shapes of the tensors.

use std::collections::BTreeMap;

use beit2::vit::{RelPosKind, VitConfig};
use burn::tensor::TensorData;
use serde_json::Value;

pub type Shapes = BTreeMap<String, Vec<usize>>;

pub fn shapes(tensors: &BTreeMap<String, TensorData>) -> Shapes {
    tensors.iter().map(|(name, data)| (name.clone(), data.shape.to_vec())).collect()
}

/// Names, shapes from a list of `[name, shape, …]`.
pub fn listed(keys: &Value) -> Shapes {
    let shape = |key: &Value| serde_json::from_value(key[1].clone()).unwrap();
    keys.as_array().unwrap().iter().map(|key| (key[0].as_str().unwrap().to_owned(), shape(key))).collect()
}

/// Number of `{list}.0.…`, `{list}.1.…`
pub fn blocks(shapes: &Shapes, list: &str) -> usize {
    (0..).find(|block| !shapes.contains_key(&format!("{list}.{block}.norm1.weight"))).unwrap()
}

/// The tensors below `prefix`, by the rest of their names.
pub fn below(shapes: &Shapes, prefix: &str) -> Shapes {
    let pick =
        |(name, shape): (&String, &Vec<usize>)| Some((name.strip_prefix(prefix)?.to_owned(), shape.clone()));
    shapes.iter().filter_map(pick).collect()
}

const SHARED: &str = "rel_pos_bias.relative_position_bias_table";
const PER_BLOCK: &str = "blocks.0.attn.relative_position_bias_table";

/// The Transformer whose tensors these are. Options of `config` come first; it may be null.
///
/// # Panics
/// When neither tells the number of heads (only a bias table shows it), or there is no Transformer.
pub fn vit(config: &Value, shapes: &Shapes) -> VitConfig {
    let number = |key: &str| config[key].as_f64();
    let size = |key: &str, shown: Option<usize>| number(key).map(|v| v as usize).or(shown);
    let flag = |key: &str, shown: bool| config[key].as_bool().unwrap_or(shown);
    let projection = shapes.get("patch_embed.proj.weight").expect("no patch_embed.proj.weight");
    let width = projection[0];
    let patch_size = size("patch", Some(projection[2])).unwrap();
    let table = shapes.get(SHARED).or(shapes.get(PER_BLOCK));
    // A table has (2g − 1)² + 3 rows, one for each distance of two patches and three for the CLS token.
    let by_table = || table.map(|shape| (shape[0] - 3).isqrt().div_ceil(2));
    let grid = shapes.get("pos_embed").map(|shape| (shape[1] - 1).isqrt()).or_else(by_table);
    let default = VitConfig::default();
    let shared = ["shared_rel_pos", "shared"].iter().find_map(|key| config[*key].as_bool());
    // Half a unit more, so that rounding down gives this many.
    let hidden = |shape: &Vec<usize>| (shape[0] as f64 + 0.5) / width as f64;
    let layer_scale = if shapes.contains_key("blocks.0.gamma_1") { default.layer_scale_init } else { 0.0 };
    VitConfig {
        image_size: size("img", grid.map(|grid| grid * patch_size))
            .expect("neither the manifest nor a table tells the image's size"),
        patch_size,
        in_chans: projection[1],
        width: size("width", Some(width)).unwrap(),
        depth: size("depth", Some(blocks(shapes, "blocks"))).unwrap(),
        heads: size("heads", table.map(|shape| shape[1]))
            .expect("neither the manifest nor a bias table tells the number of heads"),
        mlp_ratio: number("mlp_ratio")
            .or_else(|| shapes.get("blocks.0.mlp.fc1.weight").map(hidden))
            .unwrap_or(default.mlp_ratio),
        qkv_bias: flag("qkv_bias", shapes.contains_key("blocks.0.attn.q_bias")),
        layer_scale_init: number("init_values").unwrap_or(layer_scale),
        abs_pos_emb: flag("abs_pos", shapes.contains_key("pos_embed")),
        rel_pos_bias: match (
            shared.unwrap_or(shapes.contains_key(SHARED)),
            flag("rel_pos", shapes.contains_key(PER_BLOCK)),
        ) {
            (true, _) => RelPosKind::Shared,
            (_, true) => RelPosKind::PerBlock,
            _ => RelPosKind::None,
        },
        drop_path: number("drop_path").unwrap_or(0.0),
        normalization: default.normalization,
        norm_eps: number("layer_norm_eps").unwrap_or(default.norm_eps),
    }
}
