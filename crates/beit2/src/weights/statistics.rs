//! How a model without a configuration wants its images standardised: what its training arguments or its name tell.
//!
//! BEiT v1 and v2 have the same tensors. v1 saw images as (x − 0.5) / 0.5, v2 with ImageNet's mean and standard deviation, and
//! with the wrong ones a classifier loses some points without a word.

use std::path::Path;

use beit2_weights::layout::{Kind, Layout, detect, wrapper_prefix};
use beit2_weights::{Checkpoint, Normalization};

/// What a file tells.
pub(super) enum Statistics {
    /// Nothing has to be found out: files beside it say it, its own configuration does, or it is no model of this kind.
    Said,
    /// The file tells, and how: `None` for what needs no mention.
    Known(Normalization, Option<&'static str>),
    /// Neither contents nor name tell.
    Unknown,
}

/// Looks at training arguments, tensors and name.
pub(super) fn of(file: &Checkpoint) -> Statistics {
    if file.metadata.contains_key("beit2.config") || file.beside.normalization.is_some() || !is_beit(file) {
        return Statistics::Said;
    }
    let imagenet = |why| Statistics::Known(Normalization::imagenet(), why);
    let half = |why| Statistics::Known(Normalization::half(), Some(why));
    let version = version(file.path());
    let aggregation = file
        .tensors
        .keys()
        .any(|name| name.contains("cls_pt_layers.") || name.contains("patch_aggregation."));
    if version == Some(2) || aggregation {
        return imagenet(None);
    }
    // The argument of the official code that decides it, and which is saved with the weights.
    match file.metadata.get("args.imagenet_default_mean_and_std").map(String::as_str) {
        Some("True") => return imagenet(Some("from its training arguments")),
        Some("False") => return half("from its training arguments"),
        _ => {}
    }
    match version {
        Some(_) => half("BEiT v1, by its name"),
        None => Statistics::Unknown,
    }
}

/// Whether these are tensors of a BEiT that sees standardised images: a tokenizer takes [−1, 1], a segmentation model is
/// always trained with ImageNet's statistics.
fn is_beit(file: &Checkpoint) -> bool {
    let names = || file.tensors.keys().map(String::as_str);
    let prefix = wrapper_prefix(names()).len();
    let layout = detect(names().map(|name| &name[prefix..]));
    // Ordinary Vision Transformers, such as DINO's, have a bias for the keys too.
    let ordinary = names().any(|name| name.ends_with("attn.qkv.bias"));
    !ordinary
        && matches!(layout, Ok(Layout { kind: Kind::Classifier | Kind::Backbone | Kind::Pretraining, .. }))
}

/// The version that a name tells. `model.safetensors` and its like are named by their folder.
fn version(path: &Path) -> Option<u8> {
    let lower = |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().to_lowercase();
    let of = |name: &str| {
        let second = ["beitv2", "beit_v2", "beit-v2", "beit2"];
        let first = [
            "beit_base",
            "beit-base",
            "beit_large",
            "beit-large",
            "beit_tiny",
            "beit_small",
            "beit_huge",
            "beit_giant",
        ];
        match () {
            () if second.iter().any(|part| name.contains(part)) => Some(2),
            () if first.iter().any(|part| name.contains(part)) => Some(1),
            () => None,
        }
    };
    let file = lower(path.file_name());
    let general = ["model.", "pytorch_model.", "checkpoint"].iter().any(|start| file.starts_with(start));
    of(&file).or_else(|| if general { of(&lower(path.parent().and_then(Path::file_name))) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_version() {
        for (name, expected) in [
            ("beitv2_base_patch16_224_pt1k_ft1k.pth", Some(2)),
            ("timm/beitv2_base_patch16_224.in1k_ft_in1k/model.safetensors", Some(2)),
            ("beit_base_patch16_224_pt22k_ft22kto1k.pth", Some(1)),
            ("beit-base-patch16-224/pytorch_model.bin", Some(1)),
            ("beit_base/mine.pth", None),
            ("model.safetensors", None),
        ] {
            assert_eq!(version(Path::new(name)), expected, "{name}");
        }
    }
}
